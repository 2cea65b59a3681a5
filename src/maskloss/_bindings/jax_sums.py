"""The rows' sums for JAX: of kept rows alone where most are not kept, with a derivative made in the same walk.

With e_c = exp(x_c - shift), total = sum_c e_c and p_c = e_c / total, along dx

    d lse = sum_c p_c dx_c =: u        d p_c = p_c (dx_c - u)        d nll = u - dx_y

whatever the shift and the total. Transposed by JAX, the gradient of the logits is p times a number a row, to any order:
no number occurs that is far from p or from what comes from above.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import Namespace, is_static
from .._arrays.jax import xp
from .._engine.unshifted import GREATEST_RATIO, TOTALS
from .._math import softmax
from .._math.rows import RowFunction, Rows
from .._math.softmax import SOFTMAX, Forward
from .jax_partition import Over, in_parts, layout_of_rows, names_over

# XLA's CPU backend sums up to this many numbers in one vectorized walk, fused with the exponential; longer rows it
# splits in a way that is eight times slower (512 x 128256, jaxlib 0.10.2). They are folded to at most this length.
FOLD = 1 << 15
# With fewer logits than these, the sort and the loop cost more than the rows that they save.
LEAST_SKIPPED = 1 << 22
# With a larger share of kept rows, one walk over all of them is faster.
GREATEST_SHARE = 0.7
BLOCK_BYTES = 1 << 20
LEAST_UNSHIFTED = 1 << 16


def uncovered(function: RowFunction, rows: Rows) -> str | None:
    alone = rows.labels is not None and rows.targets is rows.class_mask is rows.softcap is None
    # A projection, whose rows have no logits, has its own loop for all of them.
    if rows.logits is None or (alone and function is SOFTMAX):
        return None
    return "with JAX it covers class indices without class_mask, label_smoothing and softcap"


def forward(rows: Rows, xp: Namespace) -> Forward:
    """softmax.forward, where class indices alone are asked for; of all else its expression."""
    if uncovered(SOFTMAX, rows) is not None:
        return softmax.forward(rows, xp)
    lse, total, shift = sums(rows.dtype, rows.logits, rows.keep)
    label_logits = xp.take_label(rows.logits, rows.labels).astype(rows.dtype)
    if rows.keep is not None:
        label_logits = jnp.where(rows.keep, label_logits, 0.0)
    nll = with_derivative_of(lse - label_logits, label_costs(total, label_logits, shift))
    return Forward(nll, None, lse if rows.with_lse else None, total, shift)


def label_costs(total: Any, label_logits: Any, shift: Any) -> Any:
    """lse - x_y = log(total / exp(x_y - shift)), or log(total) - (x_y - shift) where that quotient is out of range."""
    # total holds exp(x_y - shift), but rounded otherwise: without the maximum a loss of 0 could be negative.
    ratio = jnp.maximum(total / jnp.exp(label_logits - shift), 1.0)
    far = jnp.log(softmax.positive(total, xp=xp)) - (label_logits - shift)
    return jnp.where(ratio <= GREATEST_RATIO, jnp.log(ratio), far)


@jax.custom_jvp
def with_derivative_of(formula: Any, value: Any) -> Any:
    """The value, which is the formula's but for rounding; the derivative is the formula's."""
    return value


@with_derivative_of.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return with_derivative_of(*primals), tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)  # called eagerly, lax.cond would compile its branches in each call
def sums(dtype: Any, x: Any, keep: Any) -> tuple[Any, Any, Any]:
    """lse, total and shift of each row, the last two constants; 0, 1 and 0 where not kept."""
    total, shift = where_it_pays(partial(sums_of_part, dtype), x, keep)
    return softmax.log_sum_exp(total, shift, xp=xp), total, shift


@sums.defjvp
def _(dtype: Any, primals: Any, tangents: Any) -> Any:
    p, *given = probabilities(dtype, *primals)
    u = jnp.sum(p * tangents[0].astype(dtype), axis=-1)
    return tuple(given), (u, jnp.zeros_like(u), jnp.zeros_like(u))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def probabilities(dtype: Any, x: Any, keep: Any) -> tuple[Any, Any, Any, Any]:
    """p, 0 where not kept, and beside it what sums gives."""
    p, total, shift = where_it_pays(partial(probabilities_of_part, dtype), x, keep)
    return p, softmax.log_sum_exp(total, shift, xp=xp), total, shift


@probabilities.defjvp
def _(dtype: Any, primals: Any, tangents: Any) -> Any:
    p, *given = probabilities(dtype, *primals)
    # A tangent may hold NaN where nothing is kept.
    t = tangents[0].astype(dtype)
    t = t if primals[1] is None else jnp.where(primals[1][..., None], t, 0.0)
    u = jnp.sum(p * t, axis=-1)
    return (p, *given), (p * (t - u[..., None]), u, jnp.zeros_like(u), jnp.zeros_like(u))


def chooses(x: Any) -> bool:
    """Where a choice at run time costs nothing."""
    return jax.default_backend() == "cpu" and is_static(*x.shape) and x.size >= LEAST_UNSHIFTED


def where_it_pays(function: Callable[..., Any], x: Any, keep: Any) -> Any:
    """On each device's own rows, and classes, where there is more to it than an expression."""
    if not chooses(x):
        return function({}, x, keep)
    entries = x.ndim - 1
    rows = layout_of_rows(entries, x[..., 0])
    whole = layout_of_rows(entries, x, "c")
    p = [whole] if function.func is probabilities_of_part else []
    return in_parts(function, ((whole, None if keep is None else rows), [*p, rows, rows]), x, keep)


