"""The mathematics: forward and backward of cross-entropy on a block of rows (last axis: the classes).

In the symbols of the code, for one row with logits x, label y and target vector t (over the classes):

    lse = log sum_c exp(x_c)        nll = lse - x_y        dot = sum_c t_c (lse - x_c)

and with p_c = exp(x_c - lse), T = sum_c t_c, and upstream gradients g_nll, g_dot, g_lse:

    dx_c = (g_nll + g_dot T + g_lse) p_c - g_nll [c = y] - g_dot t_c
    dt_c = g_dot (lse - x_c)

Every loss of the package is a sum of these three with coefficients per row, put together outside.

lse - x_c is computed as log(total) - (x_c - shift) with shift = max_c x_c and total = sum_c exp(x_c - shift): lse
itself would lose what a common offset of the logits (1e4, say) takes of the mantissa. The shift cancels, so it is a
constant to any differentiation. p_c is exp(x_c - shift) / total. A shift of None is 0.

`out`, where a function takes it, is an array of the block's shape to compute in, which may be the logits themselves;
None allocates. A block that fits the cache then costs no memory traffic, where each fresh array costs a page fault per
4 KiB.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

from ._arrays import Array, Namespace, dtype_name

# Per dtype, of sum_c exp(x_c) that serves as it is, with a shift of 0: what underflows beside the least is less than a
# rounding of it. Of the upstream gradients that may be divided by it: quotients are normal numbers, neither infinite
# nor 0. Beyond, and for second derivatives, where g / total**2 occurs, the row is normalised first.
TOTALS = {"float32": (1e-20, 1e15), "float64": (1e-140, 1e140)}
UPSTREAM = {"float32": (1e-22, 1e18), "float64": (1e-160, 1e160)}
# Of total / exp(x_y - shift) whose logarithm is the loss, exact to a rounding of itself or of 1: both are normal then.
GREATEST_RATIO = 1e12

LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


class Rows(NamedTuple):
    """One block of rows: what forward and backward both need.

    logits (..., C); labels (...) in [0, C); targets broadcasts to (..., C); keep (...); class_mask (..., C).
    """

    logits: Array
    labels: Array | None
    targets: Array | None
    keep: Array | None
    class_mask: Array | None
    softcap: float | None
    dtype: Any
    kernels: Any = None  # the module of _kernels that computes them; None: arrays


class Upstream(NamedTuple):
    """The derivative of the loss with respect to nll and dot, and to lse**2 / 2; None: it does not depend on them."""

    nll: Array | None
    dot: Array | None
    squared_lse: Array | None

    def of_lse(self, lse: Array | None, *, xp: Namespace) -> Array | None:
        if self.squared_lse is None:
            return None
        # Where lse is infinite so is the loss, whatever the logits.
        return self.squared_lse * xp.where(xp.isinf(lse), 0.0, lse)


class Sums(NamedTuple):
    """What one walk over the classes gives of each row."""

    shift: Array | None
    total: Array  # sum_c exp(x_c - shift); 0 where every class has probability 0
    dot: Array | None


class Forward(NamedTuple):
    nll: Array | None
    dot: Array | None
    lse: Array | None
    total: Array
    shift: Array | None


def allowed_of(rows: Rows, *, xp: Namespace) -> Array | None:
    """Which logits exist: those of kept rows and, there, of classes that class_mask admits. None: all."""
    if rows.keep is None:
        return rows.class_mask
    keep = xp.expand_dims(rows.keep, axis=-1)
    return keep if rows.class_mask is None else keep & rows.class_mask


def selected_logits(rows: Rows, *, xp: Namespace) -> tuple[Array, Array | None]:
    """Logits as they enter the softmax, and d(these)/d(logits) where softcap makes it other than 1.

    Selection comes before any arithmetic, so that what is not kept reaches neither value nor derivative.
    """
    x = xp.astype(rows.logits, rows.dtype, copy=False)
    allowed = allowed_of(rows, xp=xp)
    if allowed is not None:
        x = xp.where(allowed, x, 0.0)
    x, slope = capped(x, rows.softcap, xp=xp)
    if rows.class_mask is not None:
        x = xp.where(rows.class_mask, x, -math.inf)
    return x, slope


def capped(x: Array, softcap: float | None, *, xp: Namespace) -> tuple[Array, Array | None]:
    if softcap is None:
        return x, None
    tanh = xp.tanh(x / softcap)
    return softcap * tanh, 1.0 - tanh * tanh


def exponentials(x: Array, shift: Array | None, *, xp: Namespace, out: Array | None = None) -> Array:
    into = {} if out is None else {"out": out}
    if shift is not None:
        x = xp.subtract(x, xp.expand_dims(shift, axis=-1), **into)
    return xp.exp(x, **into)


def shift_and_total(x: Array, *, xp: Namespace, out: Array | None = None) -> tuple[Array, Array]:
    largest = LARGEST[dtype_name(x)]
    # Finite, because inf - inf is NaN: a row of -inf has the total 0, and one with +inf the total inf.
    shift = xp.clip(xp.stop_gradient(xp.max(x, axis=-1)), -largest, largest)
    return shift, total_of(exponentials(x, shift, xp=xp, out=out), out, xp=xp)


def total_of(terms: Array, out: Array | None, *, xp: Namespace) -> Array:
    # A workspace is contiguous, and NumPy, torch and CuPy sum that in a tree.
    return xp.long_sum(terms) if out is None else terms.sum(-1)


def positive(total: Array, *, xp: Namespace) -> Array:
    return xp.where(total == 0, 1.0, total)


def costs(x: Array, targets: Array, total: Array, shift: Array, *, xp: Namespace) -> Array:
    """lse - x_c, and 0 where it is infinite but weighs nothing (t_c = 0): 0 * inf is 0 in a distribution.

    Selecting on the cost being infinite, not on t_c being 0, keeps d/dt_c = lse - x_c for a finite x_c whose t_c is 0.
    """
    log_sum = xp.log(positive(total, xp=xp))
    cost = xp.expand_dims(log_sum, axis=-1) - (x - xp.expand_dims(shift, axis=-1))
    return xp.where(xp.isinf(cost) & (targets == 0), 0.0, cost)


def selected_targets(rows: Rows, *, xp: Namespace) -> Array:
    targets: Array = rows.targets
    if targets.ndim == 1:
        targets = xp.of_rank(targets, rows.logits.ndim)
    return targets if rows.class_mask is None else xp.where(rows.class_mask, targets, 0.0)


def sums(x: Array, rows: Rows, *, xp: Namespace, out: Array | None = None) -> Sums:
    """Of the selected logits x."""
    if rows.targets is None:
        return Sums(*shift_and_total(x, xp=xp, out=out), None)
    shift, total = shift_and_total(x, xp=xp)
    targets = selected_targets(rows, xp=xp)
    return Sums(shift, total, xp.long_sum(targets * costs(x, targets, total, shift, xp=xp)))


def label_costs(total: Array, label_logits: Array, shift: Array, *, xp: Namespace) -> Array:
    """nll = lse - x_y."""
    return xp.log(positive(total, xp=xp)) - (label_logits - shift)


def log_sum_exp(total: Array, shift: Array, *, xp: Namespace) -> Array:
    return xp.where(total == 0, -math.inf, shift + xp.log(positive(total, xp=xp)))


def forward(rows: Rows, *, lse_too: bool, xp: Namespace) -> Forward:
    x, _ = selected_logits(rows, xp=xp)
    shift, total, dot = sums(x, rows, xp=xp)
    nll = lse = None
    if rows.labels is not None:
        nll = label_costs(total, xp.take_label(x, rows.labels), shift, xp=xp)
    if lse_too:
        lse = log_sum_exp(total, shift, xp=xp)
    return Forward(nll, dot, lse, total, shift)


def normalised(total: Array, shift: Array | None, lse: Array | None, *, xp: Namespace) -> tuple[Array, Array]:
    """The same row with a total of about 1, as a shift is a constant to any differentiation, whatever it is.

    The derivative of total follows from that of lse = shift + log(total), where that is given: d total = total d lse.
    """
    further = xp.stop_gradient(xp.log(positive(total, xp=xp)))
    further = xp.where(xp.isfinite(further), further, 0.0)
    moved = further if shift is None else shift + further
    # What was added, after rounding.
    further = moved if shift is None else moved - shift
    total = xp.stop_gradient(total * xp.exp(-further))
    if lse is not None:
        lse = xp.where(xp.isinf(lse), 0.0, lse)
        total = total * xp.exp(lse - xp.stop_gradient(lse))
    return total, moved


def probabilities(x: Array, total: Array, shift: Array | None, *, xp: Namespace) -> Array:
    return exponentials(x, shift, xp=xp) / xp.expand_dims(positive(total, xp=xp), axis=-1)


def backward(
    rows: Rows,
    total: Array,
    shift: Array | None,
    g_nll: Array | None,
    g_dot: Array | None,
    g_lse: Array | None,
    *,
    targets_too: bool,
    xp: Namespace,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Gradients of the logits, in rows.dtype, and, if asked for, of the targets, not yet summed to their shape."""
    x, slope = selected_logits(rows, xp=xp)
    targets: Array = None if g_dot is None else selected_targets(rows, xp=xp)
    coefficient = sum_of(g_nll, g_lse, None if g_dot is None else g_dot * xp.long_sum(targets))
    d_targets = None
    if g_dot is not None and targets_too:
        d_targets = xp.expand_dims(g_dot, axis=-1) * costs(x, targets, total, shift, xp=xp)
        if rows.class_mask is not None:
            d_targets = xp.where(rows.class_mask, d_targets, 0.0)
    scale = coefficient / positive(total, xp=xp)
    into = {} if out is None else {"out": out}
    d_logits: Array = exponentials(x, shift, xp=xp, out=out)
    d_logits = xp.multiply(d_logits, xp.expand_dims(scale, axis=-1), **into)
    if g_nll is not None:
        d_logits = xp.subtract_at_label(d_logits, rows.labels, g_nll, in_place=out is not None)
    if g_dot is not None:
        d_logits = d_logits - xp.expand_dims(g_dot, axis=-1) * targets
    return through_selection(d_logits, slope, rows, xp=xp), d_targets


