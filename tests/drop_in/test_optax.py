"""The drop-in for Optax answers as Optax does; where it does not, a row says so, and a test here shows both answers."""

import sys
from functools import partial

import pytest

np = pytest.importorskip("numpy")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from maskloss.drop_in import optax as drop_in  # noqa: E402
from tests.drop_in.differences import rows, shown_in  # noqa: E402

pytestmark = pytest.mark.of_backend("jax")
INTEGER, SOFT, SAFE = NAMES = (
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
)
# Entries of three classes with probabilities (1/2, 1/4, 1/4) and (1/8, 1/8, 3/4): losses are bits, log 2 times a count.
LOGITS = jnp.log(jnp.asarray([[2.0, 1.0, 1.0], [1.0, 1.0, 6.0]]))
LABELS = jnp.asarray([0, 1])
ONE_HOT = jax.nn.one_hot(LABELS, 3)
KEPT = jnp.asarray([True, False])
ALLOWED = jnp.asarray([[True, False, True], [True, True, True]])
BIT = np.log(2)
CUBE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
CUBE_LABELS = jax.nn.softmax(CUBE[::-1], axis=1)
OF_CUBE = jnp.asarray([[0, 2, 1, 1], [2, 2, 0, 1]])


def answers(name, *args, **kwargs):
    """Of Optax, of the drop-in by default, and of the drop-in with Optax' quirks: arrays, or the errors."""
    functions = getattr(optax, name), getattr(drop_in, name), partial(getattr(drop_in, name), quirks="theirs")
    return [answer(function, *args, **kwargs) for function in functions]


