"""The rows' sums for JAX: of kept rows alone where most are not kept, and so their derivative.

With e_c = exp(x_c - shift), total = sum_c e_c and p_c = e_c / total, along dx

    d lse = sum_c p_c dx_c =: u        d p_c = p_c (dx_c - u)        d nll = u - dx_y

whatever the shift and the total. (u, dx_y) is linear in dx, and its transpose gives, of two numbers a row, the array
g p_c + g_y [c = y]. That is linear in them, and its transpose is (u, dx_y) again: the two carry derivatives of every
order. No array of the logits' size is kept between them (but of terms: float64's, in which the gradient is then
written, those of logits that stay in the cache, and those of planes), and no number is far from p or from what comes
from above.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

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
from .jax_partition import Over, in_parts, kept_first, layout_of_rows, linear, names_over, spec_of, varying_alike
from .jax_planes import HALVES, axis_of, is_wide, of_kept, sums_of_planes, unshifted_or_not

# XLA's CPU backend sums up to this many numbers in one vectorized walk, fused with the exponential; longer rows it
# splits in a way that is eight times slower (512 x 128256, jaxlib 0.10.2). They are folded to at most this length.
FOLD = 1 << 15
# With fewer logits than these, the sort and the loop cost more than the rows that they save.
LEAST_SKIPPED = 1 << 22
# With a larger share of kept rows, one walk over all of them is faster.
GREATEST_SHARE = 0.45
BLOCK_BYTES = 1 << 20
LEAST_UNSHIFTED = 1 << 16
# With at least so many classes, and logits that stay in the cache, to read exponentials costs less than to make them
# again: 1.3 to 1.5 times faster with the gradient at 256 x 1000 and 333 x 9973. With fewer, the maximum costs more, and
# a label that is added in its place more than one that each class is compared with.
LEAST_KEPT = 1 << 8


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
    axis = axis_of(rows) if chooses(rows.logits) else -1
    logits = jnp.moveaxis(rows.logits, -1, axis)  # back, and XLA moves nothing
    lse, total, shift, label_logits = sums(rows.dtype, axis, False, logits, rows.labels, rows.keep)
    nll = xp.with_derivative_of(lse - label_logits, label_costs(total, label_logits, shift))
    return Forward(nll, None, lse if rows.with_lse else None, total, shift)


def label_costs(total: Any, label_logits: Any, shift: Any) -> Any:
    """lse - x_y = log(total / exp(x_y - shift)), or log(total) - (x_y - shift) where that quotient is out of range."""
    # total holds exp(x_y - shift), but rounded otherwise: without the maximum a loss of 0 could be negative.
    ratio = jnp.maximum(total / jnp.exp(label_logits - shift), 1.0)
    far = jnp.log(softmax.positive(total, xp=xp)) - (label_logits - shift)
    return jnp.where(ratio <= GREATEST_RATIO, jnp.log(ratio), far)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))  # called eagerly, lax.cond would compile its branches in each call
def sums(dtype: Any, axis: int, with_terms: bool, x: Any, y: Any, keep: Any) -> tuple[Any, ...]:
    """lse, total and shift of each row, the last two constants, and x_y; 0, 1, 0 and 0 where not kept.

    `with_terms`: and exp(x_c - shift), constants too.
    """
    if axis == -1:
        function, classes = partial(sums_of_part, dtype, with_terms), [False] * 3 + [True] * with_terms
        total, shift, label_logits, *terms = where_it_pays(function, x, keep, y, classes=classes)
    else:
        total, shift, label_logits, *terms = sums_of_planes(axis, with_terms, x, y, keep)
    return softmax.log_sum_exp(total, shift, xp=xp), total, shift, label_logits, *terms


@sums.defjvp
def _(dtype: Any, axis: int, with_terms: bool, primals: Any, tangents: Any) -> Any:
    x, _, keep = primals
    keeps = with_terms or axis != -1 or keeps_terms(dtype, x, keep)
    lse, total, shift, label_logits, *terms = sums(dtype, axis, keeps, *primals)
    u, t_y = dot(dtype, axis, (*primals, total, shift, *terms), tangents[0])
    constants = total, shift, *(terms if with_terms else ())
    zero_total, zero_shift, *zero_terms = map(jnp.zeros_like, constants)
    return (lse, total, shift, label_logits, *constants[2:]), (u, zero_total, zero_shift, t_y, *zero_terms)


def exponentials(dtype: Any, x: Any, shift: Any, terms: Any, axis: int = -1) -> Any:
    return terms[0] if terms else jnp.exp(converted(dtype, x) - jnp.expand_dims(shift, axis))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def dot(dtype: Any, axis: int, row: Any, t: Any) -> list[Any]:
    """sum_c p_c t_c and t_y; `row` is x, y, keep, and what sums gives of them."""

    def plain(x: Any, y: Any, keep: Any, total: Any, shift: Any, *rest: Any) -> list[Any]:
        *terms, t = rest
        p = exponentials(dtype, x, shift, terms, axis) * jnp.expand_dims(1.0 / softmax.positive(total, xp=xp), axis)
        t = kept(keep, t.astype(dtype), axis)
        at_label = jnp.where(is_label(y, x, 0, axis), t, 0.0)
        return [jnp.sum(kept(keep, p, axis) * t, axis=axis), jnp.sum(at_label, axis=axis)]

    return linear(plain, lambda row, *g: [scaled(dtype, axis, t.dtype, row, *g)], row, t)


@dot.defjvp
def _(dtype: Any, axis: int, primals: Any, tangents: Any) -> Any:
    (row, t), (t_row, t_t) = primals, tangents
    (u, _), found, changed = (dot(dtype, axis, row, x) for x in (t_row[0], t, t_t))
    both, _ = dot(dtype, axis, row, t_row[0].astype(dtype) * t.astype(dtype))
    return found, [changed[0] + both - u * found[0], changed[1]]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))
def scaled(dtype: Any, axis: int, to: Any, row: Any, g: Any, g_y: Any) -> Any:
    """g p_c + g_y [c = y], 0 where not kept, in the dtype `to`."""

    def plain(x: Any, y: Any, keep: Any, total: Any, shift: Any, *rest: Any) -> list[Any]:
        *terms, g, g_y = rest
        scale, function = 1.0 / softmax.positive(total, xp=xp), partial(scaled_of_part, dtype, to)
        if axis != -1:
            of_label = jnp.where(is_label(y, x, 0, axis), jnp.expand_dims(g_y, axis), 0.0)
            p = exponentials(dtype, x, shift, terms, axis) * jnp.expand_dims(scale, axis)
            return [kept(keep, p * jnp.expand_dims(g, axis) + of_label, axis).astype(to)]
        return where_it_pays(function, x, keep, y, scale, shift, g, g_y, *terms, classes=[True])

    return linear(plain, lambda row, t: dot(dtype, axis, row, t), row, g, g_y)[0]


@scaled.defjvp
def _(dtype: Any, axis: int, to: Any, primals: Any, tangents: Any) -> Any:
    (row, *g), (t_row, *t_g) = primals, tangents
    value, (u, _) = scaled(dtype, axis, to, row, *g), dot(dtype, axis, row, t_row[0])
    # A tangent may hold NaN where nothing is kept.
    t_x = kept(row[2], t_row[0].astype(dtype), axis)
    change = scaled(dtype, axis, dtype, row, g[0], jnp.zeros_like(g[0])) * (t_x - jnp.expand_dims(u, axis))
    return value, (scaled(dtype, axis, dtype, row, *t_g) + change).astype(to)


def kept(keep: Any, x: Any, axis: int = -1) -> Any:
    return x if keep is None else jnp.where(jnp.expand_dims(keep, axis), x, jnp.zeros((), x.dtype))


def converted(dtype: Any, x: Any) -> Any:
    """Within each walk anew: shared by two, the converted logits would be an array of twice their size."""
    return (lax.optimization_barrier(x) if x.dtype in HALVES else x).astype(dtype)


def scaled_of_part(dtype: Any, to: Any, over: Over, x: Any, keep: Any, y: Any, *numbers: Any) -> list[Any]:
    start, places_labels = first_class(over, x), adds(x)

    def term(keep: Any, x: Any, y: Any, scale: Any, shift: Any, g: Any, g_y: Any, *terms: Any) -> Any:
        of_softmax = exponentials(dtype, x, shift, terms) * scale[..., None] * g[..., None]
        if places_labels:
            return plus_at_labels(kept(keep, of_softmax), y - start, g_y if keep is None else jnp.where(keep, g_y, 0.0))
        return kept(keep, (of_softmax + jnp.where(is_label(y, x, start), g_y[..., None], 0.0)).astype(to))

    def skipping() -> list[Any]:
        return walked(dtype, x, keep, [y, *numbers], lambda *taken: [term(None, *taken)], [jnp.zeros(x.shape, to)])

    return skips(x, keep, lambda: [term(keep, x, y, *numbers)], skipping)


def adds(x: Any) -> bool:
    """Whether `plus_at_labels` makes a gradient: of half precision XLA's CPU backend would convert all, and again."""
    return x.dtype not in HALVES and chooses(x) and x.shape[-1] >= LEAST_KEPT


