"""NumPy's commonest small call, which goes around the engine: the answers are the engine's, and so are the errors."""

import functools

import numpy as np
import pytest

import maskloss as ml
from maskloss._bindings import numpy as binding

ROWS, CLASSES, IGNORED = 24, 7, -3
RNG = np.random.default_rng(5)
LOGITS, LABELS, MASK = RNG.normal(size=(ROWS, CLASSES)), RNG.integers(0, CLASSES, ROWS), RNG.random(ROWS) < 0.5
HOLED = np.where(RNG.random(ROWS) < 0.3, IGNORED, LABELS)
OPTIONS = {
    "all": {},
    "mask": {"mask": MASK},
    "ignored": {"labels": HOLED, "ignore_index": IGNORED},
    "both": {"labels": HOLED, "ignore_index": IGNORED, "mask": MASK},
    "a class ignored": {"ignore_index": 2},
    "not a number where not kept": {
        "logits": np.where(MASK[:, None], LOGITS, np.nan),
        "labels": np.where(MASK, LABELS, 99),
        "mask": MASK,
    },
    "two entry axes": {
        "logits": LOGITS.reshape(4, 6, CLASSES),
        "labels": LABELS.reshape(4, 6),
        "mask": MASK.reshape(4, 6),
        "axis": 2,
    },
}


def expected(logits, labels, mask=True, ignore_index=None, axis=-1, reduction="mean"):
    """-log p_y and (p - [c = y]) / divisor in the rows that are kept."""
    keep = np.broadcast_to(mask, labels.shape) & (labels != ignore_index)
    x = np.where(keep[..., None], logits, 0.0).astype(np.float64)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    at_label = np.arange(CLASSES) == np.where(keep, labels, 0)[..., None]
    losses = np.where(keep, -np.log(p[at_label].reshape(labels.shape)), 0.0)
    divisor = {"none": 1, "sum": 1, "mean_over_all": keep.size}.get(reduction, keep.sum())
    gradient = np.where(keep[..., None], p - at_label, 0.0) / divisor
    return losses if reduction == "none" else losses.sum() / divisor, gradient


@pytest.fixture(params=["small", "engine"])
def way(request, monkeypatch):
    if request.param == "engine":
        monkeypatch.setattr(binding, "SMALL", 0)
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "mean_over_kept", "mean_over_all"])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients(way, name, reduction, dtype):
    given = {"logits": LOGITS, "labels": LABELS, **OPTIONS[name], "reduction": reduction}
    want, want_gradient = expected(**given)
    logits, labels = given.pop("logits").astype(dtype), given.pop("labels")
    value = ml.cross_entropy(logits, labels, **given)
    assert type(value) is np.ndarray
    assert value.dtype == dtype
    np.testing.assert_allclose(value, want, rtol=4 * np.finfo(dtype).eps)
    if reduction != "none":
        again, gradient = ml.value_and_grad(ml.cross_entropy)(logits, labels, **given)
        assert type(again) is np.ndarray
        assert again == value
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, want_gradient, rtol=1e-5, atol=np.finfo(dtype).eps / 4)
        assert not gradient[want_gradient == 0].any()


def answers(*given, **options):
    """What is returned or raised, forward and with the gradient."""
    for function in (ml.cross_entropy, ml.value_and_grad(ml.cross_entropy)):
        try:
            yield function(*given, **options)
        except (TypeError, ValueError) as error:
            yield type(error), str(error)


BIG, ODD = np.full((2, 3), 500.0), np.asarray([[np.inf, 0.0, 1.0], [np.nan, 1.0, 2.0]])
PAIR = np.asarray([0, 2])
OTHERS = {
    "beyond the range of exp": (BIG, PAIR, {}),
    "a label far below": (np.asarray([[-60.0, 40.0]], np.float32), PAIR[:1], {}),
    "below the range of exp": (np.asarray([[-100.0, -99.5]], np.float32), PAIR[:1], {}),
    "labels of other bytes": (np.zeros((2, 3)), PAIR.astype(">i8"), {}),
    "infinite": (ODD, PAIR, {}),
    "label beyond the classes": (np.zeros((2, 3)), PAIR + 1, {}),
    "negative label": (np.zeros((2, 3)), PAIR - 1, {}),
    "nothing kept": (BIG, PAIR, {"mask": np.zeros(2, bool)}),
    "no entry": (BIG[:0], PAIR[:0], {}),
    "mask of integers": (ODD, PAIR, {"mask": np.asarray([0, 0])}),
    "other bytes": (ODD.astype(">f8"), PAIR.astype(">i8"), {}),
    "classes first": (np.arange(6.0).reshape(3, 2), PAIR, {"axis": 0}),
    "a view": (np.arange(12.0).reshape(2, 6)[:, ::2], PAIR, {}),
    "unknown reduction": (BIG, PAIR, {"reduction": "median"}),
    "a reduction that is none": (BIG, PAIR, {"reduction": ["mean"]}),
    "ignore_index that is True": (np.zeros((2, 3)), PAIR, {"ignore_index": True}),
    "axis that is a float": (np.zeros((2, 3)), PAIR, {"axis": -1.0}),
    "over sequences": (np.zeros((2, 3)), PAIR, {"reduction": "mean_over_sequences"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_the_engines(monkeypatch, name):
    *given, options = OTHERS[name]
    found = [*answers(*given, **options)]
    monkeypatch.setattr(binding, "SMALL", 0)
    np.testing.assert_equal(found, [*answers(*given, **options)])


def test_a_partial_and_places():
    """What value_and_grad is asked for in other words."""
    labels, weights = PAIR, np.ones(2)
    whole = ml.value_and_grad(ml.cross_entropy)(BIG / 500, labels, reduction="sum")
    calls = [
        ml.value_and_grad(functools.partial(ml.cross_entropy, reduction="sum"))(BIG / 500, labels),
        ml.value_and_grad(functools.partial(ml.cross_entropy, BIG / 500), "weights")(
            labels, weights=weights, reduction="sum"
        ),
        ml.value_and_grad(ml.cross_entropy, (0,))(BIG / 500, labels, reduction="sum"),
    ]
    assert [float(value) for value, _ in calls] == [float(whole[0])] * 3
    np.testing.assert_array_equal(calls[0][1], whole[1])
    np.testing.assert_allclose(calls[1][1], np.log(3), rtol=1e-15)
    np.testing.assert_array_equal(calls[2][1][0], whole[1])


def test_what_stands_for_an_array(way):
    """A parameter of Flax whose value is NumPy's, to differentiate by."""

    class Parameter:
        def __jax_array__(self):
            return LOGITS

    value, gradient = ml.value_and_grad(ml.cross_entropy)(Parameter(), LABELS)
    whole = ml.value_and_grad(ml.cross_entropy)(LOGITS, LABELS)
    assert value == whole[0]
    np.testing.assert_array_equal(gradient, whole[1])