def skips(x: Any, keep: Any, plain: Any, skipping: Any) -> Any:
    count = math.prod(x.shape[:-1])
    if keep is None or not chooses(x) or x.size < LEAST_SKIPPED or count < 2:
        return plain()
    return lax.cond(jnp.sum(keep) < GREATEST_SHARE * count, skipping, plain)


def sums_of_part(dtype: Any, over: Over, x: Any, keep: Any) -> tuple[Any, Any]:
    def plain() -> tuple[Any, Any]:
        return total_and_shift(x.astype(dtype), keep)

    total, shift = skips(x, keep, plain, lambda: walked(dtype, x, keep, p_too=False)[1:])
    return of_all_classes(over, total, shift, keep)[:2]


def of_all_classes(over: Over, total: Any, shift: Any, keep: Any) -> tuple[Any, Any, Any]:
    """Total and shift of the classes on every device, and what a term of this device's shift is to be multiplied by."""
    split = names_over(over, "c")
    if not split:
        return total, shift, None
    greatest = lax.pmax(shift, split)
    change = jnp.exp(shift - greatest)
    sum_of_all = lax.psum(total * change, split)
    return (sum_of_all if keep is None else jnp.where(keep, sum_of_all, 1.0)), greatest, change


def probabilities_of_part(dtype: Any, over: Over, x: Any, keep: Any) -> tuple[Any, Any, Any]:
    def plain() -> tuple[Any, Any, Any]:
        logits = x.astype(dtype)
        total, shift = total_and_shift(logits, keep)
        p = jnp.exp(logits - shift[..., None]) * (1.0 / softmax.positive(total, xp=xp))[..., None]
        return p if keep is None else jnp.where(keep[..., None], p, 0.0), total, shift

    p, part, shift = skips(x, keep, plain, lambda: walked(dtype, x, keep, p_too=True))
    total, shift, change = of_all_classes(over, part, shift, keep)
    if change is not None:
        p = p * (part * change / softmax.positive(total, xp=xp))[..., None]
    return p, total, shift


def total_and_shift(x: Any, keep: Any) -> tuple[Any, Any]:
    """Without an array of the terms. As in the engine, the shift is 0 where the totals are then in range."""
    if chooses(x):
        low, high = TOTALS[x.dtype == jnp.float64]
        total = folded_total(x)
        in_range = (low <= total) & (total <= high)
        in_range = jnp.all(in_range if keep is None else in_range | ~keep)
        total, shift = lax.cond(in_range, lambda: (total, jnp.zeros_like(total)), lambda: shifted(x))
    else:
        total, shift = shifted(x)
    return (total, shift) if keep is None else (jnp.where(keep, total, 1.0), jnp.where(keep, shift, 0.0))


