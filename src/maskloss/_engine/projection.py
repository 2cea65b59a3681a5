"""Logits = hidden kernel^T + bias, of which one chunk of kept rows exists at a time.

With X_cv = dL/dlogits of a chunk, which takes the place of its logits,

    d hidden = X kernel        d kernel = sum over chunks of X^T hidden        d bias = sum over rows of X
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Set
from typing import Any, NamedTuple

from .._arrays import Array, Namespace, called_while_traced
from .._math.parts import Best, best_of, is_largest
from .._math.rows import Found, Rows, Value
from . import lanes
from .lanes import Lane, add_targets, empty_targets
from .walk import (
    Table,
    Visit,
    block_of,
    block_rows,
    joined,
    located,
    sliced,
    spans,
    table_of,
    take_entries,
    taken,
    visit_of,
    write_rows,
)

# Of logits in the dtype of the computation, per chunk, and the fewest and most rows of one. Measured with 30522 classes
# on two cores: from 128 to 512 rows the products run at full speed, 64 lose 15 %; beyond 200 rows MKL takes a buffer of
# the logits' size for itself.
CHUNK_BYTES = 20 << 20
FEWEST, MOST = 128, 512
# The same on an accelerator, which wants large products. On an H100, 8192 x 4096 x 128256 in bfloat16 takes 67 ms by
# 512 rows; 48, and 0.5 GiB more, by 2048; 46, and 5 GiB more, at once.
ACCELERATOR_CHUNK_BYTES = 1 << 28
ACCELERATOR_FEWEST, ACCELERATOR_MOST = 2048, 8192


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
    ...     options = {"chunk_size": 2, "implementation": "autodiff"}
    ...     loss = ml.linear_cross_entropy(hidden, kernel, labels, **options)
    >>> print(caught[0].message)
    chunk_size is ignored: all logits are made at once, since 'autodiff' is one expression
    """


class Projection(NamedTuple):
    hidden: Array  # (entries..., D)
    kernel: Array  # (V, D)
    bias: Array | None  # (V,)
    chunk_size: int | None  # rows of logits that exist at a time


class Plan(NamedTuple):
    """A visit of a projection in chunks, in the dtype it is multiplied in, and where the logits are made."""

    visit: Visit
    hidden: Table
    kernel: Array
    bias: Array | None
    length: int  # rows of a chunk
    logits: Array | None  # (length, V); None where the library has no `out`


class Chunk(NamedTuple):
    start: int
    stop: int
    hidden: Array  # (rows, D)
    rows: Rows


