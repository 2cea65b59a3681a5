"""What runs a call, by the binding of its library: the module that knows its derivatives and its tracers.

A binding has WAYS, an implementation's functions by its name, None being the default's; of_logits and of_projection,
which run a lane of one; carried, the loss of what that found, with the derivative of its `zero`; common_loss, an
answer to the commonest call with little around it, or None; split_of, how the arrays of a call are split over
processes, or None; value_and_grad, None where the library has no derivatives; and called, JAX's, through which public
functions run.
"""

from __future__ import annotations

from typing import Any

from .._arguments import check_choice, choose_implementation, fail, floating_like
from .._arrays import BINDINGS, Array, Namespace
from .._call import Call
from .._capabilities import LIBRARIES
from .._engine import projection as chunked
from .._engine.lanes import Lane
from .._engine.projection import Projection
from .._math import terms
from .._math.entropy import ENTROPY
from .._math.parts import ENTROPY_IN_PARTS, IN_PARTS, is_largest
from .._math.reduce import reduce_entries
from .._math.rows import Found, RowFunction, Rows
from .._math.softmax import SOFTMAX
from . import eager
from .reproducible import restored
from .reproducible_reductions import FUNCTIONS


# By statement: torch.compile traces no import_module.
def torch_binding() -> Any:
    from . import torch

    return torch


def jax_binding() -> Any:
    from . import jax

    return jax


def numpy_binding() -> Any:
    from . import numpy

    return numpy


BINDINGS.update(torch=torch_binding, jax=jax_binding, numpy=numpy_binding)


def binding_of(xp: Namespace) -> Any:
    found = BINDINGS.get(xp.name)
    return eager if found is None else found()


def run_reproducible(name: str, asked: Any, given: dict[str, Any]) -> Any:
    """What the function of that name in reproducible.py gives of these arguments."""
    check_choice(reproducible=asked)
    first = next(iter(given))
    binding = binding_of(floating_like(first, given[first]).xp)
    return restored(binding.reproducible(FUNCTIONS[name], given))


def run(call: Call, function: RowFunction, rows: Rows, *, answers: Array | None = None, known: Any = None) -> Found:
    """What the function gives of each entry.

    `known` gives what is known of the upstream gradient before the loss, where a scalar loss is made of it.
    """
    inputs, projection, xp = call.inputs, call.projection, call.inputs.xp
    name, binding = choose_implementation(call.implementation, inputs.like), binding_of(xp)
    if name == "autodiff":
        forward = function.forward if inputs.part is None else IN_PARTS[function.name].forward
        return as_expression(forward, projection, rows, "'autodiff' is one expression", answers, xp=xp)
    way = binding.WAYS.get(call.implementation)
    if way is None:
        fail(ValueError, "implementation", repr(call.implementation), f"there is none for {LIBRARIES[xp.name]}")
    why = None if call.implementation is None else way.uncovered(function, rows)
    if why is not None:
        fail(ValueError, "implementation", repr(call.implementation), why)
    lane, split = way.lane_of(function), binding.split_of and binding.split_of(projection, rows)
    if split is None:
        return of_lane(binding, lane, projection, rows, answers, known, xp=xp)
    projection, rows, answers, known = split.own(projection, rows, answers, known)
    found = of_lane(binding, lane, projection, rows, answers, known, xp=xp)
    if projection is None and answers is not None:
        found = found._replace(right=is_largest(rows, answers, xp=xp))
    return split.whole(function, found)


def of_lane(
    binding: Any,
    lane: Lane,
    projection: Projection | None,
    rows: Rows,
    answers: Array | None,
    known: Any,
    *,
    xp: Namespace,
) -> Found:
    """By the lane, of the classes held here."""
    if rows.part is not None and lane.function is ENTROPY:
        why = "of classes in parts it is one expression of those held here"
        return as_expression(ENTROPY_IN_PARTS.forward, projection, rows, why, answers, xp=xp)
    if projection is None:
        return Found(binding.of_logits(lane, rows, xp=xp))
    return binding.of_projection(lane, projection, rows, answers=answers, known=known, xp=xp)


def as_expression(
    forward: Any, projection: Projection | None, rows: Rows, why: str, answers: Array | None, *, xp: Namespace
) -> Found:
    if projection is None:
        return Found(forward(rows, xp))
    return chunked.from_all_logits(projection, rows, forward, why, answers=answers, xp=xp)


def loss(call: Call) -> Any:
    inputs, parts = call.inputs, terms.terms_of(call)
    answers = terms.answers_of(inputs) if call.with_stats else None
    known = None if call.reduction == "none" else lambda: terms.upstream_of(call, parts)
    found = run(call, SOFTMAX, parts.rows, answers=answers, known=known)
    entries = terms.entries_of(call, parts, found.out)
    if found.zero is None:
        value = reduce_entries(entries, call.reduction, call.denominator, xp=inputs.xp)
    else:
        value = binding_of(inputs.xp).carried(call, parts, found)
    if not call.with_stats:
        return value
    right = terms.right_of(inputs, answers) if found.right is None else found.right
    return value, terms.stats_of(call, entries, found.out, right)


def log_probs(call: Call) -> Array:
    parts = terms.terms_of(call)
    # 0 - loss, not -loss: what is not kept is 0, not -0.
    return 0.0 - terms.entries_of(call, parts, run(call, SOFTMAX, parts.rows).out).losses


def values(call: Call, function: RowFunction, rows: Rows) -> Array:
    """What a function of one number a row gives of each entry; 0 where not kept."""
    keep, value = call.inputs.keep, run(call, function, rows).out.value
    return value if keep is None else call.inputs.xp.where(keep, value, 0.0)


def entropy(call: Call) -> Array:
    return values(call, ENTROPY, terms.rows_of(call))
