"""Masked reductions along any axes, and the reduction of per-entry values that the losses use."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from . import _arguments
from ._arguments import Like, Reduction, check_axis, check_choice, check_number, conjunction, describe, fail
from ._arrays import Array, Namespace, dtype_name, on_arrays
from ._math.reduce import Entries, quotient, reduce_entries

Axis = int | tuple[int, ...] | None
LARGEST_HALF = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}


class _Values(NamedTuple):
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


def _values(
    x: Any, mask: Any, axis: Any, keepdims: Any, weights: Any = None, empty: Any = 0.0, name: str = "x"
) -> _Values:
    like = _arguments.floating_like(name, x)
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
    return _Values(like, xp, x, keep, weights, axes, keepdims, empty)


@on_arrays
def masked_sum(x: Array, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, weights: Any = None) -> Array:
    r"""Weighted sum over what is kept, :math:`\sum_i w_i x_i`; 0 of nothing.

    Parameters
    ----------
    x : array, real floating
        Values. In all these functions half precision is accumulated in, and returned as, float32, but for `masked_max`
        and `masked_min`, which keep the dtype; and `x` decides the library and the device.
    mask : array, optional
        bool, or integer 0/1, broadcast to `x`. What is not kept reaches neither the value nor any gradient.
    axis : int, tuple of int, or None
        Axes to reduce; None: all.
    keepdims : bool
        Keep the reduced axes, with length 1.
    weights : array or number, optional
        Real, broadcast to `x`; 0 is the same as masked.

    Returns
    -------
    array of the shape of `x` without `axis`

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind, dtype, library, shape, value or device, named in the message.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_sum(np.asarray([1.0, np.nan, 3.0]), np.asarray([True, False, True])))
    4.0
    """
    v = _values(x, mask, axis, keepdims, weights)
    return v.total(v.x if v.weights is None else v.weights * v.x)


@on_arrays
def masked_mean(
    x: Array, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, weights: Any = None, empty: float = 0.0
) -> Array:
    r"""Weighted mean over what is kept, :math:`\bar x = \sum_i w_i x_i / \sum_i w_i`.

    Parameters
    ----------
    x, mask, axis, keepdims, weights
        Shapes, dtypes, result and errors as in :func:`masked_sum`.
    empty : float
        The mean of nothing, and where the weights sum to 0.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> x = np.asarray([[1.0, np.nan], [3.0, 5.0]])
    >>> print(ml.masked_mean(x, ~np.isnan(x), axis=1))
    [1. 4.]
    """
    v = _values(x, mask, axis, keepdims, weights, empty)
    divisor = v.total(v.units())
    return v.xp.where(divisor == 0, v.empty, quotient(v.total(v.units() * v.x), divisor, xp=v.xp))


@on_arrays
def masked_var(
    x: Array,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> Array:
    r"""Weighted variance over what is kept, :math:`\sum_i w_i (x_i - \bar x)^2 / (\sum_i w_i - \mathrm{correction})`.

    Parameters
    ----------
    x, mask, axis, keepdims, weights
        Shapes, dtypes, result and errors as in :func:`masked_sum`; the weights count as frequencies.
    correction : float
        1 for the unbiased estimate.
    empty : float
        The value where the divisor is not positive, as it is where nothing is kept.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_var(np.asarray([1.0, 3.0, 99.0]), np.asarray([1, 1, 0])))
    1.0
    """
    v = _values(x, mask, axis, keepdims, weights, empty)
    variance, undefined = _variance(v, correction)
    return v.xp.where(undefined, v.empty, variance)


@on_arrays
def masked_std(
    x: Array,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> Array:
    """Square root of :func:`masked_var`, with a gradient of 0, not NaN, where the variance is 0.

    Parameters
    ----------
    x, mask, axis, keepdims, weights, correction, empty
        As in :func:`masked_var`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_std(np.asarray([1.0, 5.0, np.inf]), np.asarray([1, 1, 0])))
    2.0
    """
    v = _values(x, mask, axis, keepdims, weights, empty)
    variance, undefined = _variance(v, correction)
    zero = variance == 0
    # The derivative of sqrt at 0 is infinite, and where() would multiply it by 0: replaced before the root.
    root = v.xp.sqrt(v.xp.where(zero, 1.0, variance))
    return v.xp.where(undefined, v.empty, v.xp.where(zero, 0.0, root))


def _variance(v: _Values, correction: Any) -> tuple[Array, Array]:
    """The variance, and where its divisor is not positive, so that there is none (and 0 is returned)."""
    xp, units = v.xp, v.units()
    correction = check_number("correction", correction)
    deviation = v.selected(v.x - quotient(v.total(units * v.x, True), v.total(units, True), xp=xp), 0.0)
    divisor = v.total(units) - correction
    undefined = divisor <= 0
    return quotient(v.total(units * deviation * deviation), xp.where(undefined, 0.0, divisor), xp=xp), undefined


@on_arrays
def masked_max(
    x: Array, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, empty: float = -math.inf
) -> Array:
    """Largest of what is kept, in the dtype of `x`. A NaN that is kept stays NaN.

    Parameters
    ----------
    x, mask, axis, keepdims
        Shapes, result and errors as in :func:`masked_sum`.
    empty : float
        The maximum of nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_max(np.asarray([1.0, 7.0, 3.0]), np.asarray([True, False, True])))
    3.0
    """
    return _extremum(_values(x, mask, axis, keepdims, None, empty), 1.0)


@on_arrays
def masked_min(
    x: Array, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, empty: float = math.inf
) -> Array:
    """Smallest of what is kept, in the dtype of `x`. A NaN that is kept stays NaN.

    Parameters
    ----------
    x, mask, axis, keepdims
        Shapes, result and errors as in :func:`masked_sum`.
    empty : float
        The minimum of nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_min(np.asarray([[1.0, 7.0], [3.0, 2.0]]), np.asarray([[0, 1], [0, 0]]), axis=1))
    [ 7. inf]
    """
    return _extremum(_values(x, mask, axis, keepdims, None, empty), -1.0)


def _extremum(v: _Values, sign: float) -> Array:
    """sign * max(sign * x): with sign -1 the minimum."""
    dtype = dtype_name(v.like.array)
    if math.isfinite(v.empty) and abs(v.empty) > LARGEST_HALF.get(dtype, math.inf):
        accepted = f"{dtype}, the dtype of x and of the result, holds finite numbers up to {LARGEST_HALF[dtype]:.4g}"
        fail(ValueError, "empty", v.empty, accepted)
    if v.has_empty_axis():
        result = v.total(v.x) + v.empty
    else:
        largest = v.xp.largest(v.selected(sign * v.x, -math.inf), axis=v.axes, keepdims=v.keepdims)
        result = v.unless_empty(sign * largest)
    return v.xp.astype(result, v.like.array.dtype, copy=False)


@on_arrays
def masked_logsumexp(
    x: Array, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, empty: float = -math.inf
) -> Array:
    r"""Logarithm of the sum of exponentials of what is kept, :math:`\log \sum_i e^{x_i}`.

    Parameters
    ----------
    x, mask, axis, keepdims
        Shapes, dtypes, result and errors as in :func:`masked_sum`.
    empty : float
        The value of nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_logsumexp(np.asarray([1000.0, np.nan]), np.asarray([True, False])))
    1000.0
    """
    v = _values(x, mask, axis, keepdims, None, empty)
    _, shift, total = _shifted(v)
    nothing = total == 0
    lse = v.xp.where(nothing, -math.inf, shift + v.xp.log(v.xp.where(nothing, 1.0, total)))
    return v.unless_empty(lse if v.keepdims else v.xp.squeeze(lse, axis=v.axes))


def _shifted(v: _Values) -> tuple[Array, Array, Array]:
    """x - shift, -inf where not kept; shift = max x; sum exp(x - shift): the last two with the axes kept."""
    xp = v.xp
    x = v.selected(v.x, -math.inf)
    if v.has_empty_axis():
        zeros = v.total(x, True)
        return x, zeros, zeros
    shift = xp.stop_gradient(xp.max(x, axis=v.axes, keepdims=True))
    # An infinite or NaN shift would make inf - inf of the row; 0 leaves what it holds to show itself.
    shift = xp.where(xp.isfinite(shift), shift, 0.0)
    return x - shift, shift, v.total(xp.exp(x - shift), True)


def _softmax_of(x: Any, mask: Any, axis: Any) -> tuple[_Values, Array, Array]:
    """_values along one axis; x - max x, and the sum of its exponentials, 1 where that is of nothing."""
    if axis is None or isinstance(axis, tuple):
        fail(TypeError, "axis", describe(cast(object, axis)), "it must be one axis, an integer")
    v = _values(x, mask, axis, True)
    shifted, _, total = _shifted(v)
    return v, shifted, v.xp.where(total == 0, 1.0, total)


@on_arrays
def masked_softmax(x: Array, mask: Any = None, *, axis: int = -1) -> Array:
    r"""Softmax over what is kept, :math:`e^{x_i} / \sum_j e^{x_j}`; 0 where not kept: a softmax of nothing is zeros.

    Parameters
    ----------
    x, mask
        Shapes, dtypes and errors as in :func:`masked_sum`; the result has the shape of `x`.
    axis : int
        The axis that sums to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_softmax(np.asarray([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0]]), np.asarray([[1, 1, 0], [0, 0, 0]])))
    [[0.5 0.5 0. ]
     [0.  0.  0. ]]
    """
    v, shifted, total = _softmax_of(x, mask, axis)
    return v.selected(v.xp.exp(shifted) / total, 0.0)


@on_arrays
def masked_log_softmax(x: Array, mask: Any = None, *, axis: int = -1) -> Array:
    r"""Logarithm of :func:`masked_softmax`, :math:`x_i - \log \sum_j e^{x_j}`; -inf where not kept.

    Parameters
    ----------
    x, mask, axis
        As in :func:`masked_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_log_softmax(np.asarray([2.0, np.inf]), np.asarray([True, False])))
    [  0. -inf]
    """
    v, shifted, total = _softmax_of(x, mask, axis)
    return v.selected(shifted - v.xp.log(total), -math.inf)


@on_arrays
def reduce(
    values: Array,
    *,
    mask: Any = None,
    weights: Any = None,
    reduction: Reduction = "mean",
    denominator: Array | float | None = None,
) -> Array:
    """Reduce per-entry values, of any loss, as :func:`cross_entropy` reduces its own.

    Parameters
    ----------
    values : array, real floating
        One value per entry; the last axis is the sequence for ``"mean_over_sequences"``.
    mask, weights, reduction, denominator
        Meaning, result and errors as in :func:`cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> values, mask = np.asarray([[1.0, 3.0], [5.0, np.nan]]), np.asarray([[1, 1], [1, 0]])
    >>> print(ml.reduce(values, mask=mask))  # (1 + 3 + 5) / 3
    3.0
    >>> print(ml.reduce(values, mask=mask, reduction="mean_over_sequences"))  # (2 + 5) / 2
    3.5
    """
    check_choice(reduction=reduction)
    v = _values(values, mask, None, False, weights, name="values")
    if denominator is not None:
        denominator = _arguments.to_denominator(denominator, reduction, v.like)
    # Where there is nothing to do, the caller's own array would be returned, and written to in place of the result.
    x = v.x * 1.0 if reduction == "none" and v.x is v.like.array else v.x
    return reduce_entries(Entries(x, v.keep, v.weights, None), reduction, denominator, xp=v.xp)
