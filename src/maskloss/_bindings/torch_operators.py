"""Operators of torch.library: what torch.compile and torch.export call as they are, and never trace.

The expression that they would trace computes what is masked, and makes all logits of a projection. The body of an
operator is the engine, below autograd; its derivative is another operator, which has none. What a compiler is told of
shapes and dtypes is the expression's, of tensors without numbers.
"""

# pyright: reportUnknownMemberType=false
# (torch.library's own annotations are partial.)

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch

from .._arrays import Namespace
from .._arrays.torch import xp
from .._arrays.torch_functions import as_asked
from .._engine import projection as chunked
from .._engine.lanes import Lane, Way
from .._engine.projection import Projection
from .._engine.unshifted import UNSHIFTED, lane_of
from .._math.rows import FUNCTIONS, Found, RowFunction, Rows, sum_of
from .._math.softmax import SOFTMAX

Tensor = Any

# What of a projection, and of its rows, has a derivative.
PARTS = ("hidden", "kernel", "bias", "targets")
# What rows have beside their logits.
OWN = "Tensor? labels, Tensor? targets, Tensor? keep, Tensor? class_mask, float? softcap, ScalarType dtype"
OF_PROJECTION = f"str of, Tensor hidden, Tensor kernel, Tensor? bias, {OWN}, SymInt? chunk_size, str parts"
# Axes of what stands for None, which a list of tensors may not hold: as many as nothing else has.
ABSENT = 32

CONTIGUOUS = torch.contiguous_format
operators: Any = torch.ops


def kernels() -> Any:
    try:
        from . import launches
    except ImportError as error:
        raise ImportError(
            "implementation is 'triton'; the package triton is not installed: pip install triton"
        ) from error
    return launches


def lane_of_kernels(function: RowFunction) -> Lane:
    return kernels().LANE


def uncovered_by_kernels(function: RowFunction, rows: Rows) -> str | None:
    return kernels().uncovered(function, rows)


def lane_for(rows: Rows) -> Lane:
    """By numbers that are there: an operator's lane is found when it is called, not when it is traced."""
    covers = xp.prefers_kernels(rows.logits) and uncovered_by_kernels(SOFTMAX, rows) is None
    return kernels().LANE if covers else UNSHIFTED


def forward(rows: Rows, xp: Namespace) -> Any:
    return lane_for(rows).forward(rows, xp)