def plus_at_labels(made: Any, y: Any, g_y: Any) -> Any:
    """One number a row is added in its place: XLA does not vectorize what compares each class with a label."""
    count, classes = y.size, made.shape[-1]
    places = jnp.where(y < 0, classes, y).reshape(count)  # in another part, as behind the last of this
    table = made.reshape(count, classes).at[jnp.arange(count), places]
    added = table.add(g_y.reshape(count), mode="drop", indices_are_sorted=True, unique_indices=True)
    return added.reshape(made.shape)


def is_label(y: Any, x: Any, start: Any, axis: int = -1) -> Any:
    """Of each class of x, the first of which is `start`."""
    classes = jnp.arange(x.shape[axis], dtype=y.dtype).reshape(-1, *[1] * (-1 - axis))
    return classes + start == jnp.expand_dims(y, axis)


def first_class(over: Over, x: Any) -> Any:
    """Of this device's part."""
    split = names_over(over, "c")
    return lax.axis_index(split) * x.shape[-1] if split else 0


def at_label(over: Over, dtype: Any, x: Any, y: Any) -> Any:
    """x_y, of the classes on every device."""
    split = names_over(over, "c")
    y = y - first_class(over, x).astype(y.dtype) if split else y
    # Of half precision XLA's CPU backend converts the whole array before it takes a few (jaxlib 0.10.2).
    bits = lax.bitcast_convert_type(x, jnp.uint16) if x.dtype in HALVES else x
    taken = jnp.take_along_axis(bits, jnp.clip(y, 0, x.shape[-1] - 1)[..., None], axis=-1)[..., 0]
    taken = lax.bitcast_convert_type(taken, x.dtype).astype(dtype)
    return lax.psum(jnp.where((y >= 0) & (y < x.shape[-1]), taken, 0.0), split) if split else taken


