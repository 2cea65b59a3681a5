"""What the drop-in for Keras is asked on one backend: KERAS_BACKEND=torch python -m tests.drop_in.keras_cases

Keras chooses its backend when it is imported; test_keras.py runs this once for each, and reads what went wrong.
"""

import functools
import itertools
import json
import sys
import tempfile
import traceback
import types
import unittest
import warnings

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.losses import losses_test

from maskloss.drop_in import keras as drop_in
from tests.drop_in.differences import rows

BACKEND = keras.backend.backend()
SPARSE, DENSE = "SparseCategoricalCrossentropy", "CategoricalCrossentropy"
FUNCTIONS = "sparse_categorical_crossentropy", "categorical_crossentropy"
# The labels have probability 1/2, 1/8, 1/4 and 1/8: losses are bits, log 2 times 1, 3, 2 and 3.
P = np.asarray([[8, 4, 4], [2, 2, 12], [4, 8, 4], [8, 6, 2]], "float32") / 16
X, Y, BIT = np.log(P), np.asarray([0, 1, 0, 2]), float(np.log(2))
BITS = BIT * np.asarray([1, 3, 2, 3])
ROWS = np.stack([P[:3], P[1:]]), np.stack([Y[:3], Y[1:]])  # two sequences of three
SQUARE = np.stack([P[:2], P[2:]]), np.stack([Y[:2], Y[2:]])  # two of two
EYE = np.eye(3, dtype="float32")
LOGITS = {"from_logits": True}
EACH = {"from_logits": True, "reduction": None}


def outcome(function):
    try:
        result = function()
        return result if isinstance(result, dict) else np.asarray(ops.convert_to_numpy(result))
    except Exception as error:
        return error


def answers(name, y_true, y_pred, sample_weight=None, mask=None, **options):
    """Of Keras, of the drop-in by default, and of the drop-in with Keras' quirks: arrays, or the errors."""

    def answer(module, **quirks):
        if name in FUNCTIONS:
            return getattr(module, name)(y_true, y_pred, **options, **quirks)
        x = y_pred
        if mask is not None:
            x = ops.convert_to_tensor(y_pred) * 1
            set_keras_mask(x, ops.convert_to_tensor(mask))
        return getattr(module, name)(**options, **quirks)(y_true, x, sample_weight=sample_weight)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            outcome(functools.partial(answer, keras.losses)),
            outcome(functools.partial(answer, drop_in)),
            outcome(functools.partial(answer, drop_in, quirks="theirs")),
        ]


def close(first, second, digits=2e-6):
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    return first.shape == second.shape and np.allclose(first, second, rtol=digits, atol=digits, equal_nan=True)


def equal(first, second, digits=2e-6):
    if isinstance(first, Exception) or isinstance(second, Exception):
        return isinstance(second, Exception) and isinstance(second, type(first))
    return first.dtype == second.dtype and close(first, second, digits)


def check(theirs, ours, *call, digits=2e-6, **options):
    """That Keras, and the drop-in with its quirks, answer `theirs`, and the drop-in `ours`: an array, or an error."""
    found, by_default, with_quirks = answers(*call, **options)
    for expected, answer in ((theirs, found), (ours, by_default), (theirs, with_quirks)):
        if isinstance(expected, type):
            assert isinstance(answer, expected), repr(answer)
        else:
            assert not isinstance(answer, Exception), repr(answer)
            assert close(expected, answer, digits), (expected, answer)


