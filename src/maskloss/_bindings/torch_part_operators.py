"""Of the classes held here: the engine on chunks of their logits, and the same as operators, which a compiler calls."""

# pyright: reportUnknownMemberType=false
# (torch.library's own annotations are partial.)

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import Any

import torch

from .._arrays.torch import xp
from .._arrays.torch_functions import as_asked
from .._engine import projection as chunked
from .._engine.lanes import Lane
from .._engine.projection import Projection
from .._math import parts
from .._math.parts import SOFTMAX_IN_PARTS, Best
from .._math.rows import RowFunction, Rows
from .torch_operators import (
    OF_PROJECTION,
    PARTS,
    given_by,
    gradients_like,
    lane_named,
    listed,
    name_of,
    operators,
    own_of,
    present,
    projected,
)

Tensor = Any


def own_forward(lane: Lane, projection: Projection, own: Rows, *, best_too: bool) -> tuple[Any, Best | None]:
    hidden = projection.hidden
    if not projection.kernel.shape[0]:
        own = own._replace(logits=hidden.new_empty((*hidden.shape[:-1], 0), dtype=own.dtype))
        return parts.nothing_held(own, xp=xp), parts.best_of(own, xp=xp) if best_too else None
    with as_asked(hidden):
        if best_too:
            return chunked.with_best(lane, projection, own, xp=xp)
        return chunked.forward(lane, projection, own, answers=None, xp=xp)[0], None


def own_gradients(
    lane: Lane, projection: Projection, own: Rows, out: Any, g: Any, asked: Set[str]
) -> dict[str, Tensor]:
    """The hidden states' in the dtype of the computation, as it will be added up."""
    if not projection.kernel.shape[0]:
        given: dict[str, Tensor] = {**projection._asdict(), "targets": own.targets}
        return {name: torch.zeros_like(given[name], dtype=own.dtype) for name in asked}
    with as_asked(projection.hidden):
        return chunked.backward(lane, projection, own, out, g, asked, xp=xp, of_hidden=own.dtype)


@torch.library.custom_op(
    "maskloss::own_projection", mutates_args=(), schema=f"({OF_PROJECTION}, bool best_too) -> Tensor[]"
)
def own_projection_operator(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, best_too = given
    lane, (projection, own, _) = lane_named(of), projected(hidden, kernel, bias, rest, True)
    out, best = own_forward(lane, projection, own, best_too=best_too)
    found = *given_by(lane.function, out, True), *(best or ())
    return listed((x if x is None or kernel.shape[0] else x.clone() for x in found), hidden)


@own_projection_operator.register_fake
def _(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, best_too = given
    function, (_, own, _) = lane_named(of).function, projected(hidden, kernel, bias, rest, True)
    own = own._replace(logits=hidden.new_empty((*hidden.shape[:-1], kernel.shape[0]), dtype=own.dtype))
    out = function.forward(own, xp) if kernel.shape[0] else parts.nothing_held(own, xp=xp)
    found = *given_by(function, out, True), *(parts.best_of(own, xp=xp) if best_too else ())
    return listed((None if x is None else torch.empty_like(x) for x in found), hidden)


@torch.library.custom_op(
    "maskloss::own_gradients", mutates_args=(), schema=f"({OF_PROJECTION}, Tensor[] out, Tensor[] g) -> Tensor[]"
)
def own_gradients_operator(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, out, g = given
    lane, (projection, own, asked) = lane_named(of), projected(hidden, kernel, bias, rest, True)
    made = own_gradients(lane, projection, own, lane.function.out._make(present(out)), present(g), asked)
    return listed(map(made.get, PARTS), hidden)


@own_gradients_operator.register_fake
def _(of: str, hidden: Tensor, kernel: Tensor, bias: Tensor | None, *given: Any) -> list[Tensor]:
    *rest, _, _ = given
    projection, own, asked = projected(hidden, kernel, bias, rest, True)
    return listed(gradients_like(projection, own, asked, own.dtype), hidden)


def traced_forward(lane: Lane, projection: Projection, own: Rows, *, best_too: bool) -> tuple[Any, Best | None]:
    hidden, kernel, bias, chunk_size = projection
    given = hidden, kernel, bias, *own_of(own), chunk_size, "all"
    found = present(operators.maskloss.own_projection(name_of(lane), *given, best_too))
    count = len(lane.function.out._fields)
    return lane.function.out._make(found[:count]), Best(*found[count:]) if best_too else None


def traced_gradients(
    lane: Lane, projection: Projection, own: Rows, out: Any, g: Any, asked: Set[str]
) -> dict[str, Tensor]:
    hidden, kernel, bias, chunk_size = projection
    given = hidden, kernel, bias, *own_of(own), chunk_size, ",".join(name for name in PARTS if name in asked)
    found = present(operators.maskloss.own_gradients(name_of(lane), *given, listed(out, hidden), listed(g, hidden)))
    return {name: x for name, x in zip(PARTS, found, strict=True) if x is not None}


def traced_softmax(lane: Lane | None) -> RowFunction:
    """Of logits in parts, by the lane's operators where they spare work."""
    if lane is None:
        return SOFTMAX_IN_PARTS._replace(forward=parts.forward)

    def of_part(own: Rows, xp: Any) -> Any:
        given = operators.maskloss.rows(name_of(lane), own.logits, *own_of(own), True, True)
        return lane.function.out._make(present(given))

    def backward_of_part(own: Rows, out: Any, g: Any, *, targets_too: bool, xp: Any) -> Any:
        like = own.logits
        given = name_of(lane), like, *own_of(own), listed(out, like), listed(g, like), targets_too
        return tuple(present(operators.maskloss.rows_backward(*given)))

    forward, backward = partial(parts.forward, of_part=of_part), partial(parts.backward, of_part=backward_of_part)
    return SOFTMAX_IN_PARTS._replace(forward=forward, backward=backward)
