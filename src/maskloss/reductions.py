"""Masked reductions along any axes, and the reduction of per-entry values that the losses use."""

from __future__ import annotations

import math
from typing import Any

from . import _arguments
from ._arguments import Reduction, check_choice, check_number, fail
from ._arrays import A, Array, dtype_name, on_arrays
from ._bindings import run_reproducible
from ._math.reduce import Entries, quotient, reduce_entries
from ._values import Axis, Values, values_of

LARGEST_HALF = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}


@on_arrays
def masked_sum(
    x: A,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    reproducible: bool = False,
) -> A:
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
    reproducible : bool
        Bits that depend on the numbers given alone, as in :func:`cross_entropy`.

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
    >>> x, mask = np.asarray([1.0, np.nan, 3.0]), np.asarray([True, False, True])
    >>> print(ml.masked_sum(x, mask))
    4.0
    """
    if reproducible is not False:
        given = {"x": x, "mask": mask, "axis": axis, "keepdims": keepdims, "weights": weights}
        return run_reproducible("sum", reproducible, given)
    v = values_of(x, mask, axis, keepdims, weights)
    return v.total(v.x if v.weights is None else v.weights * v.x)


@on_arrays
def masked_mean(
    x: A,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    empty: float = 0.0,
    reproducible: bool = False,
) -> A:
    r"""Weighted mean over what is kept, :math:`\bar x = \sum_i w_i x_i / \sum_i w_i`.

    Parameters
    ----------
    x, mask, axis, keepdims, weights, reproducible
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
    if reproducible is not False:
        given = {"x": x, "mask": mask, "axis": axis, "keepdims": keepdims, "weights": weights, "empty": empty}
        return run_reproducible("mean", reproducible, given)
    v = values_of(x, mask, axis, keepdims, weights, empty)
    divisor = v.total(v.units())
    return v.xp.where(divisor == 0, v.empty, quotient(v.total(v.units() * v.x), divisor, xp=v.xp))


@on_arrays
def masked_var(
    x: A,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> A:
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
    v = values_of(x, mask, axis, keepdims, weights, empty)
    variance, undefined = _variance(v, correction)
    return v.xp.where(undefined, v.empty, variance)


@on_arrays
def masked_std(
    x: A,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    weights: Any = None,
    correction: float = 0.0,
    empty: float = 0.0,
) -> A:
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
    v = values_of(x, mask, axis, keepdims, weights, empty)
    variance, undefined = _variance(v, correction)
    zero = variance == 0
    # The derivative of sqrt at 0 is infinite, and where() would multiply it by 0: replaced before the root.
    root = v.xp.sqrt(v.xp.where(zero, 1.0, variance))
    return v.xp.where(undefined, v.empty, v.xp.where(zero, 0.0, root))


def _variance(v: Values, correction: Any) -> tuple[Array, Array]:
    """The variance, and where its divisor is not positive, so that there is none (and 0 is returned)."""
    xp, units = v.xp, v.units()
    correction = check_number("correction", correction)
    deviation = v.selected(v.x - quotient(v.total(units * v.x, True), v.total(units, True), xp=xp), 0.0)
    divisor = v.total(units) - correction
    undefined = divisor <= 0
    return quotient(v.total(units * deviation * deviation), xp.where(undefined, 0.0, divisor), xp=xp), undefined


@on_arrays
def masked_max(x: A, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, empty: float = -math.inf) -> A:
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
    return _extremum(values_of(x, mask, axis, keepdims, None, empty), 1.0)


@on_arrays
def masked_min(x: A, mask: Any = None, *, axis: Axis = None, keepdims: bool = False, empty: float = math.inf) -> A:
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
    >>> x, mask = np.asarray([[1.0, 7.0], [3.0, 2.0]]), np.asarray([[0, 1], [0, 0]])
    >>> print(ml.masked_min(x, mask, axis=1))
    [ 7. inf]
    """
    return _extremum(values_of(x, mask, axis, keepdims, None, empty), -1.0)


def _extremum(v: Values, sign: float) -> Array:
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
def reduce(
    values: A,
    *,
    mask: Any = None,
    weights: Any = None,
    reduction: Reduction = "mean",
    denominator: Array | float | None = None,
    reproducible: bool = False,
) -> A:
    """Reduce per-entry values, of any loss, as :func:`cross_entropy` reduces its own.

    Parameters
    ----------
    values : array, real floating
        One value per entry; the last axis is the sequence for ``"mean_over_sequences"``.
    mask, weights, reduction, denominator, reproducible
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
    if reproducible is not False:
        given: dict[str, Any] = {"values": values, "mask": mask, "weights": weights, "reduction": reduction}
        return run_reproducible("reduce", reproducible, {**given, "denominator": denominator})
    check_choice(reduction=reduction)
    v = values_of(values, mask, None, False, weights, name="values")
    if denominator is not None:
        denominator = _arguments.to_denominator(denominator, reduction, v.like)
    # Where there is nothing to do, the caller's own array would be returned, and written to in place of the result.
    x = v.x * 1.0 if reduction == "none" and v.x is v.like.array else v.x
    return reduce_entries(Entries(x, v.keep, v.weights, None), reduction, denominator, xp=v.xp)