def case_one_answer_for_many_options():
    mask = np.asarray([[True, False, True], [True, True, True]])
    weights = np.asarray([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]], "float32")
    reductions = "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None, "none"
    p, y = ROWS
    for logits, reduction, w, kept in itertools.product(
        (False, True), reductions, (None, weights, weights[..., None], weights[:, :1], weights[0]), (None, mask)
    ):
        if reduction in ("mean", "none") and (w is not None or kept is not None):
            continue  # other names of sum_over_batch_size and None
        if BACKEND == "jax" and not logits and (w is not None or kept is not None):
            continue  # each of these compiles; the other backends have them all
        narrow = w is not None and w.shape != weights.shape and w.ndim < 3
        if narrow and (reduction == "mean_with_sample_weight" or (kept is not None and BACKEND != "jax")):
            continue  # differences: unbroadcast_divisor, weights_beside_a_mask
        narrow = w is not None and w.shape in ((2, 1), (3,))
        options = {"from_logits": logits, "reduction": reduction, "sample_weight": w, "mask": kept}
        x = np.log(p) if logits else p
        for ignored in (None, 2):
            if ignored is not None and narrow and BACKEND != "jax":
                continue
            theirs, ours, with_quirks = answers(SPARSE, y, x, ignore_class=ignored, **options)
            assert equal(theirs, ours), (options, ignored, theirs, ours)
            assert equal(theirs, with_quirks), (options, ignored, theirs, with_quirks)
        for smoothing in (0.0, 0.1):
            theirs, ours, with_quirks = answers(DENSE, EYE[y], x, label_smoothing=smoothing, **options)
            assert equal(theirs, ours), (options, smoothing, theirs, ours)
            assert equal(theirs, with_quirks), (options, smoothing, theirs, with_quirks)


def case_one_answer_for_many_shapes():
    p, y = ROWS
    for name, y_true, y_pred, options in (
        (SPARSE, Y[:, None], P, {}),
        (SPARSE, y[..., None], p, {}),
        (SPARSE, Y.astype("float32"), P, {}),
        (SPARSE, Y.astype("uint8"), P, {}),
        (SPARSE, Y > 0, P, {}),
        (SPARSE, np.asarray(0), P[0], {}),
        (SPARSE, np.zeros(4), P[:, :1], {}),
        (SPARSE, Y, 2 * P, {"sample_weight": 0.5}),
        (SPARSE, Y, P, {"sample_weight": np.ones((4, 1)), "ignore_class": 2}),
        (SPARSE, Y * 0 + 2, P, {"ignore_class": 2}),
        (SPARSE, Y, P, {"sample_weight": np.zeros(4), "reduction": "mean_with_sample_weight"}),
        (SPARSE, np.asarray([0, 1]), np.asarray([[0, 1], [0, 1]], "float32"), {}),  # clipped
        (DENSE, EYE[Y].astype(int), P, {}),
        (DENSE, 3 * EYE[Y] + 1, P, {}),
        (DENSE, EYE[Y] == 1, X, LOGITS),
        (DENSE, EYE[y].swapaxes(1, 2), p.swapaxes(1, 2), {"axis": 1}),
        (DENSE, P[:, :1], P[:, :1], {}),
        *((name, (Y, EYE[Y])[i], P, {}) for i, name in enumerate(FUNCTIONS)),
        *((name, (Y, EYE[Y])[i], X, LOGITS) for i, name in enumerate(FUNCTIONS)),
        (FUNCTIONS[0], Y, P, {"ignore_class": 2}),
        (FUNCTIONS[1], EYE[Y], P, {"label_smoothing": 0.1}),
    ):
        theirs, ours, with_quirks = answers(name, y_true, y_pred, **options)
        assert not isinstance(theirs, Exception), (name, options, theirs)
        assert equal(theirs, ours), (name, options, theirs, ours)
        assert equal(theirs, with_quirks), (name, options, theirs, with_quirks)
    # What is certain is clipped to 1 - epsilon, and has a loss, though a small one.
    theirs, ours, with_quirks = answers(FUNCTIONS[0], np.asarray([1]), np.asarray([[0, 1]], "float32"))
    assert 0 < theirs == ours == with_quirks
    for quirks in ({}, {"quirks": "theirs"}):
        losses = getattr(drop_in, FUNCTIONS[0])(ops.convert_to_tensor(Y), P, ignore_class=0, **quirks)
        assert ops.convert_to_numpy(get_keras_mask(losses)).tolist() == [False, True, False, True]


