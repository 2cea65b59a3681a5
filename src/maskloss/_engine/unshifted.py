"""Cross-entropy's own lane: exponentials in place, with a shift of 0 wherever it serves, each computed once.

A shift of 0 needs no walk for the maximum; where exp(x_c) may have left its range, the block is computed again, with
the shift of softmax.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .._arrays import Array, Namespace
from .._math import softmax
from .._math.rows import RowFunction, Rows, capped, selected_logits, sum_of
from .._math.softmax import SOFTMAX, Forward, Sums, Upstream
from .lanes import Lane, in_blocks, walked_backward
from .walk import (
    Walk,
    block_logits,
    block_rows,
    concat_blocks,
    give_back,
    gradient_like,
    joined,
    of_blocks,
    rows_at,
    take_entries,
    taken,
    walk_of,
    write_rows,
)

# For float32 and for float64, of sum_c exp(x_c) that serves as it is, with a shift of 0: what underflows beside the
# least is less than a rounding of it, for up to 2**20 classes. Of the upstream gradients that may be divided by it:
# quotients are normal numbers, neither infinite nor 0. Beyond, and for second derivatives, where g / total**2 occurs,
# the row is restated first.
TOTALS = (1e-20, 1e15), (1e-140, 1e140)
UPSTREAM = (1e-22, 1e18), (1e-160, 1e160)
# Of total / exp(x_y - shift) whose logarithm is the loss, exact to a rounding of itself or of 1: both are normal then.
GREATEST_RATIO = 1e12


def serves(g: Array | None, wide: bool, *, xp: Namespace) -> bool:
    """Whether upstream gradients may be divided by totals as they are; 0 may, by any."""
    if g is None or 0 in g.shape:
        return True
    (least, greatest), (low, high) = UPSTREAM[wide], xp.extremes(g)
    if not low >= least:
        low, high = xp.extremes(xp.where(g == 0, 1.0, xp.abs(g)))
    return least <= low and high <= greatest


def in_line(x: Array, *, xp: Namespace) -> Array:
    """Numbers of the rows of a block, which may be several planes."""
    return x if x.ndim == 1 else xp.reshape(x, (-1,))


def beside(terms: Array, x: Array, *, xp: Namespace) -> Array:
    """in_line's inverse."""
    return x if terms.ndim == 2 else xp.reshape(x, terms.shape[:-1])


def unshifted(x: Array, wide: bool, keep: Array | None, *, xp: Namespace, into: Array | None) -> Sums | None:
    """The sums with a shift of 0; None where it does not serve."""
    total = in_line(softmax.total_of(softmax.exponentials(x, None, xp=xp, into=into), into, xp=xp), xp=xp)
    total = total if keep is None else xp.where(keep, total, 1.0)
    if 0 not in total.shape:
        (least, greatest), (low, high) = TOTALS[wide], xp.extremes(total)
        if not (least <= low and high <= greatest):  # NaN fails too
            return None
    return Sums(None, total, None, None)


def label_logits(walk: Walk, *, xp: Namespace) -> Array | None:
    (array, places), visit, rows = walk.logits, walk.visit, walk.visit.rows
    if visit.labels is None:
        return None
    if walk.plane is not None:
        x = xp.reshape(xp.take_label(array, xp.reshape(visit.labels, array.shape[:2])), (-1,))
    else:
        x = xp.take_label(array, visit.labels) if places is None else array[(*places, visit.labels)]
    x = xp.astype(x, rows.dtype, copy=False)
    # Selected like the rest of the row: NaN here would reach the derivatives of what multiplies it.
    keep = visit.keep if walk.selected is None else walk.selected
    x = x if keep is None else xp.where(keep, x, 0.0)
    return x if rows.softcap is None else capped(x, rows.softcap, xp=xp)[0]


def label_costs(sums: Sums, label_logits: Array, *, xp: Namespace) -> Array:
    """lse - x_y = log(total / exp(x_y - shift)), which a small loss needs: log(total) rounds at the size of x_y."""
    relative = label_logits if sums.shift is None else label_logits - sums.shift
    # total holds exp(x_y - shift), but rounded otherwise: without the clip a loss of 0 could be negative.
    ratio = xp.clipped_below(sums.total / xp.exp(relative), 1.0)
    if 0 in ratio.shape or xp.max(ratio) <= GREATEST_RATIO:
        return xp.log(ratio)
    # Row by row: a loss is the same beside any other.
    far = xp.log(softmax.positive(sums.total, xp=xp)) - relative
    return xp.where(ratio <= GREATEST_RATIO, xp.log(ratio), far)


