"""The rows' mathematics as torch.autograd.Functions, which keep their inputs and two numbers a row for the backward."""

from __future__ import annotations

from typing import Any

import torch

from . import _rows, _stream
from ._compat import Namespace, is_tracer

Tensor = Any


class _Rows(torch.autograd.Function):
    """For torch.func: the plain expressions, as what runs may be a transformation of them."""

    # vmap is derived from forward, backward and jvp, which are plain torch operations.
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Any, ...]:
        rows, lse_too, xp = _unpack(inputs)
        return tuple(_rows.forward(rows, lse_too=lse_too, xp=xp))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *tensors, ctx.softcap, ctx.dtype, ctx.lse_too, ctx.xp = inputs
        total, shift = output[-2:]
        # total is saved as an output that has a derivative of its own, not as a number: double backward is exact so.
        if shift is not None:
            ctx.mark_non_differentiable(shift)
        ctx.save_for_backward(*tensors, total, shift)
        ctx.save_for_forward(*tensors, total, shift)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        g_nll, g_dot, g_lse, g_total, _ = gradients
        rows, xp, total, shift = _saved(ctx)
        if g_total is not None:
            g_lse = _rows.sum_of(g_lse, g_total * total)
        if g_nll is None and g_dot is None and g_lse is None:
            return (None,) * 9
        # A gradient that is differentiated again, or batched, needs operations that can be.
        plain = torch.is_grad_enabled() or any(g is not None and is_tracer(g, "torch") for g in (g_nll, g_dot, g_lse))
        run = _rows.backward if plain else _stream.backward
        targets_too = g_dot is not None and ctx.needs_input_grad[1]
        d_logits, d_targets = run(rows, total, shift, g_nll, g_dot, g_lse, targets_too=targets_too, xp=xp)
        if d_targets is not None:
            d_targets = d_targets.sum_to_size(rows.targets.shape)
        return (d_logits.to(rows.logits.dtype), d_targets, *[None] * 7)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        t_logits, t_targets, *_ = tangents
        rows, xp, total, shift = _saved(ctx)
        t_nll, t_dot, t_lse, t_total = _rows.tangents(rows, total, shift, t_logits, t_targets, xp=xp)
        # None for the shift, which has no derivative.
        return t_nll, t_dot, t_lse if ctx.lse_too else None, t_total, None


class _Blocks(_Rows):
    """The same through the engine. With a setup_context, apply would bind its arguments by inspect.signature: 20 us."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, lse_too, xp = _unpack(inputs)
        output = tuple(_stream.forward(rows, lse_too=lse_too, xp=xp))
        _Rows.setup_context(ctx, inputs, output)
        return output

    setup_context = torch.autograd.Function.setup_context


def _unpack(inputs: Any) -> tuple[_rows.Rows, bool, Namespace]:
    logits, targets, labels, keep, class_mask, softcap, dtype, lse_too, xp = inputs
    return _rows.Rows(logits, labels, targets, keep, class_mask, softcap, dtype), lse_too, xp


def _saved(ctx: Any) -> tuple[_rows.Rows, Namespace, Tensor, Tensor | None]:
    logits, targets, labels, keep, class_mask, total, shift = ctx.saved_tensors
    return _rows.Rows(logits, labels, targets, keep, class_mask, ctx.softcap, ctx.dtype), ctx.xp, total, shift


def forward(rows: _rows.Rows, *, lse_too: bool, xp: Namespace) -> _rows.Forward:
    """_rows.forward with _rows.backward as its derivative."""
    logits, labels, targets, keep, class_mask, softcap, dtype = rows
    function: Any = _Blocks
    if is_tracer(logits, "torch") or (targets is not None and is_tracer(targets, "torch")):
        function = _Rows
    elif not differentiated(logits) and not differentiated(targets):
        return _stream.forward(rows, lse_too=lse_too, xp=xp)
    return _rows.Forward(*function.apply(logits, targets, labels, keep, class_mask, softcap, dtype, lse_too, xp))


def differentiated(x: Tensor | None) -> bool:
    """Whether the derivative with respect to x may be asked for, backward or forward (a dual tensor)."""
    if x is None:
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or torch.autograd.forward_ad.unpack_dual(x).tangent is not None