def case_what_keras_refuses_is_refused():
    p, _ = ROWS
    for name, y_true, y_pred, options, argument in (
        (SPARSE, Y[:3], P, {}, "y_true"),
        (SPARSE, SQUARE[1], P, {}, "y_true"),
        (SPARSE, Y, P, {"axis": 5}, "axis"),
        (SPARSE, np.asarray(0), np.asarray(1.0), {}, "axis"),
        (SPARSE, Y, P, {"ignore_class": "a"}, "ignore_class"),
        (DENSE, EYE[Y][:3], P, {}, "y_true"),
        (DENSE, Y, P, {}, "y_true"),
        (DENSE, EYE[Y], P, {"axis": True}, "axis"),
        (DENSE, EYE[Y], P, {"axis": -3}, "axis"),
        (DENSE, EYE[Y], P, {"label_smoothing": "a"}, "label_smoothing"),
        (FUNCTIONS[1], EYE[Y], p, {}, "y_true"),
    ):
        theirs, ours, with_quirks = answers(name, y_true, y_pred, **options)
        assert isinstance(theirs, Exception), (name, options)
        assert equal(theirs, ours), (name, options, theirs, ours)
        assert equal(theirs, with_quirks), (name, options, theirs, with_quirks)
        assert str(ours).startswith(f"{argument} is "), ours
    for name, reduction in itertools.product((SPARSE, DENSE), ("bad", 1)):
        theirs, ours, _ = answers(name, Y, P, reduction=reduction)
        assert isinstance(theirs, ValueError)
        assert isinstance(ours, ValueError)
    for name, (quirks, error) in itertools.product((SPARSE, DENSE), (("ours", ValueError), (True, TypeError))):
        assert isinstance(outcome(lambda: getattr(drop_in, name)(quirks=quirks)), error)  # noqa: B023


def case_a_model_learns_the_same():
    """Masks of an Embedding, weights of samples, integer labels: the same history and the same parameters."""
    if BACKEND == "numpy":
        return  # Keras does not train there
    words = np.asarray([[1, 2, 3, 0], [4, 5, 0, 0], [2, 3, 4, 5]])
    labels = words % 3
    weights = np.asarray([[1.0], [2.0], [0.5]], "float32") * np.ones((3, 4), "float32")
    for loss in (
        {"from_logits": True},
        {"from_logits": True, "ignore_class": 2, "reduction": "sum"},
        {"from_logits": False, "reduction": "mean_with_sample_weight"},
    ):
        trained = []
        for module, quirks in ((keras.losses, {}), (drop_in, {}), (drop_in, {"quirks": "theirs"})):
            keras.utils.set_random_seed(0)
            last = None if loss["from_logits"] else "softmax"
            layers = [keras.layers.Embedding(6, 4, mask_zero=True), keras.layers.Dense(3, activation=last)]
            model = keras.Sequential([keras.Input((4,)), *layers])
            model.compile(keras.optimizers.SGD(0.5), getattr(module, SPARSE)(**loss, **quirks))
            history = model.fit(words, labels, sample_weight=weights, epochs=2, batch_size=2, shuffle=False, verbose=0)
            trained.append([np.asarray(history.history["loss"]), *model.get_weights()])
        for other in trained[1:]:
            assert all(close(a, b, 1e-5) for a, b in zip(trained[0], other, strict=True)), (loss, trained)
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model.keras")
            again = keras.models.load_model(f"{folder}/model.keras")
        assert type(again.loss) is getattr(drop_in, SPARSE)
        assert again.loss.get_config() == model.loss.get_config()


def case_configurations_return():
    for name, options in (
        (SPARSE, {"from_logits": True, "ignore_class": 3, "axis": 1, "dtype": "float16"}),
        (DENSE, {"label_smoothing": 0.1, "axis": 0, "reduction": "sum", "name": "a"}),
    ):
        loss = getattr(drop_in, name)(**options)
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
        again = keras.saving.deserialize_keras_object(saved)
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()
        assert options.items() <= again.get_config().items()