def assembled(walk: Walk, labels: Array | None, pieces: Sequence[Sums], *, xp: Namespace) -> Forward:
    """What the sums and the labels' logits give, per entry."""
    sums = pieces[0] if len(pieces) == 1 else concat_blocks(pieces, xp=xp)
    rows = walk.visit.rows
    nll = label_costs(sums, labels, xp=xp) if labels is not None and walk.on_cpu else None
    needed = (sums.total, sums.shift) if rows.for_backward else (None, None)
    if sums.shift is None:
        out = Forward(nll, None, xp.log(sums.total) if rows.with_lse else None, *needed)
    else:
        out = softmax.finished(sums, None if walk.on_cpu else labels, rows, xp=xp)
        out = Forward(out.nll if nll is None else nll, out.dot, out.lse, *needed)
    return out if walk.visit.in_order else joined(walk.visit, [out], xp=xp)


def expects_shift(walk: Walk, x: Array, *, xp: Namespace) -> bool:
    """Whether a block x takes the shift at once. Logits out of range seldom come alone: a block before had some, or,
    where blocks know nothing of each other, its first row does.
    """
    if walk.visit.rows.targets is not None or not walk.on_cpu or walk.shifted:
        return True
    if not xp.frees_python or walk.plane is not None or walk.visit.visited <= walk.length:
        return False
    least, greatest = TOTALS[walk.wide]
    return not math.log(least / x.shape[-1]) <= float(xp.max(x[0])) <= math.log(greatest)


def block_sums(
    walk: Walk, start: int, stop: int, d_logits: Array | None, *, again: bool = False, xp: Namespace
) -> tuple[Sums, Array | None]:
    """Of a block: its sums, and the array that its exponentials are in, a part of d_logits, if given, else the
    workspace.
    """
    visit, keep = walk.visit, None if walk.selected is None else walk.selected[start:stop]
    # Read again for a second try: the workspace, overwritten, may have held this block.
    x, into = block_logits(walk, start, stop, xp=xp)
    into = into if d_logits is None else rows_at(d_logits, start, stop)
    block = visit.rows
    if block.targets is not None or not walk.is_plain:
        block = block_rows(visit, x, start, stop, xp=xp)
        x, _ = selected_logits(block, xp=xp)
    if not (again or expects_shift(walk, x, xp=xp)):
        sums = unshifted(x, walk.wide, keep, xp=xp, into=into)
        if sums is not None:
            return sums, into
        if not xp.frees_python:
            walk.shifted.append(start)
        return block_sums(walk, start, stop, d_logits, again=True, xp=xp)
    sums = softmax.sums(x, block, xp=xp, into=into, looks=walk.on_cpu)
    if x.ndim > 2:
        sums = sums._replace(shift=in_line(sums.shift, xp=xp), total=in_line(sums.total, xp=xp))
    if keep is not None:
        sums = sums._replace(shift=xp.where(keep, sums.shift, 0.0), total=xp.where(keep, sums.total, 1.0))
    return sums, into


def select_terms(walk: Walk, start: int, stop: int, terms: Array, *, xp: Namespace) -> None:
    """0 times what is not finite is NaN: in rows that do not count it may be anything."""
    if walk.selected is not None and not math.isfinite(xp.sum(terms)):
        selected = beside(terms, walk.selected[start:stop], xp=xp)
        terms[...] = xp.where(xp.expand_dims(selected, axis=-1), terms, 0.0)


def is_in_place(walk: Walk, d_logits: Array) -> bool:
    """Whether the gradient can be computed where it goes: not where the logits are, which may be read again."""
    visit = walk.visit
    return visit.kept is None and d_logits.dtype == visit.rows.dtype and d_logits is not visit.rows.logits


