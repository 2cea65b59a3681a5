"""Masked reductions along any axes, and the reduction of per-entry values that the losses use."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Literal, NamedTuple

from ._compat import Array, Namespace, quiet, stop_gradient
from ._inputs import (
    Like,
    check_axis,
    check_broadcasts,
    check_choice,
    check_number,
    check_reduction,
    compute_dtype,
    describe,
    fail,
    floating_like,
    shape_of,
    to_denominator,
    to_mask,
    to_weights,
)
from ._reduce import Entries, quotient, reduce_entries

Axis = int | tuple[int, ...] | None


class _Values(NamedTuple):
    """One call's array: kept values in the dtype of the computation; keep and weights of its shape, or None."""

    library: str
    xp: Namespace
    given: Array
    x: Array
    keep: Array | None
    weights: Array | None
    axes: tuple[int, ...]
    keepdims: bool

    def sum(self, x: Array) -> Array:
        return self.xp.sum(x, axis=self.axes, keepdims=self.keepdims)

    def sum_keeping(self, x: Array) -> Array:
        return self.xp.sum(x, axis=self.axes, keepdims=True)

    def nothing_kept(self) -> Array:
        return ~self.xp.any(self.kept(), axis=self.axes, keepdims=self.keepdims)

    def kept(self) -> Array:
        return self.xp.ones_like(self.x, dtype=self.xp.bool) if self.keep is None else self.keep

    def units(self) -> Array:
        return self.xp.astype(self.kept(), self.x.dtype) if self.weights is None else self.weights

    def filled(self, value: float) -> Array:
        return self.x if self.keep is None else self.xp.where(self.keep, self.x, value)

    def empty_axes(self) -> bool:
        return any(self.x.shape[axis] == 0 for axis in self.axes)


def _values(x: Any, mask: Any, axis: Any, keepdims: Any, weights: Any = None, name: str = "x") -> _Values:
    like = floating_like(name, x)
    xp, shape = like.xp, shape_of(x)
    check_choice("keepdims", keepdims, (True, False))
    given = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(check_axis(one, x.ndim) for one in given)
    if len(set(axes)) < len(axes):
        fail(ValueError, "axis", axis, "it names one axis twice")
    dtype = compute_dtype(x, xp)
    keep = wrong = None
    what = f"{name}, which is {shape}"
    if mask is not None:
        keep, wrong = to_mask(mask, shape, what, like, "auto")
    if weights is not None:
        weights = to_weights("weights", weights, dtype, like)
        check_broadcasts("weights", weights, shape, what)
        weights = xp.broadcast_to(weights, shape)
        keep = weights != 0 if keep is None else keep & (weights != 0)
        weights = xp.where(keep, weights, 0.0)
    values = xp.astype(x, dtype, copy=False)
    if keep is not None:
        values = xp.where(keep, values, 0.0)
    if wrong is not None:
        values = values * xp.where(wrong, math.nan, xp.ones_like(values))
    return _Values(like.library, xp, x, values, keep, weights, axes, keepdims)


def masked_sum(
    x: Array,
    mask: Array | None = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Array | float | None = None,
) -> Array:
    """Sum of ``weights * x`` over what is kept; 0 of nothing.

    Parameters
    ----------
    x : array, real floating
        Values. Half precision is accumulated in, and returned as, float32; so in every function of this module but
        `masked_max` and `masked_min`.
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
    array

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind, dtype, library, shape or device, named in the message.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_sum(np.asarray([1.0, np.nan, 3.0]), np.asarray([True, False, True])))
    4.0
    """
    v = _values(x, mask, axis, keepdims, weights)
    with quiet(v.library):
        return v.sum(v.x if v.weights is None else v.weights * v.x)


def masked_mean(
    x: Array,
    mask: Array | None = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Array | float | None = None,
    empty: float = 0.0,
) -> Array:
    r"""Weighted mean over what is kept, :math:`\sum_i w_i x_i / \sum_i w_i`; `empty` where nothing is or the weights sum to 0.

    Parameters
    ----------
    x, mask, axis, keepdims, weights
        As in :func:`masked_sum`.
    empty : float
        The mean of nothing.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> x = np.asarray([[1.0, np.nan], [3.0, 5.0]])
    >>> print(ml.masked_mean(x, ~np.isnan(x), axis=1))
    [1. 4.]
    """
    v = _values(x, mask, axis, keepdims, weights)
    empty = _number_or_nan("empty", empty)
    with quiet(v.library):
        divisor = v.sum(v.units())
        mean = quotient(v.sum(v.units() * v.x), divisor, xp=v.xp)
        return v.xp.where(divisor == 0, empty, mean)