def case_the_comparison_can_fail():
    assert not equal(X, X + 1e-4)
    assert not equal(X, X.astype("float64"))
    assert not equal(TypeError(), ValueError())
    assert not equal(ValueError(), X)


def difference_label_of_no_class():
    there = {
        "torch": {-1: IndexError, 7: IndexError, -100: [0, *BITS[1:]]},
        "jax": {-1: [0, *BITS[1:]], 7: [0, *BITS[1:]], -100: [0, *BITS[1:]]},
        "numpy": {-1: [0, *BITS[1:]], 7: IndexError, -100: [0, *BITS[1:]]},
    }
    for label, theirs in there[BACKEND].items():
        labels = np.asarray([label, *Y[1:]])
        check(theirs, IndexError, SPARSE, labels, X, **EACH)
        check(theirs, IndexError, SPARSE, labels, P, reduction=None)
        assert f"y_true[0] is {label}, none of the classes [0, 3)" in str(answers(SPARSE, labels, P)[1])
        of_no_weight = answers(SPARSE, labels, P, sample_weight=np.asarray([0.0, 1.0, 1.0, 1.0]), reduction=None)[1]
        assert close(of_no_weight, [0, *BITS[1:]])
    if BACKEND == "jax":
        import jax

        for name in ("from_logits", "reduction"):
            options = {"reduction": None, name: name == "from_logits" or None}
            inside = jax.jit(getattr(drop_in, SPARSE)(**options))(
                np.asarray([7, *Y[1:]]), X if options.get("from_logits") else P
            )
            assert close(inside, [np.nan, *BITS[1:]])


def difference_wide_label():
    labels = np.asarray([2**32, *Y[1:]])
    check(IndexError if BACKEND == "torch" else BITS, IndexError, FUNCTIONS[0], labels, P)


def difference_fractional_label():
    check(BITS, IndexError, SPARSE, np.asarray([0.7, 1, 0, 2]), P, reduction=None)
    ours = answers(SPARSE, np.asarray([0.5, 1, 0, 2]), P, ignore_class=-1)[1]
    assert "y_true[0] is 0.5, none of the classes" in str(ours)


def difference_labels_are_cast():
    logits = np.zeros((1, 300), "float32")
    logits[0, 256] = 5
    lse = np.log(299 + np.exp(5))
    bfloat16 = {"from_logits": True, "dtype": "bfloat16"}
    check(lse - 5, lse, SPARSE, np.asarray([257]), logits, digits=0.05, **bfloat16)
    check([0], [lse - 5], SPARSE, np.asarray([256]), logits, digits=0.02, ignore_class=257, reduction=None, **bfloat16)


def difference_labels_of_few_digits():
    logits = np.zeros((1, 300), "float32")
    labels = ops.cast(np.asarray([257]), "bfloat16")
    check(np.log(300), ValueError, SPARSE, labels, logits, **LOGITS)


def difference_fractional_ignore_class():
    check(BITS, ValueError, SPARSE, Y, P, ignore_class=1.5, reduction=None)


def difference_lists():
    check(Exception, BITS, SPARSE, Y.tolist(), P.tolist(), reduction=None)
    check(AttributeError, BITS, FUNCTIONS[0], Y.tolist(), P)


def gradient(function, x):
    """By x, of a number; None where Keras has none."""
    if BACKEND == "torch":
        x = ops.convert_to_tensor(x).requires_grad_()
        function(x).backward()
        return x.grad.numpy()
    if BACKEND == "jax":
        import jax

        return np.asarray(jax.grad(function)(ops.convert_to_tensor(x)))
    return None