def answer(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def equal(first, second):
    """Both arrays of one dtype that agree to 2e-6, or an error and one that catches it."""
    if isinstance(first, Exception) or isinstance(second, Exception):
        return isinstance(second, Exception) and isinstance(second, type(first))
    digits = 2e-6 if first.dtype != jnp.bfloat16 else 2**-6
    return first.dtype == second.dtype and first.shape == second.shape and close(first, second, digits)


def close(first, second, digits=2e-6):
    first, second = np.asarray(first, np.complex128), np.asarray(second, np.complex128)
    return first.shape == second.shape and np.allclose(first, second, rtol=digits, atol=digits, equal_nan=True)


SAME = {
    "one entry": (INTEGER, LOGITS[0], LABELS[0]),
    "a batch": (INTEGER, LOGITS, LABELS),
    "a mask of entries": (INTEGER, LOGITS, LABELS, -1, KEPT),
    "a mask of classes": (INTEGER, LOGITS, LABELS, -1, ALLOWED),
    "an entry without classes": (INTEGER, LOGITS, LABELS, -1, KEPT[:, None] & ALLOWED),
    "NaN where masked": (INTEGER, LOGITS.at[1].set(jnp.nan), LABELS, -1, KEPT),
    "a masked label of no class": (INTEGER, LOGITS, jnp.asarray([0, -100]), -1, KEPT),
    "small unsigned labels": (INTEGER, LOGITS, LABELS.astype(jnp.uint8)),
    "a label for all": (INTEGER, LOGITS, jnp.asarray([1])),
    "logits for all": (INTEGER, LOGITS[:1], jnp.asarray([0, 1, 2, 2])),
    "NumPy": (INTEGER, np.asarray(LOGITS, np.float64), np.asarray(LABELS), -1, np.asarray(KEPT)),
    "no entries": (INTEGER, LOGITS[:0], LABELS[:0]),
    "axis 1": (INTEGER, CUBE, OF_CUBE, 1),
    "axis 1, and a mask": (INTEGER, CUBE, OF_CUBE, 1, OF_CUBE != 2),
    "two class axes": (INTEGER, CUBE, jnp.asarray([11, 5]), (1, 2)),
    "two class axes in the other order, and a mask": (INTEGER, CUBE, jnp.asarray([11, 5]), (-1, 1), KEPT),
    "two class axes, a mask of classes": (
        INTEGER,
        CUBE,
        jnp.asarray([1, 1, 1]),
        (2, 0),
        jnp.arange(24).reshape(2, 3, 4) % 5 != 4,
    ),
    "no class axes": (INTEGER, LOGITS, jnp.zeros((2, 3), int), ()),
    "a truth value for an axis": (INTEGER, LOGITS, LABELS, True),
    "distributions": (SOFT, LOGITS, jax.nn.softmax(LOGITS[::-1])),
    "of no sum": (SOFT, LOGITS, 3 * LOGITS + 1),
    "integer one-hot": (SOFT, LOGITS, ONE_HOT.astype(int)),
    "bool one-hot": (SOFT, LOGITS, ONE_HOT.astype(bool)),
    "a distribution for all": (SOFT, LOGITS, ONE_HOT[0]),
    "logits for all distributions": (SOFT, LOGITS[0], ONE_HOT),
    "distributions, a mask of entries": (SOFT, LOGITS, ONE_HOT, -1, KEPT),
    "distributions, a mask of classes": (SOFT, LOGITS, jax.nn.softmax(LOGITS[::-1]), -1, ALLOWED),
    "distributions, a mask of fewer axes": (SOFT, CUBE, CUBE_LABELS, -1, jnp.asarray([True, False, True])),
    "distributions, axis 1": (SOFT, CUBE, CUBE_LABELS, 1),
    "distributions, all axes": (SOFT, CUBE, CUBE_LABELS, None),
    "distributions, two axes": (SOFT, CUBE, CUBE_LABELS, (0, -1), jnp.asarray([True, True, False])),
    "distributions in half precision": (SOFT, LOGITS, ONE_HOT.astype(jnp.bfloat16)),
    "safe": (SAFE, LOGITS.at[0, 2].set(-jnp.inf), ONE_HOT),
    "safe, of infinite cost": (SAFE, LOGITS.at[0, 0].set(-jnp.inf), ONE_HOT),
    "safe, for all": (SAFE, LOGITS, ONE_HOT[0]),
}
REFUSED = {
    "floating indices": (INTEGER, LOGITS, LABELS * 1.0),
    "bool indices": (INTEGER, LOGITS, LABELS > 0),
    "integer logits": (INTEGER, OF_CUBE, LABELS),
    "integer logits beside distributions": (SOFT, LABELS, ONE_HOT),
    "logits in a list": (INTEGER, [[1.0, 2.0]], LABELS),
    "indices in a list": (INTEGER, LOGITS, [0, 1]),
    "distributions in a list": (SOFT, LOGITS, [[1.0, 0.0, 0.0]] * 2),
    "one index": (INTEGER, LOGITS, jnp.asarray(1)),
    "indices in a column": (INTEGER, LOGITS, LABELS[:, None]),
    "too many indices": (INTEGER, LOGITS, jnp.asarray([0, 1, 2])),
    "integer where": (INTEGER, LOGITS, LABELS, -1, jnp.asarray([1, 0])),
    "floating where": (SOFT, LOGITS, ONE_HOT, -1, jnp.asarray([1.0, 0.0])),
    "where of another shape": (INTEGER, LOGITS, LABELS, -1, jnp.ones(3, bool)),
    "where of other classes": (INTEGER, LOGITS, LABELS, -1, jnp.ones((2, 4), bool)),
    "where of another shape, distributions": (SOFT, LOGITS, ONE_HOT, -1, jnp.ones(3, bool)),
    "where of no axis": (INTEGER, LOGITS, LABELS, -1, jnp.asarray(True)),
    "where of more axes": (INTEGER, LOGITS, LABELS, -1, jnp.ones((1, 2, 3), bool)),
    "no axis": (INTEGER, LOGITS, LABELS, None),
    "a NumPy axis": (INTEGER, LOGITS, LABELS, np.int64(1)),
    "an axis that is not there": (INTEGER, LOGITS, LABELS, 5),
    "axes that are not there": (SOFT, LOGITS, ONE_HOT, (5,)),
    "axes in a list": (SOFT, LOGITS, ONE_HOT, [1]),
    "an axis twice": (SOFT, LOGITS, ONE_HOT, (1, 1)),
    "distributions of other classes": (SOFT, LOGITS, ONE_HOT[:, :2]),
    "distributions of other entries": (SOFT, LOGITS, LABELS * 1.0),
    "no class axis": (SAFE, jnp.asarray(1.0), jnp.asarray(1.0)),
    "safe, of other classes": (SAFE, LOGITS, ONE_HOT[:, :2]),
}


@pytest.mark.parametrize("call", SAME)
def test_the_answer_is_optaxs(call):
    theirs, ours, with_quirks = answers(*SAME[call])
    assert not isinstance(theirs, Exception)
    assert equal(theirs, ours)
    assert equal(theirs, with_quirks)


DIFFERENTIATED = (
    "a mask of entries",
    "a mask of classes",
    "logits for all",
    "two class axes in the other order, and a mask",
    "distributions, a mask of classes",
    "distributions, axis 1",
    "distributions in half precision",
    "safe",
)


@pytest.mark.parametrize("call", DIFFERENTIATED)
def test_gradients_jit_and_vmap(call):
    name, logits, labels, *options = SAME[call]
    more = dict(zip(("axis", "where"), options, strict=False))

    def total(module, logits, **quirks):
        losses = getattr(module, name)(logits, labels, **more, **quirks)
        return jnp.sum(losses * jnp.arange(1.0, 1 + losses.size).reshape(losses.shape))

    finite = jnp.where(jnp.isfinite(logits), logits, 0.0)
    theirs = jax.grad(partial(total, optax))(finite)
    for quirks in ({}, {"quirks": "theirs"}):
        assert equal(theirs, jax.jit(jax.grad(partial(total, drop_in, **quirks)))(finite))
    mapped = jax.vmap(partial(total, drop_in))(jnp.stack([finite, 2 * finite]))
    assert equal(jax.vmap(partial(total, optax))(jnp.stack([finite, 2 * finite])), mapped)


@pytest.mark.parametrize("call", REFUSED)
def test_what_optax_refuses_is_refused_with_its_type(call):
    theirs, ours, with_quirks = answers(*REFUSED[call])
    assert isinstance(theirs, Exception)
    assert equal(theirs, ours), (theirs, ours)
    assert isinstance(with_quirks, Exception)
    assert str(ours).split(" ")[0] in ("logits", "labels", "axis", "where")


@pytest.mark.parametrize(("quirks", "error"), [("ours", ValueError), (True, TypeError)])
@pytest.mark.parametrize("name", NAMES)
def test_other_quirks_are_refused(name, quirks, error):
    with pytest.raises(error, match=r"quirks is .*; it must be None or 'theirs'"):
        getattr(drop_in, name)(LOGITS, LABELS if name == INTEGER else ONE_HOT, quirks=quirks)


def test_the_comparison_can_fail():
    assert not equal(LOGITS, LOGITS.at[0, 0].add(1e-4))
    assert not equal(LOGITS, LOGITS.astype(jnp.bfloat16))
    assert not equal(TypeError(), ValueError())
    assert not equal(ValueError(), LOGITS)


def test_each_difference_is_shown():
    assert shown_in(sys.modules[__name__]) == rows("optax")


def in_jit(name, *args, **kwargs):
    return jax.jit(partial(getattr(drop_in, name), **kwargs))(*args)


def test_difference_negative_label():
    theirs, ours, with_quirks = answers(INTEGER, LOGITS, jnp.asarray([0, -1]))
    assert close(theirs, [BIT, 3 * BIT - np.log(6)])  # of the last class, 6/8
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert str(ours) == "labels[1] is -1, outside the classes [0, 3); mask the entry, or exclude it by where"
    assert close(in_jit(INTEGER, LOGITS, jnp.asarray([0, -1])), [BIT, np.nan])


def test_difference_label_of_no_class():
    labels = jnp.asarray([0, 3])
    theirs, ours, with_quirks = answers(INTEGER, LOGITS, labels)
    assert close(theirs, [BIT, np.nan])
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert close(in_jit(INTEGER, LOGITS, labels), [BIT, np.nan])

    def total(module, logits, **quirks):
        return getattr(module, INTEGER)(logits, labels, **quirks).sum()

    theirs = jax.grad(partial(total, optax))(LOGITS)
    assert close(theirs[1], [1 / 8, 1 / 8, 3 / 4])
    assert equal(theirs, jax.grad(partial(total, drop_in, quirks="theirs"))(LOGITS))
    assert jnp.isnan(jax.jit(jax.grad(partial(total, drop_in)))(LOGITS)[1]).all()


def test_difference_excluded_label():
    where = jnp.asarray([[False, True, True]])
    theirs, ours, with_quirks = answers(INTEGER, LOGITS, LABELS, where=where)
    assert close(theirs, [0, np.log(7)])  # log((1 + 1) / 2); log((1 + 6) / 1)
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert "labels[0] is 0, a class that where excludes" in str(ours)
    assert close(in_jit(INTEGER, LOGITS, LABELS, where=where), [np.nan, np.log(7)])


def test_difference_wide_numpy_label():
    if jax.config.jax_enable_x64:
        pytest.skip("with x64 the label keeps its digits")
    theirs, ours, with_quirks = answers(INTEGER, LOGITS, np.asarray([2**32, 1]))
    assert close(theirs, [BIT, 3 * BIT])
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert "labels[0] is 4294967296" in str(ours)


def test_difference_where_on_the_classes():
    logits, labels, where = jnp.zeros((2, 3, 3)), jnp.zeros((2, 3), int), jnp.asarray([True, False, True])
    theirs, ours, with_quirks = answers(INTEGER, logits, labels, axis=1, where=where)
    assert close(theirs, [[BIT, 0, BIT]] * 2)  # two classes of three, and as a mask of the entries as well
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    theirs, ours, _ = answers(INTEGER, logits[:, :, :2], labels[:, :2], axis=1, where=where[:2])
    assert isinstance(theirs, ValueError)
    assert isinstance(ours, ValueError)


def test_difference_zero_label_at_minus_infinity():
    theirs, ours, with_quirks = answers(SOFT, LOGITS.at[0, 2].set(-jnp.inf), ONE_HOT)
    assert close(theirs, [np.nan, 3 * BIT])
    assert equal(theirs, with_quirks)
    assert close(ours, [np.log(3 / 2), 3 * BIT])  # 2/3 of what is left


def test_difference_gradient_of_excluded_labels():
    def total(module, labels, **quirks):
        return getattr(module, SOFT)(LOGITS, labels, where=KEPT, **quirks).sum()

    theirs = jax.grad(partial(total, optax))(ONE_HOT)
    assert close(theirs, [[BIT, 2 * BIT, 2 * BIT], [np.nan] * 3])  # - log p_c
    assert equal(theirs, jax.grad(partial(total, drop_in, quirks="theirs"))(ONE_HOT))
    assert close(jax.grad(partial(total, drop_in))(ONE_HOT), [[BIT, 2 * BIT, 2 * BIT], [0] * 3])


@pytest.mark.parametrize("name", NAMES)
def test_difference_no_class_is_possible(name):
    labels = LABELS if name == INTEGER else ONE_HOT
    theirs, ours, with_quirks = answers(name, LOGITS.at[0].set(-jnp.inf), labels)
    assert close(theirs, [np.nan, 3 * BIT])
    assert equal(theirs, with_quirks)
    assert close(ours, [np.inf, 3 * BIT])


@pytest.mark.parametrize("name", [SOFT, SAFE])
def test_difference_indices_for_distributions(name):
    theirs, ours, with_quirks = answers(name, LOGITS, LABELS[:, None])
    assert close(theirs, [0, 3 * BIT + 3 * BIT + 3 * BIT - np.log(6)])  # of the label 1, three times
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert INTEGER in str(ours)
    theirs, ours, with_quirks = answers(name, CUBE[:, :2, :2], OF_CUBE[:, :2])  # as many entries as classes
    assert theirs.shape == (2, 2)
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)