def masked_var(
    x: Array,
    mask: Array | None = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Array | float | None = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> Array:
    r"""Weighted variance over what is kept, :math:`\sum_i w_i (x_i - \bar x)^2 / (\sum_i w_i - \mathrm{correction})`.

    Parameters
    ----------
    x, mask, axis, keepdims, weights
        As in :func:`masked_sum`; the weights count as frequencies.
    correction : float
        1 for the unbiased estimate.
    empty : float
        The value where nothing is kept or the divisor is not positive.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_var(np.asarray([1.0, 3.0, 99.0]), np.asarray([1, 1, 0])))
    1.0
    """
    v = _values(x, mask, axis, keepdims, weights)
    empty, correction = _number_or_nan("empty", empty), _correction(correction)
    with quiet(v.library):
        variance, undefined = _variance(v, correction)
        return v.xp.where(undefined, empty, variance)


def masked_std(
    x: Array,
    mask: Array | None = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Array | float | None = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> Array:
    """Square root of :func:`masked_var`, with a gradient of 0, not NaN, where the variance is 0.

    Parameters
    ----------
    x, mask, axis, keepdims, weights, correction, empty
        As in :func:`masked_var`.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_std(np.asarray([1.0, 5.0, np.inf]), np.asarray([1, 1, 0])))
    2.0
    """
    v = _values(x, mask, axis, keepdims, weights)
    empty, correction = _number_or_nan("empty", empty), _correction(correction)
    with quiet(v.library):
        variance, undefined = _variance(v, correction)
        zero = variance == 0
        # The derivative of sqrt at 0 is infinite, and where() would multiply it by 0: replaced before the root.
        root = v.xp.sqrt(v.xp.where(zero, 1.0, variance))
        return v.xp.where(undefined, empty, v.xp.where(zero, 0.0, root))


def _variance(v: _Values, correction: float) -> tuple[Array, Array]:
    """The variance, and where its divisor is not positive, so that there is none (and 0 is returned)."""
    xp = v.xp
    units = v.units()
    mean = quotient(v.sum_keeping(units * v.x), v.sum_keeping(units), xp=xp)
    deviation = v.x - mean
    if v.keep is not None:
        deviation = xp.where(v.keep, deviation, 0.0)
    divisor = v.sum(units) - correction
    undefined = divisor <= 0
    return quotient(v.sum(units * deviation * deviation), xp.where(undefined, 0.0, divisor), xp=xp), undefined


def masked_max(
    x: Array, mask: Array | None = None, *, axis: Axis = None, keepdims: bool = False, empty: float = -math.inf
) -> Array:
    """Largest of what is kept, in the dtype of `x`; `empty` of nothing. A NaN that is kept stays NaN.

    Parameters
    ----------
    x, mask, axis, keepdims
        As in :func:`masked_sum`.
    empty : float
        The maximum of nothing.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_max(np.asarray([1.0, 7.0, 3.0]), np.asarray([True, False, True])))
    3.0
    """
    v = _values(x, mask, axis, keepdims)
    empty = _number_or_nan("empty", empty)
    with quiet(v.library):
        return v.xp.astype(_maximum(v, 1.0, empty), v.given.dtype, copy=False)


def masked_min(
    x: Array, mask: Array | None = None, *, axis: Axis = None, keepdims: bool = False, empty: float = math.inf
) -> Array:
    """Smallest of what is kept, in the dtype of `x`; `empty` of nothing. A NaN that is kept stays NaN.

    Parameters
    ----------
    x, mask, axis, keepdims
        As in :func:`masked_sum`.
    empty : float
        The minimum of nothing.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_min(np.asarray([[1.0, 7.0], [3.0, 2.0]]), np.asarray([[0, 1], [0, 0]]), axis=1))
    [ 7. inf]
    """
    v = _values(x, mask, axis, keepdims)
    empty = _number_or_nan("empty", empty)
    with quiet(v.library):
        return v.xp.astype(_maximum(v, -1.0, empty), v.given.dtype, copy=False)


def _maximum(v: _Values, sign: float, empty: float) -> Array:
    """The maximum of x, or with sign -1 its minimum, -max(-x)."""
    # The maximum of an axis of length 0 is an error in every library; a sum over it has the shape wanted.
    if v.empty_axes():
        return v.xp.full_like(v.sum(v.x), empty)
    largest = sign * v.xp.max(sign * v.filled(sign * -math.inf), axis=v.axes, keepdims=v.keepdims)
    return v.xp.where(v.nothing_kept(), empty, largest)


def masked_logsumexp(
    x: Array, mask: Array | None = None, *, axis: Axis = None, keepdims: bool = False, empty: float = -math.inf
) -> Array:
    r"""Logarithm of the sum of exponentials of what is kept, :math:`\log \sum_i e^{x_i}`; `empty` of nothing.

    Parameters
    ----------
    x, mask, axis, keepdims
        As in :func:`masked_sum`.
    empty : float
        The value of nothing.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_logsumexp(np.asarray([1000.0, np.nan]), np.asarray([True, False])))
    1000.0
    """
    v = _values(x, mask, axis, keepdims)
    empty = _number_or_nan("empty", empty)
    with quiet(v.library):
        if v.empty_axes():
            return v.xp.full_like(v.sum(v.x), empty)
        shift, total = _shifted_exp_sum(v)[1:]
        nothing = total == 0
        lse = v.xp.where(nothing, -math.inf, shift + v.xp.log(v.xp.where(nothing, 1.0, total)))
        lse = lse if v.keepdims else v.xp.squeeze(lse, axis=v.axes)
        return v.xp.where(v.nothing_kept(), empty, lse)


def _shifted_exp_sum(v: _Values) -> tuple[Array, Array, Array]:
    """x - shift, -inf where not kept; shift = max x; sum exp(x - shift): the last two with the axes kept."""
    xp = v.xp
    x = v.filled(-math.inf)
    shift = stop_gradient(xp.max(x, axis=v.axes, keepdims=True), xp=xp)
    # Nothing kept, or +-inf or NaN: the shift must not make inf - inf of it.
    shift = xp.where(xp.isfinite(shift), shift, 0.0)
    x = x - shift
    return x, shift, xp.sum(xp.exp(x), axis=v.axes, keepdims=True)


def masked_softmax(x: Array, mask: Array | None = None, *, axis: int = -1) -> Array:
    r"""Softmax over what is kept, :math:`e^{x_i} / \sum_j e^{x_j}`; 0 where not kept: a softmax of nothing is zeros.

    Parameters
    ----------
    x, mask
        As in :func:`masked_sum`.
    axis : int
        The axis that sums to 1.

    Returns
    -------
    array
        Of the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_softmax(np.asarray([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0]]), np.asarray([[1, 1, 0], [0, 0, 0]])))
    [[0.5 0.5 0. ]
     [0.  0.  0. ]]
    """
    v = _one_axis(x, mask, axis)
    with quiet(v.library):
        if v.empty_axes():
            return v.x
        shifted, _, total = _shifted_exp_sum(v)
        p = v.xp.exp(shifted) / v.xp.where(total == 0, 1.0, total)
        return p if v.keep is None else v.xp.where(v.keep, p, 0.0)


def masked_log_softmax(x: Array, mask: Array | None = None, *, axis: int = -1) -> Array:
    r"""Logarithm of :func:`masked_softmax`, :math:`x_i - \log \sum_j e^{x_j}`; -inf where not kept.

    Parameters
    ----------
    x, mask, axis
        As in :func:`masked_softmax`.

    Returns
    -------
    array
        Of the shape of `x`.

    Raises
    ------
    TypeError, ValueError
        As :func:`masked_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_log_softmax(np.asarray([2.0, np.inf]), np.asarray([True, False])))
    [  0. -inf]
    """
    v = _one_axis(x, mask, axis)
    with quiet(v.library):
        if v.empty_axes():
            return v.x
        shifted, _, total = _shifted_exp_sum(v)
        log_p = shifted - v.xp.log(v.xp.where(total == 0, 1.0, total))
        return log_p if v.keep is None else v.xp.where(v.keep, log_p, -math.inf)


def _one_axis(x: Any, mask: Any, axis: Any) -> _Values:
    if axis is None or isinstance(axis, tuple):
        fail(TypeError, "axis", axis, "it must be one axis, an integer")
    return _values(x, mask, axis, True)


def _number_or_nan(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(TypeError, name, describe(value), "it must be a Python number")
    return float(value)


def _correction(correction: Any) -> float:
    return check_number("correction", correction, 0.0, math.inf, "a number that is not negative")


def reduce(
    values: Array,
    *,
    mask: Array | None = None,
    weights: Array | float | None = None,
    reduction: Literal["none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences"] = "mean",
    denominator: Array | float | None = None,
) -> Array:
    """Reduce per-entry values, of any loss, as :func:`cross_entropy` reduces its own.

    Parameters
    ----------
    values : array, real floating
        One value per entry; the last axis is the sequence for ``"mean_over_sequences"``.
    mask, weights, reduction, denominator
        As in :func:`cross_entropy`.

    Returns
    -------
    array
        0-d, or of the shape of `values` for ``"none"``.

    Raises
    ------
    TypeError, ValueError
        As :func:`cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> values, mask = np.asarray([[1.0, 3.0], [5.0, np.nan]]), np.asarray([[1, 1], [1, 0]])
    >>> print(ml.reduce(values, mask=mask), ml.reduce(values, mask=mask, reduction="mean_over_sequences"))  # 9/3, (2 + 5)/2
    3.0 3.5
    """
    check_reduction(reduction, denominator)
    v = _values(values, mask, None, False, weights, "values")
    divisor = None
    if denominator is not None:
        divisor = to_denominator(denominator, v.x.dtype, Like("values", v.given, v.library, v.xp))
    with quiet(v.library):
        return reduce_entries(Entries(v.x, v.keep, v.weights, None), reduction, divisor, xp=v.xp)
