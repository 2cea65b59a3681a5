"""The rows' sums for JAX: of kept rows alone where most are not kept, and so their derivative.

With e_c = exp(x_c - shift), total = sum_c e_c and p_c = e_c / total, along dx

    d lse = sum_c p_c dx_c =: u        d p_c = p_c (dx_c - u)        d nll = u - dx_y

whatever the shift and the total. u is linear in dx, and its transpose gives, of a number g a row, the array g p_c. That
is linear in g, and its transpose is u again: the two carry the derivatives of every order. No array of the logits' size
is kept between them, and no number occurs that is far from p or from what comes from above.
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
from .jax_partition import Over, in_parts, layout_of_rows, linear, names_over

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
    total, shift = where_it_pays(partial(sums_of_part, dtype), "", x, keep)
    return softmax.log_sum_exp(total, shift, xp=xp), total, shift


@sums.defjvp
def _(dtype: Any, primals: Any, tangents: Any) -> Any:
    lse, total, shift = sums(dtype, *primals)
    u = dot(dtype, (*primals, total, shift), tangents[0])
    return (lse, total, shift), (u, jnp.zeros_like(u), jnp.zeros_like(u))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def dot(dtype: Any, row: Any, t: Any) -> Any:
    """sum_c p_c t_c; `row` is x, keep, and what sums gives of them."""

    def plain(x: Any, keep: Any, total: Any, shift: Any, t: Any) -> Any:
        p = jnp.exp(x.astype(dtype) - shift[..., None]) * (1.0 / softmax.positive(total, xp=xp))[..., None]
        product = p * t.astype(dtype)
        return jnp.sum(product if keep is None else jnp.where(keep[..., None], product, 0.0), axis=-1)

    return linear(plain, lambda row, g: scaled(dtype, t.dtype, row, g), row, t)


@dot.defjvp
def _(dtype: Any, primals: Any, tangents: Any) -> Any:
    (row, t), (t_row, t_t) = primals, tangents
    u, product = dot(dtype, row, t_row[0]), dot(dtype, row, t)
    # p_c dx_c, of which p alone is taken where not kept.
    t_x = t_row[0].astype(dtype) * t.astype(dtype)
    return product, dot(dtype, row, t_t) + dot(dtype, row, t_x) - u * product


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def scaled(dtype: Any, to: Any, row: Any, g: Any) -> Any:
    """g p_c, 0 where not kept, in the dtype `to`."""

    def plain(x: Any, keep: Any, total: Any, shift: Any, g: Any) -> Any:
        scale = 1.0 / softmax.positive(total, xp=xp)
        return where_it_pays(partial(scaled_of_part, dtype, to), "c", x, keep, scale, shift, g)

    return linear(plain, lambda row, t: dot(dtype, row, t), row, g)


@scaled.defjvp
def _(dtype: Any, to: Any, primals: Any, tangents: Any) -> Any:
    (row, g), (t_row, t_g) = primals, tangents
    keep = row[1]
    value, u = scaled(dtype, to, row, g), dot(dtype, row, t_row[0])
    # A tangent may hold NaN where nothing is kept.
    t_x = t_row[0].astype(dtype)
    t_x = t_x if keep is None else jnp.where(keep[..., None], t_x, 0.0)
    change = scaled(dtype, dtype, row, g) * (t_x - u[..., None])
    return value, (scaled(dtype, dtype, row, t_g) + change).astype(to)


def scaled_of_part(dtype: Any, to: Any, over: Over, x: Any, keep: Any, scale: Any, shift: Any, g: Any) -> Any:
    def term(x: Any, scale: Any, shift: Any, g: Any) -> Any:
        return (jnp.exp(x.astype(dtype) - shift[..., None]) * scale[..., None] * g[..., None]).astype(to)

    def plain() -> Any:
        terms = term(x, scale, shift, g)
        return terms if keep is None else jnp.where(keep[..., None], terms, jnp.zeros((), to))

    def skipping() -> Any:
        return walked(dtype, x, keep, [scale, shift, g], lambda *taken: [term(*taken)], [jnp.zeros(x.shape, to)])[0]

    return skips(dtype, x, keep, plain, skipping)


def chooses(x: Any) -> bool:
    """Where a choice at run time costs nothing."""
    return jax.default_backend() == "cpu" and is_static(*x.shape) and x.size >= LEAST_UNSHIFTED


def where_it_pays(function: Callable[..., Any], classes: str, x: Any, keep: Any, *numbers: Any) -> Any:
    """On each device's own rows, and classes, where there is more to it than an expression.

    `classes`: the name of the class axis in the result, "" where that has none.
    """
    if not chooses(x) or (classes and not may_skip(numbers[0].dtype, x, keep)):
        return function({}, x, keep, *numbers)
    rows = layout_of_rows(x.ndim - 1, x[..., 0])
    given = layout_of_rows(x.ndim - 1, x, "c"), None if keep is None else rows, *[rows] * len(numbers)
    return in_parts(function, (given, given[0] if classes else [rows, rows]), x, keep, *numbers)


def may_skip(dtype: Any, x: Any, keep: Any) -> bool:
    return chooses(x) and x.ndim > 1 and x.size >= LEAST_SKIPPED and (keep is not None or is_wide(dtype))


def is_wide(dtype: Any) -> bool:
    """XLA's CPU backend fuses exponentials of float64 into their sum as one scalar loop, which is four times slower."""
    return jnp.dtype(dtype) == jnp.float64