def difference_nan_of_weight_zero():
    weights = np.asarray([1.0, 0.0, 1.0, 1.0])
    for (name, labels), options in itertools.product(((SPARSE, Y), (DENSE, EYE[Y])), (LOGITS, {})):
        loss, broken = getattr(drop_in, name)(**options), (X if options else P).copy()
        of_whole = gradient(lambda x: loss(labels, x, sample_weight=weights), broken)  # noqa: B023
        broken[1] = np.nan
        if name == DENSE:
            labels = labels.copy()
            labels[1] = np.nan
        found = gradient(lambda x: loss(labels, x, sample_weight=weights), broken)  # noqa: B023
        if found is not None:
            assert not of_whole[1].any()
            assert close(found, of_whole)
    for name, labels in ((SPARSE, Y), (DENSE, EYE[Y])):
        for broken, options in ((X, LOGITS), (P, {})):
            broken = broken.copy()
            broken[1] = np.nan
            ours = BITS[[0, 2, 3]].sum() / 4
            check(np.nan, ours, name, labels, broken, sample_weight=np.asarray([1.0, 0.0, 1.0, 1.0]), **options)
            kept = np.asarray([True, False, True, True])
            check(np.nan, ours * 4 / 3, name, labels, broken, mask=kept, **options)


def difference_unbroadcast_divisor():
    options = {"reduction": "mean_with_sample_weight"}
    check(BITS.sum() / 1, BITS.sum() / 4, SPARSE, Y, P, sample_weight=0.5 * np.ones(()) * 2, **options)
    p, y = SQUARE
    check(BITS.sum() / 2, BITS.sum() / 4, SPARSE, y, p, sample_weight=np.ones((2, 1)), **options)
    check(BITS.sum() / 2, BITS.sum() / 4, DENSE, EYE[y], p, sample_weight=np.ones((2, 1)), **options)
    check(BITS.sum() / 2, BITS.sum() / 4, SPARSE, y, p, mask=np.ones((2, 1), bool), **options)


def difference_square_weights():
    p, y = SQUARE
    theirs = (BITS * np.asarray([1, 0, 1, 0])).reshape(2, 2)
    check(theirs, ValueError, SPARSE, y, p, sample_weight=np.asarray([1.0, 0.0]), reduction=None)
    assert "give it both axes" in str(answers(SPARSE, y, p, sample_weight=np.asarray([1.0, 0.0]))[1])
    check(theirs, ValueError, SPARSE, y, p, mask=np.asarray([True, False]), reduction=None)
    p, y = ROWS
    theirs, ours, _ = answers(SPARSE, y, p, sample_weight=np.asarray([1.0, 0.0]))
    assert isinstance(theirs, Exception)  # of the backend, where the sizes are not the same
    assert isinstance(ours, ValueError)


def difference_weights_larger_than_the_entries():
    check(BITS.sum() / 4, ValueError, SPARSE, Y, P, sample_weight=np.ones((2, 4)))
    check(BIT * (1 + 2) / 2, ValueError, SPARSE, np.asarray(0), P[0], sample_weight=np.asarray([1.0, 2.0]))
    check(BITS.sum() / 4, ValueError, SPARSE, Y, P, sample_weight=np.ones((4, 1, 1)))


def difference_weights_in_a_column():
    check(BITS[:, None], BITS, SPARSE, Y, P, sample_weight=np.ones((4, 1)), reduction=None)
    check(BITS[:, None], BITS, SPARSE, Y, P, mask=np.ones((4, 1), bool), reduction=None)


def difference_weights_beside_a_mask():
    p, y = SQUARE
    theirs = {"torch": RuntimeError, "numpy": ValueError}
    ours = BIT * 0.5 * (3 + 3) / 2
    check(theirs.get(BACKEND, ours), ours, SPARSE, y, p, sample_weight=0.5 * np.ones((2, 1), "float32"), ignore_class=0)
    check(theirs.get(BACKEND, ours), ours, SPARSE, y, p, sample_weight=0.5, ignore_class=0)


def difference_weights_are_written_to():
    written = BACKEND == "torch"
    for module, quirks, is_written in (
        (keras.losses, {}, written),
        (drop_in, {}, False),
        (drop_in, {"quirks": "theirs"}, written),
    ):
        weights = ops.ones(4)
        getattr(module, SPARSE)(ignore_class=0, **quirks)(Y, P, sample_weight=weights)
        assert close(ops.convert_to_numpy(weights), [0, 2, 0, 2] if is_written else [1, 1, 1, 1])


