"""NumPy: numbers at hand, functions with `out`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from array_api_compat import numpy as functions

from .standard import Array, Namespace, flattens_by_strides, plane_by_strides

PRODUCT_ROWS = 1 << 12
# Of labels.
PIECE = 1 << 13
SCALAR: Any = np.generic


class NumPyLike(Namespace):
    """What CuPy has as well."""

    has_out = True

    def flattens(self, x: Array) -> bool:
        return x.ndim <= 2 or flattens_by_strides(x.shape, x.strides)

    def plane_of(self, x: Array) -> int | None:
        return None if x.flags.c_contiguous else plane_by_strides(x.shape, x.strides, x.itemsize)

    def subtract_at_label(self, x: Array, labels: Array, values: Array, *, in_place: bool) -> Array:
        x = x if in_place else x.copy()
        if x.ndim == 2:
            x[self.arange(x.shape[0], **self.placement(x)), labels] -= values
            return x
        places = (self.arange(n, **self.placement(x)) for n in labels.shape)
        after = range(labels.ndim - 1, -1, -1)
        x[(*(place.reshape((-1, *[1] * k)) for place, k in zip(places, after, strict=True)), labels)] -= values
        return x

    def clipped_below(self, x: Array, low: float) -> Array:
        return self.maximum(x, low)

    def power_of_two(self, exponent: Array) -> Array:
        return ((self.astype(exponent, self.int64) + 1023) << 52).view(self.float64)

    def power_above(self, x: Array) -> Array:
        return self.ldexp(self.ones_like(x), self.frexp(self.clip(x, 2.0**-901, None))[1])

    def raised_to(self, x: Array, low: float) -> None:
        self.maximum(x, low, out=x)

    def flush(self, x: Array, least: float, scratch: Array | None) -> None:
        small = self.abs(x, out=scratch) < least
        if small.any():
            x[small] = 0.0

    def exponent_bits(self, x: Array) -> Array:
        bits = x.view(self.int64)
        self.left_shift(bits, 52, out=bits)
        return x

    def sums_side_by_side(self, x: Array, axis: int) -> bool:
        return axis == x.ndim - 1

    def product(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        return a @ b if out is None else self.matmul(a, b, out=out)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        for start in range(0, total.shape[0], PRODUCT_ROWS):  # of the product, which has an array of its own
            total[start : start + PRODUCT_ROWS] += a[start : start + PRODUCT_ROWS] @ b
        return total


class NumPy(NumPyLike):
    frees_python = True

    def refusal(self, x: Array) -> tuple[str, str] | None:
        if type(x) is np.ndarray:
            return None
        for kind, mend in ((np.ma.MaskedArray, "its .data with mask=~its .mask"), (np.matrix, "numpy.asarray of it")):
            if isinstance(x, kind):
                return f"a numpy {kind.__name__}", f"it must be a plain array; pass {mend}"
        return None

    def reads_without_sync(self, x: Array) -> bool:
        return True

    def may_wait(self, x: Array) -> bool:
        return True

    def extremes(self, x: Array) -> tuple[Any, Any]:
        return np.minimum.reduce(x, axis=None).item(), np.maximum.reduce(x, axis=None).item()

    def take_label(self, x: Array, labels: Array) -> Array:
        in_planes = x.transpose(0, 2, 1) if x.ndim == 3 else x
        if x.ndim == 3 and in_planes.flags.c_contiguous:
            return taken_from_planes(in_planes, labels)
        if x.ndim != 2:
            return super().take_label(x, labels)
        # A tenth of the calls that take_along_axis makes.
        return x[np.arange(x.shape[0]), labels]

    def take_rows(self, x: Array, places: Array, *, out: Array | None) -> Array:
        if not x.flags.c_contiguous:
            return x[places]  # take would copy the whole array first
        # "raise" would go through a buffer; the places are in range.
        return np.take(x, places, axis=0, out=out, mode="clip")

    def put_rows(self, x: Array, places: Array, rows: Array) -> None:
        x[places] = rows

    def sums_side_by_side(self, x: Array, axis: int) -> bool:
        # NumPy walks the axis of the shortest stride, of what was broadcast, first.
        shorter = (n > 1 and abs(stride) < x.itemsize for n, stride in zip(x.shape, x.strides, strict=True))
        return x.strides[axis] == x.itemsize and not any(shorter)

    def sum_all(self, x: Array) -> Array:
        # One contiguous axis, which it sums in a tree.
        return x.sum() if x.ndim == 1 else super().sum_all(x)

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """NumPy makes a scalar of a 0-d result, and warns of inf - inf, overflow and the like, which are defined."""
        with np.errstate(all="ignore"):
            return as_arrays(function(*args, **kwargs))


def taken_from_planes(x: Array, labels: Array) -> Array:
    """x[plane, label, row] of labels that are classes, in pieces of long planes.

    Fresh memory for all the places takes longer than what is taken.
    """
    planes, classes, rows = x.shape
    if rows <= PIECE:
        places: Array = labels * rows + cast(Array, np.arange(rows) + classes * rows * np.arange(planes)[:, None])
        return x.reshape(-1).take(places)
    found: Array = np.empty((planes, rows), x.dtype)
    for plane, start in itertools.product(range(planes), range(0, rows, PIECE)):
        piece = slice(start, min(start + PIECE, rows))
        places = labels[plane, piece] * rows
        places += np.arange(start, piece.stop)
        x[plane].reshape(-1).take(places, out=found[plane, piece], mode="clip")  # "raise" would go through a buffer
    return found


def as_arrays(x: Any) -> Any:
    """Each NumPy scalar in nested tuples as a 0-d array."""
    if isinstance(x, tuple):
        given: Any = cast(object, x)
        items = [as_arrays(item) for item in given]
        return type(given)(*items) if hasattr(given, "_fields") else tuple(items)
    return np.asarray(x) if isinstance(x, SCALAR) else x


xp = NumPy("numpy", functions)