def most_rows(classes: int, itemsize: int, *, on_cpu: bool) -> int:
    """Of a chunk, by size."""
    size, fewest, most = CHUNK_BYTES, FEWEST, MOST
    if not on_cpu:
        size, fewest, most = ACCELERATOR_CHUNK_BYTES, ACCELERATOR_FEWEST, ACCELERATOR_MOST
    return max(fewest, min(most, size // (classes * itemsize)))


def chunk_length(projection: Projection, visited: int, itemsize: int, *, on_cpu: bool, share: float = 1) -> int:
    """Rows of a chunk: at most as many as asked for, else by size; of one length, so that none is near empty."""
    classes = projection.kernel.shape[0]
    most = projection.chunk_size or int(share * most_rows(classes, itemsize, on_cpu=on_cpu))
    count = max(1, -(-visited // most))
    return max(1, -(-visited // count))


def plan_of(projection: Projection, rows: Rows, *, xp: Namespace) -> Plan:
    hidden, kernel, bias, _ = projection
    # To wait for a device costs less than to multiply what does not count.
    rows = located(rows, hidden, waits=True, xp=xp)
    visit = visit_of(rows, tuple(hidden.shape[:-1]), xp=xp)
    itemsize = 8 if rows.dtype == xp.float64 else 4
    length = chunk_length(projection, visit.visited, itemsize, on_cpu=xp.reads_without_sync(hidden))
    narrow = xp.multiplies_halves(hidden) and hidden.dtype == kernel.dtype and rows.dtype == xp.float32
    return Plan(
        visit,
        table_of(hidden, visit.kept, xp=xp),
        xp.astype(kernel, kernel.dtype if narrow else rows.dtype, copy=False),
        None if bias is None else xp.astype(bias, rows.dtype, copy=False),
        length,
        xp.empty((length, kernel.shape[0]), dtype=rows.dtype, **xp.placement(hidden)) if xp.has_out else None,
    )


def chunks(plan: Plan, *, xp: Namespace) -> Iterator[Chunk]:
    visit = plan.visit
    for start, stop in spans(visit.visited, plan.length):
        hidden = block_of(plan.hidden, start, stop, None, xp=xp)
        keep = None if visit.keep is None else visit.keep[start:stop]
        hidden = selected_hidden(hidden, keep, plan.kernel.dtype, xp=xp)
        logits = xp.product(hidden, plan.kernel.T, out=None if plan.logits is None else plan.logits[: stop - start])
        if plan.bias is not None:
            logits += plan.bias
        yield Chunk(start, stop, hidden, block_rows(visit, logits, start, stop, xp=xp))


def selected_hidden(hidden: Array, keep: Array | None, dtype: Any, *, xp: Namespace) -> Array:
    hidden = xp.astype(hidden, dtype, copy=False)
    # Before the product: 0 times NaN would reach the kernel's gradient.
    return hidden if keep is None else xp.where(xp.expand_dims(keep, axis=-1), hidden, 0.0)


@called_while_traced
def warn_of_chunks(why: str) -> None:
    # Without the size, which torch.compile may have as a symbol.
    text = f"chunk_size is ignored: all logits are made at once, since {why}"
    warnings.warn(text, ChunkSizeWarning, stacklevel=2)


def with_all_logits(projection: Projection, rows: Rows, why: str, *, xp: Namespace) -> Rows:
    """The rows with all their logits, as one expression: for what differentiates or traces it, as `why` says."""
    hidden, kernel, bias, chunk_size = projection
    if chunk_size is not None and why:
        warn_of_chunks(why)
    selected = selected_hidden(hidden, rows.keep, rows.dtype, xp=xp)
    if rows.part is not None:
        selected = xp.own(selected, rows.part.group)
    logits = xp.product(selected, xp.astype(kernel, rows.dtype, copy=False).T)
    if bias is not None:
        logits = logits + xp.of_rank(xp.astype(bias, rows.dtype, copy=False), logits.ndim)
    return rows._replace(logits=logits)


def from_all_logits(
    projection: Projection, rows: Rows, of_rows: Callable[..., Any], why: str, *, answers: Array | None, xp: Namespace
) -> Found:
    """`forward`, by that of the rows with all their logits."""
    rows = with_all_logits(projection, rows, why, xp=xp)
    return Found(of_rows(rows, xp), None if answers is None else is_largest(rows, answers, xp=xp))


def with_best(lane: Lane, projection: Projection, rows: Rows, *, xp: Namespace) -> tuple[Any, Best]:
    """One product; and the best class of each entry."""
    plan = plan_of(projection, rows, xp=xp)
    best: list[Best] = []

    def each(chunk: Chunk) -> tuple[Any, None, None]:
        best.append(best_of(chunk.rows, xp=xp))
        return lane.forward(chunk.rows, xp), None, None

    out, _, _ = walked(plan, each, None, {}, xp=xp)
    return out, joined(plan.visit, best, xp=xp)


def forward(
    lane: Lane, projection: Projection, rows: Rows, *, answers: Array | None, xp: Namespace
) -> tuple[Any, Array | None]:
    """One product; and whether the largest logit of each entry is that of its answer."""

    def each(chunk: Chunk) -> tuple[Any, None, None]:
        return lane.forward(chunk.rows, xp), None, None

    out, right, _ = walked(plan_of(projection, rows, xp=xp), each, answers, {}, xp=xp)
    return out, right


def both(
    lane: Lane, projection: Projection, rows: Rows, known: Any, parts: Set[str], *, answers: Array | None, xp: Namespace
) -> tuple[Any, Array | None, dict[str, Array]]:
    """forward, and the gradients of the parts asked for, in three products; `known` does not wait for the loss."""
    plan = plan_of(projection, rows, xp=xp)
    known = taken(known, plan.visit.kept, xp=xp)

    def each(chunk: Chunk) -> tuple[Any, Array, Array | None]:
        of_chunk, targets_too = sliced(known, chunk.start, chunk.stop), "targets" in parts
        return lanes.both(lane, chunk.rows, of_chunk, targets_too=targets_too, xp=xp, d_logits=chunk.rows.logits)

    # Of a backward that waits for its factor, which a narrow dtype would lose digits, or all, to.
    gradients = empty_gradients(projection, plan, parts, rows.dtype, xp=xp)
    return walked(plan, each, answers, gradients, xp=xp)


def backward(
    lane: Lane,
    projection: Projection,
    rows: Rows,
    out: Any,
    g: Any,
    parts: Set[str],
    *,
    xp: Namespace,
    of_hidden: Any = None,
) -> dict[str, Array]:
    """The gradients of the parts asked for, from logits that are made again: three products beside that of forward.

    `of_hidden`: the dtype of the hidden states', if it is not their own.
    """
    plan = plan_of(projection, rows, xp=xp)
    out, g = (taken(x, plan.visit.kept, xp=xp) for x in (out, g))

    def each(chunk: Chunk) -> tuple[None, Array, Array | None]:
        of_chunk = (sliced(x, chunk.start, chunk.stop) for x in (out, g))
        targets_too, d_logits = "targets" in parts, chunk.rows.logits
        return None, *lane.backward(chunk.rows, *of_chunk, targets_too=targets_too, xp=xp, d_logits=d_logits)

    gradients = empty_gradients(projection, plan, parts, of_hidden or projection.hidden.dtype, xp=xp)
    return walked(plan, each, None, gradients, xp=xp)[2]


def walked(
    plan: Plan, each: Callable[..., Any], answers: Array | None, gradients: dict[str, Array], *, xp: Namespace
) -> tuple[Any, Array | None, dict[str, Array]]:
    """Per entry what `each` chunk gives, whether its arg-max is right, and the gradients, added up."""
    answers = None if answers is None else take_entries(answers, plan.visit.kept, xp=xp)
    pieces: list[Any] = []
    rights: list[Value] = []
    for chunk in chunks(plan, xp=xp):
        if answers is not None:
            rights.append(Value(is_largest(chunk.rows, answers[chunk.start : chunk.stop], xp=xp)))
        out, d_logits, d_targets = each(chunk)
        pieces.append(out)
        if gradients:
            add_gradients(gradients, plan, chunk, d_logits, d_targets, xp=xp)
    out = None if pieces[0] is None else joined(plan.visit, pieces, xp=xp)
    right = joined(plan.visit, rights, xp=xp).value if rights else None
    targets: Array = plan.visit.rows.targets
    if "hidden" in gradients:
        gradients["hidden"] = xp.reshape(gradients["hidden"], (*plan.visit.entries, plan.hidden.array.shape[-1]))
    if "targets" in gradients:
        gradients["targets"] = xp.reshape(gradients["targets"], targets.shape)
    return out, right, gradients


def empty_gradients(
    projection: Projection, plan: Plan, parts: Set[str], dtype: Any, *, xp: Namespace
) -> dict[str, Array]:
    """The hidden states' in the dtype given, a row per entry; the kernel's, a sum over chunks, in that of the rows."""
    hidden: Array = projection.hidden
    gradients: dict[str, Array] = {}
    if "hidden" in parts:
        shape = (math.prod(plan.visit.entries), hidden.shape[-1])
        gradients["hidden"] = xp.sparse_zeros(shape, dtype, hidden)
    for name, x in (("kernel", plan.kernel), ("bias", plan.bias)):
        if name in parts and x is not None:
            # In the kernel's layout, where the library keeps it.
            gradients[name] = xp.zeros_like(x, dtype=plan.visit.rows.dtype)
    if "targets" in parts:
        gradients["targets"] = empty_targets(plan.visit, hidden, xp=xp)
    return gradients


def add_gradients(
    gradients: dict[str, Array], plan: Plan, chunk: Chunk, d_logits: Array, d_targets: Array | None, *, xp: Namespace
) -> None:
    if "bias" in gradients:
        gradients["bias"] += xp.long_sum(d_logits, axis=0)
    d_logits = xp.astype(d_logits, plan.kernel.dtype, copy=False)
    if "hidden" in gradients:
        d_hidden = xp.astype(d_logits @ plan.kernel, gradients["hidden"].dtype, copy=False)
        write_rows(gradients["hidden"], plan.visit.kept, chunk.start, chunk.stop, d_hidden, xp=xp)
    if "kernel" in gradients:
        gradients["kernel"] = xp.add_product(gradients["kernel"], d_logits.T, chunk.hidden)
    if d_targets is not None:
        total = gradients["targets"]
        gradients["targets"] = add_targets(total, plan.visit, chunk.start, chunk.stop, d_targets, xp=xp)
