"""A row function over the visited rows of logits that are there: forward, backward, and both where nothing waits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .._arrays import Array, Namespace
from .._math import parts
from .._math.parts import SOFTMAX_IN_PARTS
from .._math.rows import RowFunction, Rows
from .walk import (
    Table,
    Visit,
    Walk,
    block_logits,
    block_rows,
    gradient_like,
    joined,
    located,
    of_blocks,
    sliced,
    taken,
    walk_of,
    write_rows,
)


class Lane(NamedTuple):
    """How a row function is computed.

    What is not visited has numbers that mean nothing, and gradients of 0. `d_logits`, of shape (rows, C) and all
    visited, is where the gradient of the logits goes, in its dtype: it may be the logits. None: a new array of theirs.
    """

    way: str  # the implementation
    function: RowFunction  # as one expression
    forward: Callable[..., Any]  # (rows, xp) -> out
    backward: Callable[..., tuple[Array, Array | None]]  # (rows, out, g, *, targets_too, xp, d_logits=None)
    # Both in one walk, of what is known of g before: (rows, known, *, xp, d_logits) -> (out, d_logits), or None.
    both: Callable[..., tuple[Any, Array] | None] | None = None


def covers_all(function: RowFunction, rows: Rows) -> None:
    return None


class Way(NamedTuple):
    """What an implementation is to the functions that call it: a row of data with its callables."""

    lane_of: Callable[[RowFunction], Lane]
    # Why it cannot; the rows of a projection have no logits.
    uncovered: Callable[[RowFunction, Rows], str | None] = covers_all


def of_parts(lane: Lane) -> Lane:
    """Of the softmax of classes in parts, by the lane of one part's."""
    forward, backward = partial(parts.forward, of_part=lane.forward), partial(parts.backward, of_part=lane.backward)
    return Lane(lane.way, SOFTMAX_IN_PARTS, forward, backward)


def in_blocks(function: RowFunction) -> Lane:
    """Of any row function, block by block."""
    return Lane("analytic", function, partial(forward, function), partial(backward, function))


def forward(function: RowFunction, rows: Rows, xp: Namespace) -> Any:
    walk = walk_of(rows, xp=xp)

    def of_block(walk: Walk, start: int, stop: int) -> Any:
        logits, _ = block_logits(walk, start, stop, xp=xp)
        return function.forward(block_rows(walk.visit, logits, start, stop, xp=xp), xp)

    return joined(walk.visit, of_blocks(walk, of_block, xp=xp), xp=xp)


def backward(
    function: RowFunction,
    rows: Rows,
    out: Any,
    g: Any,
    *,
    targets_too: bool,
    xp: Namespace,
    d_logits: Array | None = None,
) -> tuple[Array, Array | None]:
    walk = walk_of(rows, xp=xp)
    out, g = (taken(parts, walk.visit.kept, xp=xp) for parts in (out, g))
    return walked_backward(function, walk, out, g, targets_too=targets_too, xp=xp, d_logits=d_logits)


def walked_backward(
    function: RowFunction, walk: Walk, out: Any, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None
) -> tuple[Array, Array | None]:
    """`out` and `g` are of what is visited; the walk ends here."""
    visit = walk.visit
    logits, targets = visit.rows.logits, visit.rows.targets
    d_logits = gradient_like(logits, visit.kept, xp=xp) if d_logits is None else d_logits
    d_targets = empty_targets(visit, logits, xp=xp) if targets_too else None

    def of_block(walk: Walk, start: int, stop: int) -> None:
        nonlocal d_targets
        x, workspace = block_logits(walk, start, stop, xp=xp)
        d_block, d_targets_block = function.backward(
            block_rows(visit, x, start, stop, xp=xp),
            sliced(out, start, stop),
            sliced(g, start, stop),
            targets_too=targets_too,
            xp=xp,
            into=workspace,
        )
        write_rows(d_logits, visit.kept, start, stop, d_block, xp=xp)
        if d_targets is not None and d_targets_block is not None:
            d_targets = add_targets(d_targets, visit, start, stop, d_targets_block, xp=xp)

    of_blocks(walk, of_block, shares=adds_no_blocks(visit, d_targets), xp=xp)
    if d_targets is not None and targets is not None:
        d_targets = xp.reshape(d_targets, targets.shape)
    return xp.reshape(d_logits, logits.shape), d_targets


def empty_targets(visit: Visit, like: Array, *, xp: Namespace) -> Array:
    """For their gradient: a row per entry, or one for all."""
    targets: Array = visit.rows.targets
    shape = (math.prod(visit.entries), targets.shape[-1]) if isinstance(visit.targets, Table) else targets.shape
    return xp.zeros(shape, dtype=targets.dtype, **xp.placement(like))


def adds_no_blocks(visit: Visit, d_targets: Array | None) -> bool:
    """Whether what one block gives meets what another gives, in their order."""
    return d_targets is None or isinstance(visit.targets, Table)


def add_targets(total: Array, visit: Visit, start: int, stop: int, block: Array, *, xp: Namespace) -> Array:
    if not isinstance(visit.targets, Table):
        return total + (xp.long_sum(block, axis=0) if block.ndim > 1 else block)
    write_rows(total, visit.kept, start, stop, block, xp=xp)
    return total


def both(
    lane: Lane, rows: Rows, known: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Any, Array, Array | None]:
    """forward and backward, of what is known of the upstream gradient before the loss."""
    made = None if lane.both is None else lane.both(rows, known, xp=xp, d_logits=d_logits)
    if made is not None:
        return *made, None
    rows = located(rows._replace(for_backward=True), rows.logits, xp=xp)
    out = lane.forward(rows, xp)
    g = lane.function.upstream(known, out, xp)
    return out, *lane.backward(rows, out, g, targets_too=targets_too, xp=xp, d_logits=d_logits)
