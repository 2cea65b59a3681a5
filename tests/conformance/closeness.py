"""Errors in units in the last place (ulps) of a result's dtype, against values known to twice the digits of float64."""

from typing import NamedTuple

import numpy as np

# significant bits, smallest normal exponent, largest finite number
FORMATS = {
    "float16": (11, -14, 65504.0),
    "bfloat16": (8, -126, float.fromhex("0x1.fep127")),
    "float32": (24, -126, float(np.finfo(np.float32).max)),
    "float64": (53, -1022, float(np.finfo(np.float64).max)),
}


class Expected(NamedTuple):
    """hi + lo is the value, scale the size in whose last places an error counts; where it is 0 only equality does."""

    hi: np.ndarray
    lo: np.ndarray
    scale: np.ndarray


def expected(values, scales):
    """From arrays (or numbers) of mpmath. Rows of many classes repeat few numbers, so each is split once."""
    known = {}

    def split(v):
        if id(v) not in known:
            hi = float(v)
            known[id(v)] = hi, float(v - type(v)(hi)) if np.isfinite(hi) else 0.0, v
        return known[id(v)]

    def unpack(a, part):
        a = np.asarray(a, dtype=object)
        return np.array([split(v)[part] for v in a.flat], dtype=np.float64).reshape(a.shape)

    return Expected(unpack(values, 0), unpack(values, 1), unpack(scales, 0))


def ulp(scale, dtype):
    """The last place of numbers of that size; never below that of the smallest normal number.

    For float32 and float64 that times 1 / eps: a subnormal result may be flushed to 0, which loses up to the smallest
    normal number.
    """
    bits, lowest, _ = FORMATS[dtype]
    exponent = np.frexp(np.where(np.isfinite(scale), scale, 1.0))[1] - 1
    flush = lowest + (bits if dtype in ("float32", "float64") else 0)
    return np.ldexp(1.0, np.maximum(exponent, flush) - bits + 1)


def errors(got, want, dtype):
    """The errors in ulps; inf where NaN, an infinity or an exact value is not met."""
    got = np.asarray(got, dtype=np.float64)
    if got.shape != want.hi.shape:
        raise AssertionError(f"shape {got.shape}, expected {want.hi.shape}")
    overflow = np.abs(want.hi) > FORMATS[dtype][2]
    hi = np.where(overflow, np.copysign(np.inf, want.hi), want.hi)
    special = ~np.isfinite(hi) | ~np.isfinite(got) | (want.scale == 0)
    met = (got == hi) | (np.isnan(got) & np.isnan(hi))
    with np.errstate(invalid="ignore"):
        distance = np.abs((got - want.hi) - want.lo) / ulp(want.scale, dtype)
    return np.where(special, np.where(met, 0.0, np.inf), distance)


def summation(n, condition=1.0):
    """Ulps that summing n terms and dividing by a sum of n may add: n - 1 half places each, times its condition."""
    return 0.5 * max(n - 1, 0) * (1 + float(condition))
