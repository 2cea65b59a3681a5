"""Arithmetic in float64 whose bits no library, compiler, device or order of terms changes.

+, -, *, / and rounding to an integer are one correctly rounded operation each, everywhere. What differs is what is made
of several: a compiler contracts a * b + c into one rounding where it may, and sums go in an order of its own. So here

- no product meets an addition, but where it is exact (by a power of two) or goes through `round` or a maximum first;
- no constant meets a constant, nor is divided by, and no quotient is divided: XLA makes one of the constants in
  (a c1) c2 and in (a + c1) + c2, of a / c1 the product by 1 / c1, and of (a / b) / c the quotient by b c (jaxlib
  0.10.2);
- sums are of integers, in int64, which has no order;
- exp and log are these operations, and no library's.

docs/reproducible.md proves the bounds.
"""

from __future__ import annotations

import math
from typing import Any

from .._arrays import Array, Namespace, dtype_name, namespace_of
from .._arrays.standard import MAGIC
from .._shards import Part, all_max, all_sum

# exp(d) = 2^(k + f) with d log2(e) = k + f, |f| <= 1/2; and 2^f is the 8th power of a polynomial q of degree 4, whose
# relative error is 2^-33.55 at most. In units of 2^-25, F = 2^25 f, it is up to a factor
#     q = ((F + B_1)^2 + C_1) ((F + B_2)^2 + C_2)
# The squares are at least 2^52, hence integers: rounding them to integers changes no bit, and stands between each
# product and its sum. q(0)^8 is about 2^950: the factor is a part of ONE.
FRACTION = 2.0**25
LOG2E = 1.4426950408889634 * FRACTION
B_1, C_1 = 669876122.3720201, 1.1849486891792981e17
B_2, C_2 = 104816299.99722695, 9.408109835478519e17
SQUARINGS = 3

# The power of two that e is scaled by: as integers that 2^20 can be added of, and as numbers down to the least normal
# one of float32.
IN_UNITS, AS_NUMBERS = -907, -879
BIAS = 1023
LEAST = 2.0**-126  # the least normal number of float32; less is 0, as some devices have no less
CLASSES = 1 << 20  # that units leave room for

# atanh(s) / s = sum_i s^(2 i) / (2 i + 1), |s| <= 3 - 2 sqrt 2: what is left out is less than 2^-47.
LOG_UNIT = 2.0**46
LOG_TERMS = [float(round(LOG_UNIT / (2 * i + 1))) for i in range(9)]
LN2_UNITS = float(round(math.log(2.0) * 2.0 * LOG_UNIT))


def of_zero(power: int) -> float:
    """e at d = 0, by the operations of `exponentials`."""
    q = (B_1 * B_1 + C_1) * (B_2 * B_2 + C_2)
    for _ in range(SQUARINGS):
        q *= q
    return q * 2.0**power


ONE = round(of_zero(IN_UNITS))


def exponentials(d: Array, power: int, *, xp: Namespace) -> Array:
    """exp(d) of d <= 0, times of_zero(power); 0 where 2^(k + power) is less than any normal number; NaN for NaN."""
    # No constant, lest a compiler moves the addition behind into both arms of the maximum.
    lowest = xp.no_constant(-float(BIAS + power) * FRACTION, d)
    t = xp.clipped_below(d * LOG2E, lowest)
    k = xp.round(t * (1.0 / FRACTION))
    f = t - k * FRACTION
    u, v = f + B_1, f + B_2
    q = (xp.round(u * u) + C_1) * (xp.round(v * v) + C_2)
    for _ in range(SQUARINGS):
        q = q * q
    return q * xp.power_of_two(k + float(power))