def difference_empty_batch():
    for reduction in ("sum", "mean", "mean_with_sample_weight"):
        check(np.zeros(0), 0, SPARSE, Y[:0], P[:0], reduction=reduction)
        check(np.zeros(0), 0, DENSE, P[:0], P[:0], reduction=reduction)


def difference_smoothing_along_another_axis():
    # All logits 0 but one: a target of 1 - s + s / k at the label, where k should be 3 classes, and is 2 entries.
    logits, labels = np.zeros((1, 3, 2), "float32"), np.zeros((1, 3, 2), "float32")
    labels[:, 0] = 1
    # sum q * log 3, with q of the sum 1 - s + 3 s / k
    check(
        np.log(3) * (1 - 0.1 + 0.15) * np.ones((1, 2)),
        np.log(3) * np.ones((1, 2)),
        DENSE,
        labels,
        logits,
        axis=1,
        label_smoothing=0.1,
        **EACH,
    )
    check(
        np.log(3) * (1 - 0.1 + 0.15) * np.ones((1, 2)),
        np.log(3) * np.ones((1, 2)),
        DENSE,
        labels,
        logits + 1,
        axis=1,
        label_smoothing=0.1,
        reduction=None,
    )


def difference_smoothing_outside_its_range():
    # q = 1 - 1.5 + 0.5 at the label and 0.5 elsewhere
    theirs = -0.5 * (X.sum(-1) - X[range(4), Y])
    check(theirs, ValueError, DENSE, EYE[Y], X, label_smoothing=1.5, **EACH)
    check(theirs, ValueError, DENSE, EYE[Y], P, label_smoothing=1.5, reduction=None)


def difference_class_axis():
    p, y = ROWS
    p, y, ours = p[:, :2].swapaxes(1, 2), y[:, :2], np.stack([BITS[:2], BITS[1:3]])
    check(ours if BACKEND == "torch" else ValueError, ours, SPARSE, y, p, axis=1, reduction=None)
    check(ours if BACKEND == "torch" else ValueError, ours, SPARSE, y, np.log(p), axis=1, **EACH)
    check(ours if BACKEND == "torch" else ValueError, ours, SPARSE, y[:, None], p, axis=1, reduction=None)


def difference_one_class_of_sequences():
    check(ValueError, 0, SPARSE, np.zeros((2, 3)), np.ones((2, 3, 1)))


def difference_zero_label_at_minus_infinity():
    logits = X.copy()
    logits[0, 2] = -np.inf
    ours = [np.log(3 / 2), *BITS[1:]]  # 2/3 of what is left
    check([np.nan, *BITS[1:]], ours, DENSE, EYE[Y], logits, **EACH)
    check(ours if BACKEND == "torch" else [np.nan, *BITS[1:]], ours, SPARSE, Y, logits, **EACH)


def difference_no_class_is_possible():
    logits = X.copy()
    logits[0] = -np.inf
    for name, labels in ((SPARSE, Y), (DENSE, EYE[Y])):
        check([np.nan, *BITS[1:]], [np.inf, *BITS[1:]], name, labels, logits, **EACH)


def difference_no_classes():
    theirs = {"torch": IndexError, "jax": np.zeros(4), "numpy": ValueError}
    if BACKEND != "numpy":
        check(theirs[BACKEND], ValueError, SPARSE, Y, P[:, :0], **EACH)
        check(np.zeros(4), ValueError, DENSE, P[:, :0], P[:, :0], **EACH)


