"""Row functions as torch.autograd.Functions, which keep their inputs and what little the backward needs of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from .._arguments import fail
from .._arrays import Namespace
from .._arrays.torch import fused, has_tangent, in_forward_mode, in_transform, is_distributed, xp
from .._arrays.torch_functions import applied, as_asked, product
from .._call import Call
from .._engine import projection as chunked
from .._engine.lanes import Lane, of_parts
from .._engine.projection import Projection
from .._engine.walk import located
from .._math.rows import Found, RowFunction, Rows
from .._math.softmax import SOFTMAX
from .._math.terms import Terms, reduced
from . import torch_operators, torch_part_operators, torch_parts
from .torch_kernels import loss_by_kernels
from .torch_operators import PARTS
from .torch_parts import by_expression
from .torch_reproducible import reproducible as reproducible
from .torch_shared import SECOND, TENSORS, is_again, needed, owned, projected
from .torch_small import SMALL_BYTES, are_places, is_plain, small_loss

Tensor = Any

WAYS = {**torch_operators.WAYS, None: torch_operators.WAYS["default"]}

# Fewer logits than these the compiler's one walk over all has passed before an operator has found the kept ones.
LEAST_SKIPPED = 1 << 22
# Of labels.
LEAST, GREATEST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
# Why all logits are made at once.
TRACED = "torch.func, forward mode and other tracers take one expression"


def common_loss(
    logits: Any, labels: Any, mask: Any, reduction: str, axis: int, ignore_index: int | None
) -> Tensor | None:
    if torch.compiler.is_compiling() or axis not in (-1, 1):
        return None
    by_kernels = xp.prefers_kernels(logits)
    if axis == 1 and not by_kernels and not (logits.is_cpu and logits.numel() * 4 <= SMALL_BYTES):
        return None
    ignored = ignore_index if mask is None else None
    if ignore_index is not None:
        if not is_plain(labels) or labels.dtype is not torch.int64 or not (mask is None or are_places(mask, labels)):
            return None
        if not LEAST <= ignore_index <= GREATEST:  # no label is that, and torch would wrap it
            return None
        counts = labels != ignore_index
        mask = counts if mask is None else mask & counts
    if by_kernels:
        return loss_by_kernels(logits, labels, mask, reduction, axis)
    return small_loss(logits, labels, mask, reduction, axis, ignored)


def split_of(projection: Projection | None, rows: Rows) -> Any:
    """How DTensors are split, where each process can take its part of them."""
    given = (rows.logits,) if projection is None else (projection.hidden, projection.kernel)
    if not is_distributed(given[0]) or in_transform() or in_forward_mode():
        return None
    from . import torch_dtensor

    return torch_dtensor.split_of(*given)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a derivative with respect to one may be asked for, backward or forward (a dual tensor)."""
    grad = torch.is_grad_enabled()
    return any(x is not None and ((grad and x.requires_grad) or has_tangent(x)) for x in tensors)


def takes_operators(*tensors: Tensor) -> bool:
    """Whether these are what a compiler traces, of which no transformation, and no DTensor, is made."""
    if not torch.compiler.is_compiling() or in_transform() or in_forward_mode():
        return False
    return not any(is_distributed(x) for x in tensors)


