"""The binding of a library without derivatives and tracers: the engine as it is."""

from __future__ import annotations

from typing import Any

from .._arrays import Array, Namespace
from .._call import Call
from .._engine import lanes
from .._engine import projection as chunked
from .._engine.lanes import Lane, Way
from .._engine.projection import Projection
from .._engine.unshifted import UNSHIFTED, lane_of
from .._math import terms
from .._math.reduce import reduce_entries, reduction_derivatives
from .._math.rows import Found, Rows
from ..stats import LossStats

WAYS = dict.fromkeys((None, "analytic"), Way(lane_of))
common_loss = common_value_and_gradient = split_of = value_and_grad = None


def reproducible(function: Any, given: dict[str, Any]) -> tuple[Array, ...]:
    return function.value_of(given)[0]


def of_logits(lane: Lane, rows: Rows, *, xp: Namespace) -> Any:
    return lane.forward(rows, xp)


def of_projection(
    lane: Lane, projection: Projection, rows: Rows, *, answers: Array | None, known: Any, xp: Namespace
) -> Found:
    return Found(*chunked.forward(lane, projection, rows, answers=answers, xp=xp))


def value_and_gradients(call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array], LossStats | None]:
    """The loss of a scalar reduction and its analytic derivative, for libraries without one."""
    inputs, projection, xp = call.inputs, call.projection, call.inputs.xp
    parts = terms.terms_of(call)
    known = terms.upstream_of(call, parts)
    targets_too = bool(wanted & {"class_weights", "labels"}) and known.dot is not None
    answers = terms.answers_of(inputs) if call.with_stats else None
    if projection is None:
        out, d_logits, d_targets = lanes.both(UNSHIFTED, parts.rows, known, targets_too=targets_too, xp=xp)
        gradients, right = {"logits": d_logits}, None if answers is None else terms.right_of(inputs, answers)
    else:
        asked = wanted | {"targets"} if targets_too else wanted
        out, right, gradients = chunked.both(UNSHIFTED, projection, parts.rows, known, asked, answers=answers, xp=xp)
        d_targets = gradients.get("targets")
    entries = terms.entries_of(call, parts, out)
    if wanted & terms.AROUND:
        value, derivatives = reduction_derivatives(entries, call.reduction, call.denominator, xp=xp)
        gradients |= terms.adjoints(call, parts, out, derivatives, d_targets, wanted)
    else:
        value = reduce_entries(entries, call.reduction, call.denominator, xp=xp)
    return value, gradients, None if right is None else terms.stats_of(call, entries, out, right)
