"""Optax ships the tests of its losses; here they run with maskloss in the place of its softmax cross-entropies."""

import unittest

import pytest

np = pytest.importorskip("numpy")
jnp = pytest.importorskip("jax.numpy")
losses = pytest.importorskip("optax.losses._classification")
classification_test = pytest.importorskip("optax.losses._classification_test")
fenchel_young_test = pytest.importorskip("optax.losses._fenchel_young_test")

import maskloss as ml  # noqa: E402

pytestmark = pytest.mark.of_backend("jax")
CASES = (
    classification_test.SoftmaxCrossEntropyTest,
    classification_test.SafeSoftmaxCrossEntropyTest,
    classification_test.SoftmaxCrossEntropyWithIntegerLabelsTest,
    classification_test.PolyLossTest,  # Optax's own, made of its softmax_cross_entropy
    fenchel_young_test.FenchelYoungTest,
)

# What Optax specifies otherwise, and what comes of it here: (exception, why).
OTHERWISE = {
    "SoftmaxCrossEntropyWithIntegerLabelsTest.test_per_logit_mask": (
        ValueError,
        "its first label is of a class that `where` excludes. Optax answers lse - x_label with x_label outside the "
        "softmax, which can be negative; here such a class does not exist, so its label is an error",
    )
}


def with_maskloss(logits, labels, axis=-1, where=None):
    """Optax's arguments as maskloss has them: `where` of the logits' rank is a class mask, else a mask of entries.

    Optax takes several class axes at once; they are flattened into one, the last, which is only a matter of layout.
    """
    logits = jnp.asarray(logits)
    classes = where is not None and where.ndim == logits.ndim
    if isinstance(axis, tuple):
        flat = [a % logits.ndim for a in axis]
        entries = [a for a in range(logits.ndim) if a not in flat]
        shape = (*(logits.shape[a] for a in entries), -1)
        logits = logits.transpose(*entries, *flat).reshape(shape)
        where = where.transpose(*entries, *flat).reshape(shape) if classes else where
        axis = -1
    return ml.cross_entropy(
        logits,
        labels,
        axis=axis,
        reduction="none",
        mask=None if classes else where,
        class_mask=where if classes else None,
    )


REPLACED = ("softmax_cross_entropy", "safe_softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels")


def softmax_tests():
    loader = unittest.defaultTestLoader
    return {f"{case.__name__}.{name}": case(name) for case in CASES for name in loader.getTestCaseNames(case)}


TESTS = softmax_tests()


def run(name, monkeypatch, replacement=with_maskloss):
    """The errors of one of Optax's tests, and how often it asked for a replaced function."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(name)
        return replacement(*args, **kwargs)

    for replaced in REPLACED:
        monkeypatch.setattr(losses, replaced, counted)
    poly_loss = losses.poly_loss_cross_entropy  # a new function each time: jit would run what it traced of the old one
    monkeypatch.setattr(losses, "poly_loss_cross_entropy", lambda *args, **kwargs: poly_loss(*args, **kwargs))
    np.random.seed(0)  # Optax's tests draw from NumPy's global state; a mask of no class at all would be another test
    result = unittest.TestResult()
    TESTS[name].run(result)
    assert not result.skipped
    return [text for _, text in result.errors + result.failures], len(calls)


@pytest.mark.parametrize("name", [name for name in TESTS if name not in OTHERWISE])
def test_optaxs_own_test_passes(name, monkeypatch):
    errors, calls = run(name, monkeypatch)
    assert not errors, "\n".join(errors)
    assert calls > 0


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_optax_specifies_otherwise_still_differs(name, monkeypatch):
    exception, _ = OTHERWISE[name]
    errors, calls = run(name, monkeypatch)
    assert calls > 0
    assert any(f"{exception.__name__}: " in error for error in errors), errors


def test_none_is_lost():
    assert set(OTHERWISE) <= set(TESTS)
    # Counted in Optax 0.2.8: 9, 4 and 15 of the softmax cross-entropies, 25 of the poly loss, 1 of Fenchel-Young.
    assert len(TESTS) - len(OTHERWISE) >= 53


def test_the_comparison_can_fail(monkeypatch):
    errors, _ = run(
        "SoftmaxCrossEntropyTest.test_batched",
        monkeypatch,
        lambda *args, **kwargs: 1.01 * with_maskloss(*args, **kwargs),
    )
    assert errors
