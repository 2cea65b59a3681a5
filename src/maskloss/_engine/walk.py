"""Which rows are visited, in what blocks, and where what is computed of them goes.

On a CPU the plain expression spends its time on fresh memory, a page fault per 4 KiB of each temporary. Here nothing of
the logits' size is made but their gradient; what is not kept is never read.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from .._arrays import Array, Namespace
from .._math.rows import Rows
from . import threads

# Of logits in the dtype of the computation, per block. Measured on two cores with 2 MiB of L2 each: 0.5 MB is lost to
# the overhead of the calls, 8 MB to the cache. An accelerator wants few calls: an H100 loses 10 % of 1 GiB's speed with
# 64 MiB, and half with 16; 256 MiB are 3 % faster, but for 2 times the memory under a mask.
BLOCK_BYTES = 1 << 21
ACCELERATOR_BLOCK_BYTES = 1 << 26
# Logits of a plane, and its rows, from which on it is worth a block of its own: with fewer rows side by side than these
# the sums of classes go in short steps. One row kept of so many, from which on all are read: of rows that lie side by
# side a few take as many lines of memory as all.
LEAST_PLANE, LEAST_ROWS, FEWEST_KEPT = 1 << 14, 64, 8
# Of a block, from which on it is handed to another thread: the lock of Python's changes hands at each of its steps.
LEAST_SHARED = 1 << 20
# Of a workspace, up to which a thread keeps it: those of PyTorch's small losses, which are computed whole, too.
GREATEST_HELD = 1 << 24

_held = threading.local()


class Table(NamedTuple):
    """The visited rows of an array (entries..., C)."""

    # (rows, C) where a view of that shape exists; (planes, rows, C) where the rows of a class lie side by side; else
    # (entries..., C)
    array: Array
    places: tuple[Array, ...] | None  # of each visited row, per axis; None: all rows, in order


class Visit(NamedTuple):
    """The visited rows, and what belongs to them beside their logits."""

    rows: Rows  # as they were given
    entries: tuple[int, ...]
    kept: Array | None  # the places of the visited among the flattened entries; None: all, in order
    visited: int
    in_order: bool  # all are visited, and one axis
    labels: Array | None
    targets: Table | Array | None  # an array: one row for all
    keep: Array | None  # what is left to select by
    class_mask: Table | None


Held = tuple[Any, Array, Array]  # what give_back has to know of a workspace, which is last


class Walk(NamedTuple):
    """A visit of logits that are there, in blocks."""

    visit: Visit
    logits: Table
    on_cpu: bool  # Python may look at the numbers
    wide: bool  # it computes in float64
    length: int  # rows of a block
    held: Held | None
    workspace: Array  # None: the library has no `out`
    is_plain: bool  # the logits enter the softmax as they are, and a workspace is there to compute in
    shifted: list[int]  # starts of blocks that were seen to need a shift, for those after them
    plane: int | None = None  # rows of a plane, which a block lies within
    selected: Array | None = None  # which rows count, where the others are computed beside them

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and stop of each block; of nothing, one block of no row."""
        return spans(self.visit.visited, self.length, self.plane)


def located(rows: Rows, like: Array, *, waits: bool = False, xp: Namespace) -> Rows:
    """The rows with the places of the kept ones, where Python may read them: once for a forward and its backward.

    Elsewhere than in NumPy's and torch's memory, how many are kept is known after a sync, or never.
    """
    if rows.keep is None or rows.kept is not None:
        return rows
    if not xp.may_wait(like) or not (waits or xp.reads_without_sync(like)):
        return rows
    in_planes = rows.logits is not None and plane_of(rows.logits, xp=xp) is not None
    if in_planes and FEWEST_KEPT * int(xp.count_nonzero(rows.keep)) > math.prod(rows.keep.shape):
        return rows
    kept = xp.nonzero(rows.keep if rows.keep.ndim == 1 else xp.reshape(rows.keep, (-1,)))[0]
    return rows._replace(keep=None) if kept.shape[0] == math.prod(rows.keep.shape) else rows._replace(kept=kept)


def plane_of(logits: Array, *, xp: Namespace) -> int | None:
    """Rows of a plane, where it is worth it."""
    plane = xp.plane_of(logits)
    if plane is None or plane < LEAST_ROWS or plane * logits.shape[-1] < min(LEAST_PLANE, math.prod(logits.shape)):
        return None
    return plane