def skips(dtype: Any, x: Any, keep: Any, plain: Any, skipping: Any) -> Any:
    if not may_skip(dtype, x, keep):
        return plain()
    if is_wide(dtype):
        return skipping()
    return lax.cond(jnp.sum(keep) < GREATEST_SHARE * math.prod(x.shape[:-1]), skipping, plain)


def sums_of_part(dtype: Any, over: Over, x: Any, keep: Any) -> Any:
    entries = x.shape[:-1]

    def plain() -> Any:
        return total_and_shift(dtype, x, keep)

    def skipping() -> Any:
        return walked(
            dtype, x, keep, [], partial(shifted, dtype), [jnp.ones(entries, dtype), jnp.zeros(entries, dtype)]
        )

    total, shift = skips(dtype, x, keep, plain, skipping)
    return of_all_classes(over, total, shift, keep)


def of_all_classes(over: Over, total: Any, shift: Any, keep: Any) -> list[Any]:
    """Of the classes on every device."""
    split = names_over(over, "c")
    if not split:
        return [total, shift]
    greatest = lax.pmax(shift, split)
    total = lax.psum(total * jnp.exp(shift - greatest), split)
    return [total if keep is None else jnp.where(keep, total, 1.0), greatest]


def total_and_shift(dtype: Any, x: Any, keep: Any) -> list[Any]:
    """Without an array of the terms. As in the engine, the shift is 0 where the totals are then in range."""
    if chooses(x):
        low, high = TOTALS[is_wide(dtype)]
        total = folded_total(dtype, x)
        in_range = (low <= total) & (total <= high)
        in_range = jnp.all(in_range if keep is None else in_range | ~keep)
        total, shift = lax.cond(in_range, lambda: [total, jnp.zeros_like(total)], lambda: shifted(dtype, x))
    else:
        total, shift = shifted(dtype, x)
    return [total, shift] if keep is None else [jnp.where(keep, total, 1.0), jnp.where(keep, shift, 0.0)]


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


def folded_total(dtype: Any, x: Any) -> Any:
    parts = fold_of(x.shape[-1])
    total = jnp.sum(jnp.exp(folded(x, parts).astype(dtype)), axis=-1)
    return total if parts == 1 else jnp.sum(total.reshape(*x.shape[:-1], parts), axis=-1)


def shifted(dtype: Any, x: Any) -> list[Any]:
    parts = fold_of(x.shape[-1]) if chooses(x) else 1
    parted = folded(x, parts)
    # Converted twice, within each walk: an array of it would be twice as large as the logits.
    shift = softmax.finite_max(parted.astype(dtype), xp=xp)
    terms = jnp.exp(parted.astype(dtype) - shift[..., None])
    total = jnp.sum(lax.optimization_barrier(terms) if is_wide(dtype) else terms, axis=-1)
    if parts == 1:
        return [total, shift]
    totals, shifts = (part.reshape(*x.shape[:-1], parts) for part in (total, shift))
    shift = jnp.max(shifts, axis=-1)
    return [jnp.sum(totals * jnp.exp(shifts - shift[..., None]), axis=-1), shift]


def walked(
    dtype: Any, x: Any, keep: Any, numbers: list[Any], function: Callable[..., list[Any]], made: list[Any]
) -> list[Any]:
    """What the function gives of x and the numbers of each kept row in its place in `made`, in blocks of such rows.

    As many blocks as there are at run time.
    """
    entries, classes, shapes = x.shape[:-1], x.shape[-1], [part.shape for part in made]
    count = math.prod(entries)
    tables = [x.reshape(count, classes), *(number.reshape(count) for number in numbers)]
    length = max(1, min(count, BLOCK_BYTES // (jnp.dtype(dtype).itemsize * classes)))
    order, kept = kept_first(keep, count, length)

    def block(state: Any) -> Any:
        start, made = state
        places = lax.dynamic_slice(order, (start,), (length,))
        new = function(*(table.at[places].get(mode="clip") for table in tables))
        return start + length, [x.at[places].set(part, mode="drop") for x, part in zip(made, new, strict=True)]

    made = [part.reshape(count, *part.shape[len(entries) :]) for part in made]
    state = 0, varying_alike(made, (x, keep, numbers))
    made = lax.while_loop(lambda state: state[0] < kept, block, state)[1]
    return [part.reshape(shape) for part, shape in zip(made, shapes, strict=True)]


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
