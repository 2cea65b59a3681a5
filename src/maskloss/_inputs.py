"""The arguments about the entries -> one frozen value, checked and neutralised."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from . import _arguments
from ._arguments import NO_LABELS, Like, Shape, conjunction
from ._arrays import FLOATS, Array, Namespace
from ._shards import Part, any_of, own_labels, part_of


class Given(NamedTuple):
    """The arguments of a loss that say which entries count, and how much, as they were given."""

    labels: Any = NO_LABELS
    mask: Any = None
    weights: Any = None
    class_weights: Any = None
    class_mask: Any = None
    ignore_index: Any = None
    validate: Any = "auto"
    class_shard: Any = None


class Inputs(NamedTuple):
    """The arrays of one call, checked and neutralised; the class axis is last. None: not given, or of no effect."""

    like: Like
    xp: Namespace
    dtype: Any  # of the computation and the loss
    entries: Shape
    classes: int
    logits: Array | None  # None: they are made of hidden states, a chunk at a time
    labels: Array | None  # class indices in [0, C), 0 where the label given is none
    distribution: Array | None  # 0 where not kept or not allowed
    keep: Array | None
    invalid: Array | None  # kept entries to answer NaN: a label or mask value that is none, and could not be read
    weights: Array | None  # shape of the entries, 0 where not kept
    class_weights: Array | None
    class_mask: Array | None  # shape of the logits
    part: Part | None  # of the classes; None: they are all here
    axis: int  # from the end: along which the classes lay before they were moved


def prepare(like: Like, logits: Array | None, full_shape: Shape, at: int, what: str, given: Given) -> Inputs:
    """Of the logits, with the classes last, or of logits that would have the shape given, the classes along `at`."""
    labels, mask, weights, class_weights, class_mask, ignore_index, validate, class_shard = given
    xp, held, entries = like.xp, full_shape[at], full_shape[:at] + full_shape[at + 1 :]
    part = part_of(class_shard, held, entries, like)
    classes = held if part is None else part.classes
    kind, own = "", like.xp
    _arguments.check_choice(validate=validate)
    if labels is not NO_LABELS:  # first: their shape tells a class axis that was forgotten
        labels, kind, own = _arguments.check_labels(labels, ignore_index, full_shape, at, like)

    keep = invalid = indices = distribution = None
    if mask is not None:
        keep, invalid = _arguments.to_mask(mask, entries, what, like, validate)
    if class_mask is not None:
        class_mask = _arguments.to_class_mask(class_mask, full_shape, at, like)
        keep = conjunction(keep, any_of(part, xp.any(class_mask, axis=-1), xp=xp))
    if weights is not None:
        weights = _arguments.to_weights("weights", weights, like, entries, what)
        keep = conjunction(keep, weights != 0)
    if class_weights is not None:
        class_weights, _, own_weights = _arguments.array_of("class_weights", class_weights, like)
        _arguments.check_per_class("class_weights", class_weights, held, "weight")
        class_weights = like.place(class_weights, own_weights, like.dtype, (held,))

    if kind in FLOATS:
        distribution = xp.moved_axis(like.place(labels, own, like.dtype, full_shape), at, -1)
    elif kind:
        indices, allowed, ignored = to_indices(labels, own, classes, ignore_index, like)
        if ignored is not None:
            keep = conjunction(keep, ~ignored)
        if class_mask is not None:
            allowed = conjunction(allowed, admitted(part, class_mask, indices, xp=xp))
        if allowed is not None:
            bad = ~allowed if keep is None else ~allowed & keep
            bad = _arguments.check_kept(bad, validate, xp, partial(label_value, labels, classes))
            invalid = bad if invalid is None else invalid if bad is None else invalid | bad

    if keep is not None:
        invalid = None if invalid is None else invalid & keep
        weights = None if weights is None else xp.where(keep, weights, 0.0)
    if distribution is not None:
        for selected in (class_mask, None if keep is None else xp.expand_dims(keep, axis=-1)):
            distribution = distribution if selected is None else xp.where(selected, distribution, 0.0)
    made = (indices, distribution, keep, invalid, weights, class_weights, class_mask, part, at - len(full_shape))
    return Inputs(like, xp, like.dtype, entries, classes, logits, *made)


def admitted(part: Part | None, class_mask: Array, labels: Array, *, xp: Namespace) -> Array:
    """Whether class_mask admits the label's class."""
    own, here = own_labels(part, labels, xp=xp)
    if here is None:
        return xp.take_label(class_mask, own)
    return any_of(part, here & xp.take_label(class_mask, own) if class_mask.shape[-1] else here, xp=xp)


def are_classes(indices: Array, classes: int, *, xp: Namespace) -> bool:
    """Of numbers that Python may look at, of which there are some."""
    low, high = xp.extremes(indices)
    return low >= 0 and high < classes


def to_indices(
    labels: Array, own: Namespace, classes: int, ignore_index: int | None, like: Like
) -> tuple[Array, Array | None, Array | None]:
    """Class indices (0 for what is none), where the label is one (None: everywhere), and where it is ignore_index.

    Found in the labels' own library: JAX without x64 would make 0 of a NumPy 2**40.
    """
    xp = like.xp
    indices = own.astype(labels, own.index_dtype(), copy=False)
    ignored = None
    looks = own is xp and xp.is_eager and 0 not in indices.shape and xp.reads_without_sync(indices)
    looks = looks and (ignore_index is None or not 0 <= ignore_index < classes)
    if looks and are_classes(indices, classes, xp=xp):
        return indices, None, None
    limits, held = own.iinfo(labels.dtype), own.iinfo(indices.dtype)
    # Compared only where the labels' own dtype can hold it: -100 as uint8 is 156, a class.
    if ignore_index is not None and int(limits.min) <= ignore_index <= int(limits.max):
        # What of an unsigned dtype is too large for the indices has wrapped there, and so must it.
        span = 2**held.bits
        ignored = indices == (int(ignore_index) - int(held.min)) % span + int(held.min)
        if looks:
            others = xp.where(ignored, 0, indices)
            if are_classes(others, classes, xp=xp):
                return others, None, ignored
    in_range = (indices >= 0) & (indices < classes)
    indices = own.where(in_range, indices, 0)
    if own is not xp:
        indices = xp.asarray(indices, dtype=xp.index_dtype())
        in_range, ignored = xp.asarray(in_range), None if ignored is None else xp.asarray(ignored)
    return indices, in_range, ignored


def label_value(labels: Array, classes: int, at: Shape) -> str:
    """Why the label of an entry is none."""
    # A torch uint64 of 2**63 or more is no int, but its item is.
    label = labels[at]
    value, place = label.item() if hasattr(label, "item") else int(label), f"labels{list(at) or ''}"
    if 0 <= value < classes:
        return f"{place} is {value}, a class that class_mask excludes there; mask the entry or admit the class"
    return f"{place} is {value}, outside the classes [0, {classes}); mask the entry, or name the value in ignore_index"
