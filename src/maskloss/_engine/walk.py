"""Which rows are visited, in what blocks, and where what is computed of them goes.

On a CPU the plain expression spends its time on fresh memory, a page fault per 4 KiB of each temporary. Here nothing of
the logits' size is made but their gradient; what is not kept is never read.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from .._arrays import Array, Namespace
from .._math.rows import Rows

# Of logits in the dtype of the computation, per block. Measured on two cores with 2 MiB of L2 each: 0.5 MB is lost to
# the overhead of the calls, 8 MB to the cache. An accelerator wants few calls; it has not been measured on one.
BLOCK_BYTES = 1 << 21
ACCELERATOR_BLOCK_BYTES = 1 << 26

_held = threading.local()


class Table(NamedTuple):
    """The visited rows of an array (entries..., C)."""

    array: Array  # (rows, C) where a view of that shape exists, else (entries..., C)
    places: tuple[Array, ...] | None  # of each visited row, per axis; None: all rows, in order


class Visit(NamedTuple):
    """The visited rows, and what belongs to them beside their logits."""

    rows: Rows  # as they were given
    entries: tuple[int, ...]
    kept: Array | None  # the places of the visited among the flattened entries; None: all, in order
    visited: int
    labels: Array | None
    targets: Table | Array | None  # an array: one row for all
    keep: Array | None  # what is left to select by
    class_mask: Table | None


class Walk(NamedTuple):
    """A visit of logits that are there, in blocks."""

    visit: Visit
    logits: Table
    on_cpu: bool  # Python may look at the numbers
    length: int  # rows of a block
    workspace: Array | None

    def spans(self) -> Iterator[tuple[int, int]]:
        return spans(self.visit.visited, self.length)

    def is_plain(self) -> bool:
        """Whether the logits enter the softmax as they are, and a workspace is there to compute in."""
        rows = self.visit.rows
        return self.workspace is not None and self.visit.keep is rows.class_mask is rows.softcap is None


def located(rows: Rows, *, read: bool, xp: Namespace) -> Rows:
    """The rows with the places of the kept ones, where Python may read them: once for a forward and its backward.

    Elsewhere than in NumPy's and torch's memory, how many are kept is known after a sync, or never.
    """
    if rows.keep is None or rows.kept is not None or not read:
        return rows
    kept = xp.nonzero(flat(rows.keep, xp=xp))[0]
    return rows._replace(keep=None) if kept.shape[0] == math.prod(rows.keep.shape) else rows._replace(kept=kept)


def visit_of(rows: Rows, entries: tuple[int, ...], *, xp: Namespace) -> Visit:
    kept, targets, class_mask = rows.kept, rows.targets, rows.class_mask
    if targets is not None and targets.ndim > 1:
        targets = table_of(targets, kept, xp=xp)
    return Visit(
        rows,
        entries,
        kept,
        math.prod(entries) if kept is None else kept.shape[0],
        take_entries(rows.labels, kept, xp=xp),
        targets,
        None if kept is not None or rows.keep is None else flat(rows.keep, xp=xp),
        None if class_mask is None else table_of(class_mask, kept, xp=xp),
    )


@contextlib.contextmanager
def walking(rows: Rows, *, xp: Namespace) -> Generator[Walk]:
    logits = rows.logits
    *entries, classes = logits.shape
    on_cpu = xp.reads_without_sync(logits)
    rows = located(rows, read=on_cpu and xp.may_wait(logits), xp=xp)
    visit = visit_of(rows, tuple(entries), xp=xp)
    row_bytes = classes * (8 if rows.dtype == xp.float64 else 4)
    length = max(1, min(visit.visited, (BLOCK_BYTES if on_cpu else ACCELERATOR_BLOCK_BYTES) // row_bytes))
    walk = Walk(visit, table_of(logits, visit.kept, xp=xp), on_cpu, length, None)
    if not xp.has_out:
        yield walk
    elif on_cpu:
        with workspace(length, classes, rows.dtype, logits, xp=xp) as view:
            yield walk._replace(workspace=view)
    else:
        yield walk._replace(workspace=xp.empty((length, classes), dtype=rows.dtype, **xp.placement(logits)))


@contextlib.contextmanager
def workspace(length: int, classes: int, dtype: Any, like: Array, *, xp: Namespace) -> Generator[Array]:
    """An array (length, classes) to compute in, in the memory of `like`.

    Each thread keeps a block of each dtype, of more than one row: memory that is fresh in each call costs a page fault
    per 4 KiB, half of a small loss. While in use it is taken out: a signal's handler may compute a loss meanwhile.
    """
    size, key = length * classes, (xp.name, dtype)
    held: dict[Any, tuple[Array, Array]] = _held.__dict__.setdefault("blocks", {})
    block, view = kept = held.pop(key, (None, None))
    if view is None or view.shape != (length, classes):
        if block is None or block.shape[0] < size:
            block = xp.lasting_empty(size, dtype, like)
        view = block[:size].reshape((length, classes))
    yield view
    if length > 1 or block is kept[0]:  # a longer row is not kept
        held[key] = (block, view)


def spans(count: int, length: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each block; of nothing, one block of no row."""
    for start in range(0, count or 1, length):
        yield start, min(start + length, count)


