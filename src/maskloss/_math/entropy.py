"""Entropy of a row's softmax: H = sum_c p_c (lse - x_c), and dH/dx_c = p_c (lse - x_c - H), as lse depends on x."""

from __future__ import annotations

from typing import Any

from .._arrays import Array, Namespace
from .rows import RowFunction, Rows, Value, registered, selected_logits, through_selection
from .softmax import costs, exponentials, positive, shift_and_total


def probabilities_and_costs(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """p_c and lse - x_c; a class of probability 0 costs 0."""
    shift, total = shift_and_total(x, xp=xp)
    p = exponentials(x, shift, xp=xp) / xp.expand_dims(positive(total, xp=xp), axis=-1)
    return p, costs(x, p, total, shift, xp=xp)


def forward(rows: Rows, xp: Namespace) -> Value:
    p, cost = probabilities_and_costs(selected_logits(rows, xp=xp)[0], xp=xp)
    return Value(xp.long_sum(p * cost))


def backward(
    rows: Rows, out: Value, g: Any, *, targets_too: bool, xp: Namespace, into: Array | None = None
) -> tuple[Array, None]:
    x, slope = selected_logits(rows, xp=xp)
    p, cost = probabilities_and_costs(x, xp=xp)
    d_logits = p * (cost - xp.expand_dims(xp.long_sum(p * cost), axis=-1)) * xp.expand_dims(g[0], axis=-1)
    return through_selection(d_logits, slope, rows, xp=xp), None


def tangents(rows: Rows, out: Value, t_logits: Array | None, t_targets: None, xp: Namespace) -> tuple[Array]:
    each = xp.filled(rows.logits.shape[:-1], 1.0, rows.dtype, rows.logits)
    d_logits, _ = backward(rows, out, (each,), targets_too=False, xp=xp)
    # A tangent may hold NaN where nothing is kept.
    t_logits = through_selection(xp.astype(t_logits, rows.dtype, copy=False), None, rows, xp=xp)
    return (xp.sum(d_logits * t_logits, axis=-1),)


ENTROPY = registered(RowFunction("entropy", Value, forward, backward, tangents))