def difference_half_precision():
    # 512 entries that cost the same; the loss of each is rounded to 8 bits there, and their sum again.
    logits = np.zeros((512, 13700), "float32")
    labels = np.zeros(512, "int64")
    right = np.log(13700)
    bfloat16 = ops.cast(logits, "bfloat16")
    theirs, ours, with_quirks = (
        module(labels, bfloat16, from_logits=True, **quirks)
        for module, quirks in (
            (getattr(keras.losses, FUNCTIONS[0]), {}),
            (getattr(drop_in, FUNCTIONS[0]), {}),
            (getattr(drop_in, FUNCTIONS[0]), {"quirks": "theirs"}),
        )
    )
    kinds = [keras.backend.standardize_dtype(x.dtype) for x in (theirs, ours, with_quirks)]
    there = "bfloat16" if BACKEND == "torch" else "float32"  # of numbers that were rounded to bfloat16
    assert kinds == [there, "float32", there]
    assert close(ops.convert_to_numpy(ours), right * np.ones(512))
    theirs, with_quirks = (ops.convert_to_numpy(ops.cast(x, "float32")) for x in (theirs, with_quirks))
    assert close(theirs, with_quirks)
    # NumPy adds exponentials in bfloat16, where 256 + 1 is 256.
    assert close(theirs, np.log(256 if BACKEND == "numpy" else 13700) * np.ones(512), 0.01)
    assert not close(theirs, right * np.ones(512), 1e-4)
    mean = getattr(drop_in, SPARSE)(dtype="bfloat16", from_logits=True)(labels, logits)
    assert keras.backend.standardize_dtype(mean.dtype) == "bfloat16"
    assert float(ops.cast(mean, "float32")) == 9.5  # the number of bfloat16 nearest to 9.525


def difference_double_precision():
    if BACKEND == "jax":
        return  # without x64 there is none
    options = {"from_logits": True, "dtype": "float64"}
    theirs, ours, with_quirks = answers(SPARSE, Y, X, **options)
    assert [x.dtype.name for x in (theirs, ours, with_quirks)] == ["float32", "float64", "float32"]
    assert equal(theirs, with_quirks)
    assert close(ours, BITS.mean())
    third = answers(SPARSE, Y[:1], np.zeros((1, 3)), sample_weight=1 / 3, **options)[1]
    assert close(third, np.log(3) / 3, 1e-15)


def difference_saved_options():
    for module, quirks, kept in (
        (keras.losses, {}, False),
        (drop_in, {}, True),
        (drop_in, {"quirks": "theirs"}, False),
    ):
        sparse = getattr(module, SPARSE)(axis=1, dtype="float64", **quirks).get_config()
        dense = getattr(module, DENSE)(axis=1, dtype="float64", **quirks).get_config()
        assert [sparse.get("axis"), sparse.get("dtype")] == ([1, "float64"] if kept else [None, None])
        assert [dense.get("axis"), dense.get("dtype")] == [1, "float64" if kept else None]


def own_tests(quirks):
    """What goes wrong in each of Keras' tests of the two losses, with the drop-ins in their place."""
    module = types.SimpleNamespace(**vars(losses_test.losses))
    for name in (SPARSE, DENSE, *FUNCTIONS):
        setattr(module, name, functools.partial(getattr(drop_in, name), quirks=quirks))
    losses_test.losses = module
    loader, errors = unittest.defaultTestLoader, {}
    for case in (losses_test.CategoricalCrossentropyTest, losses_test.SparseCategoricalCrossentropyTest):
        for name in loader.getTestCaseNames(case):
            marks = getattr(getattr(case, name), "pytestmark", ())
            result = unittest.TestResult()
            if not any(mark.name == "skipif" and mark.args[0] for mark in marks):
                case(name).run(result)
                errors[f"{case.__name__}.{name}"] = "\n".join(text for _, text in result.errors + result.failures)
    return errors


def went_wrong(function):
    try:
        function()
    except Exception:
        return traceback.format_exc()
    return ""


def main():
    functions = {name: f for name, f in globals().items() if name.startswith(("case_", "difference_"))}
    shown = {name.removeprefix("difference_") for name in functions if name.startswith("difference_")}
    assert shown == rows("keras"), shown ^ rows("keras")
    warnings.simplefilter("ignore")
    report = {
        "cases": {name: went_wrong(f) for name, f in functions.items()},
        "own": {str(quirks): own_tests(quirks) for quirks in (None, "theirs")},
    }
    print(json.dumps(report), file=sys.__stdout__)


if __name__ == "__main__":
    main()