def flat(x: Array, *, xp: Namespace) -> Array:
    return x if x.ndim == 1 else xp.reshape(x, (-1,))


def take_entries(x: Array | None, kept: Array | None, *, xp: Namespace) -> Array:
    """The visited ones of numbers per entry."""
    if x is None:
        return None
    x = x if x.ndim == 1 else xp.reshape(x, (-1,))
    return x if kept is None else x[kept]


def table_of(x: Array, kept: Array | None, *, xp: Namespace) -> Table:
    entries = tuple(x.shape[:-1])
    count = math.prod(entries)
    if xp.flattens(x):
        return Table(x if x.ndim == 2 else xp.reshape(x, (count, x.shape[-1])), None if kept is None else (kept,))
    place = xp.arange(count, **xp.placement(x)) if kept is None else kept
    places: list[Array] = []
    for length in reversed(entries):
        places.insert(0, place % length)
        place = place // length
    return Table(x, tuple(places))


def block_of(table: Table, start: int, stop: int, out: Array | None, *, xp: Namespace) -> Array:
    if table.places is None:
        return table.array[start:stop, ...]
    if len(table.places) == 1:
        return xp.take_rows(table.array, table.places[0][start:stop], out=out)
    return table.array[tuple(place[start:stop] for place in table.places)]


def block_logits(walk: Walk, start: int, stop: int, *, xp: Namespace) -> tuple[Array, Array | None]:
    """The logits from start to stop in the dtype of the computation, and the workspace, which may hold them."""
    dtype = walk.visit.rows.dtype
    out = None if walk.workspace is None else walk.workspace[: stop - start]
    same = walk.logits.array.dtype == dtype
    logits = block_of(walk.logits, start, stop, out if same else None, xp=xp)
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
    return rebuilt(parts, [take_entries(part, kept, xp=xp) for part in parts])


def joined(visit: Visit, pieces: Sequence[Any], *, xp: Namespace) -> Any:
    """Numbers per visited row, in blocks, as numbers per entry, 0 where not visited."""
    parts = pieces[0] if len(pieces) == 1 else concat_blocks(pieces, xp=xp)
    return parts._make([None if part is None else to_entries(part, visit, xp=xp) for part in parts])


def concat_blocks(pieces: Sequence[Any], *, xp: Namespace) -> Any:
    """One NamedTuple of the blocks'; what is None for some is 0 there, as a shift that was not needed is."""
    rows = [next(part for part in piece if part is not None) for piece in pieces]
    columns: list[Array | None] = []
    for column in zip(*pieces, strict=True):
        if all(part is None for part in column):
            columns.append(None)
            continue
        columns.append(xp.concat([xp.zeros_like(r) if x is None else x for r, x in zip(rows, column, strict=True)]))
    return pieces[0]._make(columns)


def to_entries(values: Array, visit: Visit, *, xp: Namespace) -> Array:
    if visit.kept is not None:
        full = xp.zeros((math.prod(visit.entries),), dtype=values.dtype, **xp.placement(values))
        full[visit.kept] = values
        values = full
    return values if len(visit.entries) == 1 else xp.reshape(values, visit.entries)


def gradient_like(logits: Array, kept: Array | None, *, xp: Namespace) -> Array:
    """A row per entry, 0 where nothing will be written."""
    shape = (math.prod(logits.shape[:-1]), logits.shape[-1])
    if kept is None:
        return xp.empty(shape, dtype=logits.dtype, **xp.placement(logits))
    return xp.sparse_zeros(shape, logits.dtype, logits)


def write_rows(array: Array, kept: Array | None, start: int, stop: int, block: Array, *, xp: Namespace) -> None:
    if kept is None:
        array[start:stop, ...] = block
    else:
        xp.put_rows(array, kept[start:stop], block)
