"""The arguments of F.cross_entropy: refused where PyTorch refuses them, with its type of error, and made maskloss'.

What PyTorch says of an error is part of ours, so that whoever looks for its words finds them.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any, NamedTuple

import torch

from .._arguments import describe, fail
from .._arrays import FLOATS, HALVES, dtype_name
from .._arrays.torch import xp
from .._bindings.torch import differentiated
from ..losses import cross_entropy

Tensor = Any

REDUCTIONS = ("none", "mean", "sum")


class Asked(NamedTuple):
    input: Tensor
    target: Tensor
    weight: Tensor | None
    ignore_index: int | None  # None: the target holds probabilities
    reduction: str
    label_smoothing: float

    @property
    def axis(self) -> int:
        return 1 if self.input.ndim > 2 else -1


def reduction_of(reduction: Any, size_average: Any, reduce: Any) -> str:
    if size_average is not None or reduce is not None:
        averages, reduces = (True if x is None else x for x in (size_average, reduce))
        reduction = "none" if not reduces else "mean" if averages else "sum"
        warnings.warn(f"size_average and reduce are deprecated, please use reduction={reduction!r}", stacklevel=3)
    if isinstance(reduction, str):
        if reduction in REDUCTIONS:
            return reduction
        if reduction == "elementwise_mean":
            warnings.warn("reduction='elementwise_mean' is deprecated, please use reduction='mean'", stacklevel=3)
            return "mean"
    fail(ValueError, "reduction", repr(reduction), f"it must be one of {', '.join(map(repr, REDUCTIONS))}")


def check_tensors(input: Any, target: Any, weight: Any) -> None:
    for name, x in (("input", input), ("target", target), ("weight", weight)):
        if name == "weight" and x is None:
            continue
        if not isinstance(x, torch.Tensor):
            fail(TypeError, name, describe(x), "it must be Tensor" + (" or None" if name == "weight" else ""))
        if (refusal := xp.refusal(x)) is not None:
            fail(NotImplementedError, name, *refusal)
        if x.device != input.device:
            given = f"on {x.device} beside input on {input.device}"
            fail(RuntimeError, name, given, "all tensors must be on the same device")


def index_of(ignore_index: Any) -> int:
    try:
        index = None if isinstance(ignore_index, bool) else operator.index(ignore_index)
    except TypeError:
        index = None
    if index is None:
        fail(TypeError, "ignore_index", describe(ignore_index), "it must be int")
    if not -(2**63) <= index < 2**63:
        fail(ValueError, "ignore_index", index, "it must be held by int64")
    return index


def smoothing_of(label_smoothing: Any, *, as_theirs: bool) -> float:
    if isinstance(label_smoothing, float):
        smoothing = label_smoothing  # which a compiler may see no value of
    elif isinstance(label_smoothing, str) or not hasattr(label_smoothing, "__float__"):
        fail(TypeError, "label_smoothing", describe(label_smoothing), "it must be float")
    else:
        smoothing = float(label_smoothing)
    if 0.0 <= smoothing <= 1.0:
        return smoothing
    if as_theirs and not smoothing > 0.0:
        return 0.0
    fail(RuntimeError, "label_smoothing", smoothing, "label_smoothing must be between 0.0 and 1.0")


def probabilities(asked: Asked) -> Asked:
    input, target, weight = asked.input, asked.target, asked.weight
    if not target.is_floating_point():
        accepted = (
            "Expected floating point type for target with class probabilities: a target of input's shape has them"
        )
        fail(RuntimeError, "target", describe(target), accepted)
    if asked.ignore_index is not None and asked.ignore_index >= 0:
        given, accepted = asked.ignore_index, "ignore_index is not supported for floating point target"
        fail(RuntimeError, "ignore_index", given, accepted)
    if input.ndim == 0:
        fail(IndexError, "input", describe(input), "it needs a class axis: at least one dimension")
    check_floating(input)
    given = [input, target] if weight is None else [input, target, weight]
    try:
        dtype = input.dtype
        for x in given[1:]:
            dtype = torch.promote_types(dtype, x.dtype)
    except RuntimeError:  # of float8
        fail(RuntimeError, "target", describe(target), f"it must promote with input, {describe(input)}")
    input, target, weight = (None if x is None else x.to(dtype) for x in (input, target, weight))
    return checked(asked._replace(input=input, target=target, weight=weight, ignore_index=None))


def indices(asked: Asked) -> Asked:
    input, target, weight, ndim = asked.input, asked.target, asked.weight, asked.input.ndim
    if ndim == 0:
        fail(IndexError, "input", describe(input), "it needs a class axis: at least one dimension")
    entries: tuple[int, ...] = (*input.shape[:1], *input.shape[2:]) if ndim > 1 else ()
    given = tuple(target.shape)
    batch = given[0] if given else 0
    if ndim > 1 and batch != input.shape[0]:
        accepted = f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({batch})"
        fail(ValueError, "target", describe(target), accepted)
    smooths = asked.label_smoothing > 0 and weight is not None and asked.reduction == "mean"
    if target.dtype is not torch.int64 and (target.dtype is not torch.uint8 or ndim > 2 or smooths):
        more = "; Byte is for logits of one or two axes, without a smoothed weighted mean" * (
            target.dtype is torch.uint8
        )
        accepted = f"expected target dtype to be Long or Byte: class indices, target.long(){more}"
        fail(RuntimeError, "target", describe(target), accepted)
    if given == (1,) and ndim == 1 and asked.label_smoothing == 0:
        target = target.reshape(())
    elif given != entries:
        kind = ValueError if ndim == len(given) == 1 and given != (1,) else RuntimeError
        fail(kind, "target", describe(target), f"Expected target size {list(entries)}, or input's for probabilities")
    if weight is not None:
        if operand(weight) != operand(input):
            accepted = f"expected scalar type {operand(input)}, that of input, for class indices"
            fail(RuntimeError, "weight", describe(weight), accepted)
        if differentiated(weight):
            accepted = "beside class indices it has no gradient in PyTorch; maskloss.cross_entropy gives it one"
            fail(RuntimeError, "weight", "a tensor that requires a gradient", accepted)
    return checked(asked._replace(target=target))


def operand(x: Tensor) -> torch.dtype:
    """The dtype in which PyTorch computes: autocast makes float32 of halves."""
    return torch.float32 if dtype_name(x) in HALVES and torch.is_autocast_enabled(x.device.type) else x.dtype


def check_floating(input: Tensor) -> None:
    if dtype_name(input) not in FLOATS:
        fail(NotImplementedError, "input", describe(input), "its dtype must be real floating")


def checked(asked: Asked) -> Asked:
    """What both kinds of target have in common."""
    input, weight = asked.input, asked.weight
    check_floating(input)
    classes = input.shape[asked.axis]
    if weight is not None and tuple(weight.shape) != (classes,):
        accepted = f"weight tensor should be defined either for all {classes} classes or no classes"
        fail(RuntimeError, "weight", describe(weight), accepted)
    return asked


def loss(asked: Asked) -> Tensor:
    input, target, weight, ignore_index, reduction, label_smoothing = asked
    check_some_class(asked)
    if ignore_index is None and reduction == "mean":
        reduction = "mean_over_all"
    about: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    try:
        return cross_entropy(input, target, class_weights=weight, axis=asked.axis, **about)
    except ValueError:
        check_classes(asked)
        raise


def check_some_class(asked: Asked) -> None:
    if asked.input.shape[asked.axis] == 0:
        kind = IndexError if asked.input.ndim <= 2 else RuntimeError
        fail(kind, "input", describe(asked.input), "it must hold at least one class")


def check_classes(asked: Asked) -> None:
    """Of class indices that may be read."""
    target, classes = asked.target, asked.input.shape[asked.axis]
    if asked.ignore_index is None or not xp.reads_without_sync(target):
        return
    bad = torch.nonzero(((target < 0) | (target >= classes)) & counts(target, asked.ignore_index))
    if len(bad):
        at = [int(i) for i in bad[0]]
        label = f"target{at or ''}"
        fail(IndexError, label, target[tuple(at)].item(), f"Target is out of bounds: classes are [0, {classes})")


def counts(target: Tensor, ignore_index: int) -> Tensor:
    """Where the target is not ignore_index, which its dtype may be unable to hold."""
    return target.long() != ignore_index
