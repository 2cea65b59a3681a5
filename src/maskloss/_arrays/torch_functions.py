"""What PyTorch differentiates as we say: products beside autocast, and the collectives of a group of processes."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

import torch

from .standard import Array, called_while_traced

distributed: Any = torch.distributed


def autocasts(x: Array) -> bool:
    """Whether autocast would multiply x in another dtype."""
    device = x.device.type
    # Dynamo cannot trace the question (torch 2.11).
    may = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    return may and torch.is_autocast_enabled(device)


def as_asked(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Where operations have the dtypes that they are given."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else contextlib.nullcontext()


def applied(function: Any, *inputs: Any) -> Any:
    """function.apply, with a backward that Dynamo leaves alone: a compiled step calls that of a loss that is not.

    Dynamo would compile the engine's loops, for 10 times as long as they take. Asked here, as it is slow to import.
    """
    if "torch._dynamo" in sys.modules and not hasattr(function.backward, "_torchdynamo_disable"):
        compiler: Any = torch.compiler
        function.backward = staticmethod(compiler.disable(function.backward))
    return function.apply(*inputs)


def called(traced: Any, function: Any, *inputs: Any) -> Any:
    """One of the two: torch.compile takes no Function with a jvp."""
    return traced.apply(*inputs) if torch.compiler.is_compiling() else applied(function, *inputs)


class _TracedProduct(torch.autograd.Function):
    """a b of a (..., n) and b (n, m): autocast rounds neither what it multiplies nor what its derivatives do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Array, b: Array) -> Array:
        with as_asked(a):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (a, b), (g,), (of_a, of_b) = ctx.saved_tensors, gradients, ctx.needs_input_grad
        d_a = product(g, b.mT) if of_a else None
        return d_a, product(a.reshape(-1, a.shape[-1]).mT, g.reshape(-1, g.shape[-1])) if of_b else None


class _Product(_TracedProduct):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Array:
        (a, b), (t_a, t_b) = ctx.saved_tensors, tangents
        parts = None if t_a is None else product(t_a, b), None if t_b is None else product(a, t_b)
        given = [part for part in parts if part is not None]
        return given[0] if len(given) == 1 else given[0] + given[1]


def product(a: Array, b: Array) -> Array:
    return called(_TracedProduct, _Product, a, b) if autocasts(a) else a @ b


@functools.lru_cache(maxsize=8)
def _gathered(numbers: tuple[int, ...], group_name: str, device: Any, serial: int) -> list[tuple[int, ...]]:
    group = distributed.distributed_c10d._resolve_process_group(group_name)
    own: Any = torch.tensor(numbers, dtype=torch.int64, device=device)
    found: Any = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(found, own, group=group)
    return [tuple(map(int, part)) for part in found]


@called_while_traced
def gathered(*given: Any) -> list[tuple[int, ...]]:
    """The numbers of each process of a group; asked once for a serial, however often a compiler traces it again."""
    return _gathered(*given)


def reduced_over(x: Array, group: Any, operation: str) -> Array:
    found = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(found, getattr(distributed.ReduceOp, operation), group=group)
    return found


def all_max(x: Array, group: Any) -> Array:
    return called(_AllMax, _AllMax, x.detach(), group)


def all_sum(x: Array, group: Any) -> Array:
    """Of which each process makes the same: what comes back to one is whole already."""
    return called(_TracedOverGroup, _OverGroup, x, group, True)


def own(x: Array, group: Any) -> Array:
    """The identity of what is the same in each process, before each makes its own of it: what comes back adds up."""
    return called(_TracedOverGroup, _OverGroup, x, group, False)


class _AllMax(torch.autograd.Function):
    """The maximum over a group, a constant: a Function for the sake of vmap."""

    @staticmethod
    def forward(x: Array, group: Any) -> Array:
        return reduced_over(x, group, "MAX")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Array, Any]:
        return all_max(*args), in_dims[0]


class _TracedOverGroup(torch.autograd.Function):
    """all_sum, or own, which is its adjoint."""

    @staticmethod
    def forward(x: Array, group: Any, sums: bool) -> Array:
        return reduced_over(x, group, "SUM") if sums else x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        _, ctx.group, ctx.sums = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        adjoint = own if ctx.sums else all_sum
        return adjoint(gradients[0], ctx.group), None, None


class _OverGroup(_TracedOverGroup):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Array:
        same = all_sum if ctx.sums else own
        return same(tangents[0], ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Array, group: Any, sums: bool) -> tuple[Array, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (all_sum if sums else own)(x, group), in_dims[0]
