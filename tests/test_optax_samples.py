"""Optax ships the tests of its losses; here they run with the drop-ins in the place of its softmax cross-entropies."""

import unittest
from functools import partial

import pytest

np = pytest.importorskip("numpy")
losses = pytest.importorskip("optax.losses._classification")
classification_test = pytest.importorskip("optax.losses._classification_test")
fenchel_young_test = pytest.importorskip("optax.losses._fenchel_young_test")

from maskloss.drop_in import optax as drop_in  # noqa: E402
from maskloss.drop_in._differences import DIFFERENCES  # noqa: E402

pytestmark = pytest.mark.of_backend("jax")
CASES = (
    classification_test.SoftmaxCrossEntropyTest,
    classification_test.SafeSoftmaxCrossEntropyTest,
    classification_test.SoftmaxCrossEntropyWithIntegerLabelsTest,
    classification_test.PolyLossTest,  # Optax's own, made of its softmax_cross_entropy
    fenchel_young_test.FenchelYoungTest,
)

# What the drop-in answers otherwise unless quirks="theirs": the difference that says so.
OTHERWISE = {"SoftmaxCrossEntropyWithIntegerLabelsTest.test_per_logit_mask": "excluded_label"}
REPLACED = ("softmax_cross_entropy", "safe_softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels")


def softmax_tests():
    loader = unittest.defaultTestLoader
    return {f"{case.__name__}.{name}": case(name) for case in CASES for name in loader.getTestCaseNames(case)}


TESTS = softmax_tests()


def run(name, monkeypatch, factor=1, **quirks):
    """The errors of one of Optax's tests, and how often it asked for a replaced function."""
    calls = []

    def counted(function, *args, **kwargs):
        calls.append(name)
        return factor * function(*args, **kwargs, **quirks)

    for replaced in REPLACED:
        monkeypatch.setattr(losses, replaced, partial(counted, getattr(drop_in, replaced)))
    poly_loss = losses.poly_loss_cross_entropy  # a new function each time: jit would run what it traced of the old one
    monkeypatch.setattr(losses, "poly_loss_cross_entropy", lambda *args, **kwargs: poly_loss(*args, **kwargs))
    np.random.seed(0)  # Optax's tests draw from NumPy's global state; a mask of no class at all would be another test
    result = unittest.TestResult()
    TESTS[name].run(result)
    assert not result.skipped
    return [text for _, text in result.errors + result.failures], len(calls)


@pytest.mark.parametrize("name", TESTS)
def test_optaxs_own_test_passes_with_its_quirks(name, monkeypatch):
    errors, calls = run(name, monkeypatch, quirks="theirs")
    assert not errors, "\n".join(errors)
    assert calls > 0


@pytest.mark.parametrize("name", [name for name in TESTS if name not in OTHERWISE])
def test_optaxs_own_test_passes(name, monkeypatch):
    errors, calls = run(name, monkeypatch)
    assert not errors, "\n".join(errors)
    assert calls > 0


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_a_difference_says_is_refused(name, monkeypatch):
    errors, calls = run(name, monkeypatch)
    assert calls > 0
    assert any("ValueError: labels[0] is 1, a class that where excludes" in error for error in errors), errors
    assert OTHERWISE[name] in {row.name for row in DIFFERENCES["optax"]}


def test_none_is_lost():
    assert set(OTHERWISE) <= set(TESTS)
    # Counted in Optax 0.2.8: 9, 4 and 16 of the softmax cross-entropies, 25 of the poly loss, 1 of Fenchel-Young.
    assert len(TESTS) >= 54


def test_the_comparison_can_fail(monkeypatch):
    errors, _ = run("SoftmaxCrossEntropyTest.test_batched", monkeypatch, factor=1.01)
    assert errors
