"""Cross-entropy's own lane: exponentials in place, with a shift of 0 wherever it serves, each computed once.

A shift of 0 needs no walk for the maximum; where exp(x_c) may have left its range, the block is computed again, with
the shift of softmax.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .._arrays import Array, Namespace, dtype_name
from .._math import softmax
from .._math.rows import RowFunction, Rows, capped, selected_logits, sum_of
from .._math.softmax import SOFTMAX, Forward, Sums, Upstream
from .lanes import Lane, in_blocks, walked_backward
from .walk import (
    Walk,
    block_logits,
    block_rows,
    concat_blocks,
    gradient_like,
    joined,
    take_entries,
    taken,
    walking,
    write_rows,
)

# Per dtype, of sum_c exp(x_c) that serves as it is, with a shift of 0: what underflows beside the least is less than a
# rounding of it, for up to 2**20 classes. Of the upstream gradients that may be divided by it: quotients are normal
# numbers, neither infinite nor 0. Beyond, and for second derivatives, where g / total**2 occurs, the row is restated
# first.
TOTALS = {"float32": (1e-20, 1e15), "float64": (1e-140, 1e140)}
UPSTREAM = {"float32": (1e-22, 1e18), "float64": (1e-160, 1e160)}
# Of total / exp(x_y - shift) whose logarithm is the loss, exact to a rounding of itself or of 1: both are normal then.
GREATEST_RATIO = 1e12


def in_range(x: Array, limits: dict[str, tuple[float, float]], *, xp: Namespace) -> bool:
    if 0 in x.shape:
        return True
    low, high = xp.extremes(x)
    least, greatest = limits[dtype_name(x)]
    return least <= low and high <= greatest


def serves(g: Array | None, *, xp: Namespace) -> bool:
    """Whether upstream gradients may be divided by totals as they are; 0 may, by any."""
    return g is None or in_range(xp.where(g == 0, 1.0, xp.abs(g)), UPSTREAM, xp=xp)


def unshifted(x: Array, *, xp: Namespace, into: Array | None) -> Sums | None:
    """The sums with a shift of 0; None where it does not serve."""
    total = softmax.total_of(softmax.exponentials(x, None, xp=xp, into=into), into, xp=xp)
    return Sums(None, total, None, None) if in_range(total, TOTALS, xp=xp) else None


def label_logits(walk: Walk, *, xp: Namespace) -> Array | None:
    (array, places), visit, rows = walk.logits, walk.visit, walk.visit.rows
    if visit.labels is None:
        return None
    x = xp.take_label(array, visit.labels) if places is None else array[(*places, visit.labels)]
    x = xp.astype(x, rows.dtype, copy=False)
    # Selected like the rest of the row: NaN here would reach the derivatives of what multiplies it.
    x = x if visit.keep is None else xp.where(visit.keep, x, 0.0)
    return x if rows.softcap is None else capped(x, rows.softcap, xp=xp)[0]


def label_costs(sums: Sums, label_logits: Array, *, xp: Namespace) -> Array:
    """lse - x_y = log(total / exp(x_y - shift)), which a small loss needs: log(total) rounds at the size of x_y."""
    relative = label_logits if sums.shift is None else label_logits - sums.shift
    # total holds exp(x_y - shift), but rounded otherwise: without the clip a loss of 0 could be negative.
    ratio = xp.clipped_below(sums.total / xp.exp(relative), 1.0)
    if 0 in ratio.shape or xp.extremes(ratio)[1] <= GREATEST_RATIO:
        return xp.log(ratio)
    # Row by row: a loss is the same beside any other.
    far = xp.log(softmax.positive(sums.total, xp=xp)) - relative
    return xp.where(ratio <= GREATEST_RATIO, xp.log(ratio), far)


def assembled(walk: Walk, labels: Array | None, pieces: Sequence[Sums], *, xp: Namespace) -> Forward:
    """What the sums and the labels' logits give, per entry."""
    sums = pieces[0] if len(pieces) == 1 else concat_blocks(pieces, xp=xp)
    rows = walk.visit.rows
    if sums.shift is None:
        out = Forward(None, None, xp.log(sums.total) if rows.with_lse else None, sums.total, None)
    else:
        out = softmax.finished(sums, None if walk.on_cpu else labels, rows, xp=xp)
    if labels is not None and walk.on_cpu:
        out = out._replace(nll=label_costs(sums, labels, xp=xp))
    return joined(walk.visit, [out], xp=xp)


