"""Python's numbers and NumPy's scalars and integers, beside arrays of any library: every digit counts."""

import importlib

import numpy as np
import pytest

import maskloss as ml
from tests.backends import asarray, of_library, settings, to_numpy

LOG3 = np.log(3.0)  # the loss of three equal logits


def equal_logits(backend, dtype):
    if backend.shapes_only or backend.environment:
        pytest.skip("holds no values, or is PyTorch again")
    return asarray(backend, np.zeros((2, 3), dtype)), asarray(backend, np.array([0, 2]))


def close(x, value, dtype, places=4):
    np.testing.assert_allclose(float(x), value, rtol=places * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_has_the_digits_of_the_computation(backend, dtype):
    """0.1 is no float32, 1e300 and 1e-50 are none either; each is what it is beside float64 logits."""
    if dtype == "float64" and not backend.x64:
        pytest.skip("JAX without x64 has no float64")
    with settings(backend):
        x, y = equal_logits(backend, dtype)
        close(ml.cross_entropy(x, y, weights=0.1, reduction="sum"), 0.2 * LOG3, dtype)
        close(ml.cross_entropy(x, y, denominator=0.3), 2 * LOG3 / 0.3, dtype)
        close(ml.cross_entropy(x, y, z_loss=0.1), LOG3 + 0.1 * LOG3**2, dtype)
        close(ml.cross_entropy(x, y, label_smoothing=0.1, softcap=0.3), LOG3, dtype)
        ones = x + 1.0
        close(ml.masked_sum(ones, weights=0.1), 0.6, dtype)
        close(ml.reduce(ones, weights=0.1, reduction="sum"), 0.6, dtype)
        close(ml.reduce(ones, denominator=0.3), 20.0, dtype)
        for function in (ml.masked_mean, ml.masked_var, ml.masked_std, ml.masked_max, ml.masked_logsumexp):
            close(function(x, False, empty=0.1), 0.1, dtype)
        # Each column holds 0 and 1: 2/4 over 2 - 0.1.
        steps = asarray(backend, np.array([[0.0], [1.0]], dtype)) * ones
        close(ml.masked_var(steps, axis=0, correction=0.1)[0], 0.5 / 1.9, dtype)
        if dtype == "float64":
            close(ml.cross_entropy(x, y, denominator=1e300), 2 * LOG3 / 1e300, dtype)
            close(ml.cross_entropy(x, y, weights=1e-50), LOG3, dtype)
            close(ml.masked_mean(ones, weights=1e-50), 1.0, dtype)


def test_the_default_dtype_of_torch_decides_nothing(backend):
    if backend.library != "torch" or backend.shapes_only or backend.environment:
        pytest.skip("for torch")
    torch = importlib.import_module("torch")
    x, y = equal_logits(backend, "float32")
    torch.set_default_dtype(torch.float16)
    try:
        close(ml.cross_entropy(x, y, denominator=1e5), 2 * LOG3 / 1e5, "float32")
        close(ml.cross_entropy(x, y, weights=1e-5, label_smoothing=1e-5, z_loss=1e-6), LOG3 + 1e-6 * LOG3**2, "float32")
        close(ml.reduce(x + 1.0, denominator=1e5), 6e-5, "float32")
        close(ml.masked_mean(x, False, empty=1e5), 1e5, "float32")
        close(ml.linear_cross_entropy(x, x, y % 2, denominator=1e5), 2 * np.log(2) / 1e5, "float32")
    finally:
        torch.set_default_dtype(torch.float32)


SCALARS = {
    "denominator": (np.int64(5), np.float64(5), np.float16(5)),
    "weights": (np.float64(0.5), np.float32(0.5), np.int32(1)),
    "mask": (np.True_, np.int64(1), True, 1),
    "class_mask": (np.True_, True),
    "label_smoothing": (np.float64(0.5), np.float32(0.5)),
    "z_loss": (np.float32(0.0),),
    "softcap": (np.float32(4.0), np.int64(4)),
    "ignore_index": (np.int64(-100),),
}


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_of_numpy_are_numbers(backend, name):
    """Beside any library, and the same as Python's."""
    with settings(backend):
        x, y = equal_logits(backend, "float32")
        for scalar in SCALARS[name]:
            of_python = scalar.item() if hasattr(scalar, "item") else scalar
            found, expected = (to_numpy(backend, ml.cross_entropy(x, y, **{name: v})) for v in (scalar, of_python))
            assert found == expected
            assert np.isfinite(found)
        one = ml.cross_entropy(x[0, :], np.int64(1))
        close(one, LOG3, "float32")
        values = x + 1.0
        for options in ({"mask": np.True_}, {"weights": np.float32(0.5)}):
            close(ml.masked_mean(values, **options), 1.0, "float32")
        assert float(ml.masked_mean(values, False, empty=np.float64(0.5))) == 0.5


def test_integers_of_numpy_keep_their_digits_beside_jax(backend):
    """Without x64 JAX makes of 2**32 a 0, and of 5 000 000 000 a 705 032 704, without a word."""
    of_library(backend, "jax")
    large = np.array([1, 2**32 + 5])
    with settings(backend):
        x, y = equal_logits(backend, "float32")
        for denominator in (np.int64(5_000_000_000), np.asarray(5_000_000_000), 5_000_000_000):
            close(ml.cross_entropy(x, y, denominator=denominator), 2 * LOG3 / 5e9, "float32")
        with pytest.raises(ValueError, match=r"mask\[1\] is 4294967296; it must be bool or integer 0/1"):
            ml.cross_entropy(x, y, mask=np.array([1, 2**32]))
        with pytest.raises(ValueError, match=r"mask\[1, 0\] is 4294967296"):
            ml.masked_sum(x, np.array([[1], [2**32]]))
        close(ml.cross_entropy(x, y, weights=large, reduction="none")[1], (2**32 + 5) * LOG3, "float32")
        close(
            ml.cross_entropy(x, y * 0 + 1, class_weights=np.array([1, 2**32 + 5, 1]), reduction="none")[1],
            (2**32 + 5) * LOG3,
            "float32",
        )
        close(ml.reduce(x + 1.0, weights=large[:, None], reduction="none")[1, 0], 2**32 + 5, "float32")
        close(ml.masked_sum(x + 1.0, weights=large[:, None]), 3 * (2**32 + 6), "float32")


def test_ignore_index_of_any_integer_dtype(backend):
    """Also beyond what the indices' own dtype holds: as a label it has wrapped there, and is ignored all the same."""
    with settings(backend):
        x, _ = equal_logits(backend, "float32")
        for dtype, value in (("uint32", 3_000_000_000), ("uint8", 255), ("int32", -(2**31)), ("uint64", 2**63 + 5)):
            if dtype == "uint64" and not backend.x64:
                continue
            labels = np.array([0, value], dtype)
            close(ml.cross_entropy(x, asarray(backend, labels), ignore_index=value), LOG3, "float32")
        # 2**32 - 3 000 000 000 with its sign: what 3 000 000 000 wraps to is not what is ignored.
        ignored = ml.cross_entropy(x, asarray(backend, np.array([0, 1], "uint32")), ignore_index=-1_294_967_296)
        close(ignored, LOG3, "float32")


def test_a_0d_gradient_is_an_array(backend):
    with settings(backend):
        x, y = equal_logits(backend, "float32")
        given = asarray(backend, np.asarray(2.0, np.float32))
        gradient = ml.value_and_grad(ml.cross_entropy, "denominator")(x, y, denominator=given)[1]
        assert type(gradient) is type(given) or backend.library == "jax"
        close(gradient, -2 * LOG3 / 4, "float32")
