"""Cross-entropy of a row's softmax: forward, backward and tangents.

In the symbols of the code, for one row with logits x, label y and target vector t (over the classes):

    lse = log sum_c exp(x_c)        nll = lse - x_y        dot = sum_c t_c (lse - x_c)

and with p_c = exp(x_c - lse), T = sum_c t_c, and upstream gradients g_nll, g_dot, g_lse:

    dx_c = (g_nll + g_dot T + g_lse) p_c - g_nll [c = y] - g_dot t_c
    dt_c = g_dot (lse - x_c)

Every loss of a softmax is a sum of these three with coefficients per row, put together outside.

lse - x_c is computed as log(total) - (x_c - shift) with shift = max_c x_c and total = sum_c exp(x_c - shift): lse
itself would lose what a common offset of the logits (1e4, say) takes of the mantissa. The shift cancels, so it is a
constant to any differentiation. p_c is exp(x_c - shift) / total. A shift of None is 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .._arrays import Array, Namespace, dtype_name
from .rows import RowFunction, Rows, registered, selected_logits, selected_targets, sum_of, through_selection

LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


class Forward(NamedTuple):
    nll: Array | None
    dot: Array | None
    lse: Array | None
    total: Array
    shift: Array | None


class Sums(NamedTuple):
    """What one walk over the classes gives of each row, or of a part of its classes."""

    shift: Array | None
    total: Array  # sum_c exp(x_c - shift); 0 where every class has probability 0
    mass: Array | None  # T
    moment: Array | None  # sum_c t_c (x_c - shift)


class Upstream(NamedTuple):
    """The derivative of the loss with respect to nll and dot, and to lse**2 / 2; None: it does not depend on them."""

    nll: Array | None
    dot: Array | None
    squared_lse: Array | None


def upstream(known: Upstream, out: Forward, xp: Namespace) -> tuple[Array | None, Array | None, Array | None]:
    nll, dot, squared_lse = known
    if squared_lse is None:
        return nll, dot, None
    # Where lse is infinite so is the loss, whatever the logits.
    return nll, dot, xp.times(squared_lse, xp.where(xp.isinf(out.lse), 0.0, out.lse))


def exponentials(x: Array, shift: Array | None, *, xp: Namespace, into: Array | None = None) -> Array:
    out = {} if into is None else {"out": into}
    if shift is not None:
        x = xp.subtract(x, xp.expand_dims(shift, axis=-1), **out)
    return xp.exp(x, **out)


def finite_max(x: Array, axis: int = -1, *, xp: Namespace) -> Array:
    """Finite, because inf - inf is NaN: a row of -inf has the total 0, and one with +inf the total inf."""
    largest = LARGEST[dtype_name(x)]
    return xp.clip(xp.stop_gradient(xp.max(x, axis=axis)), -largest, largest)


def shift_and_total(x: Array, *, xp: Namespace, into: Array | None = None) -> tuple[Array, Array]:
    if not xp.fuses:
        shift = finite_max(x, xp=xp)
        return shift, total_of(exponentials(x, shift, xp=xp, into=into), into, xp=xp)
    # What is done to the maximum a compiler that fuses does again for each class: inf - inf is mended after.
    shift, largest = xp.max(x, axis=-1), LARGEST[dtype_name(x)]
    total = total_of(exponentials(x, shift, xp=xp), None, xp=xp)
    total = xp.where(xp.isinf(shift), xp.where(shift > 0, math.inf, 0.0), total)
    return xp.clip(shift, -largest, largest), total


def total_of(terms: Array, into: Array | None, *, xp: Namespace) -> Array:
    # NumPy, torch and CuPy sum what is contiguous in a tree, as a workspace is where classes lie side by side.
    return terms.sum(-1) if into is not None and xp.sums_side_by_side(into, into.ndim - 1) else xp.long_sum(terms)


def positive(total: Array, *, xp: Namespace) -> Array:
    return xp.where(total == 0, 1.0, total)


def log_sum_exp(total: Array, shift: Array, *, xp: Namespace) -> Array:
    return xp.where(total == 0, -math.inf, shift + xp.log(positive(total, xp=xp)))


def costs(x: Array, targets: Array, total: Array, shift: Array, *, xp: Namespace) -> Array:
    """lse - x_c, and 0 where it is infinite but weighs nothing (t_c = 0): 0 * inf is 0 in a distribution.

    Selecting on the cost being infinite, not on t_c being 0, keeps d/dt_c = lse - x_c for a finite x_c whose t_c is 0.
    """
    log_sum = xp.log(positive(total, xp=xp))
    cost = xp.expand_dims(log_sum, axis=-1) - (x - xp.expand_dims(shift, axis=-1))
    return xp.where(xp.isinf(cost) & (targets == 0), 0.0, cost)


def sums(x: Array, rows: Rows, *, xp: Namespace, into: Array | None = None, looks: bool = False) -> Sums:
    """Of the selected logits x, which may lie in `into`. `looks`: Python may, and nothing is differentiated."""
    if rows.targets is None:
        return Sums(*shift_and_total(x, xp=xp, into=into), None, None)
    shift, targets = finite_max(x, xp=xp), selected_targets(rows, xp=xp)
    away = x - xp.expand_dims(shift, axis=-1)
    total = xp.long_sum(exponentials(away, None, xp=xp, into=into))
    if looks:
        moment = xp.long_sum(targets * away)
        if bool(xp.all(xp.isfinite(moment))):
            return Sums(shift, total, xp.broadcast_to(xp.long_sum(targets), total.shape), moment)
    # As in costs: 0 * inf is 0. In mass t_c is 0 for its derivative, which is then 0 in both.
    weightless = xp.isinf(away) & (targets == 0)
    mass = xp.long_sum(xp.where(weightless, 0.0, targets))
    return Sums(shift, total, mass, xp.long_sum(targets * xp.where(weightless, 0.0, away)))


def merged(first: Sums, second: Sums, *, xp: Namespace) -> Sums:
    """Of all classes: a shift raised to m turns total into total exp(shift - m), and moment gains mass (shift - m)."""
    shift = xp.maximum(first.shift, second.shift)
    total, mass, moment = 0.0, None, None
    for part in (first, second):
        change = part.shift - shift
        total = total + part.total * xp.exp(change)
        if part.mass is not None:
            # A part that weighs nothing may have any shift.
            moment = sum_of(moment, part.moment + xp.where(part.mass == 0, 0.0, part.mass * change))
            mass = sum_of(mass, part.mass)
    return Sums(shift, total, mass, moment)


def finished(sums: Sums, label_logits: Array | None, rows: Rows, *, xp: Namespace) -> Forward:
    """What the sums over all classes, and the logits of the labels, give."""
    shift, total, mass, moment = sums
    log_sum = xp.log(positive(total, xp=xp))
    nll = None if label_logits is None else log_sum - (label_logits - shift)
    dot = None if mass is None else mass * log_sum - moment
    lse = log_sum_exp(total, shift, xp=xp) if rows.with_lse else None
    return Forward(nll, dot, lse, total, shift)


def forward(rows: Rows, xp: Namespace) -> Forward:
    x, _ = selected_logits(rows, xp=xp)
    label_logits = None if rows.labels is None else xp.take_label(x, rows.labels)
    return finished(sums(x, rows, xp=xp), label_logits, rows, xp=xp)


def restated(out: Forward, xp: Namespace) -> Forward:
    """The same row with a total of about 1, as a shift is a constant to any differentiation, whatever it is.

    The derivative of total follows from that of lse = shift + log(total), where that is given: d total = total d lse.
    """
    total, shift, lse = out.total, out.shift, out.lse
    further = xp.stop_gradient(xp.log(positive(total, xp=xp)))
    further = xp.where(xp.isfinite(further), further, 0.0)
    moved = further if shift is None else shift + further
    # What was added, after rounding.
    further = moved if shift is None else moved - shift
    total = xp.stop_gradient(total * xp.exp(-further))
    if lse is not None:
        finite_lse = xp.where(xp.isinf(lse), 0.0, lse)
        total = total * xp.exp(finite_lse - xp.stop_gradient(finite_lse))
    return out._replace(total=total, shift=moved)


def backward(
    rows: Rows,
    out: Forward,
    g: Any,
    *,
    targets_too: bool,
    xp: Namespace,
    into: Array | None = None,
    lse_is_held: bool = False,  # in nll and dot: whose derivative by it is in g_lse already
) -> tuple[Array, Array | None]:
    (g_nll, g_dot, g_lse), total, shift = g, out.total, out.shift
    x, slope = selected_logits(rows, xp=xp)
    targets: Array = None if g_dot is None else selected_targets(rows, xp=xp)
    coefficient = g_lse
    if not lse_is_held:
        coefficient = sum_of(g_nll, g_lse, None if g_dot is None else g_dot * xp.long_sum(targets))
    d_targets = None
    if g_dot is not None and targets_too:
        d_targets = xp.expand_dims(g_dot, axis=-1) * costs(x, targets, total, shift, xp=xp)
        if rows.class_mask is not None:
            d_targets = xp.where(rows.class_mask, d_targets, 0.0)
    scale = xp.expand_dims(coefficient / positive(total, xp=xp), axis=-1)
    d_logits: Array = exponentials(x, shift, xp=xp, into=into)
    d_logits = xp.multiply(d_logits, scale, **({} if into is None else {"out": into}))
    if g_nll is not None:
        d_logits = xp.subtract_at_label(d_logits, rows.labels, g_nll, in_place=into is not None)
    if g_dot is not None:
        d_logits = d_logits - xp.expand_dims(g_dot, axis=-1) * targets
    return through_selection(d_logits, slope, rows, xp=xp), d_targets


def tangents(
    rows: Rows, out: Forward, t_logits: Array | None, t_targets: Array | None, xp: Namespace
) -> tuple[Array | None, Array | None, Array]:
    """Derivative of forward along dx = t_logits and dt = t_targets (None: zero). With u = sum_c p_c dx_c:

    d nll = u - dx_y        d dot = sum_c t_c (u - dx_c) + dt_c (lse - x_c)        d lse = u
    """
    x, slope = selected_logits(rows, xp=xp)
    t_x = xp.zeros_like(x)
    if t_logits is not None:
        t_x = through_selection(xp.astype(t_logits, rows.dtype, copy=False), slope, rows, xp=xp)
    p = exponentials(x, out.shift, xp=xp) / xp.expand_dims(positive(out.total, xp=xp), axis=-1)
    u = xp.sum(p * t_x, axis=-1)
    t_nll = None if rows.labels is None else u - xp.take_label(t_x, rows.labels)
    t_dot = None
    if rows.targets is not None:
        targets = selected_targets(rows, xp=xp)
        t_dot = xp.sum(targets * (xp.expand_dims(u, axis=-1) - t_x), axis=-1)
        if t_targets is not None:
            t_targets = t_targets if rows.class_mask is None else xp.where(rows.class_mask, t_targets, 0.0)
            t_dot = t_dot + xp.sum(t_targets * costs(x, targets, out.total, out.shift, xp=xp), axis=-1)
    return t_nll, t_dot, u


SOFTMAX = registered(
    RowFunction(
        "softmax",
        Forward,
        forward,
        backward,
        tangents,
        traced_plainly=False,
        differentiable=3,
        needed_from=2,
        upstream=upstream,
        restated=restated,
    )
)
