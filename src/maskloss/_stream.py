"""The eager engine: the rows' mathematics on kept rows alone, in blocks that stay in cache, with one workspace.

On a CPU the plain expression spends its time on fresh memory, a page fault per 4 KiB of each temporary. Here nothing of
the logits' size is made but their gradient; what is not kept is never read.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from . import _rows
from ._arrays import Array, Namespace, dtype_name

# Of logits in the dtype of the computation, per block. Measured on two cores with 2 MiB of L2 each: 0.5 MB is lost to
# the overhead of the calls, 8 MB to the cache. An accelerator wants few calls; it has not been measured on one.
BLOCK_BYTES = 1 << 21
ACCELERATOR_BLOCK_BYTES = 1 << 26


_held = threading.local()


class Table(NamedTuple):
    """The visited rows of an array (entries..., C)."""

    array: Array  # (rows, C) where a view of that shape exists, else (entries..., C)
    places: tuple[Array, ...] | None  # of each visited row, per axis; None: all rows, in order


class Walk(NamedTuple):
    on_cpu: bool  # Python may look at the numbers
    kept: Array | None  # which of the flattened entries are visited; None: all, in order
    visited: int
    length: int  # rows of a block
    logits: Table
    labels: Array
    targets: Table | Array | None  # an array: one row for all
    keep: Array | None
    class_mask: Table | None
    workspace: Array | None


def flat(x: Array, *, xp: Namespace) -> Array:
    return x if x.ndim == 1 else xp.reshape(x, (-1,))


def take_entries(x: Array | None, kept: Array | None, *, xp: Namespace) -> Array:
    """The visited ones of numbers per entry."""
    return None if x is None else flat(x, xp=xp) if kept is None else flat(x, xp=xp)[kept]


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


def kept_of(keep: Array | None, read: bool, *, xp: Namespace) -> tuple[Array | None, Array | None]:
    """Which of the flattened entries are visited (None: all), and of these the mask that is left to select by.

    Elsewhere than in NumPy's and torch's memory, how many are kept is known after a sync, or never.
    """
    if keep is None or not read:
        return None, keep
    kept = xp.nonzero(flat(keep, xp=xp))[0]
    return (None if kept.shape[0] == math.prod(keep.shape) else kept), None


@contextlib.contextmanager
def walking(rows: _rows.Rows, *, xp: Namespace) -> Generator[Walk]:
    logits = rows.logits
    classes, count = logits.shape[-1], math.prod(logits.shape[:-1])
    on_cpu = xp.reads_without_sync(logits)
    kept, keep = kept_of(rows.keep, on_cpu and xp.may_wait(logits), xp=xp)
    count = count if kept is None else kept.shape[0]
    row_bytes = classes * (8 if rows.dtype == xp.float64 else 4)
    length = max(1, min(count, (BLOCK_BYTES if on_cpu else ACCELERATOR_BLOCK_BYTES) // row_bytes))
    targets = rows.targets
    if targets is not None and targets.ndim == logits.ndim:
        targets = table_of(targets, kept, xp=xp)
    walk = Walk(
        on_cpu,
        kept,
        count,
        length,
        table_of(logits, kept, xp=xp),
        take_entries(rows.labels, kept, xp=xp),
        targets,
        None if keep is None else flat(keep, xp=xp),
        None if rows.class_mask is None else table_of(rows.class_mask, kept, xp=xp),
        None,
    )
    if not xp.has_out:
        yield walk
    elif on_cpu:
        with workspace(length, classes, rows.dtype, logits, xp=xp) as view:
            yield walk._replace(workspace=view)
    else:
        yield walk._replace(workspace=xp.empty((length, classes), dtype=rows.dtype, **xp.placement(logits)))


def block_logits(walk: Walk, dtype: Any, start: int, stop: int, *, xp: Namespace) -> tuple[Array, Array | None]:
    """The logits from start to stop in the dtype of the computation, and the workspace, which may hold them."""
    out = None if walk.workspace is None else walk.workspace[: stop - start]
    same = walk.logits.array.dtype == dtype
    logits = block_of(walk.logits, start, stop, out if same else None, xp=xp)
    if same or out is None:
        return logits, out
    out[...] = logits
    return out, out


def block_rows(
    walk: Walk, rows: _rows.Rows, start: int, stop: int, *, xp: Namespace
) -> tuple[_rows.Rows, Array | None]:
    logits, out = block_logits(walk, rows.dtype, start, stop, xp=xp)
    return rows_with(logits, walk, rows, start, stop, xp=xp), out


def rows_with(logits: Array, visited: Any, rows: _rows.Rows, start: int, stop: int, *, xp: Namespace) -> _rows.Rows:
    """These logits with what else belongs to the rows from start to stop of a Walk, or of a plan of _linear."""
    targets = visited.targets
    return _rows.Rows(
        logits,
        None if visited.labels is None else visited.labels[start:stop],
        block_of(targets, start, stop, None, xp=xp) if isinstance(targets, Table) else targets,
        None if visited.keep is None else visited.keep[start:stop],
        None if visited.class_mask is None else block_of(visited.class_mask, start, stop, None, xp=xp),
        rows.softcap,
        rows.dtype,
        rows.kernels,
    )


def is_plain(walk: Walk, rows: _rows.Rows) -> bool:
    """Whether the logits enter the softmax as they are, and a workspace is there to compute in."""
    return walk.workspace is not None and walk.keep is rows.class_mask is rows.softcap is None


def spans(walk: Any) -> Iterator[tuple[int, int]]:
    """Of a Walk in blocks, or of a plan of _linear in chunks."""
    for start in range(0, walk.visited, walk.length):
        yield start, min(start + walk.length, walk.visited)


def empty_forward(
    rows: _rows.Rows, entries: tuple[int, ...], like: Array, *, lse_too: bool, xp: Namespace
) -> _rows.Forward:
    """forward where no row is visited."""
    parts = (rows.labels, rows.targets, like if lse_too else None, like, None)
    made = (None if part is None else xp.zeros(entries, dtype=rows.dtype, **xp.placement(like)) for part in parts)
    return _rows.Forward(*made)


def with_one_shift(pieces: Sequence[Any], *, xp: Namespace) -> Sequence[Any]:
    """Sums or Forwards, the shift of 0 written out where others have another."""
    if len({piece.shift is None for piece in pieces}) < 2:
        return pieces
    return [p if p.shift is not None else p._replace(shift=xp.zeros_like(p.total)) for p in pieces]


def concat_blocks(pieces: Sequence[Any], *, xp: Namespace) -> Array | None:
    return None if pieces[0] is None else pieces[0] if len(pieces) == 1 else xp.concat(pieces)


def to_entries(values: Array | None, kept: Array | None, entries: tuple[int, ...], *, xp: Namespace) -> Array | None:
    """Numbers per visited row as numbers per entry, 0 where not visited."""
    if values is None:
        return None
    if kept is not None:
        full = xp.zeros((math.prod(entries),), dtype=values.dtype, **xp.placement(values))
        full[kept] = values
        values = full
    return values if len(entries) == 1 else xp.reshape(values, entries)


def label_logits(walk: Walk, rows: _rows.Rows, *, xp: Namespace) -> Array:
    array, places = walk.logits
    taken = xp.take_label(array, walk.labels) if places is None else array[(*places, walk.labels)]
    taken = xp.astype(taken, rows.dtype, copy=False)
    # Selected like the rest of the row: NaN here would reach the derivatives of what multiplies it.
    taken = taken if walk.keep is None else xp.where(walk.keep, taken, 0.0)
    return _rows.capped(taken, rows.softcap, xp=xp)[0]


def in_range(x: Array, limits: dict[str, tuple[float, float]], *, xp: Namespace) -> bool:
    if 0 in x.shape:
        return True
    low, high = xp.extremes(x)
    least, greatest = limits[dtype_name(x)]
    return least <= low and high <= greatest


def serves(g: Array, *, xp: Namespace) -> bool:
    """Whether upstream gradients may be divided by totals as they are; 0 may, by any."""
    return in_range(xp.where(g == 0, 1.0, xp.abs(g)), _rows.UPSTREAM, xp=xp)


def unshifted(x: Array, *, xp: Namespace, out: Array | None) -> _rows.Sums | None:
    """The sums with a shift of 0, which needs no walk for the maximum; None where exp(x_c) may have left its range.

    Below the least total, what underflows is more than a rounding of it, for up to 2**20 classes.
    """
    total = _rows.total_of(_rows.exponentials(x, None, xp=xp, out=out), out, xp=xp)
    return _rows.Sums(None, total, None) if in_range(total, _rows.TOTALS, xp=xp) else None


def label_costs(total: Array, label_logits: Array, shift: Array | None, *, xp: Namespace) -> Array:
    """lse - x_y = log(total / exp(x_y - shift)), which a small loss needs: log(total) rounds at the size of x_y."""
    relative = label_logits if shift is None else label_logits - shift
    # total holds exp(x_y - shift), but rounded otherwise: without the clip a loss of 0 could be negative.
    ratio = xp.clipped_below(total / xp.exp(relative), 1.0)
    if xp.extremes(ratio)[1] <= _rows.GREATEST_RATIO:
        return xp.log(ratio)
    # Row by row: a loss is the same beside any other.
    far = _rows.label_costs(total, label_logits, xp.zeros_like(total) if shift is None else shift, xp=xp)
    return xp.where(ratio <= _rows.GREATEST_RATIO, xp.log(ratio), far)


def forward(rows: _rows.Rows, *, lse_too: bool, xp: Namespace) -> _rows.Forward:
    """_rows.forward; where not kept, numbers that mean nothing."""
    if rows.kernels is not None:
        return rows.kernels.forward(rows, lse_too=lse_too)
    entries = tuple(rows.logits.shape[:-1])
    pieces: list[_rows.Sums] = []
    with walking(rows, xp=xp) as walk:
        shifts = rows.targets is not None or not walk.on_cpu
        for start, stop in spans(walk):
            block, out = block_rows(walk, rows, start, stop, xp=xp)
            sums = None
            if not shifts:
                sums = unshifted(_rows.selected_logits(block, xp=xp)[0], xp=xp, out=out)
            if sums is None:
                if not shifts:
                    # Logits out of range seldom come alone. The workspace, overwritten, may have held this block's.
                    shifts = True
                    block, out = block_rows(walk, rows, start, stop, xp=xp)
                sums = _rows.sums(_rows.selected_logits(block, xp=xp)[0], block, xp=xp, out=out)
            pieces.append(sums)
    if not pieces:
        return empty_forward(rows, entries, rows.logits, lse_too=lse_too, xp=xp)
    taken = None if rows.labels is None else label_logits(walk, rows, xp=xp)
    return assembled(walk, rows, taken, pieces, lse_too=lse_too, xp=xp)


def assembled(
    walk: Walk, rows: _rows.Rows, taken: Array | None, pieces: Sequence[_rows.Sums], *, lse_too: bool, xp: Namespace
) -> _rows.Forward:
    """`taken` are the labels' logits."""
    shift, total, dot = (concat_blocks(parts, xp=xp) for parts in zip(*with_one_shift(pieces, xp=xp), strict=True))
    nll = lse = None
    if taken is not None:
        nll = (label_costs if walk.on_cpu else _rows.label_costs)(total, taken, shift, xp=xp)
    if lse_too:
        lse = xp.log(total) if shift is None else _rows.log_sum_exp(total, shift, xp=xp)
    entries = tuple(rows.logits.shape[:-1])
    return _rows.Forward(*(to_entries(part, walk.kept, entries, xp=xp) for part in (nll, dot, lse, total, shift)))


