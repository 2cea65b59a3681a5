"""Half precision stores arguments and their gradients: nothing that is still to be multiplied is rounded to it."""

import functools

import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
import numpy as np
import pytest

import maskloss as ml
from tests import backends
from tests.backends import asarray, settings, to_numpy

# The largest relative error of rounding once: half a last place of a significand of 11 and of 8 bits.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8 / 2}


def projection(dtype, rows=512, features=16, classes=64):
    """hidden, kernel and bias in the dtype, and labels."""
    rng = np.random.default_rng(3)
    hidden, kernel, bias = (rng.normal(size=shape) for shape in ((rows, features), (classes, features), (classes,)))
    return [x.astype(dtype) for x in (hidden, kernel / 16, bias)], rng.integers(0, classes, rows)


def gradients(backend, arrays, labels, scale, **options):
    """Of scale * loss with respect to hidden, kernel and bias, divided by the scale again."""

    def loss(hidden, kernel, bias):
        return scale * ml.linear_cross_entropy(hidden, kernel, labels_there, bias=bias, chunk_size=128, **options)

    labels_there = asarray(backend, labels)
    found = ml.value_and_grad(loss, (0, 1, 2))(*(asarray(backend, x) for x in arrays))[1]
    assert all(backends.dtype_name(x) == arrays[0].dtype.name for x in found)
    return [to_numpy(backend, x).astype(np.float64) / scale for x in found]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("rows", "options", "scale"),
    [(512, {"denominator": 2.0**20}, 2.0**20), (4096, {}, 2.0**15), (512, {"reduction": "sum"}, 2.0**-6)],
    ids=["accumulated", "mean", "scaled-down"],
)
def test_the_scale_of_a_loss_keeps_its_gradients(backend, dtype, rows, options, scale):
    """Loss scaling: each gradient is that of float64 (the same numbers, unscaled), rounded once when it is returned.

    2**-20 * p is below what float16 holds, and a gradient that waits in it for the factor of 2**20 is 0.
    """
    if backend.gradient == "value_and_grad" or backend.shapes_only or backend.environment:
        pytest.skip("for what differentiates a function of the loss")
    arrays, labels = projection(dtype, rows)
    wide = [x.astype(np.float64) for x in arrays]
    function = functools.partial(ml.linear_cross_entropy, **options)
    wanted = ml.value_and_grad(function, (0, 1, "bias"))(*wide[:2], labels, bias=wide[2])[1]
    with settings(backend):
        found = gradients(backend, arrays, labels, scale, **options)
    for x, y in zip(found, wanted, strict=True):
        # Of the norm: an entry may be subnormal. A tenth more is for the arithmetic in float32.
        assert np.linalg.norm(x - y) <= 1.1 * ROUNDING[dtype] * np.linalg.norm(y)
