"""The rows' mathematics as torch.autograd.Functions, which keep their inputs and two numbers a row for the backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import nll_loss

from . import _linear, _rows, _stream
from ._arrays import Namespace
from ._arrays.torch import applied, as_asked, has_tangent, in_forward_mode, is_plain_tensor, product, xp
from ._inputs import fail
from ._ways import Way

Tensor = Any


class _Rows(torch.autograd.Function):
    """For torch.func: the plain expressions, as what runs may be a transformation of them."""

    # vmap is derived from forward, backward and jvp, which are plain torch operations.
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Any, ...]:
        return tuple(_rows.forward(_unpack(inputs), lse_too=True, xp=xp))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *tensors, ctx.softcap, ctx.dtype, ctx.kernels = inputs
        *_, lse, total, shift = output
        ctx.mark_non_differentiable(*(x for x in (total, shift) if x is not None))
        # lse is saved as an output that has a derivative of its own, not as a number: double backward is exact so.
        ctx.save_for_backward(*tensors, lse, total, shift)
        ctx.save_for_forward(*tensors, lse, total, shift)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        g_nll, g_dot, g_lse, *_ = gradients
        rows, lse, total, shift = _saved(ctx)
        # A gradient that is differentiated again, or batched, needs operations that can be.
        given = [g for g in (g_nll, g_dot, g_lse) if g is not None]
        if not given:
            return (None,) * 8
        run = _stream.backward
        if torch.is_grad_enabled() or in_forward_mode() or any(xp.is_tracer(g) for g in given):
            run, (total, shift) = _rows.backward, _rows.normalised(total, shift, lse, xp=xp)
        targets_too = g_dot is not None and ctx.needs_input_grad[1]
        d_logits, d_targets = run(rows, total, shift, g_nll, g_dot, g_lse, targets_too=targets_too, xp=xp)
        if d_targets is not None:
            targets: Tensor = rows.targets
            d_targets = d_targets.sum_to_size(targets.shape)
        return (d_logits.to(rows.logits.dtype), d_targets, *[None] * 6)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        t_logits, t_targets, *_ = tangents
        rows, _, total, shift = _saved(ctx)
        # None for total and shift, which have no derivative.
        return (*_rows.tangents(rows, total, shift, t_logits, t_targets, xp=xp), None, None)


class _Blocks(_Rows):
    """The same through the engine. With a setup_context, apply would bind its arguments by inspect.signature: 20 us."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = tuple(map(_owned, _stream.forward(_unpack(inputs), lse_too=True, xp=xp)))
        _Rows.setup_context(ctx, inputs, output)
        return output

    setup_context = torch.autograd.Function.setup_context


def _owned(x: Tensor | None) -> Tensor | None:
    """autograd refuses to modify in place what a Function made as a view."""
    return x.clone() if x is not None and x._is_view() else x


def _unpack(inputs: Any) -> _rows.Rows:
    logits, targets, labels, *rest = inputs
    return _rows.Rows(logits, labels, targets, *rest)


def _saved(ctx: Any) -> tuple[_rows.Rows, Tensor, Tensor, Tensor | None]:
    logits, targets, labels, keep, class_mask, lse, total, shift = ctx.saved_tensors
    rows = _rows.Rows(logits, labels, targets, keep, class_mask, ctx.softcap, ctx.dtype, ctx.kernels)
    return rows, lse, total, shift


def forward(rows: _rows.Rows, *, lse_too: bool, xp: Namespace) -> _rows.Forward:
    """_rows.forward with _rows.backward as its derivative."""
    logits, labels, targets, *rest = rows
    function: Any = _Blocks
    if xp.is_tracer(logits) or (targets is not None and xp.is_tracer(targets)):
        function = _Rows
    elif not differentiated(logits) and not differentiated(targets):
        return _stream.forward(rows, lse_too=lse_too, xp=xp)
    return _rows.Forward(*applied(function, logits, targets, labels, *rest))


def kernels() -> Any:
    try:
        from ._kernels import cross_entropy
    except ImportError as error:
        raise ImportError(
            "implementation is 'triton'; the package triton is not installed: pip install triton"
        ) from error
    return cross_entropy


def uncovered_by_kernels(rows: _rows.Rows) -> str | None:
    return kernels().uncovered(rows)


