"""PyTorch's commonest call on a GPU: two kernels, and as few numbers around them as there can be.

On an H100 the kernels are through 2048 x 32000 logits in 0.1 ms, in which the host starts a dozen operations; the
general way, which checks and selects one by one, starts forty.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.torch import in_forward_mode, xp
from .._arrays.torch_functions import applied
from .._math import softmax
from .._math.rows import Rows
from .torch_operators import kernels
from .torch_small import REDUCTIONS, are_common

Tensor = Any

COVERED = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int64, torch.int32)


def loss_by_kernels(logits: Any, labels: Any, mask: Any, reduction: str, axis: int) -> Tensor | None:
    """The loss of class indices; None for any other call, and where the checks of every other call have to speak."""
    if reduction not in REDUCTIONS or not is_covered(logits, labels, mask, axis):
        return None
    return applied(_Loss, logits, labels, mask, reduction, axis)


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
    return Rows(logits, labels, None, mask, None, None, None, torch.float32, False, True)


class _Loss(torch.autograd.Function):
    """A label that is no class makes NaN of the kernels' numbers."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, mask: Tensor | None, reduction: str, axis: int) -> Tensor:
        ctx.axis = axis
        out = kernels().forward(rows_of(logits, labels, mask, axis), xp)
        loss: Tensor = out.nll.sum()
        if reduction == "sum":
            ctx.divisor = None
        elif mask is None or reduction == "mean_over_all":
            ctx.divisor = labels.numel()
        else:
            # Nothing kept is a sum of 0, whose mean is 0.
            ctx.divisor = mask.sum().clamp_(min=1)
        ctx.save_for_backward(logits, labels, mask, out.total, out.shift)
        return loss if ctx.divisor is None else loss.div_(ctx.divisor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, labels, mask, total, shift = ctx.saved_tensors
        g = gradients[0] if ctx.divisor is None else gradients[0] / ctx.divisor
        rows, g = rows_of(logits, labels, mask, ctx.axis), g.expand(labels.shape)
        if torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g):
            wrong = (labels < 0) | (labels >= logits.shape[ctx.axis])
            wrong = wrong if mask is None else wrong & mask
            rows = rows._replace(labels=labels.masked_fill(wrong if mask is None else wrong | ~mask, 0))
            of_each = g.masked_fill(wrong, torch.nan), None, None
            again = softmax.forward(rows, xp)
            made: Tensor = softmax.backward(rows, again, of_each, targets_too=False, xp=xp)[0].to(logits.dtype)
        else:
            out = softmax.Forward(None, None, None, total, shift)
            made = kernels().backward(rows, out, (g, None, None), targets_too=False, xp=xp)[0]
        return made if ctx.axis == -1 else made.movedim(-1, ctx.axis), *[None] * 4
