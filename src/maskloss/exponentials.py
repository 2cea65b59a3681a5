"""Masked reductions of exponentials: logsumexp, softmax and its logarithm."""

from __future__ import annotations

import math
from typing import Any, cast

from ._arguments import describe, fail
from ._arrays import A, Array, on_arrays
from ._bindings import run_reproducible
from ._values import Axis, Values, values_of


@on_arrays
def masked_logsumexp(
    x: A,
    mask: Any = None,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    empty: float = -math.inf,
    reproducible: bool = False,
) -> A:
    r"""Logarithm of the sum of exponentials of what is kept, :math:`\log \sum_i e^{x_i}`.

    Parameters
    ----------
    x, mask, axis, keepdims, reproducible
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
    if reproducible is not False:
        given = {"x": x, "mask": mask, "axis": axis, "keepdims": keepdims, "empty": empty}
        return run_reproducible("logsumexp", reproducible, given)
    v = values_of(x, mask, axis, keepdims, None, empty)
    _, shift, total = _shifted(v)
    nothing = total == 0
    lse = v.xp.where(nothing, -math.inf, shift + v.xp.log(v.xp.where(nothing, 1.0, total)))
    return v.unless_empty(lse if v.keepdims else v.xp.squeeze(lse, axis=v.axes))


def _shifted(v: Values) -> tuple[Array, Array, Array]:
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


def one_axis(axis: Any) -> Any:
    if axis is None or isinstance(axis, tuple):
        fail(TypeError, "axis", describe(cast(object, axis)), "it must be one axis, an integer")
    return axis


def _softmax_of(x: Any, mask: Any, axis: Any) -> tuple[Values, Array, Array]:
    """_values along one axis; x - max x, and the sum of its exponentials, 1 where that is of nothing."""
    v = values_of(x, mask, one_axis(axis), True)
    shifted, _, total = _shifted(v)
    return v, shifted, v.xp.where(total == 0, 1.0, total)


@on_arrays
def masked_softmax(x: A, mask: Any = None, *, axis: int = -1, reproducible: bool = False) -> A:
    r"""Softmax over what is kept, :math:`e^{x_i} / \sum_j e^{x_j}`; 0 where not kept: a softmax of nothing is zeros.

    Parameters
    ----------
    x, mask, reproducible
        Shapes, dtypes and errors as in :func:`masked_sum`; the result has the shape of `x`.
    axis : int
        The axis that sums to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> x = np.asarray([[0.0, 0.0, 9.0], [1.0, 2.0, 3.0]])
    >>> print(ml.masked_softmax(x, np.asarray([[1, 1, 0], [0, 0, 0]])))
    [[0.5 0.5 0. ]
     [0.  0.  0. ]]
    """
    if reproducible is not False:
        return run_reproducible("softmax", reproducible, {"x": x, "mask": mask, "axis": one_axis(axis)})
    v, shifted, total = _softmax_of(x, mask, axis)
    return v.selected(v.xp.exp(shifted) / total, 0.0)


@on_arrays
def masked_log_softmax(x: A, mask: Any = None, *, axis: int = -1, reproducible: bool = False) -> A:
    r"""Logarithm of :func:`masked_softmax`, :math:`x_i - \log \sum_j e^{x_j}`; -inf where not kept.

    Parameters
    ----------
    x, mask, axis, reproducible
        As in :func:`masked_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> print(ml.masked_log_softmax(np.asarray([2.0, np.inf]), np.asarray([True, False])))
    [  0. -inf]
    """
    if reproducible is not False:
        return run_reproducible("log_softmax", reproducible, {"x": x, "mask": mask, "axis": one_axis(axis)})
    v, shifted, total = _softmax_of(x, mask, axis)
    return v.selected(shifted - v.xp.log(total), -math.inf)