def walked_sums(walk: Walk, d_logits: Array | None, *, xp: Namespace) -> Iterator[tuple[int, int, Sums, Array | None]]:
    """Start, stop and sums of each block, and the array in which its exponentials are, where there is one.

    That is a part of d_logits where this can be, or what the caller has to copy there.
    """
    visit, rows = walk.visit, walk.visit.rows
    shifts = rows.targets is not None or not walk.on_cpu
    selects = rows.targets is not None or not walk.is_plain()
    in_place = is_in_place(walk, d_logits)
    for start, stop in walk.spans():
        sums = None
        while sums is None:
            # Read again for a second try: the workspace, overwritten, may have held this block.
            x, into = block_logits(walk, start, stop, xp=xp)
            into = d_logits[start:stop] if in_place else into
            block = block_rows(visit, x, start, stop, xp=xp) if selects else rows
            x = selected_logits(block, xp=xp)[0] if selects else x
            sums = softmax.sums(x, block, xp=xp, into=into) if shifts else unshifted(x, xp=xp, into=into)
            shifts = shifts or sums is None  # logits out of range seldom come alone
        yield start, stop, sums, into


def is_in_place(walk: Walk, d_logits: Array | None) -> bool:
    """Not in that of the logits, which may have to be read again."""
    if d_logits is None or walk.visit.kept is not None:
        return False
    return d_logits.dtype == walk.visit.rows.dtype and d_logits is not walk.visit.rows.logits


def forward(rows: Rows, xp: Namespace) -> Forward:
    with walking(rows, xp=xp) as walk:
        pieces = [sums for _, _, sums, _ in walked_sums(walk, None, xp=xp)]
        return assembled(walk, label_logits(walk, xp=xp), pieces, xp=xp)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, Array | None]:
    with walking(rows, xp=xp) as walk:
        visit = walk.visit
        out, (g_nll, g_dot, g_lse) = taken(out, visit.kept, xp=xp), taken(g, visit.kept, xp=xp)
        if walk.on_cpu and not (serves(g_nll, xp=xp) and serves(g_lse, xp=xp)):
            out = softmax.restated(out._replace(lse=None), xp)
        if g_dot is not None or not walk.is_plain():
            g = g_nll, g_dot, g_lse
            return walked_backward(SOFTMAX, walk, out, g, targets_too=targets_too, xp=xp, d_logits=d_logits)
        total, shift = out.total, out.shift
        scale = sum_of(g_nll, g_lse) / (total if shift is None else softmax.positive(total, xp=xp))
        d_logits = gradient_like(rows.logits, visit.kept, xp=xp) if d_logits is None else d_logits
        in_place = is_in_place(walk, d_logits)
        for start, stop in walk.spans():
            x, terms = block_logits(walk, start, stop, xp=xp)
            terms = d_logits[start:stop] if in_place else terms
            softmax.exponentials(x, None if shift is None else shift[start:stop], xp=xp, into=terms)
            labels, g = (None if x is None or g_nll is None else x[start:stop] for x in (visit.labels, g_nll))
            finish_gradient(terms, scale[start:stop], labels, g, xp=xp)
            if not in_place:
                write_rows(d_logits, visit.kept, start, stop, terms, xp=xp)
        return xp.reshape(d_logits, rows.logits.shape), None


def both(rows: Rows, known: Upstream, *, xp: Namespace, d_logits: Array | None) -> tuple[Forward, Array] | None:
    """Each exponential is computed once: for class indices alone, in arrays that can be written to."""
    if known.nll is None or known.dot is not None or known.squared_lse is not None:
        return None
    with walking(rows, xp=xp) as walk:
        visit = walk.visit
        g = take_entries(known.nll, visit.kept, xp=xp)
        if not walk.is_plain() or (walk.on_cpu and not serves(g, xp=xp)):
            return None
        d_logits = gradient_like(rows.logits, visit.kept, xp=xp) if d_logits is None else d_logits
        in_place = is_in_place(walk, d_logits)
        labels = label_logits(walk, xp=xp)  # before the gradient may take their place
        pieces: list[Sums] = []
        for start, stop, sums, terms in walked_sums(walk, d_logits, xp=xp):
            pieces.append(sums)
            of_block = g[start:stop]
            scale = of_block / softmax.positive(sums.total, xp=xp)
            finish_gradient(terms, scale, visit.labels[start:stop], of_block, xp=xp)
            if not in_place:
                write_rows(d_logits, visit.kept, start, stop, terms, xp=xp)
        return assembled(walk, labels, pieces, xp=xp), xp.reshape(d_logits, rows.logits.shape)


def finish_gradient(terms: Array, scale: Array, labels: Array | None, g_nll: Array | None, *, xp: Namespace) -> None:
    """The gradient of a block in the place of its terms."""
    terms *= xp.expand_dims(scale, axis=-1)
    if g_nll is not None:
        xp.subtract_at_label(terms, labels, g_nll, in_place=True)


UNSHIFTED = Lane(SOFTMAX, forward, backward, both)


def lane_of(function: RowFunction) -> Lane:
    return UNSHIFTED if function is SOFTMAX else in_blocks(function)
