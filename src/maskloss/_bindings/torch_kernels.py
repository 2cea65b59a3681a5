"""PyTorch's commonest call on a GPU: one kernel for loss and gradient, and as few operations around it as there can be.

On an H100 the kernel is through 2048 x 32000 logits in 0.1 ms, in which the host starts half a dozen operations; the
general way, which checks and selects one by one, starts forty.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.torch import in_forward_mode, xp
from .._arrays.torch_functions import applied
from .._math import softmax
from .._math.rows import Rows
from .._math.softmax import Upstream
from .torch_operators import kernels
from .torch_small import are_common

Tensor = Any

COVERED = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int64, torch.int32)
REDUCTIONS = ("mean", "sum", "mean_over_kept", "mean_over_all")


def loss_by_kernels(logits: Any, labels: Any, mask: Any, reduction: str, axis: int) -> Tensor | None:
    """The loss of class indices; None for any other call, and where the checks of every other call have to speak."""
    if reduction not in REDUCTIONS or not is_covered(logits, labels, mask, axis):
        return None
    share = 1.0
    if reduction == "mean_over_all" or (mask is None and reduction != "sum"):
        share = 1.0 / labels.numel()
    divisor = None if mask is None or reduction in ("sum", "mean_over_all") else mask.sum()
    if logits.requires_grad and torch.is_grad_enabled():
        return applied(_Loss, logits, labels, mask, share, divisor, axis)
    return kernels().forward(rows_of(logits, labels, mask, axis), xp, share, divisor).nll.sum()


def is_covered(logits: Any, labels: Any, mask: Any, axis: int) -> bool:
    """Of what the kernels take, and more than nothing."""
    return (
        are_common(logits, labels, mask, axis)
        and logits.dtype in COVERED
        and labels.dtype in INDICES
        and logits.numel() > 0
    )


def rows_of(logits: Tensor, labels: Tensor, mask: Tensor | None, axis: int) -> Rows:
    logits = logits if axis == -1 else logits.movedim(axis, -1)
    return Rows(logits, labels, None, mask, None, None, None, torch.float32, False)


class _Loss(torch.autograd.Function):
    """A label that is no class makes NaN of the kernels' numbers."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, mask: Tensor | None, share: float, divisor: Tensor | None, axis: int
    ) -> Tensor:
        rows, ctx.made = rows_of(logits, labels, mask, axis), None
        ctx.share, ctx.divisor, ctx.axis = share, divisor, axis
        ctx.save_for_backward(logits, labels, mask)
        # The gradient of a mean over many rows is below what float16 holds, until the scale of the loss multiplies it.
        if logits.dtype is torch.float16:
            return kernels().forward(rows, xp, share, divisor).nll.sum()
        out, ctx.made = kernels().at_once(rows, None, share, divisor)
        return out.nll.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, labels, mask = ctx.saved_tensors
        g, made = gradients[0], ctx.made
        ctx.made = None  # what it is handed to may write to it
        is_again = torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g)
        if made is not None and not is_again:
            kernels().scale(made, mask, g)
        else:
            g = g * ctx.share if ctx.divisor is None else g * ctx.share / ctx.divisor.clamp(min=1)
            rows, g = rows_of(logits, labels, mask, ctx.axis), g.expand(labels.shape)
            made = gradient_again(rows, g) if is_again else kernels().both(rows, Upstream(g, None, None), xp=xp)[1]
        return made if ctx.axis == -1 else made.movedim(-1, ctx.axis), *[None] * 5


def gradient_again(rows: Rows, g: Tensor) -> Tensor:
    """As an expression, which can be differentiated."""
    labels: Tensor = rows.labels
    mask: Tensor = rows.keep
    wrong = (labels < 0) | (labels >= rows.logits.shape[-1])
    wrong = wrong if mask is None else wrong & mask
    rows = rows._replace(labels=labels.masked_fill(wrong if mask is None else wrong | ~mask, 0))
    of_each = g.masked_fill(wrong, torch.nan), None, None
    again = softmax.forward(rows, xp)
    made: Tensor = softmax.backward(rows, again, of_each, targets_too=False, xp=xp)[0]
    return made.to(rows.logits.dtype)