def fold_of(classes: int) -> int:
    """Into how many parts of at most FOLD a row is folded. 1: none, as for a prime number of classes."""
    length = next(n for n in range(min(classes, FOLD), 0, -1) if classes % n == 0)
    return 1 if length < classes // length else classes // length


def folded(x: Any, parts: int) -> Any:
    """(rows * parts, classes / parts)."""
    if parts == 1:
        return x
    # Without the barrier XLA moves the reshape behind the exponential, and no longer fuses that with the sum.
    return lax.optimization_barrier(jnp.reshape(x, (-1, x.shape[-1] // parts)))


def folded_total(x: Any) -> Any:
    parts = fold_of(x.shape[-1])
    total = jnp.sum(jnp.exp(folded(x, parts)), axis=-1)
    return total if parts == 1 else jnp.sum(total.reshape(*x.shape[:-1], parts), axis=-1)


def shifted(x: Any) -> tuple[Any, Any]:
    parts = fold_of(x.shape[-1]) if chooses(x) else 1
    parted = folded(x, parts)
    shift = softmax.finite_max(parted, xp=xp)
    total = jnp.sum(jnp.exp(parted - shift[..., None]), axis=-1)
    if parts == 1:
        return total, shift
    totals, shifts = (part.reshape(*x.shape[:-1], parts) for part in (total, shift))
    shift = jnp.max(shifts, axis=-1)
    return jnp.sum(totals * jnp.exp(shifts - shift[..., None]), axis=-1), shift


def walked(dtype: Any, x: Any, keep: Any, *, p_too: bool) -> tuple[Any, Any, Any]:
    """p (None if not asked for), totals and shifts, in blocks of kept rows: as many as there are at run time."""
    entries, classes = x.shape[:-1], x.shape[-1]
    count = math.prod(entries)
    flat = x.reshape(count, classes)
    length = max(1, min(count, BLOCK_BYTES // (jnp.dtype(dtype).itemsize * classes)))
    order, kept = kept_first(keep, count, length)

    def block(state: Any) -> Any:
        start, p, total, shift = state
        places = lax.dynamic_slice(order, (start,), (length,))
        taken = flat.at[places].get(mode="clip").astype(dtype)
        if p_too:
            block_shift = softmax.finite_max(taken, xp=xp)
            terms = jnp.exp(taken - block_shift[:, None])
            block_total = jnp.sum(terms, axis=-1)
            block_p = terms * (1.0 / softmax.positive(block_total, xp=xp))[:, None]
            p = p.at[places].set(block_p, mode="drop")
        else:
            block_total, block_shift = shifted(taken)
        total = total.at[places].set(block_total, mode="drop")
        shift = shift.at[places].set(block_shift, mode="drop")
        return start + length, p, total, shift

    zeros = jnp.zeros_like(flat, dtype=dtype) if p_too else None
    made = varying_alike((zeros, jnp.ones(count, dtype), jnp.zeros(count, dtype)), (x, keep))
    _, p, total, shift = lax.while_loop(lambda state: state[0] < kept, block, (0, *made))
    return p if p is None else p.reshape(x.shape), total.reshape(entries), shift.reshape(entries)


def kept_first(keep: Any, count: int, length: int) -> tuple[Any, Any]:
    """The places of the kept rows, then up to whole blocks the place behind the last row, and how many are kept.

    That place is read clipped, or as zeros, and written nowhere.
    """
    order, kept = jnp.arange(count), count
    if keep is not None:
        keep = keep.reshape(count)
        kept = jnp.sum(keep)
        order = jnp.where(order < kept, jnp.argsort(~keep, stable=True), count)
    return jnp.concatenate([order, jnp.full((-count % length or length,), count, order.dtype)]), kept


def varying_alike(made: Any, given: Any) -> Any:
    """The arrays made, varying over the mesh axes that those given vary over: within shard_map, a loop's carry must.

    By a 0 that varies over all of them, since what JAX lets ask for the axes has another name in each version.
    """
    zeros = [lax.full_like(x, 0, jnp.int32, ()) for x in jax.tree.leaves(given) if xp.is_tracer(x)]
    if not zeros:
        return made
    zero = functools.reduce(lax.add, zeros)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), made)
