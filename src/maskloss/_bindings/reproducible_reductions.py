"""The masked reductions in the arithmetic that has the same bits everywhere, with their derivatives.

With u_i the weights (1 where there are none), D = sum_i u_i and p_i the softmax,

    sum      dx_i = u_i g                dw_i = x_i g
    mean     dx_i = u_i g / D            dw_i = (x_i - mean) g / D
    logsumexp, softmax and log_softmax   dx_i = p_i g,  p_i (g_i - sum_j p_j g_j),  g_i - p_i sum_j g_j
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._arguments import check_choice, to_denominator
from .._arrays import Array
from .._call import check_room
from .._math import reproducible
from .._math.reduce import Cotangents, Entries, quotient, reduce_entries, reduction_derivatives
from .._math.rows import Rows
from .._values import Values, values_of
from .reproducible import FUNCTIONS as FUNCTIONS
from .reproducible import Reproducible, lane_of, one_result, registered, rounded, to_argument

Given = dict[str, Any]
Gradients = dict[str, Array]


def checked(given: Given) -> Values:
    get = given.get
    return values_of(
        get("x"), get("mask"), get("axis"), get("keepdims", True), get("weights"), get("empty", 0.0), reproducible=True
    )


def reduction(name: str, names: tuple[str, ...], of: Callable[..., Any], gradients: Callable[..., Any]) -> None:
    """`of` gives the value of checked ones, `gradients` those of `names`, of their upstream gradient."""

    def value_of(given: Given) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        v = checked(given)
        return (rounded(of(v), v.xp.float32, xp=v.xp),), ()

    def gradients_of(given: Given, saved: Any, cotangents: Any, wanted: frozenset[str]) -> Gradients:
        v = checked(given)
        kept = tuple(1 if axis in v.axes else n for axis, n in enumerate(v.x.shape))
        g = v.xp.astype(cotangents[0], v.xp.float64)
        made = gradients(v, g if g.shape == v.x.shape else v.xp.reshape(g, kept))
        return {name: to_argument(v.selected(made[name], 0.0), given[name], xp=v.xp) for name in wanted}

    registered(Reproducible(name, checked, value_of, gradients_of, names, one_result))


def total(v: Values) -> Array:
    return v.total(v.x if v.weights is None else v.weights * v.x)


def total_gradients(v: Values, g: Array) -> Gradients:
    return {"x": v.units() * g, "weights": v.x * g}


def mean(v: Values) -> Array:
    divisor = v.total(v.units())
    return v.xp.where(divisor == 0, v.empty, quotient(v.total(v.units() * v.x), divisor, xp=v.xp))


def mean_gradients(v: Values, g: Array) -> Gradients:
    units, xp = v.units(), v.xp
    divisor = v.total(units, True)
    of_mean = quotient(v.total(units * v.x, True), divisor, xp=xp)
    g = quotient(g, divisor, xp=xp)
    return {"x": units * g, "weights": (v.x - of_mean) * g}


def rows_of(v: Values) -> tuple[Rows, Callable[[Array], Array]]:
    """What is reduced as the classes of rows; and the way back."""
    xp, x = v.xp, v.like.array
    rest = tuple(axis for axis in range(x.ndim) if axis not in v.axes)
    order, lengths = (*rest, *v.axes), [x.shape[axis] for axis in rest]
    moved = (*lengths, *(x.shape[axis] for axis in v.axes))
    flat = (*lengths, math.prod(x.shape[axis] for axis in v.axes))
    check_room("x", flat[-1])

    def to_rows(x: Array) -> Array:
        return xp.reshape(xp.permute_dims(x, order), flat)

    def back(x: Array) -> Array:
        return xp.permute_dims(xp.reshape(x, moved), tuple(order.index(axis) for axis in range(len(order))))

    # Selected already: what is not kept is 0 there, and exists for nobody.
    class_mask = None if v.keep is None else to_rows(v.keep)
    return Rows(to_rows(v.x), None, None, None, class_mask, None, None, xp.float64, True, True), back


def logsumexp(v: Values) -> Array:
    rows, _ = rows_of(v)
    lse = lane_of(reproducible.SOFTMAX, rows, xp=v.xp).forward(rows, v.xp).lse
    shape = tuple(1 if axis in v.axes else n for axis, n in enumerate(v.x.shape) if v.keepdims or axis not in v.axes)
    return v.unless_empty(v.xp.reshape(lse, shape))


def logsumexp_gradients(v: Values, g: Array) -> Gradients:
    rows, back = rows_of(v)
    lane, xp = lane_of(reproducible.SOFTMAX, rows, xp=v.xp), v.xp
    out = lane.forward(rows, xp)
    g = xp.reshape(g, out.lse.shape)
    return {"x": back(lane.backward(rows, out, (None, None, g), targets_too=False, xp=xp)[0])}


def softmax(v: Values) -> Array:
    rows, back = rows_of(v)
    return back(reproducible.probabilities(rows, reproducible.forward(rows, v.xp), xp=v.xp))


def softmax_gradients(v: Values, g: Array) -> Gradients:
    p = softmax(v)
    return {"x": p * (g - v.total(p * v.selected(g, 0.0), True))}


def log_softmax(v: Values) -> Array:
    rows, back = rows_of(v)
    return v.selected(back(reproducible.log_probabilities(rows, reproducible.forward(rows, v.xp), xp=v.xp)), -math.inf)


def log_softmax_gradients(v: Values, g: Array) -> Gradients:
    g = v.selected(g, 0.0)
    return {"x": g - v.xp.times(softmax(v), v.total(g, True))}


def values_of_entries(given: Given) -> tuple[Values, Array | None]:
    get = given.__getitem__
    check_choice(reduction=get("reduction"))
    v = values_of(get("values"), get("mask"), None, False, get("weights"), name="values", reproducible=True)
    denominator = get("denominator")
    return v, None if denominator is None else to_denominator(denominator, get("reduction"), v.like)


def reduced(given: Given) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    v, denominator = values_of_entries(given)
    value = reduce_entries(Entries(v.x, v.keep, v.weights, None), given["reduction"], denominator, xp=v.xp)
    return (rounded(value, v.xp.float32, xp=v.xp),), ()


def reduced_gradients(given: Given, saved: Any, cotangents: Any, wanted: frozenset[str]) -> Gradients:
    v, denominator = values_of_entries(given)
    entries, xp = Entries(v.x, v.keep, v.weights, None), v.xp
    g = Cotangents(xp.astype(cotangents[0], xp.float64))
    d = reduction_derivatives(entries, given["reduction"], denominator, g, xp=xp)[1]
    made = {"values": d.losses, "weights": d.weights, "denominator": d.denominator}
    return {name: to_argument(made[name], given[name], xp=xp) for name in wanted}


reduction("sum", ("x", "weights"), total, total_gradients)
reduction("mean", ("x", "weights"), mean, mean_gradients)
reduction("logsumexp", ("x",), logsumexp, logsumexp_gradients)
reduction("softmax", ("x",), softmax, softmax_gradients)
reduction("log_softmax", ("x",), log_softmax, log_softmax_gradients)
REDUCED = ("values", "weights", "denominator")
registered(Reproducible("reduce", values_of_entries, reduced, reduced_gradients, REDUCED, one_result))
