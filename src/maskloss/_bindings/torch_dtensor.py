"""DTensors: each process gives its own part to the engine, and what that gives are DTensors again."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from .._arrays.torch import from_part
from .._engine.projection import Projection
from .._math.rows import Found, RowFunction, Rows
from .._math.softmax import Upstream
from .._shards import Part

Tensor = Any


class Layout(NamedTuple):
    """Of numbers of these entries and classes: how each dimension of the mesh splits them."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def of_entries(self) -> tuple[Any, ...]:
        return tuple(Replicate() if p == self.last else p for p in self.placements)

    @property
    def of_classes(self) -> tuple[Any, ...]:
        return tuple(Shard(0) if p == self.last else Replicate() for p in self.placements)

    @property
    def last(self) -> Any:
        return Shard(len(self.shape) - 1)

    def own(self, projection: Projection | None, rows: Rows, answers: Tensor | None, known: Any) -> Any:
        """What is given of this process' part."""
        if projection is not None:
            hidden, kernel, bias, chunk_size = projection
            kernel, bias = (local(x, self.of_classes, self) for x in (kernel, bias))
            projection = Projection(local(hidden, self.of_entries, self), kernel, bias, chunk_size)
        of_entries = partial(local, placements=self.of_entries, layout=self)
        known_here = None if known is None else lambda: Upstream(*map(of_entries, known()))
        return projection, local_rows(rows, self), of_entries(answers), known_here

    def whole(self, function: RowFunction, found: Found) -> Found:
        """Of what may be differentiated; the rest is for each process' backward."""
        out = function.restored([whole(x, self) for x in found.out[: function.differentiable]])
        return Found(out, whole(found.right, self))


def split_of(x: Tensor, kernel: Tensor | None = None) -> Layout | None:
    """Of logits, or of hidden states and their kernel; None where only DTensor's own operations know the way.

    They know parts in another order than torch.chunk's, sums that nobody has added up yet, and classes that are split
    over several dimensions. A kernel that is split, along whatever axis, has its classes split, and the hidden states
    are gathered over that dimension: no sum of logits goes from one process to another.
    """
    shape, placements = tuple(x.shape), tuple(x.placements)
    known = are_known(placements, x.ndim)
    if kernel is not None:
        shape, features = (*x.shape[:-1], kernel.shape[0]), Shard(x.ndim - 1)
        known = known and x.device_mesh == kernel.device_mesh
        known = known and are_known(kernel.placements, 2)
        pairs = zip(placements, kernel.placements, strict=True)
        placements = tuple(
            features if of_kernel.is_shard() else Replicate() if p == features else p for p, of_kernel in pairs
        )
    layout = Layout(x.device_mesh, placements, shape)
    return layout if known and placements.count(layout.last) <= 1 else None


def are_known(placements: Any, ndim: int) -> bool:
    known = Replicate(), *(Shard(axis) for axis in range(ndim))
    return all(p in known for p in placements)


def part_of(layout: Layout) -> Part | None:
    if layout.last not in layout.placements:
        return None
    at, classes = layout.placements.index(layout.last), layout.shape[-1]
    length = -(-classes // layout.mesh.size(at))  # as torch.chunk, whose last parts may be empty
    start = min(layout.mesh.get_local_rank(at) * length, classes)
    return Part(layout.mesh.get_group(at), start, min(length, classes - start), classes)


def local(x: Tensor | None, placements: tuple[Any, ...], layout: Layout) -> Tensor | None:
    """This process' part. Where entries are split, and x is not, what comes back of a gradient adds up."""
    if x is None:
        return None
    split = zip(layout.of_entries, placements, strict=True)
    of_gradient = [Partial() if entries.is_shard() and p.is_replicate() else p for entries, p in split]
    part = x.redistribute(placements=placements).to_local(grad_placements=of_gradient)
    return part if type(part) is torch.Tensor else part.clone()  # of a collective that nobody has waited for yet


def along(x: Tensor | None, layout: Layout) -> tuple[Any, ...]:
    """The placements of numbers that broadcast to those of the layout: of all its axes, or of the classes alone."""
    if x is None or x.ndim < len(layout.shape):
        return layout.of_classes
    broadcast = [axis for axis, (own, size) in enumerate(zip(x.shape, layout.shape, strict=True)) if own == 1 != size]
    return tuple(Replicate() if p.is_shard() and p.dim in broadcast else p for p in layout.placements)


def local_rows(rows: Rows, layout: Layout) -> Rows:
    entries = layout.of_entries
    return rows._replace(
        logits=local(rows.logits, layout.placements, layout),
        labels=local(rows.labels, entries, layout),
        targets=local(rows.targets, along(rows.targets, layout), layout),
        keep=local(rows.keep, entries, layout),
        class_mask=local(rows.class_mask, along(rows.class_mask, layout), layout),
        part=part_of(layout),
    )


def whole(x: Tensor | None, layout: Layout) -> Tensor | None:
    """Numbers of this process' entries as those of all."""
    if x is None:
        return None
    return from_part(x, layout.mesh, layout.of_entries, layout.shape[:-1])
