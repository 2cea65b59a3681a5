"""The rows' mathematics as torch.autograd.Functions, which keep their inputs and two numbers a row for the backward."""

from __future__ import annotations

from typing import Any

import torch

from . import _rows, _stream
from ._compat import Namespace, has_tangent, in_forward_mode, is_plain_tensor, is_tracer, sparse_zeros

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
        given = [g for g in (g_nll, g_dot, g_lse) if g is not None]
        plain = torch.is_grad_enabled() or in_forward_mode() or any(is_tracer(g, "torch") for g in given)
        run = _rows.backward if plain else _stream.backward
        targets_too = g_dot is not None and ctx.needs_input_grad[1]
        d_logits, d_targets = run(rows, total, shift, g_nll, g_dot, g_lse, targets_too=targets_too, xp=xp)
        if d_targets is not None:
            targets: Tensor = rows.targets
            d_targets = d_targets.sum_to_size(targets.shape)
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
    return (x.requires_grad and torch.is_grad_enabled()) or has_tangent(x)


class _Small(torch.autograd.Function):
    """The gradient of a sum of nll_i over the kept rows, computed already, times scale."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        logits, loss, labels, kept, total, ctx.scale = inputs
        ctx.save_for_backward(logits, labels, kept, total)
        return loss.clone()  # not an input as it is: the caller may divide it in place

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, labels, kept, total = ctx.saved_tensors
        g = gradients[0] * ctx.scale
        x = small_rows(logits, kept, total.dtype)
        at_label = (-g).expand(labels.shape)
        plain = torch.is_grad_enabled() or in_forward_mode() or is_tracer(g, "torch")
        if plain:
            # Differentiated again, or batched: operations that can be, and the total as a function of the logits.
            d_x = x.softmax(1).mul(g).scatter_add(1, labels, at_label)
        else:
            d_x = x.exp().mul_(g / total).scatter_add_(1, labels, at_label)
        d_x = d_x.to(logits.dtype)
        if kept is not None:
            dense = sparse_zeros((logits.numel() // x.shape[1], x.shape[1]), logits.dtype, logits, xp=torch)
            d_x = dense.index_copy(0, kept, d_x) if plain else dense.index_copy_(0, kept, d_x)
        return d_x.reshape(logits.shape), *[None] * 5


def small_rows(logits: Tensor, kept: Tensor | None, dtype: Any) -> Tensor:
    x = logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])
    x = x if kept is None else x.index_select(0, kept)
    return x if x.dtype is dtype else x.to(dtype)


def small_loss(logits: Any, labels: Any, mask: Any, reduction: str) -> Tensor | None:
    """The loss of class indices in range whose kept rows are one block of the engine; None for any other call.

    What the engine does, without planning: at 256 x 1000 the plan and the checks one by one take as long as the loss.
    """
    if reduction not in ("mean", "sum", "mean_over_kept", "mean_over_all") or not is_small(logits, labels, mask):
        return None
    x, y, kept = logits.detach(), labels, None
    if mask is not None:
        kept = mask.reshape(-1).nonzero().squeeze(1)
        kept = None if kept.shape[0] == y.numel() else kept
        y = y if kept is None else y.reshape(-1).index_select(0, kept)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    count = y.numel()
    if not 0 < count * x.shape[-1] * (8 if dtype is torch.float64 else 4) <= _stream.BLOCK_BYTES:
        return None
    x, y = small_rows(x, kept, dtype), y.reshape(-1, 1)
    try:
        label_logits = x.gather(1, y)
    except RuntimeError:  # a label out of range: the checks of every other call word it
        return None
    workspace = _stream.workspace_of(count, x.shape[-1], dtype, "torch", x)
    total: Tensor = torch.exp(x, out=workspace).sum(1, keepdim=True)
    at_label = label_logits.exp_()
    least, greatest = _rows.TOTALS["float64" if dtype is torch.float64 else "float32"]
    # The total is no less than what it holds of the label.
    if not (least <= at_label.min().item() and total.max().item() <= greatest):
        return None
    divisor = 1 if reduction == "sum" else labels.numel() if reduction == "mean_over_all" else count
    loss = total.div(at_label).clamp_(min=1.0).log_().sum().div_(divisor)
    if logits.requires_grad and torch.is_grad_enabled():
        function: Any = _Small
        return function.apply(logits, loss, y, kept, total, 1.0 / divisor)
    return loss


def is_small(logits: Any, labels: Any, mask: Any) -> bool:
    """Plain tensors of the commonest dtypes and of matching shapes."""
    return (
        is_plain_tensor(logits)
        and is_dense(labels)
        and labels.dtype is torch.int64
        and logits.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        and logits.is_contiguous()
        and logits.dim() > 0
        and logits.shape[:-1] == labels.shape
        and (mask is None or (is_dense(mask) and mask.dtype is torch.bool and mask.shape == labels.shape))
    )


def is_dense(x: Any) -> bool:
    return type(x) is torch.Tensor and x.is_cpu and x.layout is torch.strided
