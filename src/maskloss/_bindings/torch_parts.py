"""Classes in parts, of which each process holds one: what the engine finds of its own becomes that of all."""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.torch import xp
from .._arrays.torch_functions import applied, as_asked
from .._engine import projection as chunked
from .._engine.lanes import Lane
from .._engine.projection import Projection
from .._math import parts
from .._math.parts import SOFTMAX_IN_PARTS
from .._math.rows import Found, RowFunction, Rows
from .torch_operators import PARTS
from .torch_part_operators import own_forward, own_gradients, traced_forward, traced_gradients
from .torch_shared import SECOND, TENSORS, is_again, needed, owned, projected

Tensor = Any


def by_expression(function: RowFunction, rows: Rows, g: Any, targets_too: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient as that of an expression, whose sums over processes have derivatives of their own."""
    with torch.enable_grad():
        variables: list[Tensor] = [rows.logits, rows.targets] if targets_too else [rows.logits]
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in variables]
        rows = rows._replace(logits=inputs[0], targets=inputs[1] if targets_too else rows.targets)
        values, upstream = _of_outputs(function.forward(rows, xp), g)
        d_logits, *d_targets = torch.autograd.grad(values, inputs, upstream, create_graph=True)
    return d_logits, d_targets[0] if d_targets else None


class _ChunksInParts(torch.autograd.Function):
    """The engine on chunks of this process' classes: what goes between the processes goes for all rows at once.

    So the logits are made again for the gradients, of which the hidden states' is a sum over the processes.
    """

    @staticmethod
    def forward(ctx: Any, lane: Lane, chunk_size: int | None, answers: Any, *inputs: Any) -> Any:
        return tuple(map(owned, _forward(ctx, own_forward, lane, chunk_size, answers, *inputs)))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _backward(ctx, own_gradients, gradients, again=is_again(gradients[:-1]))


class _TracedChunks(torch.autograd.Function):
    """For torch.compile: the engine as operators."""

    @staticmethod
    def forward(ctx: Any, lane: Lane, chunk_size: int | None, answers: Any, *inputs: Any) -> Any:
        return _forward(ctx, traced_forward, lane, chunk_size, answers, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _backward(ctx, traced_gradients, gradients, again=False)


def _forward(ctx: Any, of_own: Any, lane: Lane, chunk_size: int | None, answers: Any, *inputs: Any) -> Any:
    ctx.lane, ctx.chunk_size, ctx.others = lane, chunk_size, inputs[3 + TENSORS :]
    tensors = inputs[: 3 + TENSORS]
    projection, rows = projected(ctx, tensors)
    out, best = of_own(lane, projection, parts.own_rows(rows, xp=xp), best_too=answers is not None)
    out = parts.of_all(rows, out, xp=xp)
    right = None if best is None else parts.is_best(rows.part, best, answers, xp=xp)
    if right is not None:
        ctx.mark_non_differentiable(right)
    ctx.save_for_backward(*tensors, *SOFTMAX_IN_PARTS.needed(out))
    ctx.set_materialize_grads(False)
    return *out[: SOFTMAX_IN_PARTS.differentiable], right


def _backward(ctx: Any, of_own: Any, gradients: tuple[Any, ...], *, again: bool) -> Any:
    g, nothing = gradients[:-1], (None,) * len(ctx.needs_input_grad)
    if all(x is None for x in g):
        return nothing
    saved = ctx.saved_tensors
    tensors, out = saved[: 3 + TENSORS], SOFTMAX_IN_PARTS.out._make(saved[3 + TENSORS :])
    (projection, rows), asked = projected(ctx, tensors), needed(ctx, 3)
    given: dict[str, Tensor] = {**projection._asdict(), "targets": rows.targets}
    if again:
        results = _gradients_by_expression(projection, rows, g, asked, given)
    else:
        out, g = parts.own_upstream(rows, out, g, xp=xp)
        results = of_own(ctx.lane, projection, parts.own_rows(rows, xp=xp), out, g, asked)
        if "hidden" in results:
            results["hidden"] = xp.all_sum(results["hidden"], rows.part.group)
    d = [results[name].to(given[name].dtype) if name in asked else None for name in PARTS]
    return *nothing[:3], *d[:3], None, None, d[3], *nothing[9:]


def _gradients_by_expression(
    projection: Projection, rows: Rows, g: Any, asked: set[str], given: dict[str, Tensor]
) -> dict[str, Tensor]:
    """As that of an expression of all logits held here, whose sums over processes have derivatives of their own."""
    with torch.enable_grad():
        rows = chunked.with_all_logits(projection, rows, SECOND, xp=xp)
        values, upstream = _of_outputs(SOFTMAX_IN_PARTS.forward(rows, xp), g)
        made = torch.autograd.grad(values, [given[name] for name in asked], upstream, create_graph=True)
    return dict(zip(asked, made, strict=True))


def _of_outputs(out: Any, g: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Those that have an upstream gradient, and these."""
    pairs = [(x, d) for x, d in zip(out, g, strict=False) if x is not None and d is not None]
    return [x for x, _ in pairs], [d for _, d in pairs]


def of_projection(lane: Lane, projection: Projection, rows: Rows, answers: Tensor | None) -> Found:
    hidden, kernel, bias, chunk_size = projection
    if chunk_size is None:
        # As many rows as of all classes: a part of these takes a part of the memory.
        chunk_size = chunked.most_rows(rows.part.classes, rows.dtype.itemsize, on_cpu=hidden.device.type == "cpu")
    with as_asked(hidden):
        given = hidden, kernel, bias, *rows._replace(for_backward=True)
        if torch.compiler.is_compiling():
            traced: Any = _TracedChunks
            # Which may be the labels: Dynamo takes no tensor twice.
            answers = None if answers is None else answers.view_as(answers)
            *values, right = traced.apply(lane, chunk_size, answers, *given)
        else:
            *values, right = applied(_ChunksInParts, lane, chunk_size, answers, *given)
    return Found(SOFTMAX_IN_PARTS.restored(values), right)
