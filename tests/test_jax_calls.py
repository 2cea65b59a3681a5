"""JAX outside of jit: a program for each kind of call, and none for each number; what jit would not know is refused."""

import importlib
import math

import numpy as np
import pytest

import maskloss as ml
from tests.backends import named, settings

jax = pytest.importorskip("jax")
jnp = jax.numpy

LOGITS = np.asarray([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5], [0.25, 3.0, -2.0]])
LABELS = np.asarray([2, 0, 1])


@pytest.fixture
def calls(backend):
    named(backend, "jax")
    with settings(backend):
        jax.clear_caches()
        yield importlib.import_module("maskloss._bindings.jax_calls")


def test_one_program_for_all_numbers(calls):
    x, y = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    for i in range(1, 4):
        given = {
            **{"mask": jnp.asarray([True, i > 1, True]), "weights": i + 0.5, "denominator": i},
            **{"label_smoothing": 0.1 * i, "z_loss": 0.01 * i, "softcap": 2.0 * i},
        }
        labels = jnp.roll(y, i)
        found = ml.cross_entropy(x, labels, **given), ml.value_and_grad(ml.cross_entropy)(x, labels, **given)
        value, gradient = jax.jit(jax.value_and_grad(lambda x, y=labels, o=given: ml.cross_entropy(x, y, **o)))(x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15), found[0], value)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15), found[1], (value, gradient))
        linear = {"softcap": 2.0 * i, "weights": 1.0 / i}
        ml.linear_cross_entropy(x, x, labels, **linear), ml.label_log_probs(x, i % 3 + 0 * labels)
        ml.masked_mean(x, weights=0.1 * i), ml.reduce(x, denominator=i)
    assert calls.body._cache_size() == 5
    assert calls.body_with_gradients._cache_size() == 1
    ml.cross_entropy(x[0], 1), ml.cross_entropy(x[0], 2)
    assert calls.body._cache_size() == 6


def test_bits_are_those_of_jit(calls):
    x, y, mask = jnp.asarray(LOGITS, "float32"), jnp.asarray(LABELS), jnp.asarray([1, 0, 1])

    def loss(x):
        return ml.cross_entropy(x, y, mask=mask, with_stats=True)

    found, wanted = loss(x), jax.jit(loss)(x)
    assert type(found[1]) is ml.LossStats
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    gradients = [way(jax.grad(lambda x: loss(x)[0]))(x) for way in (lambda f: f, jax.jit)]
    np.testing.assert_allclose(*gradients, rtol=1e-6)


def test_values_are_looked_at_in_each_call(calls):
    """Also where JAX differentiates, and after the program was made."""
    x, good, bad = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray([2, 0, 3])
    loss_and_gradient = ml.value_and_grad(ml.cross_entropy)
    for labels in (good, bad):
        for call in (
            lambda y=labels: ml.cross_entropy(x, y),
            lambda y=labels: loss_and_gradient(x, y),
            lambda y=labels: jax.grad(lambda x: ml.cross_entropy(x, y))(x),
            lambda y=labels: jax.grad(lambda w: ml.cross_entropy(x, y, weights=w))(jnp.ones(3)),
        ):
            if labels is good:
                call()
                continue
            with pytest.raises(ValueError, match=r"labels\[2\] is 3, outside the classes \[0, 3\)"):
                call()
    weights = jnp.asarray([1.0, 1.0, 0.0])
    assert math.isfinite(ml.cross_entropy(x, bad, weights=weights))
    assert math.isnan(ml.cross_entropy(x, bad, validate=False))
    ml.cross_entropy(x, good, with_stats=True)
    with pytest.raises(TypeError, match="with_stats is 1; it must be one of True, False"):
        ml.cross_entropy(x, good, with_stats=1)
    with pytest.raises(ValueError, match=r"mask\[1\] is 2; it must be bool or integer 0/1"):
        ml.masked_sum(x[0], jnp.asarray([1, 2, 0]))


def test_a_program_that_is_being_made_is_left_alone(calls):
    """Constants too: of what JAX knows only once it has run, no value is looked at."""
    x, bad = jnp.asarray(LOGITS), jnp.asarray([2, 0, 3])
    assert math.isnan(jax.jit(lambda: ml.cross_entropy(x, bad))())
    assert math.isnan(jax.jit(lambda: jax.grad(lambda x: ml.cross_entropy(x, bad))(x))()[2, 0])
    assert np.isnan(jax.vmap(lambda x, y: ml.cross_entropy(x, y))(x, bad)).tolist() == [False, False, True]
    assert calls.body._cache_size() == calls.body_with_gradients._cache_size() == 0


@pytest.mark.usefixtures("calls")
def test_digits_that_an_array_of_32_bits_has_not():
    """log 2 of the one label that is not ignored, which without x64 would be 0 as the others are."""
    labels = np.asarray([2**40, 1, 2**40])
    with jax.enable_x64(False):
        loss = ml.cross_entropy(jnp.zeros((3, 2)), labels, ignore_index=2**40, reduction="sum")
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_numbers_that_are_differentiated(calls):
    """d(S / d)/dd = -S / d^2, and a TypeError where there is no derivative."""
    x, y = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    total = float(ml.cross_entropy(x, y, reduction="sum"))
    gradient = jax.grad(lambda d: ml.cross_entropy(x, y, denominator=d))(2.0)
    np.testing.assert_allclose(gradient, -total / 4, rtol=1e-6)
    with pytest.raises(TypeError, match="z_loss"):
        jax.grad(lambda z: ml.cross_entropy(x, y, z_loss=z))(0.5)


def test_bytes_in_the_other_order(calls):
    """Of weights, after a program that takes them in this machine's."""
    x, y = jnp.asarray(LOGITS, "float32"), jnp.asarray(LABELS)
    weights = np.asarray([1.0, 2.0, 3.0], "float32")
    expected = ml.cross_entropy(x, y, weights=weights)
    assert abs(float(ml.cross_entropy(x, y, weights=weights.astype(">f4"))) - float(expected)) <= 2.0**-20


def test_a_number_that_decides_the_dtype(calls):
    divisors = [
        way(lambda: ml.denominator(jnp.asarray(LABELS), weights=2.5, reduction="sum"))()
        for way in (jax.jit, lambda f: f)
    ]
    assert divisors[0].dtype == divisors[1].dtype
