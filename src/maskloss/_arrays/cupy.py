"""CuPy: NumPy's interface, numbers that a device has to be waited for."""

from __future__ import annotations

from array_api_compat import cupy as functions  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

from .standard import Array, Namespace, flattens_by_strides

PRODUCT_ROWS = 1 << 12


class CuPy(Namespace):
    has_out = True

    def flattens(self, x: Array) -> bool:
        return x.ndim <= 2 or flattens_by_strides(x.shape, x.strides)

    def subtract_at_label(self, x: Array, labels: Array, values: Array, *, in_place: bool) -> Array:
        if x.ndim != 2:
            return super().subtract_at_label(x, labels, values, in_place=in_place)
        x = x if in_place else x.copy()
        x[self.arange(x.shape[0], **self.placement(x)), labels] -= values
        return x

    def clipped_below(self, x: Array, low: float) -> Array:
        return x.clip(low, None)

    def sums_side_by_side(self, x: Array, axis: int) -> bool:
        return axis == x.ndim - 1

    def product(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        return self.matmul(a, b, out=out)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        for start in range(0, total.shape[0], PRODUCT_ROWS):  # of the product, which has an array of its own
            total[start : start + PRODUCT_ROWS] += a[start : start + PRODUCT_ROWS] @ b
        return total


xp = CuPy("cupy", functions)
