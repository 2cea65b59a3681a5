"""The binding of JAX: sums with a derivative of their own, and a projection in a loop of run-time length."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .._arrays import Namespace, is_static
from .._arrays.jax import xp
from .._call import Call
from .._engine import projection as chunked
from .._engine.lanes import Lane, Way
from .._engine.projection import Projection
from .._math import parts
from .._math.rows import Found, RowFunction, Rows
from .._math.softmax import SOFTMAX, Forward
from .._math.terms import Terms, reduced
from . import jax_loop, jax_sums

common_loss = split_of = None


def lane_of(function: RowFunction) -> Lane:
    """JAX differentiates forward itself, and compiles blocks of its own."""
    forward = jax_sums.forward if function is SOFTMAX else function.forward
    return Lane("analytic", function, forward, function.backward)


WAYS = dict.fromkeys((None, "analytic"), Way(lane_of, jax_sums.uncovered))


def of_logits(lane: Lane, rows: Rows, *, xp: Namespace) -> Any:
    return lane.forward(rows, xp) if rows.part is None else parts.expression(rows, xp, of_part=lane.forward)


def of_projection(
    lane: Lane, projection: Projection, rows: Rows, *, answers: Any, known: Callable[[], Any] | None, xp: Namespace
) -> Found:
    why = why_whole(projection.hidden)
    if rows.part is not None:
        if why is None and answers is None:
            return Found(in_chunks(lane, projection, rows))
        why = why or "statistics of classes in parts are of all logits held here"
    if why is not None:

        def of_rows(rows: Rows, xp: Namespace) -> Any:
            return of_logits(lane, rows, xp=xp)

        return chunked.from_all_logits(projection, rows, of_rows, why, answers=answers, xp=xp)
    return jax_loop.of_projection(lane, projection, rows, answers, None if known is None else known())


def backward_of_part(rows: Rows, out: Any, g: Any, **options: Any) -> Any:
    """Of what `parts.of_all` takes: a total and a shift beside what has a derivative."""
    return SOFTMAX.backward(rows, out, g[: SOFTMAX.differentiable], lse_is_held=True, **options)


SOFTMAX_OF_PART = SOFTMAX._replace(differentiable=len(Forward._fields), backward=backward_of_part)


def in_chunks(lane: Lane, projection: Projection, rows: Rows) -> Any:
    """The classes held here in chunks, and of all of them at once what goes between the devices."""
    lane = lane._replace(function=SOFTMAX_OF_PART)
    out = jax_loop.of_projection(lane, projection, parts.own_rows(rows, xp=xp), None, None).out
    if rows.keep is not None:  # of what is not visited: 0 has no logarithm
        out = out._replace(total=xp.where(rows.keep, out.total, 1.0))
    return parts.of_all(rows, out, xp=xp)


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


def value_and_grad(of_values: Callable[..., Any], values: list[Any], has_aux: bool) -> tuple[Any, list[Any]]:
    return jax.value_and_grad(of_values, has_aux=has_aux)(values)