def through_kernels(rows: _rows.Rows, *, lse_too: bool, xp: Namespace) -> _rows.Forward:
    return forward(rows._replace(kernels=kernels()), lse_too=lse_too, xp=xp)


def differentiated(x: Tensor | None) -> bool:
    """Whether the derivative with respect to x may be asked for, backward or forward (a dual tensor)."""
    if x is None:
        return False
    return (x.requires_grad and torch.is_grad_enabled()) or has_tangent(x)


PARTS = ("hidden", "kernel", "bias", "targets")
# Why all logits are made at once.
TRACED = "torch.compile, torch.func, forward mode and other tracers take one expression"
SECOND = "a gradient that is differentiated again, or batched, is one expression"


class _Linear(torch.autograd.Function):
    """The engine on chunks of logits, of which none is kept.

    Where the upstream gradient is known before the loss, the gradients are made beside it: three products in all. A
    backward with another upstream gradient makes the logits again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, answers, upstream, ctx.softcap, ctx.dtype, ctx.kernels, lse_too, ctx.chunk_size = inputs
        projection, rows = _projected(tensors, ctx)
        ctx.made = None
        if upstream is None:
            out, right = _linear.forward(projection, rows, lse_too=lse_too, answers=answers, xp=xp)
        else:
            parts = _needed(ctx)
            out, right, made = _linear.forward_and_backward(projection, rows, upstream, parts, answers, xp=xp)
            ctx.made = (upstream.nll, upstream.dot, upstream.of_lse(out.lse, xp=xp)), made
        ctx.save_for_backward(*tensors, out.total, out.shift)
        if right is not None:
            ctx.mark_non_differentiable(right)
        ctx.set_materialize_grads(False)
        return (*map(_owned, out[:3]), right)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        upstream: tuple[Any, Any, Any] = gradients[:3]
        given = [g for g in upstream if g is not None]
        if not given:
            return (None,) * 14
        *tensors, total, shift = ctx.saved_tensors
        (projection, rows), parts = _projected(tensors, ctx), _needed(ctx)
        # Not kept for a second backward: what autograd adds to a gradient of a parameter would be added to these.
        made, ctx.made = ctx.made, None
        results: dict[str, Tensor]
        if torch.is_grad_enabled() or in_forward_mode() or any(xp.is_tracer(g) for g in given):
            results = _plain_gradients(projection, rows, upstream)
        elif made and xp.may_wait(projection.hidden) and (factor := _factor(made[0], upstream)) is not None:
            results = made[1] if factor == 1 else {name: g.mul_(factor) for name, g in made[1].items()}
        else:
            with as_asked(projection.hidden):
                g_nll, g_dot, g_lse = upstream
                results = _linear.backward(projection, rows, total, shift, g_nll, g_dot, g_lse, parts, xp=xp)
        cast = (results[n].to(x.dtype) if n in parts else None for n, x in zip(PARTS, tensors[:4], strict=True))
        return *cast, *[None] * 10


def _projected(tensors: Any, ctx: Any) -> tuple[_linear.Projection, _rows.Rows]:
    hidden, kernel, bias, targets, labels, keep, class_mask = tensors
    rows = _rows.Rows(None, labels, targets, keep, class_mask, ctx.softcap, ctx.dtype, ctx.kernels)
    return _linear.Projection(hidden, kernel, bias, ctx.chunk_size), rows


def _needed(ctx: Any) -> set[str]:
    return {name for name, needed in zip(PARTS, ctx.needs_input_grad, strict=False) if needed}


def _factor(known: Any, given: Any) -> float | None:
    """Of which the gradients given are the known ones times it, to rounding; None where they are not."""
    if any((k is None) is not (g is None) for k, g in zip(known, given, strict=True)):
        return None
    k, g = (torch.cat([x.reshape(-1) for x in parts if x is not None]).double() for parts in (known, given))
    square = torch.dot(k, k).item()
    factor = torch.dot(k, g).item() / square if square else 1.0
    epsilon = torch.finfo(next(x.dtype for x in given if x is not None)).eps
    return factor if bool(((g - factor * k).abs() <= 8 * epsilon * (factor * k).abs()).all()) else None


def _plain_gradients(projection: _linear.Projection, rows: _rows.Rows, upstream: Any) -> dict[str, Tensor]:
    """As one expression of all the logits, which can be differentiated again, or batched."""
    rows = _linear.with_all_logits(projection, rows, SECOND, xp=xp)
    again = _rows.forward(rows, lse_too=False, xp=xp)
    d_logits, d_targets = _rows.backward(rows, again.total, again.shift, *upstream, targets_too=True, xp=xp)
    results = _plain_products(projection, rows, d_logits)
    if d_targets is not None:
        targets: Tensor = rows.targets
        results["targets"] = d_targets.sum_to_size(targets.shape)
    return results


def _plain_products(projection: _linear.Projection, rows: _rows.Rows, d_logits: Tensor) -> dict[str, Tensor]:
    hidden = _linear.selected_hidden(projection.hidden, rows.keep, rows.dtype, xp=xp)
    flat = d_logits.reshape(-1, d_logits.shape[-1])
    return {
        "hidden": product(d_logits, projection.kernel.to(rows.dtype)),
        "kernel": product(flat.mT, hidden.reshape(-1, hidden.shape[-1])),
        "bias": flat.sum(0),
    }


class _LinearEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        hidden, kernel, bias, keep, class_mask, ctx.softcap, ctx.dtype, ctx.chunk_size = inputs
        ctx.kernels = None
        tensors = (hidden, kernel, bias, None, None, keep, class_mask)
        ctx.save_for_backward(*tensors)
        return _owned(_linear.entropy(*_projected(tensors, ctx), xp=xp))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,), tensors = gradients, ctx.saved_tensors
        (projection, rows), parts = _projected(tensors, ctx), _needed(ctx)
        if torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g):
            rows = _linear.with_all_logits(projection, rows, SECOND, xp=xp)
            results = _plain_products(projection, rows, _rows.entropy_backward(rows, g, xp=xp))
        else:
            with as_asked(projection.hidden):
                results = _linear.entropy_backward(projection, rows, g, parts, xp=xp)
        cast = (results[n].to(x.dtype) if n in parts else None for n, x in zip(PARTS[:3], tensors[:3], strict=True))
        return *cast, *[None] * 5


def linear_entropy(projection: _linear.Projection, rows: _rows.Rows, *, xp: Namespace) -> Tensor:
    hidden, kernel, bias, chunk_size = projection
    variables = [x for x in (hidden, kernel, bias) if x is not None]
    if in_forward_mode() or any(xp.is_tracer(x) for x in variables):
        return _rows.entropy(_linear.with_all_logits(projection, rows, TRACED, xp=xp), xp=xp)
    with as_asked(hidden):
        if not any(differentiated(x) for x in variables):
            return _linear.entropy(projection, rows, xp=xp)
        given = rows.keep, rows.class_mask, rows.softcap, rows.dtype, chunk_size
        return applied(_LinearEntropy, hidden, kernel, bias, *given)


def linear_forward(
    projection: _linear.Projection,
    rows: _rows.Rows,
    *,
    lse_too: bool,
    answers: Tensor | None,
    upstream: Callable[[], _rows.Upstream] | None,
    xp: Namespace,
) -> tuple[_rows.Forward, Tensor | None]:
    """_linear.forward, with its derivative; `upstream` gives that of the loss, where it does not wait for it."""
    hidden, kernel, bias, chunk_size = projection
    _, labels, targets, keep, class_mask, *rest = rows
    variables = [x for x in (hidden, kernel, bias, targets) if x is not None]
    if in_forward_mode() or any(xp.is_tracer(x) for x in variables):
        asked: dict[str, Any] = {"lse_too": lse_too, "answers": answers}
        return _linear.from_all_logits(projection, rows, forward, TRACED, xp=xp, **asked)
    with as_asked(hidden):
        if not any(differentiated(x) for x in variables):
            return _linear.forward(projection, rows, lse_too=lse_too, answers=answers, xp=xp)
        with torch.no_grad():
            known = None if upstream is None else upstream()
        tensors = (hidden, kernel, bias, targets, labels, keep, class_mask, answers)
        nll, dot, lse, right = applied(_Linear, *tensors, known, *rest, lse_too, chunk_size)
    return _rows.Forward(nll, dot, lse, None, None), right


def linear_through_kernels(projection: _linear.Projection, rows: _rows.Rows, **options: Any) -> Any:
    return linear_forward(projection, rows._replace(kernels=kernels()), **options)


WAYS = {
    "analytic": Way(forward, linear_forward),
    "triton": Way(through_kernels, linear_through_kernels, uncovered_by_kernels),
}


def entropy(rows: _rows.Rows, *, xp: Namespace) -> Tensor:
    """Through the engine, except where torch differentiates or traces the expression."""
    plain = xp.is_tracer(rows.logits) or differentiated(rows.logits)
    return (_rows if plain else _stream).entropy(rows, xp=xp)


def value_and_grad(of_values: Callable[..., Any], values: list[Any], has_aux: bool) -> tuple[Any, list[Any]]:
    if torch.is_inference_mode_enabled():
        fail(
            ValueError, "value_and_grad", "inside torch.inference_mode", "no gradient is made there; use torch.no_grad"
        )
    variables = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        result = of_values(variables)
        # An argument that the loss does not depend on has the gradient 0, as in JAX.
        gradients = torch.autograd.grad(result[0] if has_aux else result, variables, materialize_grads=True)
    tree: Any = vars(torch.utils)["_pytree"]
    return tree.tree_map_only(torch.Tensor, torch.Tensor.detach, result), list(gradients)


# log_softmax sums a row in as many running sums as a vector register has numbers, 8 or more in float32: with so few
# classes each errs by less than 4 last places of 1, however the numbers lie.
NAIVE_CLASSES = 64
# Of fewer numbers than these the memory costs less than to look it up.
UNHELD = 1 << 14


def small_loss(logits: Any, labels: Any, mask: Any, reduction: str) -> Tensor | None:
    """The loss of class indices whose kept rows are one block of the engine, in torch's own functions of these rows.

    At 256 x 1000 the engine's plan and its checks one by one take as long as the loss, and so do ten operations called
    from Python in the place of two. None for any other call, and where the checks of every other call have to speak.
    """
    if reduction not in ("mean", "sum", "mean_over_kept", "mean_over_all") or torch.compiler.is_compiling():
        return None
    if not is_small(logits, labels, mask):
        return None
    classes, x, y, kept = logits.shape[-1], logits, labels, None
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    count = y.numel()
    if mask is not None:
        kept = mask.reshape(-1).nonzero().squeeze(1)
        kept, count = (None, count) if kept.shape[0] == count else (kept, kept.shape[0])
    if not 0 < count * classes * dtype.itemsize <= _stream.BLOCK_BYTES:
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
        return applied(_SmallLoss, x, y, divisor)
    loss = loss_of_few_classes if classes <= NAIVE_CLASSES else loss_by_softmax
    if count * classes < UNHELD:
        return loss(x, y, divisor, None)
    with _stream.workspace(count, classes, dtype, x, xp=xp) as out:
        return loss(x, y, divisor, out)


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


def loss_by_softmax(x: Tensor, y: Tensor, divisor: int, out: Tensor | None, ctx: Any = None) -> Tensor | None:
    """softmax' own total is as naive a sum, but what it gives sums to 1 but for that total's error."""
    p, at_label = torch.softmax(x, 1, out=out), y.unsqueeze(1)
    total = p.sum(1, keepdim=True)
    try:
        # Of a subnormal p_y the quotient is infinite, or its logarithm right to a rounding.
        loss = (total / p.gather(1, at_label)).log_().sum()
    except RuntimeError:  # a label that is no class
        return None
    if not math.isfinite(loss.item()):
        return None
    if ctx is not None:
        ctx.save_for_backward(x, at_label, total)
        ctx.p, ctx.divisor = p, divisor
    return loss if divisor == 1 else loss.div_(divisor)


class _SmallLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, divisor: int) -> Any:
        return loss_by_softmax(x, y, divisor, None, ctx)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, at_label, total = ctx.saved_tensors
        g = (gradients[0] / ctx.divisor).expand_as(total)
        p, ctx.p = ctx.p, None  # the first backward makes the gradient in its place
        if torch.is_grad_enabled() or in_forward_mode() or xp.is_tracer(g):
            rows = _rows.Rows(x, at_label.squeeze(1), None, None, None, None, x.dtype)
            again = _rows.forward(rows, lse_too=False, xp=xp)
            g_nll = g.squeeze(1)
            return (
                _rows.backward(rows, again.total, again.shift, g_nll, None, None, targets_too=False, xp=xp)[0],
                None,
                None,
            )
        p = torch.softmax(x, 1) if p is None else p
        return p.mul_(g / total).scatter_add_(1, at_label, -g), None, None


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
    return type(x) is torch.Tensor and x.is_cpu and x.layout is torch.strided and not x.is_nested