def chooses(x: Any) -> bool:
    """Where a choice at run time costs nothing."""
    return jax.default_backend() == "cpu" and is_static(*x.shape) and x.size >= LEAST_UNSHIFTED


def where_it_pays(function: Callable[..., Any], x: Any, keep: Any, *given: Any, classes: list[bool]) -> Any:
    """On each device's own rows, and classes, where there is more to it than an expression.

    `classes`: of each result, whether it is an array like x, and not a number per row.
    """
    has_more = may_skip(x, keep) or adds(x) if all(classes) else chooses(x)
    if not has_more and not any(spec_of(x)):
        return function({}, x, keep, *given)
    of_rows, of_classes = (layout_of_rows(x.ndim - 1, ndim, "c") for ndim in (x.ndim - 1, x.ndim))
    layouts = of_classes, of_rows, *[of_classes if a.ndim == x.ndim else of_rows for a in given]
    return in_parts(function, (layouts, [of_classes if has else of_rows for has in classes]), x, keep, *given)


def is_large(x: Any) -> bool:
    return chooses(x) and x.ndim > 1 and x.size >= LEAST_SKIPPED


def keeps_terms(dtype: Any, x: Any, keep: Any) -> bool:
    """Whether a gradient is made of the exponentials that its sums were made of, and not of new ones."""
    if is_large(x):
        return keep is None and is_wide(dtype)
    return chooses(x) and LEAST_KEPT <= x.shape[-1] <= FOLD