def through_selection(d_logits: Array, slope: Array | None, rows: Rows, *, xp: Namespace) -> Array:
    """The adjoint of selected_logits."""
    if slope is not None:
        d_logits = d_logits * slope
    allowed = allowed_of(rows, xp=xp)
    return d_logits if allowed is None else xp.where(allowed, d_logits, 0.0)


def sum_of(*terms: Array | None) -> Array:
    """Of those that are not None; None where all are."""
    given = [term for term in terms if term is not None]
    return functools.reduce(operator.add, given) if given else None


def tangents(
    rows: Rows, total: Array, shift: Array | None, t_logits: Array | None, t_targets: Array | None, *, xp: Namespace
) -> tuple[Array | None, Array | None, Array]:
    """Derivative of forward along dx = t_logits and dt = t_targets (None: zero). With u = sum_c p_c dx_c:

    d nll = u - dx_y        d dot = sum_c t_c (u - dx_c) + dt_c (lse - x_c)        d lse = u
    """
    x, slope = selected_logits(rows, xp=xp)
    if t_logits is None:
        t_x, u = xp.zeros_like(x), xp.zeros_like(total)
    else:
        t_x = xp.astype(t_logits, rows.dtype, copy=False)
        allowed = allowed_of(rows, xp=xp)
        if allowed is not None:
            t_x = xp.where(allowed, t_x, 0.0)
        if slope is not None:
            t_x = t_x * slope
        u = xp.sum(probabilities(x, total, shift, xp=xp) * t_x, axis=-1)
    t_nll = t_dot = None
    if rows.labels is not None:
        t_nll = u - xp.take_label(t_x, rows.labels)
    if rows.targets is not None:
        targets = selected_targets(rows, xp=xp)
        t_dot = xp.sum(targets * (xp.expand_dims(u, axis=-1) - t_x), axis=-1)
        if t_targets is not None:
            t_targets = t_targets if rows.class_mask is None else xp.where(rows.class_mask, t_targets, 0.0)
            t_dot = t_dot + xp.sum(t_targets * costs(x, targets, total, shift, xp=xp), axis=-1)
    return t_nll, t_dot, u


