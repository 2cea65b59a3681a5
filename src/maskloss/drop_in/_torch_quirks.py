"""quirks="theirs": what F.cross_entropy answers, by its own order of arithmetic over maskloss' losses.

PyTorch takes a log-softmax of every entry, multiplies it by the target, and divides at last. So

- a log-softmax of -inf times a target, or a weight, of 0 is NaN, in the value alone;
- a row whose maximum is not finite has a log-softmax of NaN, which reaches the gradient though the entry be ignored;
- a sum over nothing, or over weights of 0, is divided by 0;
- of class indices the label's part and the smoothing's are reduced each on its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .._arrays.torch import in_transform
from ._torch_arguments import Asked, check_classes, check_some_class, counts, operand
from ._torch_arguments import loss as masked_loss

Tensor = Any
internals: Any = torch


def loss(asked: Asked) -> Tensor:
    dtype = operand(asked.input)
    if asked.input.shape[asked.axis] == 0:
        return of_no_classes(asked).to(dtype)
    asked = asked._replace(input=with_gradients_of_all(asked, asked.input))
    if asked.ignore_index is None:
        asked = asked._replace(target=with_gradients_of_all(asked, asked.target))
        zero = times_zero(asked)
        return reduced(entries(asked, zero) + infinite_slopes(asked, zero), asked.reduction).to(dtype)
    target, weight, eps = asked.target.long(), weight_of(asked), asked.label_smoothing
    kept = counts(target, asked.ignore_index)
    check_unread(asked, kept)
    classes = torch.arange(asked.input.shape[asked.axis], device=target.device)
    at_label = along_classes(asked, classes) == target.unsqueeze(asked.axis)
    masses = kept if weight is None else torch.where(at_label, weight, 0.0).sum(asked.axis) * kept
    none = None if weight is None else weight == 0
    of_label = entries(asked._replace(label_smoothing=0.0), None if none is None else none & at_label, kept)
    value = reduced(of_label, asked.reduction, masses)
    if eps > 0:
        kept = asked.target != asked.ignore_index  # as PyTorch compares: -100 is the 156 of a Byte
        of_classes = torch.where(kept, entries(asked._replace(label_smoothing=1.0), none, kept), 0.0)
        value = (1 - eps) * value + eps * reduced(of_classes, asked.reduction, kept if weight is None else masses)
    return value.to(dtype)


def of_no_classes(asked: Asked) -> Tensor:
    """Sums over nothing, over their number 0 where there is a mean, or a share of the smoothing."""
    if asked.ignore_index is not None:
        if asked.input.ndim > 2:
            check_some_class(asked)
        check_classes(asked)
    nothing = asked.input if asked.ignore_index is not None else asked.input * asked.target
    divides = asked.reduction == "mean" or (asked.ignore_index is not None and asked.label_smoothing > 0)
    return reduced(nothing.sum(asked.axis), asked.reduction) * (math.nan if divides else 1.0)


def along_classes(asked: Asked, x: Tensor) -> Tensor:
    """A number for each class, as it broadcasts to the logits."""
    return x.reshape(-1, *[1] * (asked.input.ndim - 2)) if asked.axis == 1 else x


def weight_of(asked: Asked) -> Tensor | None:
    return None if asked.weight is None else along_classes(asked, asked.weight.to(asked.input.dtype))


def times_zero(asked: Asked) -> Tensor:
    """Where probabilities, smoothed and weighted, are 0."""
    eps, weight = asked.label_smoothing, weight_of(asked)
    targets = (1 - eps) * asked.target.detach() + eps / asked.input.shape[asked.axis]
    return targets == 0 if weight is None else (targets == 0) | (weight.detach() == 0)


def has_softmax(asked: Asked) -> Tensor:
    """Of each entry: whether its log-softmax holds numbers."""
    return torch.isfinite(asked.input.detach().amax(asked.axis))


def with_gradients_of_all(asked: Asked, x: Tensor) -> Tensor:
    """`x` with a gradient of NaN in each row without a softmax: that of a `where` which takes the other branch."""
    factor = torch.where(has_softmax(asked), 1.0, math.nan).to(x.dtype).unsqueeze(asked.axis)
    return x + torch.where(torch.zeros_like(factor, dtype=torch.bool), x * factor, 0.0)


def infinite_slopes(asked: Asked, weightless: Tensor) -> Tensor:
    """0, with the derivative -log p by a probability of 0 of a class whose p is 0: that of a square root at 0."""
    eps, weight, target = asked.label_smoothing, weight_of(asked), asked.target
    at = torch.isneginf(asked.input.detach()) & weightless
    roots = torch.where(at, (1 - eps) * (target - target.detach()), 1.0).sqrt()
    return torch.where(at, roots if weight is None else roots * weight, 0.0).sum(asked.axis)


def entries(asked: Asked, weightless: Tensor | None, kept: Tensor | None = None) -> Tensor:
    """The losses, NaN where -inf meets a factor of 0, and where there is no softmax."""
    losses = masked_loss(asked._replace(reduction="none"))
    wrong = ~has_softmax(asked)
    if weightless is not None:
        wrong = wrong | (torch.isneginf(asked.input.detach()) & weightless).any(asked.axis)
    return losses + torch.where(wrong if kept is None else wrong & kept, math.nan, 0.0).to(losses.dtype)


def reduced(losses: Tensor, reduction: str, masses: Tensor | None = None) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if masses is None else losses.sum() / masses.sum()


def check_unread(asked: Asked, kept: Tensor) -> None:
    """Where class indices cannot be read, the device is left to fail, as it is by PyTorch's gather."""
    if (torch.compiler.is_compiling() or asked.target.is_cuda) and not in_transform():
        classes = asked.input.shape[asked.axis]
        are_classes = ~kept | ((asked.target >= 0) & (asked.target < classes))
        internals._assert_async(are_classes.all(), "target is out of bounds")
