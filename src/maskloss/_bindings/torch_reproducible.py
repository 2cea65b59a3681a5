"""reproducible.py's functions as torch.autograd.Functions: what autograd would add up is in them."""

# pyright: reportUnknownMemberType=false
# (torch.library's own annotations are partial.)

from __future__ import annotations

import json
from typing import Any

import torch

from .._arguments import number_of
from .._arrays import while_traced
from .._arrays.standard import called_while_traced
from .._arrays.torch_functions import applied
from .reproducible import Reproducible
from .reproducible_reductions import FUNCTIONS
from .torch_operators import CONTIGUOUS, laid_out, listed, present

Tensor = Any


def values_of(function: Reproducible, given: Any, names: tuple[str, ...], *arrays: Tensor) -> tuple[Tensor, ...]:
    results, saved = function.value_of({**given, **dict(zip(names, arrays, strict=True))})
    return *results, *saved


def gradients_of(function: Reproducible, given: Any, names: Any, wanted: Any, *arrays: Any) -> tuple[Tensor, ...]:
    """Of the arguments named `wanted`."""
    count = function.results(given)
    saved, cotangents = arrays[len(names) : -count], arrays[-count:]
    given = {**given, **dict(zip(names, arrays, strict=False))}
    made = function.gradients_of(given, saved, cotangents, frozenset(wanted))
    return tuple(made[name] for name in wanted)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.of, ctx.given, ctx.names, *arrays = inputs
    saved = output[ctx.of.results(ctx.given) :]
    ctx.mark_non_differentiable(*(x for x in saved if x is not None))
    ctx.save_for_backward(*arrays, *saved)
    ctx.set_materialize_grads(False)


def backward_of(ctx: Any, cotangents: tuple[Tensor, ...]) -> tuple[Any, ...]:
    function, given, names = ctx.of, ctx.given, ctx.names
    cotangents = cotangents[: function.results(given)]
    nothing = (None,) * (3 + len(names))
    if all(x is None for x in cotangents):
        return nothing
    needed = ctx.needs_input_grad[3:]
    wanted = tuple(name for name, is_needed in zip(names, needed, strict=True) if is_needed)
    made = applied(_Gradients, function, given, names, wanted, *ctx.saved_tensors, *cotangents)
    of_names = dict(zip(wanted, made, strict=True))
    return *nothing[:3], *(of_names.get(name) for name in names)


class _Reproducible(torch.autograd.Function):
    forward = staticmethod(values_of)
    setup_context = staticmethod(save)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        return backward_of(ctx, cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_Reproducible, 3, info, in_dims, *inputs)


class _Gradients(torch.autograd.Function):
    forward = staticmethod(gradients_of)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise RuntimeError("reproducible=True has no second derivative")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_Gradients, 4, info, in_dims, *inputs)


def one_by_one(function: Any, first: int, info: Any, in_dims: Any, *inputs: Any) -> Any:
    """Of each of a batch, stacked: a batch of calls, in the arithmetic of each."""
    # By unbind, whose adjoint puts gradients side by side: that of select adds each to zeros.
    pairs = zip(inputs[first:], in_dims[first:], strict=True)
    columns = [[x] * info.batch_size if at is None else x.unbind(at) for x, at in pairs]
    each = zip(*(function.apply(*inputs[:first], *own) for own in zip(*columns, strict=True)), strict=True)
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in each)
    return stacked, tuple(None if x is None else 0 for x in stacked)


def reproducible(function: Reproducible, given: dict[str, Any]) -> tuple[Tensor, ...]:
    arrays = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    others = {name: x for name, x in given.items() if name not in arrays}
    if torch.compiler.is_compiling():
        return by_operator(function, others, arrays)
    found = applied(_Reproducible, function, others, tuple(arrays), *arrays.values())
    return found[: function.results(given)]


# What a compiler calls as it is, and never traces: it would take the expression's thousand operations for minutes.


@called_while_traced
def in_words(name: str, others: dict[str, Any], names: tuple[str, ...]) -> str:
    return json.dumps([name, others, names], default=number_of)


def called_for(words: str) -> tuple[Reproducible, dict[str, Any], tuple[str, ...]]:
    name, others, names = json.loads(words)
    lists: list[Any] = [key for key, x in others.items() if isinstance(x, list)]
    others |= {key: tuple(others[key]) for key in lists}
    # Where it is compiled, a label that is no class makes NaN.
    return FUNCTIONS[name], {**others, "validate": False}, tuple(names)


@torch.library.custom_op("maskloss::reproducible", mutates_args=(), schema="(str of, Tensor[] arrays) -> Tensor[]")
def operator(of: str, arrays: list[Tensor]) -> list[Tensor]:
    function, others, names = called_for(of)
    return listed(values_of(function, others, names, *arrays), arrays[0])


@operator.register_fake
def _(of: str, arrays: list[Tensor]) -> list[Tensor]:
    function, others, names = called_for(of)
    found = while_traced(values_of, function, others, names, *arrays)
    return listed((None if x is None else torch.empty_like(x, memory_format=CONTIGUOUS) for x in found), arrays[0])


@torch.library.custom_op(
    "maskloss::reproducible_gradients",
    mutates_args=(),
    schema="(str of, Tensor[] arrays, str wanted, Tensor[] saved, Tensor[] cotangents) -> Tensor[]",
)
def gradients_operator(of: str, arrays: list[Tensor], wanted: str, saved: Any, cotangents: Any) -> list[Tensor]:
    function, others, names = called_for(of)
    own, of_names = (present(saved), present(cotangents)), dict(zip(names, arrays, strict=True))
    made = function.gradients_of({**others, **of_names}, *own, frozenset(wanted.split(",")))
    return [laid_out(made[name], of_names[name]) for name in wanted.split(",")]


@gradients_operator.register_fake
def _(of: str, arrays: list[Tensor], wanted: str, saved: Any, cotangents: Any) -> list[Tensor]:
    _, _, names = called_for(of)
    of_names = dict(zip(names, arrays, strict=True))
    return [torch.empty_like(of_names[name]) for name in wanted.split(",")]


def operator_saved(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.of, arrays = inputs
    function, others, _ = called_for(ctx.of)
    ctx.results, ctx.count = function.results(others), len(arrays)
    ctx.needed = [x.requires_grad for x in arrays]
    ctx.mark_non_differentiable(*output[ctx.results :])
    ctx.save_for_backward(*arrays, *output[ctx.results :])
    ctx.set_materialize_grads(False)


def operator_derivative(ctx: Any, gradients: Any) -> Any:
    arrays, saved = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    _, _, names = called_for(ctx.of)
    g = gradients[: ctx.results]
    wanted = [name for name, needed in zip(names, ctx.needed, strict=True) if needed]
    if not wanted or all(x is None for x in g):
        return None, [None] * ctx.count
    found = torch.ops.maskloss.reproducible_gradients(ctx.of, arrays, ",".join(wanted), saved, listed(g, arrays[0]))
    made = dict(zip(wanted, found, strict=True))
    return None, [made.get(name) for name in names]


operator.register_autograd(operator_derivative, setup_context=operator_saved)


def by_operator(function: Reproducible, others: dict[str, Any], arrays: dict[str, Tensor]) -> tuple[Tensor, ...]:
    words = in_words(function.name, others, tuple(arrays))
    found = torch.ops.maskloss.reproducible(words, [*arrays.values()])
    return tuple(found[: function.results(others)])