def backward(
    rows: _rows.Rows,
    total: Array,
    shift: Array | None,
    g_nll: Array | None,
    g_dot: Array | None,
    g_lse: Array | None,
    *,
    targets_too: bool,
    xp: Namespace,
    d_logits: Array | None = None,
) -> tuple[Array, Array | None]:
    """_rows.backward, in the dtype of the logits; the gradient of the targets in their shape.

    `d_logits`, of shape (rows, C) and all visited, is where the gradient goes: it may be the logits.
    """
    if rows.kernels is not None and not targets_too:
        return rows.kernels.backward(rows, total, shift, g_nll, g_dot, g_lse, d_logits=d_logits), None
    with walking(rows, xp=xp) as walk:
        per_row = [take_entries(x, walk.kept, xp=xp) for x in (total, shift, g_nll, g_dot, g_lse)]
        if walk.on_cpu and not all(serves(g, xp=xp) for g in (per_row[2], per_row[4]) if g is not None):
            per_row[:2] = _rows.normalised(per_row[0], per_row[1], None, xp=xp)
        return walked_backward(walk, rows, per_row, targets_too=targets_too, xp=xp, d_logits=d_logits)


def walked_backward(
    walk: Walk,
    rows: _rows.Rows,
    per_row: Sequence[Array | None],
    *,
    targets_too: bool,
    xp: Namespace,
    d_logits: Array | None,
) -> tuple[Array, Array | None]:
    """`per_row` are total, shift and the upstream gradients of what is visited."""
    logits: Array = rows.logits
    targets: Array = rows.targets
    total, shift, g_nll, g_dot, g_lse = per_row
    entries = (math.prod(logits.shape[:-1]), logits.shape[-1])
    d_logits = gradient_like(logits, walk, xp=xp) if d_logits is None else d_logits
    d_targets = None
    if targets_too:
        shape = entries if isinstance(walk.targets, Table) else targets.shape
        d_targets = xp.zeros(shape, dtype=targets.dtype, **xp.placement(logits))
    if g_dot is None and is_plain(walk, rows):
        scale = _rows.sum_of(g_nll, g_lse) / (total if shift is None else _rows.positive(total, xp=xp))
        for start, stop, x, out in gradient_blocks(walk, rows, d_logits, xp=xp):
            _rows.exponentials(x, None if shift is None else shift[start:stop], xp=xp, out=out)
            labels, g = (None if x is None or g_nll is None else x[start:stop] for x in (walk.labels, g_nll))
            finish_gradient(out, scale[start:stop], labels, g, xp=xp)
        return xp.reshape(d_logits, logits.shape), None
    for start, stop in spans(walk):
        block, out = block_rows(walk, rows, start, stop, xp=xp)
        d_block, d_targets_block = _rows.backward(
            block, *(None if x is None else x[start:stop] for x in per_row), targets_too=targets_too, xp=xp, out=out
        )
        write_rows(d_logits, walk.kept, start, stop, d_block, xp=xp)
        if d_targets is not None:
            if isinstance(walk.targets, Table):
                write_rows(d_targets, walk.kept, start, stop, d_targets_block, xp=xp)
            else:
                d_targets = d_targets + xp.reshape(xp.long_sum(d_targets_block, axis=0), targets.shape)
    d_targets = None if d_targets is None else xp.reshape(d_targets, targets.shape)
    return xp.reshape(d_logits, logits.shape), d_targets


