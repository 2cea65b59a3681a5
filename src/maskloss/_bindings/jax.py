"""The binding of JAX: sums with a derivative of their own, and a projection in a loop of run-time length."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from .._arguments import fail
from .._arrays import Namespace, as_array, is_static
from .._arrays.jax import xp
from .._call import Call
from .._capabilities import NOT_REPRODUCIBLE
from .._engine import projection as chunked
from .._engine.lanes import Lane, Way
from .._engine.projection import Projection
from .._math import parts
from .._math.rows import Found, RowFunction, Rows
from .._math.softmax import SOFTMAX, Forward
from .._math.terms import Terms, reduced
from . import jax_calls, jax_loop, jax_sums

common_loss = split_of = None
called = jax_calls.called


def lane_of(function: RowFunction) -> Lane:
    """JAX differentiates forward itself, and compiles blocks of its own."""
    forward = jax_sums.forward if function is SOFTMAX else function.forward
    return Lane("analytic", function, forward, function.backward)


WAYS = dict.fromkeys((None, "analytic"), Way(lane_of, jax_sums.uncovered))


def reproducible(function: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    """In 64 bits, within a program of 32 as well; reverse mode alone."""
    if given.get("class_shard") is not None:
        fail(ValueError, "reproducible", "True beside class_shard", NOT_REPRODUCIBLE["jax class_shard"])
    given = {name: as_array(x) for name, x in given.items()}
    with jax.enable_x64(True):
        function.check(given)
    arrays = {name: x for name, x in given.items() if isinstance(x, jax.Array)}

    @jax.custom_vjp
    def run(arrays: dict[str, Any]) -> Any:
        with jax.enable_x64(True):
            return function.value_of({**given, **no_constants(arrays)})[0]

    def forward(arrays: dict[str, Any]) -> Any:
        with jax.enable_x64(True):
            results, saved = function.value_of({**given, **no_constants(arrays)})
        return results, (arrays, saved)

    def backward(residuals: Any, cotangents: Any) -> Any:
        arrays, saved = residuals
        wanted = frozenset(name for name in function.names if name in arrays and is_floating(arrays[name]))
        cotangents = [None if x.dtype == jax.dtypes.float0 else x for x in cotangents]
        with jax.enable_x64(True):
            given_here, cotangents = {**given, **no_constants(arrays)}, no_constants(cotangents)
            made = function.gradients_of(given_here, saved, cotangents, wanted)
        return ({name: made.get(name) for name in arrays},)

    run.defvjp(forward, backward)
    return run(arrays)


def no_constants(arrays: Any) -> Any:
    """Arrays that XLA knows nothing of beforehand: it rewrites arithmetic with what it knows."""
    return jax.lax.optimization_barrier(arrays)


def is_floating(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.numpy.floating)


def of_logits(lane: Lane, rows: Rows, *, xp: Namespace) -> Any:
    return lane.forward(rows, xp) if rows.part is None else parts.expression(rows, xp, of_part=lane.forward)


def of_projection(
    lane: Lane, projection: Projection, rows: Rows, *, answers: Any, known: Callable[[], Any] | None, xp: Namespace
) -> Found:
    why = why_whole(projection.hidden)
    if rows.part is not None and why is None:
        return in_chunks(lane, projection, rows, answers)
    if why is not None:

        def of_rows(rows: Rows, xp: Namespace) -> Any:
            return of_logits(lane, rows, xp=xp)

        return chunked.from_all_logits(projection, rows, of_rows, why, answers=answers, xp=xp)
    return jax_loop.of_projection(lane, projection, rows, answers, None if known is None else known())


class OfPart(NamedTuple):
    """What `parts.of_all` and `parts.is_best` take: the latter two where they are asked for."""

    nll: Any
    dot: Any
    lse: Any
    total: Any
    shift: Any
    largest: Any
    first: Any


def backward_of_part(rows: Rows, out: OfPart, g: Any, **options: Any) -> Any:
    return SOFTMAX.backward(rows, cast(Any, out), g[: SOFTMAX.differentiable], lse_is_held=True, **options)


# All is given: what has no derivative as well.
SOFTMAX_OF_PART = SOFTMAX._replace(out=OfPart, differentiable=len(OfPart._fields), backward=backward_of_part)


@functools.cache  # as what is traced again for every function that is new
def lane_of_part(lane: Lane, best_too: bool) -> Lane:
    def forward(rows: Rows, xp: Namespace) -> OfPart:
        largest, first = parts.best_of(rows, xp=xp) if best_too else (None, None)
        return OfPart(*lane.forward(rows, xp), largest=largest, first=first)

    return lane._replace(function=SOFTMAX_OF_PART, forward=forward)


def in_chunks(lane: Lane, projection: Projection, rows: Rows, answers: Any) -> Found:
    """The classes held here in chunks, and of all of them at once what goes between the devices."""
    lane, own = lane_of_part(lane, answers is not None), parts.own_rows(rows, xp=xp)
    *values, largest, first = jax_loop.of_projection(lane, projection, own, None, None).out
    out, right = Forward(*values), None
    if rows.keep is not None:  # of what is not visited: 0 has no logarithm
        out = out._replace(total=xp.where(rows.keep, out.total, 1.0))
    if answers is not None:
        right = parts.is_best(rows.part, parts.Best(largest, first), answers, xp=xp)
    return Found(parts.of_all(rows, out, xp=xp), right)


def why_whole(hidden: Any) -> str | None:
    """Why all logits are made at once; None: they are not."""
    if 0 in hidden.shape[:-1]:
        return ""
    return None if is_static(*hidden.shape) else "the number of rows is a symbol"


def carried(call: Call, parts: Terms, found: Found) -> Any:
    """The derivative by `out` is left to the 0 alone; that by all else still depends on `out`, to any order."""
    leaves, tree = jax.tree.flatten((call, parts))
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

    def loss(out: Any, arrays: Any) -> Any:
        given = leaves.copy()
        for i, x in zip(places, arrays, strict=True):
            given[i] = x
        pair: Any = tree.unflatten(given)
        return reduced(pair[0], pair[1], out)

    @jax.custom_jvp
    def with_zero(out: Any, zero: Any, arrays: Any) -> Any:
        return loss(out, arrays)

    @with_zero.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (out, _, arrays), (_, t_zero, t_arrays) = primals, tangents
        value, tangent = jax.jvp(lambda arrays: loss(out, arrays), (arrays,), (t_arrays,))
        return value, tangent + t_zero

    return with_zero(found.out, found.zero, [leaves[i] for i in places])


def value_and_grad(
    of_values: Callable[..., Any], values: list[Any], has_aux: bool, named: Callable[[], Any]
) -> tuple[Any, list[Any]]:
    loss = named()
    found = None if loss is None else jax_calls.value_and_grad(loss, has_aux)
    return found or jax.value_and_grad(of_values, has_aux=has_aux)(values)