class _Rows(torch.autograd.Function):
    """For torch.func: the plain expressions, as what runs may be a transformation of them."""

    # vmap is derived from forward, backward and jvp, which are plain torch operations.
    generate_vmap_rule = True

    @staticmethod
    def forward(lane: Lane, *inputs: Any) -> tuple[Any, ...]:
        return tuple(lane.function.forward(Rows(*inputs), xp))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.lane, *tensors = inputs[: 1 + TENSORS]
        ctx.others = inputs[1 + TENSORS :]
        function = ctx.lane.function
        ctx.mark_non_differentiable(*(x for x in output[function.differentiable :] if x is not None))
        # lse is saved as an output that has a derivative of its own, not as a number: double backward is exact so.
        saved = function.needed(output)
        ctx.save_for_backward(*tensors, *saved)
        ctx.save_for_forward(*tensors, *saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        rows, out, function = *_saved(ctx), ctx.lane.function
        g = gradients[: function.differentiable]
        if all(x is None for x in g):
            return (None,) * (1 + len(rows))
        _, _, _, targets_too, *_ = ctx.needs_input_grad
        if is_again(g) and rows.part is not None:
            d_logits, d_targets = by_expression(function, rows, g, targets_too)
        elif is_again(g):
            out = function.restated(out, xp)
            d_logits, d_targets = function.backward(rows, out, g, targets_too=targets_too, xp=xp)
        else:
            d_logits, d_targets = ctx.lane.backward(rows, out, g, targets_too=targets_too, xp=xp)
        return _of_inputs(rows, d_logits, d_targets)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        rows, out, function = *_saved(ctx), ctx.lane.function
        _, t_logits, _, t_targets, *_ = tangents
        found = function.tangents(rows, out, t_logits, t_targets, xp)
        return (*found, *[None] * (len(out) - function.differentiable))


class _Blocks(_Rows):
    """The same through the engine. With a setup_context, apply would bind its arguments by inspect.signature: 20 us."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        lane, *values = inputs
        output = tuple(map(owned, lane.forward(Rows(*values), xp)))
        _Rows.setup_context(ctx, inputs, output)
        return output

    setup_context = torch.autograd.Function.setup_context


def _of_inputs(rows: Rows, d_logits: Tensor, d_targets: Tensor | None) -> tuple[Any, ...]:
    """The gradients of a Function's inputs: what it runs, and the fields of Rows."""
    logits, targets = rows.logits, cast(Any, rows.targets)
    d_targets = None if d_targets is None else d_targets.sum_to_size(targets.shape)
    return None, d_logits.to(logits.dtype), None, d_targets, *[None] * (len(rows) - 3)


def _saved(ctx: Any) -> tuple[Rows, Any]:
    saved = ctx.saved_tensors
    return Rows(*saved[:TENSORS], *ctx.others), ctx.lane.function.out._make(saved[TENSORS:])


class _Traced(torch.autograd.Function):
    """For torch.compile: both expressions, of which the backward keeps the logits, and no other array of their size."""

    @staticmethod
    def forward(ctx: Any, function: RowFunction, *inputs: Any) -> tuple[Any, ...]:
        out = function.forward(Rows(*inputs), fused)
        ctx.function, ctx.others = function, inputs[TENSORS:]
        ctx.mark_non_differentiable(*(x for x in out[function.differentiable :] if x is not None))
        ctx.save_for_backward(*inputs[:TENSORS], *function.needed(out))
        ctx.set_materialize_grads(False)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        function, saved = ctx.function, ctx.saved_tensors
        rows, out = Rows(*saved[:TENSORS], *ctx.others), function.out._make(saved[TENSORS:])
        g = gradients[: function.differentiable]
        return _of_inputs(rows, *function.backward(rows, out, g, targets_too=ctx.needs_input_grad[3], xp=xp))


def compiled(lane: Lane, rows: Rows, variables: Sequence[Tensor]) -> Any:
    """The operator where a mask may spare work, else expressions, which the compiler makes one walk of."""
    function, traced = lane.function, cast(Any, _Traced)
    if not takes_operators(*variables):
        return function.forward(rows, xp)
    spares = rows.keep is not None and rows.logits.numel() >= LEAST_SKIPPED
    if rows.part is not None:
        by_operators = rows.part.held and (spares or lane.way == "triton")
        function = torch_part_operators.traced_softmax(lane._replace(function=SOFTMAX) if by_operators else None)
        return function.out._make(traced.apply(function, *rows))
    if spares or lane.way == "triton":
        return torch_operators.of_logits(lane, rows, with_derivative=differentiated(*variables))
    return function.forward(rows, xp) if function.traced_plainly else function.out._make(traced.apply(function, *rows))


def of_logits(lane: Lane, rows: Rows, *, xp: Namespace) -> Any:
    """The lane with its backward as its derivative."""
    lane = lane if rows.part is None else of_parts(lane)
    variables = [x for x in (rows.logits, rows.targets) if x is not None]
    if torch.compiler.is_compiling():
        return compiled(lane, rows, variables)
    is_traced, is_variable = any(xp.is_tracer(x) for x in variables), differentiated(*variables)
    if (is_traced and lane.function.traced_plainly) or (rows.part is not None and in_forward_mode()):
        return lane.function.forward(rows, xp)
    if not is_traced:
        rows = located(rows, rows.logits, xp=xp)
        if not is_variable:
            return lane.forward(rows, xp)
    # With lse, whose own derivative a second one needs.
    rows = rows._replace(with_lse=True, for_backward=True)
    return lane.function.out._make(applied(_Rows if is_traced else _Blocks, lane, *rows))


class _Chunks(torch.autograd.Function):
    """The engine on chunks of logits, of which none is kept.

    Where the upstream gradient is known before the loss, the gradients are made beside it: three products in all. A
    backward with another upstream gradient makes the logits again.
    """

    @staticmethod
    def forward(ctx: Any, lane: Lane, known: Any, chunk_size: int | None, answers: Any, *inputs: Any) -> Any:
        ctx.lane, ctx.chunk_size, ctx.others = lane, chunk_size, inputs[3 + TENSORS :]
        tensors = inputs[: 3 + TENSORS]
        projection, rows = projected(ctx, tensors)
        ctx.made = None
        if known is None:
            out, right = chunked.forward(lane, projection, rows, answers=answers, xp=xp)
        else:
            parts = needed(ctx)
            out, right, made = chunked.both(lane, projection, rows, known, parts, answers=answers, xp=xp)
            ctx.made = lane.function.upstream(known, out, xp), made
        ctx.save_for_backward(*tensors, *lane.function.needed(out))
        values = [*map(owned, out[: lane.function.differentiable])]
        if right is not None:
            ctx.mark_non_differentiable(right)
        ctx.set_materialize_grads(False)
        return *values, right

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        g = gradients[:-1]
        nothing = (None,) * len(ctx.needs_input_grad)
        if all(x is None for x in g):
            return nothing
        saved = ctx.saved_tensors  # once: checkpoint counts
        tensors, out = saved[: 3 + TENSORS], saved[3 + TENSORS :]
        (projection, rows), parts = projected(ctx, tensors), needed(ctx)
        # Not kept for a second backward: what autograd adds to a gradient of a parameter would be added to these.
        made, ctx.made = ctx.made, None
        results: dict[str, Tensor]
        if is_again(g):
            results = _plain_gradients(ctx.lane.function, projection, rows, g)
        elif made and xp.may_wait(projection.hidden) and (factor := _factor(made[0], g)) is not None:
            results = made[1] if factor == 1 else {name: g.mul_(factor) for name, g in made[1].items()}
        else:
            with as_asked(projection.hidden):
                out = ctx.lane.function.out._make(out)
                results = chunked.backward(ctx.lane, projection, rows, out, g, parts, xp=xp)
        given: dict[str, Tensor] = {**projection._asdict(), "targets": rows.targets}
        d = [results[name].to(given[name].dtype) if name in parts else None for name in PARTS]
        return *nothing[:4], *d[:3], None, None, d[3], *nothing[10:]


def _factor(known: Any, given: Any) -> float | None:
    """The number by which the gradients given are the known ones, to rounding; None where there is none."""
    if any((k is None) is not (g is None) for k, g in zip(known, given, strict=True)):
        return None
    k, g = (torch.cat([x.reshape(-1) for x in parts if x is not None]).double() for parts in (known, given))
    square = torch.dot(k, k).item()
    factor = torch.dot(k, g).item() / square if square else 1.0
    epsilon = torch.finfo(next(x.dtype for x in given if x is not None)).eps
    return factor if bool(((g - factor * k).abs() <= 8 * epsilon * (factor * k).abs()).all()) else None


def _plain_gradients(function: RowFunction, projection: Projection, rows: Rows, g: Any) -> dict[str, Tensor]:
    """As one expression of all the logits, which can be differentiated again, or batched."""
    rows = chunked.with_all_logits(projection, rows, SECOND, xp=xp)
    out = function.forward(rows._replace(with_lse=False), xp)
    d_logits, d_targets = function.backward(rows, out, g, targets_too=rows.targets is not None, xp=xp)
    hidden = chunked.selected_hidden(projection.hidden, rows.keep, rows.dtype, xp=xp)
    flat: Tensor = d_logits.reshape(-1, d_logits.shape[-1])
    results = {
        "hidden": product(d_logits, projection.kernel.to(rows.dtype)),
        "kernel": product(flat.mT, hidden.reshape(-1, hidden.shape[-1])),
        "bias": flat.sum(0),
    }
    if d_targets is not None:
        targets: Tensor = rows.targets
        results["targets"] = d_targets.sum_to_size(targets.shape)
    return results


def of_projection(
    lane: Lane,
    projection: Projection,
    rows: Rows,
    *,
    answers: Tensor | None,
    known: Callable[[], Any] | None,
    xp: Namespace,
) -> Found:
    """The lane in chunks, with its derivative."""
    hidden, kernel, bias, chunk_size = projection
    variables = [x for x in (hidden, kernel, bias, rows.targets) if x is not None]
    if takes_operators(*variables):
        if rows.part is not None:
            return torch_parts.of_projection(lane, projection, rows, answers)
        named = zip(PARTS, (hidden, kernel, bias, rows.targets), strict=True)
        parts = ",".join(name for name, x in named if x is not None and x.requires_grad)
        parts = parts if torch.is_grad_enabled() else ""
        return torch_operators.of_projection(lane, projection, rows, answers, known, parts)
    if in_forward_mode() or any(xp.is_tracer(x) for x in variables):

        def of_rows(rows: Rows, xp: Namespace) -> Any:
            return of_logits(lane, rows, xp=xp)

        return chunked.from_all_logits(projection, rows, of_rows, TRACED, answers=answers, xp=xp)
    rows = located(rows, hidden, waits=True, xp=xp)
    if rows.part is not None:
        return torch_parts.of_projection(lane, projection, rows, answers)
    with as_asked(hidden):
        if not differentiated(*variables):
            return Found(*chunked.forward(lane, projection, rows, answers=answers, xp=xp))
        rows = rows._replace(for_backward=True)
        with torch.no_grad():
            before = None if known is None else known()
        *values, right = applied(_Chunks, lane, before, chunk_size, answers, hidden, kernel, bias, *rows)
    return Found(lane.function.restored(values), right)


def carried(call: Call, parts: Terms, found: Found) -> Tensor:
    constant = [None if x is None else x.detach() for x in found.out]
    return reduced(call, parts, found.out._make(constant)) + found.zero


def value_and_grad(
    of_values: Callable[..., Any], values: list[Any], has_aux: bool, named: Any
) -> tuple[Any, list[Any]]:
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
