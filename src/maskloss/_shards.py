"""A class axis in parts: which classes a process (or a device) holds, and what it learns of the others'.

A part is None where the axis is whole, and each function here is then the identity.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

from ._arguments import Like, describe, fail, number_of
from ._arrays import Array, Namespace, called_while_traced

SERIALS = itertools.count()


class ClassShard:
    """Which part of a class axis this process holds, of one that is split over a group ("vocabulary parallel").

    Parameters
    ----------
    group : ProcessGroup, DeviceMesh, str or tuple of str
        In PyTorch a process group, or a device mesh of one dimension. In JAX, inside ``jax.shard_map``, the name of the
        mesh axis that the classes are split over, or the names of several.
    start : int, optional
        The first class that is held here; 0-d array in JAX. By default parts are equal, in the order of the ranks.
    classes : int, optional
        How many there are in all. To be given with `start`.

    Notes
    -----
    In PyTorch the first call with one of these, and with each number of classes held, compares what the processes
    hold: parts that overlap or leave a gap are a ValueError in each. To be made once, outside the loop.

    Examples
    --------
    >>> import maskloss as ml
    >>> ml.ClassShard("vocabulary")
    ClassShard(group='vocabulary', start=None, classes=None)
    """

    __slots__ = ("agreed", "classes", "group", "serial", "start")

    def __init__(self, group: Any, start: Any = None, classes: int | None = None) -> None:
        if (start is None) is not (classes is None):
            given, missing = ("start", "classes") if classes is None else ("classes", "start")
            fail(ValueError, "class_shard", f"given {given} alone", f"{missing} must be given as well, or neither")
        if classes is not None and (type(number_of(classes)) is not int or classes < 1):
            fail(ValueError, "classes", describe(classes), "it must be a positive int: how many there are in all")
        self.group, self.start, self.classes = group, start, classes
        self.agreed: set[int] = set()
        self.serial = next(SERIALS)

    def __repr__(self) -> str:
        return f"ClassShard(group={self.group!r}, start={self.start!r}, classes={self.classes!r})"


class Part(NamedTuple):
    group: Any
    start: Any  # of the classes held here
    held: int  # how many
    classes: int  # of all parts


def part_of(class_shard: Any, held: int, entries: tuple[int, ...], like: Like) -> Part | None:
    if class_shard is None:
        return None
    if type(class_shard) is not ClassShard:
        fail(TypeError, "class_shard", describe(class_shard), "it must be a maskloss.ClassShard")
    group, rank, size = like.xp.place_in(class_shard.group, like.array)
    start, classes = class_shard.start, class_shard.classes
    if start is None or classes is None:
        start, classes = rank * held, size * held
    part = Part(group, start, held, classes)
    if held not in class_shard.agreed:
        check_parts(part, entries, class_shard.serial, like)
        class_shard.agreed.add(held)
    return part


def check_parts(part: Part, entries: tuple[int, ...], serial: int, like: Like) -> None:
    """Whether all parts are the classes, each once; told on every process alike."""
    numbers = part.start, part.held, part.classes, math.prod(entries)
    parts = like.xp.all_of(numbers, part.group, serial, like.array)
    if parts is None:  # equal by construction
        return
    check_alike(parts, part.classes)


@called_while_traced
def check_alike(parts: list[tuple[int, ...]], total: int) -> None:
    what = ", ".join(f"[{start}, {start + held}) of {classes}" for start, held, classes, _ in parts)
    if len({classes for *_, classes, _ in parts}) > 1:
        fail(ValueError, "class_shard", f"of parts {what}", "the processes must agree on how many classes there are")
    if len({count for *_, count in parts}) > 1:
        counts = ", ".join(str(count) for *_, count in parts)
        fail(ValueError, "class_shard", f"of {counts} entries", "each process must hold the same entries")
    end = 0
    for start, held, *_ in sorted(parts):
        if held and start != end:
            wrong = "overlap" if start < end else "leave a gap"
            fail(
                ValueError, "class_shard", f"of parts {what}", f"they {wrong}: together they must be all classes, once"
            )
        end += held
    if end != total:
        fail(ValueError, "class_shard", f"of parts {what}", "together they must be all classes, once")


def own_labels(part: Part | None, labels: Array, *, xp: Namespace) -> tuple[Array, Array | None]:
    """The labels among the classes held here, 0 for those that are not, and which are; None: all."""
    if part is None:
        return labels, None
    labels = labels - part.start
    here = (labels >= 0) & (labels < part.held)
    return xp.where(here, labels, 0), here


def all_sum(part: Part | None, *numbers: Array, xp: Namespace) -> tuple[Array, ...]:
    """Each the sum over the parts, by one collective."""
    return numbers if part is None else together(xp.all_sum, part, numbers, xp=xp)


def all_max(part: Part | None, *numbers: Array, xp: Namespace) -> tuple[Array, ...]:
    """Each the maximum over the parts, a constant."""
    return numbers if part is None else together(xp.all_max, part, numbers, xp=xp)


def any_of(part: Part | None, x: Array, *, xp: Namespace) -> Array:
    """Whether it is so in any part."""
    return x if part is None else all_sum(part, xp.astype(x, xp.int32), xp=xp)[0] > 0


def together(collective: Any, part: Part, numbers: tuple[Array, ...], *, xp: Namespace) -> tuple[Array, ...]:
    if len(numbers) == 1:
        return (collective(numbers[0], part.group),)
    flat = collective(xp.concat([xp.reshape(x, (-1,)) for x in numbers]), part.group)
    found: list[Array] = []
    start = 0
    for x in numbers:
        stop = start + math.prod(x.shape)
        found.append(xp.reshape(flat[start:stop], x.shape))
        start = stop
    return tuple(found)