def may_skip(x: Any, keep: Any) -> bool:
    """Not rows of half precision: to take a few, XLA's CPU backend would convert all (jaxlib 0.10.2)."""
    return keep is not None and is_large(x) and x.dtype not in HALVES


def skips(x: Any, keep: Any, plain: Any, skipping: Any) -> Any:
    if not may_skip(x, keep):
        return plain()
    return lax.cond(jnp.sum(keep) < GREATEST_SHARE * math.prod(x.shape[:-1]), skipping, plain)


def sums_of_part(dtype: Any, with_terms: bool, over: Over, x: Any, keep: Any, y: Any) -> list[Any]:
    entries = x.shape[:-1]

    def plain() -> Any:
        return total_and_shift(dtype, x, keep)

    def skipping() -> list[Any]:
        made = [jnp.ones(entries, dtype), jnp.zeros(entries, dtype)]
        return walked(dtype, x, keep, [], partial(shifted, dtype), made)

    if with_terms:
        of_part = of_kept(keep, *with_terms_of(dtype, x))
    else:
        of_part = skipping() if is_wide(dtype) and is_large(x) else skips(x, keep, plain, skipping)
    total, shift, *terms = of_all_classes(over, of_part, keep)
    label_logits = at_label(over, dtype, x, y)
    return [total, shift, label_logits if keep is None else jnp.where(keep, label_logits, 0.0), *terms]


def of_all_classes(over: Over, of_part: list[Any], keep: Any) -> list[Any]:
    """Total and shift of the classes on every device, and the terms that go with them."""
    split = names_over(over, "c")
    if not split:
        return of_part
    total, shift, *terms = of_part
    greatest = lax.pmax(shift, split)
    change = jnp.exp(shift - greatest)
    total = lax.psum(total * change, split)
    return [total if keep is None else jnp.where(keep, total, 1.0), greatest, *(t * change[..., None] for t in terms)]


def total_and_shift(dtype: Any, x: Any, keep: Any) -> list[Any]:
    """Without an array of the terms. As in the engine, the shift is 0 where the totals are then in range."""
    of_x = partial(shifted, dtype, x)
    return of_kept(keep, *(unshifted_or_not(dtype, folded_total(dtype, x), keep, of_x) if chooses(x) else of_x()))


def with_terms_of(dtype: Any, x: Any) -> list[Any]:
    """Total, shift and terms. As in the engine, the shift is 0 where the totals are then in range."""

    def with_shift(shift: Any) -> list[Any]:
        terms = lax.optimization_barrier(jnp.exp(converted(dtype, x) - shift[..., None]))
        parts = jnp.sum(folded(terms, fold_of(x.shape[-1])), axis=-1)
        return [jnp.sum(parts.reshape(*shift.shape, -1), axis=-1), shift, terms]

    def again(state: Any) -> Any:
        return jnp.zeros_like(state[0]), with_shift(softmax.finite_max(x.astype(dtype), xp=xp))

    low, high = TOTALS[is_wide(dtype)]
    # Of x - 0 XLA makes x, whose exponential is then not vectorized.
    zeros = lax.optimization_barrier(jnp.zeros_like(x, dtype, shape=x.shape[:-1]))
    total, *rest = with_shift(zeros)
    out_of_range = jnp.any((total < low) | ~(total <= high))
    # cond would copy the terms, a loop writes them where they lie.
    return lax.while_loop(lambda state: state[0], again, (out_of_range, [total, *rest]))[1]


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
    shift = softmax.finite_max(parted.astype(dtype), xp=xp)
    terms = jnp.exp(converted(dtype, parted) - shift[..., None])
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
    size = BLOCK_BYTES * (4 if is_wide(dtype) else 1)
    length = max(1, min(count, size // (jnp.dtype(dtype).itemsize * classes)))
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