def backward(rows: Rows, out: Any, g: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    return lane_for(rows).backward(rows, out, g, **options)


def both(rows: Rows, known: Any, **options: Any) -> tuple[Any, Tensor] | None:
    lane = lane_for(rows)
    return None if lane.both is None else lane.both(rows, known, **options)


DEFAULT = Lane("default", SOFTMAX, forward, backward, both)


def default_lane_of(function: RowFunction) -> Lane:
    return DEFAULT if function is SOFTMAX else lane_of(function)


WAYS = {"default": Way(default_lane_of), "analytic": Way(lane_of), "triton": Way(lane_of_kernels, uncovered_by_kernels)}


def lane_named(of: str) -> Lane:
    """'analytic softmax', say: an implementation's lane of a row function."""
    way, function = of.split()
    return WAYS[way].lane_of(FUNCTIONS[function])


def listed(parts: Iterable[Any], like: Tensor) -> list[Tensor]:
    return [like.new_empty((0,) * ABSENT) if part is None else part for part in parts]


def present(parts: Iterable[Tensor]) -> list[Any]:
    return [None if part.ndim == ABSENT else part for part in parts]


def laid_out(made: Tensor, like: Tensor) -> Tensor:
    """In the order of memory that a compiler was told of."""
    told = torch.empty_like(like, device="meta").stride()
    return made if made.stride() == told else torch.empty_like(like, dtype=made.dtype).copy_(made)


def rows_of(logits: Tensor | None, own: Sequence[Any], with_lse: bool, for_backward: bool) -> Rows:
    labels, targets, keep, class_mask, softcap, dtype = own
    return Rows(logits, labels, targets, keep, class_mask, None, softcap, dtype, with_lse, for_backward)


def own_of(rows: Rows) -> tuple[Any, ...]:
    return rows.labels, rows.targets, rows.keep, rows.class_mask, rows.softcap, rows.dtype


def given_by(function: RowFunction, out: Any, for_backward: bool) -> list[Any]:
    """As the expression has them: a shift that the engine knows to be 0 is an array there."""
    values, rest = list(out[: function.differentiable]), out[function.differentiable :]
    like = next(part for part in out if part is not None)
    return values + [torch.zeros_like(like) if part is None else part for part in rest] if for_backward else values


@torch.library.custom_op(
    "maskloss::rows",
    mutates_args=(),
    schema=f"(str of, Tensor logits, {OWN}, bool with_lse, bool for_backward) -> Tensor[]",
)
def rows_operator(of: str, logits: Tensor, *given: Any) -> list[Tensor]:
    *own, with_lse, for_backward = given
    lane = lane_named(of)
    out = lane.forward(rows_of(logits, own, with_lse, for_backward), xp)
    return listed(given_by(lane.function, out, for_backward), logits)


@rows_operator.register_fake
def _(of: str, logits: Tensor, *given: Any) -> list[Tensor]:
    *own, with_lse, for_backward = given
    function = lane_named(of).function
    out = function.forward(rows_of(logits, own, with_lse, for_backward), xp)
    return listed(given_by(function, out, for_backward), logits)


@torch.library.custom_op(
    "maskloss::rows_backward",
    mutates_args=(),
    schema=f"(str of, Tensor logits, {OWN}, Tensor[] out, Tensor[] g, bool targets_too) -> Tensor[]",
)
def rows_backward_operator(of: str, logits: Tensor, *given: Any) -> list[Tensor]:
    *own, out, g, targets_too = given
    lane, rows = lane_named(of), rows_of(logits, own, False, True)
    d_logits, d_targets = lane.backward(
        rows, lane.function.restored(present(out)), present(g), targets_too=targets_too, xp=xp
    )
    return listed((laid_out(d_logits, logits), d_targets if targets_too else None), logits)


@rows_backward_operator.register_fake
def _(of: str, logits: Tensor, *given: Any) -> list[Tensor]:
    _, targets, *_, targets_too = given
    d_targets = torch.empty_like(targets, memory_format=CONTIGUOUS) if targets_too else None
    return listed((torch.empty_like(logits), d_targets), logits)


def rows_saved(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.of, logits, *own, _, _ = inputs
    function = lane_named(ctx.of).function
    ctx.others, needed = own[4:], function.needed(output)
    ctx.mark_non_differentiable(*output[function.differentiable :])
    ctx.save_for_backward(logits, *own[:4], *listed(needed, logits))
    ctx.set_materialize_grads(False)


def rows_derivative(ctx: Any, gradients: Any) -> Any:
    logits, labels, targets, keep, class_mask, *out = ctx.saved_tensors
    g = gradients[: lane_named(ctx.of).function.differentiable]
    nothing = [None] * 10
    if all(x is None for x in g):
        return tuple(nothing)
    own = labels, targets, keep, class_mask, *ctx.others
    found = operators.maskloss.rows_backward(ctx.of, logits, *own, out, listed(g, logits), ctx.needs_input_grad[3])
    nothing[1], nothing[3] = present(found)
    return tuple(nothing)


rows_operator.register_autograd(rows_derivative, setup_context=rows_saved)


def projected(
    hidden: Tensor, kernel: Tensor, bias: Tensor | None, given: Sequence[Any], with_lse: bool
) -> tuple[Projection, Rows, frozenset[str]]:
    *own, chunk_size, parts = given
    rows = rows_of(None, own, with_lse, bool(parts))
    return Projection(hidden, kernel, bias, chunk_size), rows, frozenset(parts.split(","))


@torch.library.custom_op(
    "maskloss::projection",
    mutates_args=(),
    schema=f"({OF_PROJECTION}, Tensor? answers, Tensor[] known, bool with_lse) -> Tensor[]",
)
def projection_operator(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    """What the function gives, whether the arg-max is the answer, a 0, and the gradients that `known` makes.

    The 0 is added to the loss, and has its gradients.
    """
    *rest, answers, known, with_lse = given
    lane, (projection, rows, parts) = lane_named(of), projected(hidden, kernel, bias, rest, with_lse)
    made: dict[str, Tensor] = {}
    with as_asked(hidden):
        if known:
            out, right, made = chunked.both(lane, projection, rows, present(known), parts, answers=answers, xp=xp)
        else:
            out, right = chunked.forward(lane, projection, rows, answers=answers, xp=xp)
    zero = torch.zeros((), dtype=rows.dtype, device=hidden.device) if known else None
    return listed((*given_by(lane.function, out, rows.for_backward), right, zero, *map(made.get, PARTS)), hidden)


@projection_operator.register_fake
def _(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, answers, known, with_lse = given
    function, (projection, rows, parts) = lane_named(of).function, projected(hidden, kernel, bias, rest, with_lse)
    logits = hidden.new_empty((*hidden.shape[:-1], kernel.shape[0]), dtype=rows.dtype)
    out = function.forward(rows._replace(logits=logits), xp)
    right = None if answers is None else torch.empty_like(answers, dtype=torch.bool)
    zero = hidden.new_empty((), dtype=rows.dtype) if known else None
    made = gradients_like(projection, rows, parts if known else (), rows.dtype)
    return listed((*given_by(function, out, rows.for_backward), right, zero, *made), hidden)


def gradients_like(projection: Projection, rows: Rows, parts: Container[str], of_hidden: Any) -> list[Any]:
    """As the engine makes them: a sum in the layout of its argument and the dtype of the computation."""
    made: list[Any] = []
    for name, x in zip(PARTS, (*projection[:3], rows.targets), strict=True):
        like: Tensor = x
        dtype = of_hidden if name == "hidden" else like.dtype if name == "targets" and name in parts else rows.dtype
        layout = torch.preserve_format if name in ("kernel", "bias") else CONTIGUOUS
        made.append(torch.empty_like(like, dtype=dtype, memory_format=layout) if name in parts else None)
    return made


@torch.library.custom_op(
    "maskloss::projection_backward", mutates_args=(), schema=f"({OF_PROJECTION}, Tensor[] out, Tensor[] g) -> Tensor[]"
)
def projection_backward_operator(
    of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any
) -> list[Tensor]:
    *rest, out, g = given
    lane, (projection, rows, parts) = lane_named(of), projected(hidden, kernel, bias, rest, False)
    out = lane.function.restored(present(out))
    with as_asked(hidden):
        made = chunked.backward(lane, projection, rows, out, present(g), parts, xp=xp)
    return listed(map(made.get, PARTS), hidden)


@projection_backward_operator.register_fake
def _(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, _, _ = given
    projection, rows, parts = projected(hidden, kernel, bias, rest, False)
    return listed(gradients_like(projection, rows, parts, hidden.dtype), hidden)


def projection_saved(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.of, hidden, kernel, bias, *own = inputs
    tensors, ctx.others, known = own[:4], own[4:8], own[9]
    ctx.known = len(known)
    function = lane_named(ctx.of).function
    # What follows the function's own: right, zero and four gradients.
    ctx.own = len(output) - 6
    out, made = output[: ctx.own], output[ctx.own + 2 :]
    ctx.mark_non_differentiable(*out[function.differentiable :], output[ctx.own], *made)
    ctx.save_for_backward(hidden, kernel, bias, *tensors, *listed(function.needed(out), hidden), *made)
    ctx.set_materialize_grads(False)


def projection_derivative(ctx: Any, gradients: Any) -> Any:
    hidden, kernel, bias, labels, targets, keep, class_mask, *saved = ctx.saved_tensors
    out, made = saved[: ctx.own], present(saved[ctx.own :])
    g, g_zero = gradients[: lane_named(ctx.of).function.differentiable], gradients[ctx.own + 1]
    found: list[Any] = [None] * 4
    if any(x is not None for x in g):
        given = ctx.of, hidden, kernel, bias, labels, targets, keep, class_mask, *ctx.others
        found = present(operators.maskloss.projection_backward(*given, out, listed(g, hidden)))
    if g_zero is not None:
        found = [sum_of(x, None if d is None else d * g_zero) for x, d in zip(found, made, strict=True)]
    d_hidden, d_kernel, d_bias, d_targets = (
        None if d is None else d.to(x.dtype) for d, x in zip(found, (hidden, kernel, bias, targets), strict=True)
    )
    return None, d_hidden, d_kernel, d_bias, None, d_targets, *[None] * 7, [None] * ctx.known, None


projection_operator.register_autograd(projection_derivative, setup_context=projection_saved)


def of_logits(lane: Lane, rows: Rows, *, with_derivative: bool) -> Any:
    given = operators.maskloss.rows(name_of(lane), rows.logits, *own_of(rows), rows.with_lse, with_derivative)
    return lane.function.restored(present(given))


def of_projection(
    lane: Lane, projection: Projection, rows: Rows, answers: Tensor | None, known: Callable[[], Any] | None, parts: str
) -> Found:
    hidden, kernel, bias, chunk_size = projection
    with torch.no_grad():
        before = [] if known is None or not parts else listed(known(), hidden)
    given = hidden, kernel, bias, *own_of(rows), chunk_size, parts, answers, before, rows.with_lse
    *out, right, zero, _, _, _, _ = present(operators.maskloss.projection(name_of(lane), *given))
    return Found(lane.function.restored(out), right, zero)


def name_of(lane: Lane) -> str:
    return f"{lane.way} {lane.function.name}"