@pytest.mark.parametrize("axis", [0, None])
def test_difference_labels_of_more_axes(axis):
    labels = jnp.stack([ONE_HOT, ONE_HOT])
    theirs, ours, with_quirks = answers(SOFT, LOGITS, labels, axis=axis)
    log_probs = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(axis, keepdims=True))
    assert close(theirs, -(labels * log_probs).sum(axis))
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)
    assert answers(SOFT, LOGITS, labels, axis=-1)[1].shape == (2, 2)


@pytest.mark.parametrize("name", [SOFT, SAFE])
def test_difference_complex_labels(name):
    theirs, ours, with_quirks = answers(name, LOGITS, ONE_HOT * (1 + 2j))
    assert close(theirs, [BIT * (1 + 2j), 3 * BIT * (1 + 2j)])
    assert equal(theirs, with_quirks)
    assert isinstance(ours, TypeError)


@pytest.mark.parametrize("name", NAMES)
def test_difference_no_classes(name):
    labels = LABELS if name == INTEGER else ONE_HOT[:, :0]
    theirs, ours, with_quirks = answers(name, LOGITS[:, :0], labels)
    assert close(theirs, [-np.inf if name == INTEGER else 0] * 2)
    assert equal(theirs, with_quirks)
    assert isinstance(ours, ValueError)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", NAMES)
def test_difference_half_precision(name, dtype):
    labels = LABELS if name == INTEGER else ONE_HOT.astype(dtype)
    logits = jnp.asarray([[300.0, 302.0, 304.0], [0.0, 2.0, 4.0]], dtype)  # held exactly
    lse = np.log(1 + np.e**2 + np.e**4)
    theirs, ours, with_quirks = answers(name, logits, labels)
    assert theirs.dtype == with_quirks.dtype == dtype
    assert close(theirs, with_quirks, 0.05 if name == INTEGER else 2e-2)
    assert ours.dtype == jnp.float32
    assert close(ours, [lse, lse - 2], 2e-5)  # 300 + lse has 7 digits
    if name == INTEGER and dtype == jnp.bfloat16:
        assert abs(theirs[0] - lse) > 0.1  # 304.14 is 304 there
    if name != INTEGER:  # 1/3 keeps its digits beside such logits
        assert close(getattr(drop_in, name)(logits, jnp.full((2, 3), 1 / 3)), [lse - 2] * 2, 2e-5)
    gradient = jax.grad(lambda logits: getattr(drop_in, name)(logits, labels).sum())(logits)
    assert gradient.dtype == dtype
