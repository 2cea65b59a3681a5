"""PyTorch's commonest call with little to compute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import nll_loss

from .._arrays.torch import in_forward_mode, xp
from .._arrays.torch_functions import applied
from .._engine.walk import BLOCK_BYTES, give_back, taken_out
from .._math import softmax
from .._math.rows import Rows

Tensor = Any

# log_softmax sums a row in as many running sums as a vector register has numbers, 8 or more in float32: with so few
# classes each errs by less than 4 last places of 1, however the numbers lie.
NAIVE_CLASSES = 64
# Of planes, whose rows the engine's blocks cannot hold together: where the memory is still one that malloc has ready.
PLANES_BYTES = 1 << 23
REDUCTIONS = ("mean", "sum", "mean_over_kept", "mean_over_all")
# Of fewer numbers than these the memory costs less than to look it up.
UNHELD = 1 << 14


def small_loss(logits: Any, labels: Any, mask: Any, reduction: str) -> Tensor | None:
    """The loss of class indices whose kept rows are one block of the engine, in torch's own functions of these rows.

    At 256 x 1000 the engine's plan and its checks one by one take as long as the loss, and so do ten operations called
    from Python in the place of two. None for any other call, and where the checks of every other call have to speak.
    """
    if reduction not in REDUCTIONS or torch.compiler.is_compiling() or not is_small(logits, labels, mask):
        return None
    classes, x, y, count = logits.shape[-1], logits, labels, labels.numel()
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    row_bytes = classes * dtype.itemsize
    if mask is not None and count * row_bytes > BLOCK_BYTES:
        count = int(mask.count_nonzero())
    if not 0 < count * row_bytes <= BLOCK_BYTES:
        return None
    kept: Tensor = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    if kept is not None:
        count = kept.shape[0]
        kept = None if count == y.numel() else kept
        if not count:
            return None
    if x.dim() != 2:
        x, y = x.reshape(-1, classes), y.reshape(-1)
    if kept is not None:
        x, y = x.index_select(0, kept), y.index_select(0, kept)
    x = x if x.dtype is dtype else x.to(dtype)
    divisor = 1 if reduction == "sum" else labels.numel() if reduction == "mean_over_all" else count
    if x.requires_grad and torch.is_grad_enabled():
        if classes <= NAIVE_CLASSES:
            return loss_of_few_classes(x, y, divisor, None)
        return applied(_SmallLoss, x, y, divisor, None)
    loss = loss_of_few_classes if classes <= NAIVE_CLASSES else loss_by_softmax
    if count * classes < UNHELD:
        return loss(x, y, divisor, None)
    held = taken_out(count, classes, dtype, x, xp=xp)
    result = loss(x, y, divisor, held[-1])
    give_back(held)
    return result


def small_loss_in_planes(logits: Any, labels: Any, keep: Any, reduction: str) -> Tensor | None:
    """The same of classes along axis 1, whose rows lie side by side: all of them, and what is not kept is left out."""
    if reduction not in REDUCTIONS:
        return None
    count = labels.numel()
    if keep is not None:
        count = int(keep.count_nonzero())
        if not count:
            return None
        keep = None if count == labels.numel() else keep.unsqueeze(1)
    x = logits if logits.dtype is torch.float64 else logits.to(torch.float32)
    y = labels if keep is None else labels.where(keep.squeeze(1), 0)
    divisor = 1 if reduction == "sum" else labels.numel() if reduction == "mean_over_all" else count
    if x.requires_grad and torch.is_grad_enabled():
        return applied(_SmallLoss, x, y, divisor, keep)
    return loss_by_softmax(x, y, divisor, None, keep=keep)


def loss_of_few_classes(x: Tensor, y: Tensor, divisor: int, out: Tensor | None) -> Tensor | None:
    if y.min().item() < 0:
        return None
    mean = divisor == y.shape[0]
    try:
        # -1, which no label is: nll_loss ignores one value without a word.
        loss: Tensor = nll_loss(
            torch.log_softmax(x, 1, out=out), y, reduction="mean" if mean else "sum", ignore_index=-1
        )
    except IndexError:  # a label beyond the classes
        return None
    if not math.isfinite(loss.item()):
        return None
    return loss if mean or divisor == 1 else loss / divisor


def loss_by_softmax(
    x: Tensor, y: Tensor, divisor: int, out: Tensor | None, ctx: Any = None, keep: Tensor | None = None
) -> Tensor | None:
    """softmax' own total is as naive a sum, but what it gives sums to 1 but for that total's error."""
    p, at_label = torch.softmax(x, 1, out=out), y.unsqueeze(1)
    total = p.sum(1, keepdim=True)
    try:
        # Of a subnormal p_y the quotient is infinite, or its logarithm right to a rounding.
        loss = (total / p.gather(1, at_label)).log_()
    except RuntimeError:  # a label that is no class
        return None
    loss = (loss if keep is None else loss.masked_fill_(~keep, 0.0)).sum()
    if not math.isfinite(loss.item()):
        return None
    if ctx is not None:
        ctx.save_for_backward(x, at_label, total, keep)
        ctx.p, ctx.divisor = p, divisor
    return loss if divisor == 1 else loss.div_(divisor)


class _SmallLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, divisor: int, keep: Tensor | None) -> Any:
        return loss_by_softmax(x, y, divisor, None, ctx, keep)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, at_label, total, keep = ctx.saved_tensors
        g = (gradients[0] / ctx.divisor).expand_as(total)
        g = g if keep is None else g.masked_fill(~keep, 0.0)
        p, ctx.p = ctx.p, None  # the first backward makes the gradient in its place
        if torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g):
            kept = None if keep is None else keep.squeeze(1)
            rows = Rows(x.movedim(1, -1), at_label.squeeze(1), None, kept, None, None, None, x.dtype, False)
            of_each = g.squeeze(1), None, None
            again = softmax.forward(rows, xp)
            made: Tensor = softmax.backward(rows, again, of_each, targets_too=False, xp=xp)[0]
            return made.movedim(-1, 1), None, None, None
        p = torch.softmax(x, 1) if p is None else p
        scale = g / total
        p = p.mul_(scale if keep is None else scale.masked_fill_(~keep, 0.0))
        if keep is not None and not math.isfinite(p.sum().item()):  # 0 times what is not kept, and may be anything
            p.masked_fill_(~keep, 0.0)
        return p.scatter_add_(1, at_label, -g), None, None, None


def is_small(logits: Any, labels: Any, mask: Any, axis: int = -1) -> bool:
    """Of the commonest dtypes, in this memory."""
    return (
        are_common(logits, labels, mask, axis)
        and logits.is_cpu
        and labels.dtype is torch.int64
        and logits.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        and logits.is_contiguous()
    )


def is_in_planes(logits: Any, labels: Any, mask: Any, axis: int) -> bool:
    """(N, C, ...) in this memory, and little of it."""
    small = axis == 1 and is_small(logits, labels, mask, axis)
    return small and logits.dim() > 2 and 0 < logits.numel() * 4 <= PLANES_BYTES


def is_plain(x: Any) -> bool:
    return type(x) in (torch.Tensor, torch.nn.Parameter) and x.layout is torch.strided and not x.is_nested


def are_common(logits: Any, labels: Any, mask: Any, axis: int = -1) -> bool:
    """Dense tensors of one device and of matching shapes, that no transformation or tracing is about."""
    return (
        is_plain(logits)
        and is_plain(labels)
        and not xp.is_tracer(logits)
        and not in_forward_mode()
        and logits.dim() > max(axis, 0)
        and (logits.shape[:-1] if axis == -1 else logits.shape[:axis] + logits.shape[axis + 1 :]) == labels.shape
        and labels.device == logits.device
        and (mask is None or are_places(mask, labels))
    )


def are_places(mask: Any, labels: Any) -> bool:
    return is_plain(mask) and mask.dtype is torch.bool and mask.shape == labels.shape and mask.device == labels.device