def gradient_blocks(
    walk: Walk, rows: _rows.Rows, d_logits: Array, *, xp: Namespace
) -> Iterator[tuple[int, int, Array, Array]]:
    """Start, stop and logits of each block, and where the caller computes its gradient, which then gets to d_logits."""
    # Where the gradient takes the place of the logits these are read again if the shift of 0 does not serve.
    in_place = walk.kept is None and d_logits.dtype == rows.dtype and d_logits is not rows.logits
    for start, stop in spans(walk):
        x, workspace = block_logits(walk, rows.dtype, start, stop, xp=xp)
        out = d_logits[start:stop] if in_place else workspace
        yield start, stop, x, out
        if not in_place:
            write_rows(d_logits, walk.kept, start, stop, out, xp=xp)


def forward_and_backward(
    rows: _rows.Rows, upstream: _rows.Upstream, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[_rows.Forward, Array, Array | None]:
    """Both, where the upstream gradient does not wait for the loss."""
    both = in_one_walk(rows, upstream, xp=xp, d_logits=d_logits) if rows.kernels is None else None
    if both is not None:
        return *both, None
    out = forward(rows, lse_too=upstream.squared_lse is not None, xp=xp)
    g_lse = upstream.of_lse(out.lse, xp=xp)
    gradients = backward(
        *(rows, out.total, out.shift, upstream.nll, upstream.dot, g_lse),
        targets_too=targets_too,
        xp=xp,
        d_logits=d_logits,
    )
    return out, *gradients


def in_one_walk(
    rows: _rows.Rows, upstream: _rows.Upstream, *, xp: Namespace, d_logits: Array | None
) -> tuple[_rows.Forward, Array] | None:
    """Each exponential is computed once: for class indices alone, in arrays that can be written to."""
    if upstream.nll is None or upstream.dot is not None or upstream.squared_lse is not None:
        return None
    with walking(rows, xp=xp) as walk:
        g = take_entries(upstream.nll, walk.kept, xp=xp)
        if not is_plain(walk, rows) or walk.visited == 0:
            return None
        if walk.on_cpu and not serves(g, xp=xp):
            return None
        return walked_once(walk, rows, g, xp=xp, d_logits=d_logits)


def walked_once(
    walk: Walk, rows: _rows.Rows, g: Array, *, xp: Namespace, d_logits: Array | None
) -> tuple[_rows.Forward, Array]:
    d_logits = gradient_like(rows.logits, walk, xp=xp) if d_logits is None else d_logits
    taken = label_logits(walk, rows, xp=xp)  # before the gradient may take their place
    shifts = not walk.on_cpu
    pieces: list[_rows.Sums] = []
    for start, stop, x, out in gradient_blocks(walk, rows, d_logits, xp=xp):
        sums = None if shifts else unshifted(x, xp=xp, out=out)
        if sums is None:
            shifts = True
            x, _ = block_logits(walk, rows.dtype, start, stop, xp=xp)
            sums = _rows.Sums(*_rows.shift_and_total(x, xp=xp, out=out), None)
        pieces.append(sums)
        scale = g[start:stop] / _rows.positive(sums.total, xp=xp)
        finish_gradient(out, scale, walk.labels[start:stop], g[start:stop], xp=xp)
    return assembled(walk, rows, taken, pieces, lse_too=False, xp=xp), xp.reshape(d_logits, rows.logits.shape)


def gradient_like(logits: Array, walk: Walk, *, xp: Namespace) -> Array:
    """A row per entry, 0 where nothing will be written."""
    shape = (math.prod(logits.shape[:-1]), logits.shape[-1])
    if walk.kept is None:
        return xp.empty(shape, dtype=logits.dtype, **xp.placement(logits))
    return xp.sparse_zeros(shape, logits.dtype, logits)


def finish_gradient(terms: Array, scale: Array, labels: Array | None, g_nll: Array | None, *, xp: Namespace) -> None:
    """The gradient of a block in the place of its terms."""
    terms *= xp.expand_dims(scale, axis=-1)
    if g_nll is not None:
        xp.subtract_at_label(terms, labels, g_nll, in_place=True)


def write_rows(array: Array, kept: Array | None, start: int, stop: int, block: Array, *, xp: Namespace) -> None:
    if kept is None:
        array[start:stop, ...] = block
    else:
        xp.put_rows(array, kept[start:stop], block)


def entropy(rows: _rows.Rows, *, xp: Namespace) -> Array:
    """_rows.entropy; 0 where not visited."""
    entries = tuple(rows.logits.shape[:-1])
    with walking(rows, xp=xp) as walk:
        pieces = [_rows.entropy(block_rows(walk, rows, start, stop, xp=xp)[0], xp=xp) for start, stop in spans(walk)]
    if not pieces:
        return xp.zeros(entries, dtype=rows.dtype, **xp.placement(rows.logits))
    return to_entries(concat_blocks(pieces, xp=xp), walk.kept, entries, xp=xp)


def entropy_backward(rows: _rows.Rows, g: Array, d_logits: Array, *, xp: Namespace) -> None:
    """_rows.entropy_backward of all rows, into d_logits, which may be the logits."""
    with walking(rows, xp=xp) as walk:
        for start, stop in spans(walk):
            block = block_rows(walk, rows, start, stop, xp=xp)[0]
            write_rows(d_logits, None, start, stop, _rows.entropy_backward(block, g[start:stop], xp=xp), xp=xp)