def forward(rows: Rows, xp: Namespace) -> Forward:
    walk = walk_of(rows, selects=True, xp=xp)

    def of_block(walk: Walk, start: int, stop: int) -> Sums:
        return block_sums(walk, start, stop, None, xp=xp)[0]

    return assembled(walk, label_logits(walk, xp=xp), of_blocks(walk, of_block, xp=xp), xp=xp)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, Array | None]:
    walk = walk_of(rows, selects=True, xp=xp)
    visit = walk.visit
    out, (g_nll, g_dot, g_lse) = taken(out, visit.kept, xp=xp), taken(g, visit.kept, xp=xp)
    if walk.selected is not None:
        g_nll, g_lse = (None if part is None else xp.where(walk.selected, part, 0.0) for part in (g_nll, g_lse))
    if walk.on_cpu and not (serves(g_nll, walk.wide, xp=xp) and serves(g_lse, walk.wide, xp=xp)):
        out = softmax.restated(out._replace(lse=None), xp)
    if g_dot is not None or not walk.is_plain:
        g = g_nll, g_dot, g_lse
        return walked_backward(SOFTMAX, walk, out, g, targets_too=targets_too, xp=xp, d_logits=d_logits)
    total, shift = out.total, out.shift
    scale = sum_of(g_nll, g_lse) / (total if shift is None else softmax.positive(total, xp=xp))
    d_logits = gradient_like(rows.logits, visit.kept, xp=xp) if d_logits is None else d_logits
    in_place = is_in_place(walk, d_logits)

    def of_block(walk: Walk, start: int, stop: int) -> None:
        x, workspace = block_logits(walk, start, stop, xp=xp)
        terms = rows_at(d_logits, start, stop) if in_place else workspace
        g_block = None if g_nll is None else g_nll[start:stop]
        shifts = None if shift is None else beside(terms, shift[start:stop], xp=xp)
        softmax.exponentials(x, shifts, xp=xp, into=terms)
        select_terms(walk, start, stop, terms, xp=xp)
        finish_gradient(walk, start, stop, terms, scale[start:stop], g_block, None if in_place else d_logits, xp=xp)

    of_blocks(walk, of_block, xp=xp)
    return xp.reshape(d_logits, rows.logits.shape), None


def both(rows: Rows, known: Upstream, *, xp: Namespace, d_logits: Array | None) -> tuple[Forward, Array] | None:
    """Each exponential is computed once: for class indices alone, in arrays that can be written to."""
    nll, dot, squared_lse = known
    covers = dot is squared_lse is rows.class_mask is rows.softcap is None and xp.has_out
    if not covers or nll is None:
        return None
    walk = walk_of(rows, selects=True, xp=xp)
    g = nll if walk.visit.in_order else take_entries(nll, walk.visit.kept, xp=xp)
    g = g if walk.selected is None else xp.where(walk.selected, g, 0.0)
    if not walk.is_plain or (walk.on_cpu and not serves(g, walk.wide, xp=xp)):
        give_back(walk.held)
        return None
    d_logits = gradient_like(rows.logits, walk.visit.kept, xp=xp) if d_logits is None else d_logits
    in_place = is_in_place(walk, d_logits)
    labels = label_logits(walk, xp=xp)  # before the gradient may take their place

    def of_block(walk: Walk, start: int, stop: int) -> Sums:
        sums, terms = block_sums(walk, start, stop, d_logits if in_place else None, xp=xp)
        select_terms(walk, start, stop, terms, xp=xp)
        g_block = g[start:stop]
        scale = g_block / (sums.total if sums.shift is None else softmax.positive(sums.total, xp=xp))
        finish_gradient(walk, start, stop, terms, scale, g_block, None if in_place else d_logits, xp=xp)
        return sums

    pieces = of_blocks(walk, of_block, xp=xp)
    return assembled(walk, labels, pieces, xp=xp), xp.reshape(d_logits, rows.logits.shape)


def finish_gradient(
    walk: Walk,
    start: int,
    stop: int,
    terms: Array,
    scale: Array,
    g_nll: Array | None,
    d_logits: Array | None,
    *,
    xp: Namespace,
) -> None:
    """The gradient of a block in the place of its terms; and in d_logits, where that is elsewhere."""
    terms *= xp.expand_dims(beside(terms, scale, xp=xp), axis=-1)
    if g_nll is not None and walk.visit.labels is not None:
        labels = beside(terms, walk.visit.labels[start:stop], xp=xp)
        xp.subtract_at_label(terms, labels, beside(terms, g_nll, xp=xp), in_place=True)
    if d_logits is not None:
        write_rows(d_logits, walk.visit.kept, start, stop, terms, xp=xp)


UNSHIFTED = Lane("analytic", SOFTMAX, forward, backward, both)


def lane_of(function: RowFunction) -> Lane:
    return UNSHIFTED if function is SOFTMAX else in_blocks(function)
