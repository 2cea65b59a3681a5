"""The mathematics: forward and backward of cross-entropy on a block of rows (last axis: the classes).

In the symbols of the code, for one row with logits x, label y and target vector t (over the classes):

    lse = log sum_c exp(x_c)        nll = lse - x_y        dot = sum_c t_c (lse - x_c)

and with p_c = exp(x_c - lse), T = sum_c t_c, and upstream gradients g_nll, g_dot, g_lse:

    dx_c = (g_nll + g_dot T + g_lse) p_c - g_nll [c = y] - g_dot t_c
    dt_c = g_dot (lse - x_c)

Every loss of the package is a sum of these three with coefficients per row, put together outside.

lse - x_c is computed as log_sum - (x_c - shift) with shift = max_c x_c: lse itself would lose what a common offset of
the logits (1e4, say) takes of the mantissa. The shift cancels, so it is a constant to any differentiation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ._compat import Array, Namespace, stop_gradient, subtract_at_label, take_label

# Longer sums are taken in two levels: a running sum in float32 (XLA's, and NumPy's along a strided axis) errs by up to
# one rounding per term, which at 2**20 classes is more than the last places of lse can hide.
_SUM_BLOCK = 1024


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


class Forward(NamedTuple):
    nll: Array | None
    dot: Array | None
    lse: Array
    log_sum: Array  # log sum_c exp(x_c - shift); 0 where every class has probability 0
    shift: Array


def long_sum(x: Array, *, xp: Namespace) -> Array:
    """Sum over the last axis, in two levels where it is long."""
    length = x.shape[-1]
    if length <= 2 * _SUM_BLOCK:
        return xp.sum(x, axis=-1)
    head = length - length % _SUM_BLOCK
    blocks = xp.reshape(x[..., :head], (*x.shape[:-1], head // _SUM_BLOCK, _SUM_BLOCK))
    return xp.sum(xp.sum(blocks, axis=-1), axis=-1) + xp.sum(x[..., head:], axis=-1)


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
    slope = None
    if rows.softcap is not None:
        tanh = xp.tanh(x / rows.softcap)
        x = rows.softcap * tanh
        slope = 1.0 - tanh * tanh
    if rows.class_mask is not None:
        x = xp.where(rows.class_mask, x, -math.inf)
    return x, slope


def log_sum_exp(x: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """lse, log_sum and shift over the last axis of x. Where every x_c is -inf: lse = -inf, log_sum = shift = 0."""
    shift = stop_gradient(xp.max(x, axis=-1), xp=xp)
    shift = xp.where(xp.isfinite(shift), shift, 0.0)
    total = long_sum(xp.exp(x - xp.expand_dims(shift, axis=-1)), xp=xp)
    nothing = total == 0
    log_sum = xp.log(xp.where(nothing, 1.0, total))
    return xp.where(nothing, -math.inf, shift + log_sum), log_sum, shift


def costs(x: Array, targets: Array, log_sum: Array, shift: Array, *, xp: Namespace) -> Array:
    """lse - x_c, and 0 where it is infinite but weighs nothing (t_c = 0): 0 * inf is 0 in a distribution.

    Selecting on the cost being infinite, not on t_c being 0, keeps d/dt_c = lse - x_c for a finite x_c whose t_c is 0.
    """
    cost = xp.expand_dims(log_sum, axis=-1) - (x - xp.expand_dims(shift, axis=-1))
    return xp.where(xp.isinf(cost) & (targets == 0), 0.0, cost)


def selected_targets(rows: Rows, *, xp: Namespace) -> Array:
    return rows.targets if rows.class_mask is None else xp.where(rows.class_mask, rows.targets, 0.0)


def forward(rows: Rows, *, xp: Namespace) -> Forward:
    x, _ = selected_logits(rows, xp=xp)
    lse, log_sum, shift = log_sum_exp(x, xp=xp)
    nll = dot = None
    if rows.labels is not None:
        nll = log_sum - (take_label(x, rows.labels, xp=xp) - shift)
    if rows.targets is not None:
        targets = selected_targets(rows, xp=xp)
        dot = long_sum(targets * costs(x, targets, log_sum, shift, xp=xp), xp=xp)
    return Forward(nll, dot, lse, log_sum, shift)


def probabilities(x: Array, log_sum: Array, shift: Array, *, xp: Namespace) -> Array:
    return xp.exp((x - xp.expand_dims(shift, axis=-1)) - xp.expand_dims(log_sum, axis=-1))


def backward(
    rows: Rows,
    log_sum: Array,
    shift: Array,
    g_nll: Array | None,
    g_dot: Array | None,
    g_lse: Array,
    *,
    targets_too: bool,
    xp: Namespace,
) -> tuple[Array, Array]:
    """Gradients of the logits, in their dtype, and, if asked for, of the targets, not yet summed to their shape."""
    x, slope = selected_logits(rows, xp=xp)
    targets: Array = None if g_dot is None else selected_targets(rows, xp=xp)
    coefficient = g_lse
    if g_nll is not None:
        coefficient = coefficient + g_nll
    if g_dot is not None:
        coefficient = coefficient + g_dot * xp.sum(targets, axis=-1)
    d_logits: Array = xp.expand_dims(coefficient, axis=-1) * probabilities(x, log_sum, shift, xp=xp)
    d_targets = None
    if g_nll is not None:
        d_logits = subtract_at_label(d_logits, rows.labels, g_nll, xp=xp)
    if g_dot is not None:
        g_dot = xp.expand_dims(g_dot, axis=-1)
        d_logits = d_logits - g_dot * targets
        if targets_too:
            d_targets = g_dot * costs(x, targets, log_sum, shift, xp=xp)
            if rows.class_mask is not None:
                d_targets = xp.where(rows.class_mask, d_targets, 0.0)
    if slope is not None:
        d_logits = d_logits * slope
    allowed = allowed_of(rows, xp=xp)
    if allowed is not None:
        d_logits = xp.where(allowed, d_logits, 0.0)
    return xp.astype(d_logits, rows.logits.dtype, copy=False), d_targets


def tangents(
    rows: Rows, log_sum: Array, shift: Array, t_logits: Array | None, t_targets: Array | None, *, xp: Namespace
) -> tuple[Array | None, Array | None, Array, Array]:
    """Derivative of forward along dx = t_logits and dt = t_targets (None: zero). With u = sum_c p_c dx_c:

    d nll = u - dx_y        d dot = sum_c t_c (u - dx_c) + dt_c (lse - x_c)        d lse = d log_sum = u
    """
    x, slope = selected_logits(rows, xp=xp)
    if t_logits is None:
        t_x, u = xp.zeros_like(x), xp.zeros_like(log_sum)
    else:
        t_x = xp.astype(t_logits, rows.dtype, copy=False)
        allowed = allowed_of(rows, xp=xp)
        if allowed is not None:
            t_x = xp.where(allowed, t_x, 0.0)
        if slope is not None:
            t_x = t_x * slope
        u = xp.sum(probabilities(x, log_sum, shift, xp=xp) * t_x, axis=-1)
    t_nll = t_dot = None
    if rows.labels is not None:
        t_nll = u - take_label(t_x, rows.labels, xp=xp)
    if rows.targets is not None:
        targets = selected_targets(rows, xp=xp)
        t_dot = xp.sum(targets * (xp.expand_dims(u, axis=-1) - t_x), axis=-1)
        if t_targets is not None:
            t_targets = t_targets if rows.class_mask is None else xp.where(rows.class_mask, t_targets, 0.0)
            t_dot = t_dot + xp.sum(t_targets * costs(x, targets, log_sum, shift, xp=xp), axis=-1)
    return t_nll, t_dot, u, u


def entropy(rows: Rows, *, xp: Namespace) -> Array:
    """sum_c p_c (lse - x_c), where a class of probability 0 adds 0."""
    x, _ = selected_logits(rows, xp=xp)
    _, log_sum, shift = log_sum_exp(x, xp=xp)
    p = probabilities(x, log_sum, shift, xp=xp)
    return long_sum(p * costs(x, p, log_sum, shift, xp=xp), xp=xp)
