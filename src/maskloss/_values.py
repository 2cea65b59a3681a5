"""The array of a masked reduction, checked: 0 where it is not kept."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from . import _arguments
from ._arguments import Like, check_axis, check_choice, check_number, conjunction, fail
from ._arrays import Array, Namespace
from ._call import in_double
from ._math.exact import flushed_argument, order_free

Axis = int | tuple[int, ...] | None


class Values(NamedTuple):
    """The array of one call, 0 where not kept, in the dtype of the computation; keep and weights of its shape."""

    like: Like
    xp: Namespace
    x: Array
    keep: Array | None
    weights: Array | None
    axes: tuple[int, ...]
    keepdims: bool
    empty: float  # the result of nothing

    def total(self, x: Array, keepdims: bool | None = None) -> Array:
        return self.xp.sum_over(x, self.axes, keepdims=self.keepdims if keepdims is None else keepdims)

    def kept(self) -> Array:
        return self.xp.ones_like(self.x, dtype=self.xp.bool) if self.keep is None else self.keep

    def units(self) -> Array:
        return self.xp.astype(self.kept(), self.x.dtype) if self.weights is None else self.weights

    def selected(self, x: Array, otherwise: float) -> Array:
        return x if self.keep is None else self.xp.where(self.keep, x, otherwise)

    def unless_empty(self, result: Array) -> Array:
        return self.xp.where(self.xp.any(self.kept(), axis=self.axes, keepdims=self.keepdims), result, self.empty)

    def has_empty_axis(self) -> bool:
        """No library takes the maximum of an axis of length 0; a sum over it is 0, and connected to the gradient."""
        return any(self.x.shape[axis] == 0 for axis in self.axes)


def values_of(
    x: Any,
    mask: Any,
    axis: Any,
    keepdims: Any,
    weights: Any = None,
    empty: Any = 0.0,
    name: str = "x",
    reproducible: bool = False,
) -> Values:
    like = _arguments.floating_like(name, x)
    if reproducible:
        like, weights = in_double(like)._replace(array=flushed_argument(like.array)), flushed_argument(weights)
    xp, x, shape = like.xp, like.array, tuple(like.array.shape)
    check_choice(keepdims=keepdims)
    given = range(x.ndim) if axis is None else cast("tuple[Any, ...]", axis if isinstance(axis, tuple) else (axis,))
    axes = tuple([check_axis(one, x.ndim) for one in given])
    if len(set(axes)) < len(axes):
        fail(ValueError, "axis", repr(given), "it names one axis twice")
    keep, invalid = (None, None) if mask is None else _arguments.to_mask(mask, shape, name, like)
    if weights is not None:
        weights = _arguments.to_weights("weights", weights, like, shape, name)
        keep = conjunction(keep, weights != 0)
        weights = xp.where(keep, weights, 0.0)
    empty = check_number("empty", empty)
    if math.isfinite(empty):
        check_number("empty", empty, like.dtype, xp)
    x = xp.astype(x, like.dtype, copy=False)
    x = x if keep is None else xp.where(keep, x, 0.0)
    x = x if invalid is None else x * xp.where(invalid, math.nan, xp.ones_like(x))
    xp = order_free(xp) if reproducible else xp
    return Values(like, xp, x, keep, weights, axes, keepdims, empty)