def is_largest(rows: Rows, answers: Array, *, xp: Namespace) -> Array:
    """Whether the first of the largest allowed logits of each row is that of its answer."""
    x = xp.astype(rows.logits, rows.dtype, copy=False)
    x = x if rows.class_mask is None else xp.where(rows.class_mask, x, -math.inf)
    first = xp.argmax(x, axis=-1)
    # arg-max takes a NaN for the largest, and a NaN is no right answer.
    largest = xp.take_label(x, answers) if rows.class_mask is None and xp.gathers_classes else xp.max(x, axis=-1)
    if rows.class_mask is not None:  # of nothing but -inf the first that is allowed
        first_allowed = xp.argmax(xp.astype(rows.class_mask, xp.uint8), axis=-1)
        first = xp.where(largest == -math.inf, first_allowed, first)
    return (first == answers) & ~xp.isnan(largest)


def entropy(rows: Rows, *, xp: Namespace) -> Array:
    """sum_c p_c (lse - x_c), where a class of probability 0 adds 0."""
    x, _ = selected_logits(rows, xp=xp)
    shift, total = shift_and_total(x, xp=xp)
    p = probabilities(x, total, shift, xp=xp)
    return xp.long_sum(p * costs(x, p, total, shift, xp=xp))


def entropy_backward(rows: Rows, g: Array, *, xp: Namespace) -> Array:
    """With H = sum_c p_c (lse - x_c), in which p and lse both depend on x: dH/dx_c = p_c ((lse - x_c) - H)."""
    x, slope = selected_logits(rows, xp=xp)
    shift, total = shift_and_total(x, xp=xp)
    p = probabilities(x, total, shift, xp=xp)
    cost = costs(x, p, total, shift, xp=xp)
    d_logits = p * (cost - xp.expand_dims(xp.long_sum(p * cost), axis=-1)) * xp.expand_dims(g, axis=-1)
    return through_selection(d_logits, slope, rows, xp=xp)
