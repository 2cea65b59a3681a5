"""The lane of reproducible.py, in the memory of three blocks: of which rows together, and how many, changes no bit."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from .._arrays import Array, Namespace
from .._arrays.standard import MAGIC, MAGIC_BITS
from .._math import exact
from .._math.exact import AS_NUMBERS, IN_UNITS, LEAST
from .._math.reproducible import (
    SOFTMAX,
    Forward,
    finished,
    label_gradients,
    label_logits,
    logits_of,
    mass_and_moment,
    scale_of,
)
from .._math.rows import RowFunction, Rows, selected_targets, through_selection
from . import unshifted
from .lanes import Lane, add_targets, adds_no_blocks, empty_targets
from .lanes import in_blocks as blocks_of
from .walk import (
    Walk,
    block_logits,
    block_rows,
    concat_blocks,
    gradient_like,
    joined,
    of_blocks,
    sliced,
    taken,
    walk_of,
    write_rows,
)


class Sums(NamedTuple):
    largest: Array
    units: Array
    at_label: Array | None
    mass: Array | None
    moment: Array | None


def block_of(walk: Walk, start: int, stop: int, *, xp: Namespace) -> tuple[Rows, Array, Array | None, Array, Array]:
    """Rows, their logits in the workspace, the slope of these, and the rest of the workspace."""
    logits, place = block_logits(walk, start, stop, xp=xp)
    x: Array = place
    rows = block_rows(walk.visit, logits, start, stop, xp=xp)
    slope = None
    if not walk.is_plain:
        logits, slope = logits_of(rows, xp=xp)
    if logits is not x:
        x[...] = logits
    count, workspace = walk.length, walk.workspace
    u, k = (workspace[i * count : i * count + stop - start] for i in (1, 2))
    return rows, x, slope, u, k


def sum_of_units(e: Array, k: Array, *, xp: Namespace) -> Array:
    e *= k
    e += MAGIC
    added = (e.shape[-1] * MAGIC_BITS + 2**63) % 2**64 - 2**63
    # Modulo 2^64.
    return xp.sum(e.view(xp.int64), axis=-1) - added


def sums_of(walk: Walk, start: int, stop: int, *, xp: Namespace) -> Sums:
    rows, x, _, u, k = block_of(walk, start, stop, xp=xp)
    # Where it is infinite or NaN, the sums mean nothing, and `finished` puts others in their place.
    largest = xp.max(x, axis=-1)
    at_label, mass, moment = label_logits(x, rows, xp=xp), None, None
    x -= xp.expand_dims(largest, axis=-1)
    if rows.targets is not None:
        mass, moment = mass_and_moment(x, rows, xp=xp)
    e, k = exact.exponentials_into(x, IN_UNITS, u, k, xp=xp)
    return Sums(largest, sum_of_units(e, k, xp=xp), at_label, mass, moment)


def forward(rows: Rows, xp: Namespace) -> Forward:
    walk = walk_of(rows, buffers=3, xp=xp)
    pieces = of_blocks(walk, partial(sums_of, xp=xp), xp=xp)
    sums: Sums = pieces[0] if len(pieces) == 1 else concat_blocks(pieces, xp=xp)
    out = finished(walk.visit.rows, *sums, xp)
    return out if walk.visit.in_order else joined(walk.visit, [out], xp=xp)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, Array | None]:
    walk = walk_of(rows, buffers=3, xp=xp)
    visit = walk.visit
    out, g = (taken(parts, visit.kept, xp=xp) for parts in (out, g))
    scale, at_labels = scale_of(out, g, xp=xp), None
    if g[0] is not None and rows.softcap is None:
        at_labels = label_gradients(unshifted.label_logits(walk, xp=xp), out, g, xp=xp)
    made: Array = gradient_like(rows.logits, visit.kept, xp=xp) if d_logits is None else d_logits
    d_targets = empty_targets(visit, rows.logits, xp=xp) if targets_too else None

    def of_block(walk: Walk, start: int, stop: int) -> None:
        nonlocal d_targets
        own_out, own_g = sliced(out, start, stop), sliced(g, start, stop)
        if targets_too:
            rows_of_block = block_rows(visit, block_logits(walk, start, stop, xp=xp)[0], start, stop, xp=xp)
            d_block, of_targets = SOFTMAX.backward(rows_of_block, own_out, own_g, targets_too=True, xp=xp)
            d_targets = add_targets(d_targets, visit, start, stop, of_targets, xp=xp)
        else:
            at_label = None if at_labels is None else at_labels[start:stop]
            d_block = gradient_of(walk, start, stop, own_out, own_g, scale[start:stop], at_label, xp=xp)
        scratch = walk.workspace[walk.length : walk.length + stop - start]
        xp.flush(d_block, LEAST, scratch)
        d_block = d_block if made.dtype == xp.float32 else xp.rounded_to(d_block, made.dtype)
        write_rows(made, visit.kept, start, stop, d_block, xp=xp)

    of_blocks(walk, of_block, shares=adds_no_blocks(visit, d_targets), xp=xp)
    targets: Array = rows.targets
    return xp.reshape(made, rows.logits.shape), None if d_targets is None else xp.reshape(d_targets, targets.shape)


def gradient_of(
    walk: Walk, start: int, stop: int, out: Forward, g: Any, scale: Array, at_label: Array | None, *, xp: Namespace
) -> Array:
    g_nll, g_dot, _ = g
    rows, x, slope, u, k = block_of(walk, start, stop, xp=xp)
    if g_nll is not None and at_label is None:
        at_label = label_gradients(xp.take_label(x, rows.labels), out, g, xp=xp)
    x -= xp.expand_dims(out.shift, axis=-1)
    e, k = exact.exponentials_into(x, AS_NUMBERS, u, k, xp=xp)
    e *= k
    e *= xp.expand_dims(scale, axis=-1)
    if at_label is not None:
        e[xp.arange(e.shape[0], **xp.placement(e)), rows.labels] = at_label
    if g_dot is not None:
        e -= xp.expand_dims(g_dot, axis=-1) * selected_targets(rows, xp=xp)
    return e if walk.is_plain else through_selection(e, slope, rows, xp=xp)


LANE = Lane("analytic", SOFTMAX, forward, backward)


def lane_of(function: RowFunction) -> Lane:
    return LANE if function is SOFTMAX else in_blocks(function)


def in_blocks(function: RowFunction) -> Lane:
    """Of any such function, block by block."""

    def backward(rows: Rows, out: Any, g: Any, *, targets_too: bool, xp: Namespace, into: Array | None = None) -> Any:
        d_logits, d_targets = function.backward(rows, out, g, targets_too=targets_too, xp=xp)
        xp.flush(d_logits, LEAST, None)
        # From there to half precision it is rounded once more, as it is everywhere.
        return xp.rounded_to(d_logits, xp.float32), d_targets

    return blocks_of(function._replace(backward=backward))