def exponentials_into(d: Array, power: int, u: Array, k: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """The same in the place of d, as the product of d and k: u and k are arrays of its shape to compute in."""
    # d + magic is rounded to a multiple of 2^25, whose last bits are k with the power, as an exponent's.
    magic = FRACTION * (MAGIC + BIAS + power)
    d *= LOG2E
    xp.raised_to(d, -float(BIAS + power) * FRACTION)
    of_u, of_k = {"out": u}, {"out": k}
    xp.add(d, magic, **of_k)
    xp.subtract(k, magic, **of_u)
    d -= u
    xp.add(d, B_1, **of_u)
    u *= u
    u += C_1
    d += B_2
    d *= d
    d += C_2
    d *= u
    for _ in range(SQUARINGS):
        d *= d
    return d, xp.exponent_bits(k)


def in_units(e: Array, *, xp: Namespace) -> Array:
    return xp.astype(xp.round(e), xp.int64)


def log_of_units(total: Array, *, xp: Namespace) -> Array:
    """log(total / ONE) of integers from ONE to 2^63, in multiples of 2^-47."""
    x = xp.astype(total, xp.float64)
    exponent = xp.zeros_like(x)
    for step in (16, 8, 4, 2, 1):
        high = x >= ONE * 2.0 ** (step - 0.5)
        x = xp.where(high, x * 2.0**-step, x)
        exponent = xp.where(high, exponent + float(step), exponent)
    s = xp.over(x - float(ONE), x + float(ONE))
    square = s * s
    series = xp.zeros_like(s)
    for term in LOG_TERMS[::-1]:
        series = xp.round(series * square) + term
    # 2 s series / LOG_UNIT and exponent ln 2 are of one unit, 2^-47 = 1 / (2 LOG_UNIT).
    return (exponent * LN2_UNITS + xp.round(s * series * 4.0)) * (0.5 / LOG_UNIT)


def total_of(x: Array, axis: int, *, part: Part | None = None, xp: Namespace) -> Array:
    """The sum, rounded: of integers, in units that leave room for as many of the largest as there are terms."""
    terms: int = x.shape[axis] if part is None else part.classes
    is_finite = xp.isfinite(x)
    finite = xp.where(is_finite, x, 0.0)
    largest = xp.max(xp.abs(finite), axis=axis) if x.shape[axis] else xp.sum(finite, axis=axis)
    (largest,) = all_max(part, largest, xp=xp)
    unit = xp.power_above(largest) * 2.0 ** (max(terms, 1).bit_length() - 62)
    units = xp.astype(xp.round(finite / xp.expand_dims(unit, axis=axis)), xp.int64)
    (total,) = all_sum(part, xp.sum(units, axis=axis), xp=xp)
    total = xp.astype(total, xp.float64) * unit
    # Infinities and NaN add up to one of them in any order.
    others = all_sum(part, xp.sum(xp.where(is_finite, 0.0, x), axis=axis), xp=xp)[0]
    return xp.where(others == 0, total, others)


def flushed(x: Array, *, xp: Namespace) -> Array:
    """Without numbers that are subnormal in float32, of which some devices have none."""
    return xp.where(xp.abs(x) < LEAST, 0.0, x)


def flushed_argument(x: Any) -> Any:
    """The same of what a caller gives, if it is an array of floating numbers that may be subnormal."""
    xp = namespace_of(x) if hasattr(x, "dtype") else None
    if xp is None or dtype_name(x) not in ("float32", "float64", "bfloat16"):
        return x
    return flushed(x, xp=xp)


def tanh(z: Array, *, xp: Namespace) -> Array:
    """(1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where that cancels, Lambert's continued fraction:

    z / (1 + z^2 / (3 + z^2 / (5 + ...))), whose error for |z| < 2 is 3e-13 of it where it ends with 19.
    """
    size = xp.abs(z)
    e = exponentials(-2.0 * size, AS_NUMBERS, xp=xp) * (1.0 / of_zero(AS_NUMBERS))
    e = xp.settled(e)
    far = xp.over(1.0 - e, 1.0 + e)
    near, square = 19.0, xp.settled(z * z)
    for odd in range(17, 0, -2):
        near = float(odd) + xp.over(square, near)
    return xp.where(size < 2.0, xp.over(z, near), xp.where(z < 0, -far, far))


class OrderFree(Namespace):
    """Whose sums of floating numbers are total_of's, in float64."""

    def long_sum(self, x: Array, *, axis: int = -1) -> Array:
        return total_of(x, axis % x.ndim, xp=self)

    def sum_over(self, x: Array, axes: tuple[int, ...], *, keepdims: bool) -> Array:
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
        rest = tuple(axis for axis in range(x.ndim) if axis not in axes)
        lengths, terms = [x.shape[axis] for axis in rest], math.prod(x.shape[axis] for axis in axes)
        flat = self.reshape(self.permute_dims(x, (*rest, *axes)), (*lengths, terms))
        total = total_of(flat, len(lengths), xp=self)
        return self.reshape(total, shape) if keepdims else total

    def times(self, a: Array | float, b: Array | float) -> Array:
        return self.settled(a * b)

    def over(self, a: Array | float, b: Array | float) -> Array:
        return self.settled(a / self.no_constant(b, a))

    def sum_all(self, x: Array) -> Array:
        return total_of(self.reshape(x, (-1,)), 0, xp=self)


NAMESPACES: dict[str, Namespace] = {}


def order_free(xp: Namespace) -> Namespace:
    """The same functions, with such sums."""
    found = NAMESPACES.get(xp.name)
    if found is None:
        kind: Any = type("OrderFree", (OrderFree, type(xp)), {})
        found = NAMESPACES[xp.name] = kind(xp.name, xp)
    return found