def visit_of(rows: Rows, entries: tuple[int, ...], plane: int | None = None, *, xp: Namespace) -> Visit:
    kept, targets, class_mask = rows.kept, rows.targets, rows.class_mask
    if targets is not None and targets.ndim > 1:
        targets = table_of(targets, kept, plane, xp=xp)
    labels, in_order = rows.labels, kept is None and len(entries) == 1
    return Visit(
        rows,
        entries,
        kept,
        math.prod(entries) if kept is None else kept.shape[0],
        in_order,
        labels if labels is None or in_order else take_entries(labels, kept, xp=xp),
        targets,
        None if kept is not None or rows.keep is None else take_entries(rows.keep, None, xp=xp),
        None if class_mask is None else table_of(class_mask, kept, plane, xp=xp),
    )


def walk_of(rows: Rows, *, buffers: int = 1, selects: bool = False, xp: Namespace) -> Walk:
    """With a workspace, of as many blocks as are asked for, for give_back.

    `selects`: what is not kept may be among the rows, and whoever asks sees to it.
    """
    logits: Array = rows.logits
    *entries, classes = logits.shape
    on_cpu = xp.reads_without_sync(logits)
    rows = rows if rows.keep is None else located(rows, logits, waits=on_cpu, xp=xp)
    plane = plane_of(logits, xp=xp) if rows.kept is None else None
    visit, selected = visit_of(rows, tuple(entries), plane, xp=xp), None
    selects = selects and plane is not None and on_cpu and rows.targets is rows.class_mask is rows.softcap is None
    if selects:
        selected, visit = visit.keep, visit._replace(keep=None)
    wide = rows.dtype == xp.float64
    row_bytes = classes * (8 if wide else 4) * buffers
    block_bytes = BLOCK_BYTES if on_cpu else ACCELERATOR_BLOCK_BYTES
    if buffers > 1 and xp.is_parallel:  # of two cores, 3 MB are 1.2 times as fast as 2 or 4
        block_bytes += block_bytes // 2
    length = even(visit.visited if plane is None else plane, block_bytes // row_bytes)
    if selects and plane is not None and length == plane and xp.frees_python:  # whole planes
        length *= even(visit.visited // plane, block_bytes // (row_bytes * plane))
    is_plain = xp.has_out and visit.keep is rows.class_mask is rows.softcap is None
    table = table_of(logits, visit.kept, plane, xp=xp)
    shape = (length * buffers, classes) if plane is None else (classes, length * buffers)
    if plane is not None and length > plane:
        shape = (length // plane * classes, plane)
    held = workspace = None
    if xp.has_out and on_cpu:
        held = taken_out(*shape, rows.dtype, logits, xp=xp)
        workspace = held[-1]
    elif xp.has_out:
        workspace = xp.empty(shape, dtype=rows.dtype, **xp.placement(logits))
    if workspace is not None and plane is not None:
        workspace = in_planes(workspace, length, plane, xp=xp)
    return Walk(visit, table, on_cpu, wide, length, held, workspace, is_plain, [], plane, selected)


def of_blocks(
    walk: Walk, of_block: Callable[[Walk, int, int], Any], *, shares: bool = True, xp: Namespace
) -> list[Any]:
    """What of_block(walk, start, stop) gives of each block, in order; the walk ends here.

    Shared out among threads, each with a workspace of its own, where the library allows it: for the same bits with any
    number of them, what is computed of a block depends on that block alone.
    """
    spans, count = walk.spans, 1
    if shares and len(spans) > 1 and xp.frees_python and walk.workspace.nbytes >= LEAST_SHARED:
        count = min(threads.number(), len(spans))
    if count == 1:
        pieces = [of_block(walk, *span) for span in spans]
        give_back(walk.held)
        return pieces
    pieces = [None] * len(spans)
    left = deque([*enumerate(spans), *[None] * count])

    def work() -> None:
        try:
            own = with_own_memory(walk, xp=xp)
            for place, span in iter(left.popleft, None):
                pieces[place] = of_block(own, *span)
            give_back(own.held)
        except BaseException:
            left.extendleft([None] * count)  # the end for all
            raise

    give_back(walk.held)
    threads.beside(work, count - 1)
    return pieces


def with_own_memory(walk: Walk, *, xp: Namespace) -> Walk:
    """The same walk with a workspace of this thread's."""
    length, width = cast("Held", walk.held)[-1].shape
    held = taken_out(length, width, walk.visit.rows.dtype, walk.logits.array, xp=xp)
    own = held[-1] if walk.plane is None else in_planes(held[-1], walk.length, walk.plane, xp=xp)
    return walk._replace(held=held, workspace=own)


def in_planes(workspace: Array, length: int, plane: int, *, xp: Namespace) -> Array:
    """Of (C, rows) of one plane, or (planes * C, rows) of several, with the classes last."""
    if length <= plane:
        return workspace.T
    return xp.permute_dims(xp.reshape(workspace, (length // plane, -1, plane)), (0, 2, 1))


def taken_out(length: int, classes: int, dtype: Any, like: Array, *, xp: Namespace) -> Held:
    """Last an array (length, classes) to compute in, in the memory of `like`; before it what give_back has to know.

    Each thread keeps a block of each dtype: memory that is fresh in each call costs a page fault per 4 KiB, half of a
    small loss. While in use it is taken out: a signal's handler may compute a loss meanwhile.
    """
    size, key = length * classes, (xp.name, dtype)
    blocks: dict[Any, tuple[Array, Array]] = _held.__dict__
    block, view = blocks.pop(key, (None, None))
    if block is None or block.shape[0] < size:
        block, view = xp.lasting_empty(size, dtype, like), None
    if view is None or view.shape != (length, classes):
        view = block[:size].reshape((length, classes))
    return key, block, view


def give_back(held: Held | None) -> None:
    """What was taken out, but for what is longer than any block."""
    if held is not None:
        key, block, view = held
        if block.nbytes <= GREATEST_HELD:
            blocks: dict[Any, tuple[Array, Array]] = _held.__dict__
            blocks[key] = block, view


def even(count: int, most: int) -> int:
    """The length of parts of one length, at most so long, so that none is near empty."""
    parts = max(1, -(-count // max(1, most)))
    return max(1, -(-count // parts))


def spans(visited: int, length: int, plane: int | None = None) -> list[tuple[int, int]]:
    if visited <= length:
        return [(0, visited)]
    plane = visited if plane is None or length > plane else plane
    return [
        (start, min(start + length, first + plane))
        for first in range(0, visited, plane)
        for start in range(first, first + plane, length)
    ]


def take_entries(x: Array, kept: Array | None, *, xp: Namespace) -> Array:
    """The visited ones of numbers per entry."""
    x = x if x.ndim == 1 else xp.reshape(x, (-1,))
    return x if kept is None else x[kept]


def table_of(x: Array, kept: Array | None, plane: int | None = None, *, xp: Namespace) -> Table:
    entries = tuple(x.shape[:-1])
    count = math.prod(entries)
    if plane is not None and xp.plane_of(x) == plane:
        return Table(xp.reshape(x, (count // plane, plane, x.shape[-1])), None)
    if x.ndim == 2 or xp.flattens(x):
        return Table(x if x.ndim == 2 else xp.reshape(x, (count, x.shape[-1])), None if kept is None else (kept,))
    place = xp.arange(count, **xp.placement(x)) if kept is None else kept
    places: list[Array] = []
    for length in reversed(entries):
        places.insert(0, place % length)
        place = place // length
    return Table(x, tuple(places))


def rows_at(array: Array, start: int, stop: int) -> Array:
    """Of (rows, C), or of one of (planes, rows, C), or several of these whole."""
    if array.ndim == 2:
        return array[start:stop, ...]
    plane, first = divmod(start, array.shape[1])
    if stop - start > array.shape[1]:
        return array[plane : stop // array.shape[1], ...]
    return array[plane, first : first + stop - start, ...]


def block_of(table: Table, start: int, stop: int, out: Array | None, *, xp: Namespace) -> Array:
    if table.places is None:
        return rows_at(table.array, start, stop)
    if len(table.places) == 1:
        return xp.take_rows(table.array, table.places[0][start:stop], out=out)
    return table.array[tuple(place[start:stop] for place in table.places)]


def block_logits(walk: Walk, start: int, stop: int, *, xp: Namespace) -> tuple[Array, Array | None]:
    """The logits from start to stop in the dtype of the computation, and the workspace, which may hold them."""
    (array, places), out = walk.logits, None if walk.workspace is None else rows_at(walk.workspace, 0, stop - start)
    same = array.dtype == walk.visit.rows.dtype
    into = out if same else None
    logits = rows_at(array, start, stop) if places is None else block_of(walk.logits, start, stop, into, xp=xp)
    if same or out is None:
        return logits, out
    out[...] = logits
    return out, out


def block_rows(visit: Visit, logits: Array, start: int, stop: int, *, xp: Namespace) -> Rows:
    """These logits with what else belongs to the rows from start to stop."""
    rows, targets, class_mask = visit.rows, visit.targets, visit.class_mask
    return rows._replace(
        logits=logits,
        labels=None if visit.labels is None else visit.labels[start:stop],
        targets=block_of(targets, start, stop, None, xp=xp) if isinstance(targets, Table) else targets,
        keep=None if visit.keep is None else visit.keep[start:stop],
        kept=None,
        class_mask=None if class_mask is None else block_of(class_mask, start, stop, None, xp=xp),
    )


def rebuilt(parts: Any, values: list[Any]) -> Any:
    return parts._make(values) if hasattr(parts, "_make") else tuple(values)


def sliced(parts: Any, start: int, stop: int) -> Any:
    """Those of these rows, of a tuple of numbers per visited row."""
    return rebuilt(parts, [None if part is None else part[start:stop] for part in parts])


def taken(parts: Any, kept: Array | None, *, xp: Namespace) -> Any:
    """Those of the visited rows, of a tuple of numbers per entry."""
    return rebuilt(parts, [None if part is None else take_entries(part, kept, xp=xp) for part in parts])


def joined(visit: Visit, pieces: Sequence[Any], *, xp: Namespace) -> Any:
    """Numbers per visited row, in blocks, as numbers per entry, 0 where not visited."""
    parts = pieces[0] if len(pieces) == 1 else concat_blocks(pieces, xp=xp)
    if visit.in_order:
        return parts
    return parts._make([None if part is None else to_entries(part, visit, xp=xp) for part in parts])


def concat_blocks(pieces: Sequence[Any], *, xp: Namespace) -> Any:
    """One NamedTuple of the blocks'; what is None for some is 0 there, as a shift that was not needed is."""
    first, columns = pieces[0], [list(column) for column in zip(*pieces, strict=True)]
    for column in columns:
        given = [part is not None for part in column]
        if any(given) and not all(given):
            likes = [next(part for part in piece if part is not None) for piece in pieces]
            column[:] = [xp.zeros_like(x) if part is None else part for part, x in zip(column, likes, strict=True)]
    return first._make([None if column[0] is None else xp.concat(column) for column in columns])


def to_entries(values: Array, visit: Visit, *, xp: Namespace) -> Array:
    if visit.kept is not None:
        full = xp.zeros((math.prod(visit.entries),), dtype=values.dtype, **xp.placement(values))
        full[visit.kept] = values
        values = full
    return values if len(visit.entries) == 1 else xp.reshape(values, visit.entries)


def gradient_like(logits: Array, kept: Array | None, *, xp: Namespace) -> Array:
    """A row per entry, 0 where nothing will be written; in planes where the logits are."""
    count, classes = math.prod(logits.shape[:-1]), logits.shape[-1]
    plane = plane_of(logits, xp=xp)
    shape = (count, classes) if plane is None else (count // plane * classes, plane)
    if kept is None:
        made = xp.empty(shape, dtype=logits.dtype, **xp.placement(logits))
    else:
        made = xp.sparse_zeros(shape, logits.dtype, logits)
    return made if plane is None else xp.permute_dims(xp.reshape(made, (-1, classes, plane)), (0, 2, 1))


def write_rows(array: Array, kept: Array | None, start: int, stop: int, block: Array, *, xp: Namespace) -> None:
    if kept is None:
        rows_at(array, start, stop)[...] = block
    elif array.ndim == 2:
        xp.put_rows(array, kept[start:stop], block)
    else:
        places = kept[start:stop]
        array[places // array.shape[1], places % array.shape[1], ...] = xp.astype(block, array.dtype, copy=False)
