"""PyTorch's commonest call with little to compute."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy

from .._arrays.torch import in_forward_mode, xp
from .._arrays.torch_functions import applied
from .._engine.unshifted import TOTALS
from .._engine.walk import give_back, taken_out
from .._math import softmax
from .._math.reduce import DIVISORS
from .._math.rows import Rows

Tensor = Any

# Of logits as they are computed with: from here on the engine's checks, plan and blocks, 0.15 ms and with the gradient
# 0.4, are a small part of a loss.
SMALL_BYTES = 1 << 24
# Of fewer numbers than these the memory costs less than to look it up.
UNHELD = 1 << 15
# Of exp(x_y), and so of sum_c exp(x_c), that serves as it is: what underflows beside it is less than a rounding. And of
# the sum, up to which 1 / divisor is divided by it at once: the quotient is no subnormal number.
LEAST, GREATEST = TOTALS[0]
# log_softmax sums a row in as many running sums as a vector register has numbers, 8 or more in float32, and in one
# where the classes lie apart: of so few classes each errs by less than 4 last places of 1, however the numbers lie.
NAIVE_CLASSES = {-1: 64, 1: 8}
# Kept logits, up to which two kernels are faster than nine: of so many classes, and of fewer, whose rows log_softmax
# takes one by one.
FEW, NARROW, FEW_OF_NARROW = 1 << 18, 16, 1 << 12
DTYPES = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
TENSORS = torch.Tensor, torch.nn.Parameter


def small_loss(
    logits: Any, labels: Any, mask: Any, reduction: str, axis: int = -1, ignored: int | None = None
) -> Tensor | None:
    """The loss of class indices in torch's own functions: of rows, or of classes along axis 1 (N, C, ...).

    `ignored`: the label that the mask was made of, where nothing else was. The engine's plan and its checks one by one
    take as long as a small loss. None for any other call, and where the checks of every other call have to speak.
    """
    if not is_small(logits, labels, mask, axis) or reduction not in DIVISORS:
        return None
    axis = -1 if axis == logits.dim() - 1 else axis
    kept = entries = labels.numel()
    classes = logits.shape[axis]
    if mask is not None:
        kept = int(mask.count_nonzero())
        mask = None if kept == entries else mask
        if not kept:
            return nothing(logits, reduction, axis) if 0 < logits.numel() * 4 <= SMALL_BYTES else None
    differentiated = logits.requires_grad and torch.is_grad_enabled()
    # Of rows that lie one after the other some are taken out; of those side by side none.
    takes = mask is not None and axis == -1 and 2 * kept <= entries
    visited = (kept if takes else entries) * classes
    most = FEW if classes >= NARROW else FEW_OF_NARROW
    few = classes <= NAIVE_CLASSES[axis] and (visited <= most or (axis == 1 and mask is not None))
    if not 0 < visited * DTYPES[logits.dtype].itemsize <= SMALL_BYTES:
        return None
    place = DIVISORS[reduction]
    divisor = None if place is None else (1, kept, entries)[place]
    if few and divisor is not None:
        loss = loss_of_few(in_line(logits, labels, mask, axis), kept, divisor, ignored, takes)
        if loss is not None:
            return loss
    if differentiated:
        return applied(_SmallLoss, logits, labels, mask, takes, axis, divisor)
    return forward(None, logits, labels, mask, takes, axis, divisor)


def nothing(logits: Tensor, reduction: str, axis: int) -> Tensor:
    """Of no entry, 0 with a gradient of 0."""
    none, dtype = logits.narrow(axis, 0, 0), DTYPES[logits.dtype]
    return none.sum(axis, dtype=dtype) if reduction == "none" else none.sum(dtype=dtype)


def loss_of_few(
    given: tuple[Any, Any, Any], kept: int, divisor: int, ignored: int | None, takes: bool
) -> Tensor | None:
    """By cross_entropy itself, which passes over one label without a word: the one that is ignored, or -1."""
    x, y, keep = given
    if takes:
        x, y, keep = of_kept(given, keep.nonzero().squeeze(1))
    x = x if x.dtype is DTYPES[x.dtype] else x.to(DTYPES[x.dtype])
    if keep is None:
        ignored, is_sound = -1, y.min().item() >= 0
    elif ignored is None:
        ignored, y = -1, y.where(keep, -1)
        is_sound = int((y < 0).count_nonzero()) == y.numel() - kept
    else:
        is_sound = True
    # Its gradient of a row that it passes over is 0 times what lies there.
    if not is_sound or not (keep is None or math.isfinite(x.sum().item())):
        return None
    try:
        loss = cross_entropy(x, y, ignore_index=ignored, reduction="mean" if divisor == kept else "sum")
    except IndexError:  # a label beyond the classes
        return None
    if not math.isfinite(loss.item()):
        return None
    return loss if divisor in (1, kept) else loss / divisor


def forward(
    ctx: Any, logits: Tensor, labels: Tensor, mask: Tensor | None, takes: bool, axis: int, divisor: int | None
) -> Tensor | None:
    given = in_line(logits, labels, mask, axis)
    kept = given[2].nonzero().squeeze(1) if takes else None
    try:
        found = computed(*of_kept(given, kept), divisor, ctx is not None)
    except RuntimeError:  # a label that is no class
        return None
    if found is None:
        return None
    loss, made, losses = found
    if ctx is not None:
        ctx.save_for_backward(logits, labels, mask, kept)
        ctx.made, ctx.axis, ctx.divisor = made, axis, divisor
    if divisor is not None:
        return loss
    if kept is not None:
        losses = losses.new_zeros(labels.numel()).index_copy_(0, kept, losses.view(-1))
    losses = losses.view(labels.shape)
    return (
        losses if ctx is None else losses.clone()
    )  # autograd refuses to modify in place what a Function made as a view


def in_line(logits: Tensor, labels: Tensor, mask: Tensor | None, axis: int) -> tuple[Any, Any, Any]:
    """As (rows, C), or (N, C, rows)."""
    if logits.dim() == (2 if axis == -1 else 3):
        return logits, labels, mask
    shape = (-1, logits.shape[-1]) if axis == -1 else (*logits.shape[:2], -1)
    lines = (-1,) if axis == -1 else (logits.shape[0], -1)
    return logits.view(shape), labels.reshape(lines), None if mask is None else mask.reshape(lines)


def of_kept(given: tuple[Any, Any, Any], kept: Tensor | None) -> tuple[Any, Any, Any]:
    x, y, _ = given
    return given if kept is None else (x.index_select(0, kept), y.index_select(0, kept), None)


def computed(x: Tensor, y: Tensor, keep: Tensor | None, divisor: int | None, differentiates: bool) -> Any:
    """The loss, its gradient, and the loss of each entry; None where one is not finite."""
    dtype, size, unit, counts, held, memory = DTYPES[x.dtype], x.numel(), 1.0 / (divisor or 1), None, None, None
    # What float16 holds, and what is yet to be multiplied entry by entry, is rounded at the end.
    rounds = x.dtype is torch.bfloat16 and divisor is not None and differentiates
    if (rounds or not differentiates) and size >= UNHELD:
        height = x.shape[0]
        held = taken_out(height, size // height, dtype, x, xp=xp)
        memory = held[-1] if x.dim() == 2 else held[-1].view(x.shape)
    if keep is not None:
        y, keep = y.where(keep, 0), keep.unsqueeze(1)
        counts = cast(Tensor, keep).view(torch.uint8).to(dtype)  # of bytes 4 times as fast as of bools
    at_label = y.unsqueeze(1)
    for shifts in (False, True):
        terms = exponentials(x, keep, shifts, memory)
        total = torch.sum(terms, 1, keepdim=True)
        label_terms = torch.gather(terms, 1, at_label)
        if not shifts and not label_terms.min().item() >= LEAST:
            continue
        if not shifts and differentiates and not total.max().item() <= GREATEST:
            continue
        # Of non-negative terms no sum, however rounded, is less than one of them: no loss is negative.
        losses = torch.div(total, label_terms, out=label_terms).log_()
        losses = losses if counts is None else losses.mul_(counts)
        loss = losses.mean() if divisor == losses.numel() else losses.sum()
        if not math.isfinite(loss.item()):
            continue
        if differentiates:
            scale, of_label = unit / total, total.new_full((), -unit).expand(at_label.shape)
            if counts is not None:
                scale, of_label = scale.mul_(counts), counts.mul_(-unit)
            terms.mul_(scale).scatter_add_(1, at_label, of_label)
            terms = terms.to(x.dtype) if rounds else terms
        give_back(held)
        return loss if divisor in (None, 1, losses.numel()) else loss / divisor, terms, losses
    give_back(held)
    return None


def exponentials(x: Tensor, keep: Tensor | None, shifts: bool, out: Tensor | None) -> Tensor:
    dtype = DTYPES[x.dtype]
    if not shifts:
        if x.dtype is dtype:
            return torch.exp(x, out=out)
        return (x.to(dtype) if out is None else out.copy_(x)).exp_()
    x = x if keep is None else x.masked_fill(~keep, 0.0)
    return torch.softmax(x, 1, dtype=dtype, out=out)


class _SmallLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        return forward(ctx, *given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (logits, labels, mask, kept), (g,) = ctx.saved_tensors, gradients
        made, ctx.made = ctx.made, None  # the first backward gives it away
        nothing = (None,) * 5
        if torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g):
            g = g if ctx.divisor is None else g / ctx.divisor
            x, labels = logits.movedim(ctx.axis, -1), labels if mask is None else labels.where(mask, 0)
            rows = Rows(x, labels, None, mask, None, None, None, DTYPES[logits.dtype], False)
            again, of_each = softmax.forward(rows, xp), (g.expand(labels.shape), None, None)
            d_logits: Tensor = softmax.backward(rows, again, of_each, targets_too=False, xp=xp)[0]
            return d_logits.movedim(-1, ctx.axis).to(logits.dtype), *nothing
        if made is None:  # with the bits of the first, as gradcheck asks
            given = of_kept(in_line(logits, labels, mask, ctx.axis), kept)
            made = computed(*given, ctx.divisor, True)[1]
        if ctx.divisor is None or not math.isfinite(g.item()):  # inf times the 0 of what is not kept is NaN
            _, g, keep = in_line(logits, g.expand(labels.shape), mask, ctx.axis)
            if kept is not None:
                g = g.index_select(0, kept)
            elif keep is not None:
                g = g.where(keep, 0.0)
            made.mul_(g.unsqueeze(1))
        elif g.item() != 1.0:
            made.mul_(g)
        made = made.to(logits.dtype)
        if kept is not None:
            made = xp.sparse_zeros((labels.numel(), logits.shape[-1]), logits.dtype, made).index_copy_(0, kept, made)
        return made.view(logits.shape), *nothing


def is_small(logits: Any, labels: Any, mask: Any, axis: int = -1) -> bool:
    """Of the commonest dtypes, in this memory."""
    return (
        are_common(logits, labels, mask, axis)
        and logits.is_cpu
        and labels.dtype is torch.int64
        and logits.dtype in DTYPES
        and logits.is_contiguous()
    )


def is_plain(x: Any) -> bool:
    return type(x) in TENSORS and x.layout is torch.strided and not x.is_nested


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
