"""The rows' mathematics as a torch.autograd.Function, which keeps its inputs and two numbers a row for the backward."""

from __future__ import annotations

from typing import Any

import torch

from . import _rows
from ._compat import Namespace

Tensor = Any


class _Rows(torch.autograd.Function):
    # vmap is derived from forward, backward and jvp, which are plain torch operations.
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Any, ...]:
        rows, xp = _unpack(inputs)
        return tuple(_rows.forward(rows, xp=xp))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.targets_shape = None if inputs[1] is None else inputs[1].shape
        *tensors, ctx.softcap, ctx.dtype, ctx.xp = inputs
        _, _, _, log_sum, shift = output
        # log_sum is saved as an output that has a derivative of its own, not as a number: double backward is exact so.
        ctx.mark_non_differentiable(shift)
        ctx.save_for_backward(*tensors, log_sum, shift)
        ctx.save_for_forward(*tensors, log_sum, shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        g_nll, g_dot, g_lse, g_log_sum, _ = gradients
        rows, xp, log_sum, shift = _saved(ctx)
        # The derivative of log_sum is that of lse: the shift is a constant.
        d_logits, d_targets = _rows.backward(
            rows, log_sum, shift, g_nll, g_dot, g_lse + g_log_sum, targets_too=ctx.needs_input_grad[1], xp=xp
        )
        if d_targets is not None:
            d_targets = d_targets.sum_to_size(ctx.targets_shape)
        return (d_logits, d_targets, *[None] * 6)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        t_logits, t_targets, *_ = tangents
        rows, xp, log_sum, shift = _saved(ctx)
        # None for the shift, which has no derivative.
        return (*_rows.tangents(rows, log_sum, shift, t_logits, t_targets, xp=xp), None)


def _unpack(inputs: Any) -> tuple[_rows.Rows, Namespace]:
    logits, targets, labels, keep, class_mask, softcap, dtype, xp = inputs
    return _rows.Rows(logits, labels, targets, keep, class_mask, softcap, dtype), xp


def _saved(ctx: Any) -> tuple[_rows.Rows, Namespace, Tensor, Tensor]:
    *tensors, log_sum, shift = ctx.saved_tensors
    return *_unpack((*tensors, ctx.softcap, ctx.dtype, ctx.xp)), log_sum, shift


def forward(rows: _rows.Rows, *, xp: Namespace) -> _rows.Forward:
    """_rows.forward with _rows.backward as its derivative."""
    logits, labels, targets, keep, class_mask, softcap, dtype = rows
    function: Any = _Rows
    return _rows.Forward(*function.apply(logits, targets, labels, keep, class_mask, softcap, dtype, xp))
