"""reproducible.py's functions as torch.autograd.Functions: what autograd would add up is in them."""

from __future__ import annotations

from typing import Any

import torch

from .._arrays.torch_functions import applied
from .reproducible import Reproducible

Tensor = Any


class _Reproducible(torch.autograd.Function):
    @staticmethod
    def forward(function: Reproducible, given: Any, names: tuple[str, ...], *arrays: Tensor) -> tuple[Tensor, ...]:
        results, saved = function.value_of({**given, **dict(zip(names, arrays, strict=True))})
        return *results, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.function, ctx.given, ctx.names, *arrays = inputs
        ctx.results = ctx.function.results(ctx.given)
        ctx.mark_non_differentiable(*(x for x in output[ctx.results :] if x is not None))
        ctx.save_for_backward(*arrays, *output[ctx.results :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        names, saved = ctx.names, ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError("reproducible=True has no second derivative")
        given = {**ctx.given, **dict(zip(names, saved, strict=False))}
        needed = zip(names, ctx.needs_input_grad[3:], strict=True)
        wanted = frozenset(name for name, is_needed in needed if is_needed)
        made: dict[str, Tensor] = {}
        if any(x is not None for x in cotangents[: ctx.results]):
            own = saved[len(names) :]
            made = ctx.function.gradients_of(given, own, cotangents[: ctx.results], wanted)
        return None, None, None, *(made.get(name) for name in names)

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Reproducible, given: Any, names: Any, *arrays: Tensor) -> Any:
        of_arrays = in_dims[3:]
        each = [
            applied(_Reproducible, function, given, names, *(x if at is None else x.select(at, i) for x, at in pairs))
            for i in range(info.batch_size)
            if (pairs := list(zip(arrays, of_arrays, strict=True)))
        ]
        stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]
        return tuple(stacked), tuple(None if x is None else 0 for x in stacked)


def reproducible(function: Reproducible, given: dict[str, Any]) -> tuple[Tensor, ...]:
    arrays = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    others = {name: x for name, x in given.items() if name not in arrays}
    found = applied(_Reproducible, function, others, tuple(arrays), *arrays.values())
    return found[: function.results(given)]
