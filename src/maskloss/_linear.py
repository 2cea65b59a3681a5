"""Projection and loss in one: the engine on logits = hidden kernel^T + bias, of which one chunk of kept rows exists.

With X_cv = dL/dlogits of a chunk, which takes the place of its logits,

    d hidden = X kernel        d kernel = sum over chunks of X^T hidden        d bias = sum over rows of X
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Set
from typing import Any, NamedTuple

from . import _rows, _stream
from ._arrays import Array, Namespace

# Of logits in the dtype of the computation, per chunk, and the fewest and most rows of one. Measured with 30522 classes
# on two cores: from 128 to 512 rows the products run at full speed, 64 lose 15 %; beyond 200 rows MKL takes a buffer of
# the logits' size for itself.
CHUNK_BYTES = 20 << 20
FEWEST, MOST = 128, 512
# The same on an accelerator, which wants large products; not yet measured on one.
ACCELERATOR_CHUNK_BYTES = 1 << 28
ACCELERATOR_FEWEST, ACCELERATOR_MOST = 512, 8192


class ChunkSizeWarning(UserWarning):
    """A `chunk_size` is ignored: all logits are made at once, for the reason that the warning names.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> import maskloss as ml
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", ml.ChunkSizeWarning)
    ...     hidden, kernel, labels = np.ones((4, 3)), np.ones((5, 3)), np.zeros(4, int)
    ...     loss = ml.linear_cross_entropy(hidden, kernel, labels, chunk_size=2, implementation="autodiff")
    >>> print(caught[0].message)
    chunk_size is ignored: all logits are made at once, since 'autodiff' is one expression
    """


class Projection(NamedTuple):
    hidden: Array  # (entries..., D)
    kernel: Array  # (V, D)
    bias: Array | None  # (V,)
    chunk_size: int | None  # rows of logits that exist at a time


class Plan(NamedTuple):
    """The visited rows of a projection, in the dtype they are multiplied in, and where their logits are made."""

    kept: Array | None
    visited: int
    length: int  # rows of a chunk
    hidden: _stream.Table
    kernel: Array
    bias: Array | None
    logits: Array | None  # (length, V); None where the library has no `out`
    labels: Array | None
    targets: _stream.Table | Array | None
    keep: Array | None
    class_mask: _stream.Table | None


class Chunk(NamedTuple):
    start: int
    stop: int
    hidden: Array  # (rows, D)
    rows: _rows.Rows


def chunk_length(projection: Projection, visited: int, itemsize: int, *, on_cpu: bool, share: float = 1) -> int:
    """Rows of a chunk: at most as many as asked for, else by size; of one length, so that none is near empty."""
    size, fewest, most = CHUNK_BYTES, FEWEST, MOST
    if not on_cpu:
        size, fewest, most = ACCELERATOR_CHUNK_BYTES, ACCELERATOR_FEWEST, ACCELERATOR_MOST
    row_bytes = projection.kernel.shape[0] * itemsize
    most = projection.chunk_size or int(share * max(fewest, min(most, size // row_bytes)))
    count = max(1, -(-visited // most))
    return max(1, -(-visited // count))


def plan_of(projection: Projection, rows: _rows.Rows, *, xp: Namespace) -> Plan:
    hidden, kernel, bias, _ = projection
    on_cpu = xp.reads_without_sync(hidden)
    # To wait for a device costs less than to multiply what does not count.
    kept, keep = _stream.kept_of(rows.keep, xp.may_wait(hidden), xp=xp)
    count, classes = math.prod(hidden.shape[:-1]), kernel.shape[0]
    visited = count if kept is None else kept.shape[0]
    length = chunk_length(projection, visited, 8 if rows.dtype == xp.float64 else 4, on_cpu=on_cpu)
    narrow = xp.multiplies_halves(hidden) and hidden.dtype == kernel.dtype and rows.dtype == xp.float32
    targets, class_mask = rows.targets, rows.class_mask
    return Plan(
        kept,
        visited,
        length,
        _stream.table_of(hidden, kept, xp=xp),
        xp.astype(kernel, kernel.dtype if narrow else rows.dtype, copy=False),
        None if bias is None else xp.astype(bias, rows.dtype, copy=False),
        xp.empty((length, classes), dtype=rows.dtype, **xp.placement(hidden)) if xp.has_out else None,
        _stream.take_entries(rows.labels, kept, xp=xp),
        _stream.table_of(targets, kept, xp=xp) if targets is not None and targets.ndim == hidden.ndim else targets,
        None if keep is None else _stream.flat(keep, xp=xp),
        None if class_mask is None else _stream.table_of(class_mask, kept, xp=xp),
    )


def chunks(plan: Plan, rows: _rows.Rows, *, xp: Namespace) -> Iterator[Chunk]:
    for start, stop in _stream.spans(plan):
        keep = None if plan.keep is None else plan.keep[start:stop]
        hidden = selected_hidden(
            _stream.block_of(plan.hidden, start, stop, None, xp=xp), keep, plan.kernel.dtype, xp=xp
        )
        logits = xp.product(hidden, plan.kernel.T, out=None if plan.logits is None else plan.logits[: stop - start])
        if plan.bias is not None:
            logits += plan.bias
        yield Chunk(start, stop, hidden, _stream.rows_with(logits, plan, rows, start, stop, xp=xp))


def selected_hidden(hidden: Array, keep: Array | None, dtype: Any, *, xp: Namespace) -> Array:
    hidden = xp.astype(hidden, dtype, copy=False)
    # Before the product: 0 times NaN would reach the kernel's gradient.
    return hidden if keep is None else xp.where(xp.expand_dims(keep, axis=-1), hidden, 0.0)


def warn_of_chunks(why: str) -> None:
    # Without the size, which torch.compile may have as a symbol.
    text = f"chunk_size is ignored: all logits are made at once, since {why}"
    warnings.warn(text, ChunkSizeWarning, stacklevel=2)


# What torch.compiler.assume_constant_result sets, which imports Dynamo for it: the warning is given while it traces.
vars(warn_of_chunks)["_dynamo_marked_constant"] = True


def with_all_logits(projection: Projection, rows: _rows.Rows, why: str, *, xp: Namespace) -> _rows.Rows:
    """The rows with all their logits, as one expression: for what differentiates or traces it, as `why` says."""
    hidden, kernel, bias, chunk_size = projection
    if chunk_size is not None and why:
        warn_of_chunks(why)
    selected = selected_hidden(hidden, rows.keep, rows.dtype, xp=xp)
    logits = xp.product(selected, xp.astype(kernel, rows.dtype, copy=False).T)
    if bias is not None:
        logits = logits + xp.of_rank(xp.astype(bias, rows.dtype, copy=False), logits.ndim)
    return rows._replace(logits=logits)


def from_all_logits(
    projection: Projection,
    rows: _rows.Rows,
    rows_forward: Callable[..., _rows.Forward],
    why: str,
    *,
    lse_too: bool,
    answers: Array | None,
    xp: Namespace,
) -> tuple[_rows.Forward, Array | None]:
    """forward, by a forward of the rows with all their logits."""
    rows = with_all_logits(projection, rows, why, xp=xp)
    right = None if answers is None else _rows.is_largest(rows, answers, xp=xp)
    return rows_forward(rows, lse_too=lse_too, xp=xp), right


def collected(
    plan: Plan,
    rows: _rows.Rows,
    entries: tuple[int, ...],
    outs: list[_rows.Forward],
    rights: list[Array | None],
    *,
    lse_too: bool,
    answers: Array | None,
    xp: Namespace,
) -> tuple[_rows.Forward, Array | None]:
    """Numbers per row of each chunk as numbers per entry."""
    if not outs:
        right = None if answers is None else xp.zeros(entries, dtype=xp.bool, **xp.placement(answers))
        return _stream.empty_forward(rows, entries, plan.hidden.array, lse_too=lse_too, xp=xp), right
    parts = [*zip(*_stream.with_one_shift(outs, xp=xp), strict=True), rights]
    joined = [_stream.to_entries(_stream.concat_blocks(part, xp=xp), plan.kept, entries, xp=xp) for part in parts]
    return _rows.Forward(*joined[:-1]), joined[-1]


def forward(
    projection: Projection, rows: _rows.Rows, *, lse_too: bool, answers: Array | None, xp: Namespace
) -> tuple[_rows.Forward, Array | None]:
    """_rows.forward, and whether the largest logit of each entry is that of its answer; one product."""
    entries, plan = tuple(projection.hidden.shape[:-1]), plan_of(projection, rows, xp=xp)
    answer = _stream.take_entries(answers, plan.kept, xp=xp)
    outs: list[_rows.Forward] = []
    rights: list[Array | None] = []
    for chunk in chunks(plan, rows, xp=xp):
        rights.append(right_of(chunk, answer, xp=xp))
        outs.append(_stream.forward(chunk.rows, lse_too=lse_too, xp=xp))
    return collected(plan, rows, entries, outs, rights, lse_too=lse_too, answers=answers, xp=xp)


def right_of(chunk: Chunk, answer: Array | None, *, xp: Namespace) -> Array | None:
    return None if answer is None else _rows.is_largest(chunk.rows, answer[chunk.start : chunk.stop], xp=xp)


def forward_and_backward(
    projection: Projection,
    rows: _rows.Rows,
    upstream: _rows.Upstream,
    parts: Set[str],
    answers: Array | None,
    *,
    xp: Namespace,
) -> tuple[_rows.Forward, Array | None, dict[str, Array]]:
    """Both, and the gradients of the parts asked for, in three products; upstream does not wait for the loss."""
    entries, plan = tuple(projection.hidden.shape[:-1]), plan_of(projection, rows, xp=xp)
    g = [_stream.take_entries(part, plan.kept, xp=xp) for part in upstream]
    answer = _stream.take_entries(answers, plan.kept, xp=xp)
    lse_too = upstream.squared_lse is not None
    # Of a backward that waits for its factor, which a narrow dtype would lose digits, or all, to.
    gradients = empty_gradients(projection, rows, plan, parts, rows.dtype, xp=xp)
    outs: list[_rows.Forward] = []
    rights: list[Array | None] = []
    for chunk in chunks(plan, rows, xp=xp):
        rights.append(right_of(chunk, answer, xp=xp))
        out, d_logits, d_targets = _stream.forward_and_backward(
            chunk.rows,
            _rows.Upstream(*(None if part is None else part[chunk.start : chunk.stop] for part in g)),
            targets_too="targets" in parts,
            xp=xp,
            d_logits=chunk.rows.logits,
        )
        outs.append(out)
        add_gradients(gradients, plan, chunk, d_logits, d_targets, xp=xp)
    out, right = collected(plan, rows, entries, outs, rights, lse_too=lse_too, answers=answers, xp=xp)
    return out, right, finished(gradients, projection, rows, xp=xp)


def backward(
    projection: Projection,
    rows: _rows.Rows,
    total: Array,
    shift: Array | None,
    g_nll: Array | None,
    g_dot: Array | None,
    g_lse: Array | None,
    parts: Set[str],
    *,
    xp: Namespace,
) -> dict[str, Array]:
    """The gradients of the parts asked for, from logits that are made again: three products beside those of forward."""
    plan = plan_of(projection, rows, xp=xp)
    per_row = [_stream.take_entries(x, plan.kept, xp=xp) for x in (total, shift, g_nll, g_dot, g_lse)]
    gradients = empty_gradients(projection, rows, plan, parts, projection.hidden.dtype, xp=xp)
    for chunk in chunks(plan, rows, xp=xp):
        d_logits, d_targets = _stream.backward(
            chunk.rows,
            *(None if x is None else x[chunk.start : chunk.stop] for x in per_row),
            targets_too="targets" in parts,
            xp=xp,
            d_logits=chunk.rows.logits,
        )
        add_gradients(gradients, plan, chunk, d_logits, d_targets, xp=xp)
    return finished(gradients, projection, rows, xp=xp)


def entropy(projection: Projection, rows: _rows.Rows, *, xp: Namespace) -> Array:
    """_rows.entropy; 0 where not visited."""
    entries, plan = tuple(projection.hidden.shape[:-1]), plan_of(projection, rows, xp=xp)
    pieces = [_stream.entropy(chunk.rows, xp=xp) for chunk in chunks(plan, rows, xp=xp)]
    if not pieces:
        return xp.zeros(entries, dtype=rows.dtype, **xp.placement(projection.hidden))
    return _stream.to_entries(_stream.concat_blocks(pieces, xp=xp), plan.kept, entries, xp=xp)


def entropy_backward(
    projection: Projection, rows: _rows.Rows, g: Array, parts: Set[str], *, xp: Namespace
) -> dict[str, Array]:
    plan = plan_of(projection, rows, xp=xp)
    g = _stream.take_entries(g, plan.kept, xp=xp)
    gradients = empty_gradients(projection, rows, plan, parts, projection.hidden.dtype, xp=xp)
    for chunk in chunks(plan, rows, xp=xp):
        d_logits = chunk.rows.logits
        _stream.entropy_backward(chunk.rows, g[chunk.start : chunk.stop], d_logits, xp=xp)
        add_gradients(gradients, plan, chunk, d_logits, None, xp=xp)
    return finished(gradients, projection, rows, xp=xp)


def empty_gradients(
    projection: Projection, rows: _rows.Rows, plan: Plan, parts: Set[str], dtype: Any, *, xp: Namespace
) -> dict[str, Array]:
    """The hidden states' in the dtype given, a row per entry; the kernel's, a sum over chunks, in that of the rows."""
    hidden: Array = projection.hidden
    targets: Array = rows.targets
    count = math.prod(hidden.shape[:-1])
    gradients: dict[str, Array] = {}
    if "hidden" in parts:
        shape = (count, hidden.shape[-1])
        gradients["hidden"] = xp.sparse_zeros(shape, dtype, hidden)
    for name, x in (("kernel", plan.kernel), ("bias", plan.bias)):
        if name in parts and x is not None:
            gradients[name] = xp.zeros_like(x, dtype=rows.dtype)  # in the kernel's layout, where the library keeps it
    if "targets" in parts:
        shape = (count, plan.kernel.shape[0]) if isinstance(plan.targets, _stream.Table) else targets.shape
        gradients["targets"] = xp.zeros(shape, dtype=targets.dtype, **xp.placement(hidden))
    return gradients


def add_gradients(
    gradients: dict[str, Array], plan: Plan, chunk: Chunk, d_logits: Array, d_targets: Array | None, *, xp: Namespace
) -> None:
    if "bias" in gradients:
        gradients["bias"] += xp.long_sum(d_logits, axis=0)
    d_logits = xp.astype(d_logits, plan.kernel.dtype, copy=False)
    if "hidden" in gradients:
        d_hidden = xp.astype(d_logits @ plan.kernel, gradients["hidden"].dtype, copy=False)
        _stream.write_rows(gradients["hidden"], plan.kept, chunk.start, chunk.stop, d_hidden, xp=xp)
    if "kernel" in gradients:
        gradients["kernel"] = xp.add_product(gradients["kernel"], d_logits.T, chunk.hidden)
    if "targets" in gradients:
        if isinstance(plan.targets, _stream.Table):
            _stream.write_rows(gradients["targets"], plan.kept, chunk.start, chunk.stop, d_targets, xp=xp)
        else:
            gradients["targets"] += d_targets


def finished(
    gradients: dict[str, Array], projection: Projection, rows: _rows.Rows, *, xp: Namespace
) -> dict[str, Array]:
    """In the shapes of what they are gradients of."""
    given: dict[str, Array] = {"hidden": projection.hidden, "targets": rows.targets}
    return {name: xp.reshape(x, given[name].shape) if name in given else x for name, x in gradients.items()}
