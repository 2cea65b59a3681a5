"""What reproducible=True runs: a function of arrays with a derivative of its own, and each a plain computation.

value_of(given) gives the results, of the caller's dtypes, and what the derivative needs beside the arguments;
gradients_of(given, saved, cotangents, wanted) those of the arguments named. A library differentiates neither: what it
would add up in an order of its own is in here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._arguments import choose_implementation, fail
from .._arrays import Array, Namespace
from .._call import Call, Options, of_logits
from .._engine import integers
from .._engine.lanes import Lane
from .._inputs import Given, Inputs
from .._math import reproducible, softmax, terms
from .._math.exact import flushed
from .._math.reduce import Cotangents, reduce_entries, reduction_derivatives
from .._math.rows import RowFunction, Rows
from ..stats import LossStats


class Reproducible(NamedTuple):
    name: str
    check: Callable[[dict[str, Any]], Any]  # raises, of numbers that a tracer would hide
    value_of: Callable[[dict[str, Any]], tuple[tuple[Array, ...], tuple[Array, ...]]]
    gradients_of: Callable[..., dict[str, Array]]
    names: tuple[str, ...]  # of the arguments that have a gradient
    results: Callable[[dict[str, Any]], int]  # how many


FUNCTIONS: dict[str, Reproducible] = {}


def registered(function: Reproducible) -> None:
    """By its name, which is what an operator of a compiler can be given of it."""
    FUNCTIONS[function.name] = function


def rounded(x: Array, dtype: Any, *, xp: Namespace) -> Array:
    return xp.rounded_to(flushed(x, xp=xp), dtype)


def to_argument(gradient: Array, argument: Array, *, xp: Namespace) -> Array:
    """In the argument's shape and dtype."""
    gradient = terms.sum_to(gradient, tuple(argument.shape), xp=xp)
    return gradient if gradient.dtype == argument.dtype else rounded(gradient, argument.dtype, xp=xp)


def call_of(given: dict[str, Any]) -> Call:
    get = given.__getitem__
    if get("implementation") == "autodiff":
        accepted = "reproducible=True has derivatives of its own; pass None"
        fail(ValueError, "implementation", repr(get("implementation")), accepted)
    about = Given(*map(get, Given._fields)), Options(*map(get, Options._fields))
    reducing = map(get, ("reduction", "denominator", "with_stats", "implementation"))
    call = of_logits(get("logits"), get("axis"), *about, *reducing)
    choose_implementation(call.implementation, call.inputs.like)
    return call


def is_walked(rows: Rows, *, xp: Namespace) -> bool:
    """Whether there are arrays that are written to, and something to walk."""
    return xp.has_out and rows.part is None and rows.logits.shape[-1] > 0 and not xp.is_tracer(rows.logits)


def lane_of(function: RowFunction, rows: Rows, implementation: str | None = None, *, xp: Namespace) -> Lane:
    if implementation == "triton" or (implementation is None and xp.prefers_kernels(rows.logits)):
        lane = lane_of_kernels(function, rows, implementation)
        if lane is not None:
            return lane
    if is_walked(rows, xp=xp):
        return integers.lane_of(function)
    return Lane("analytic", function, function.forward, function.backward)


def lane_of_kernels(function: RowFunction, rows: Rows, implementation: str | None) -> Lane | None:
    """None where they do not cover the rows, which is an error where they are named."""
    from .torch_operators import kernels

    kernels()  # says what is missing
    from . import reproducible_kernels

    why = reproducible_kernels.uncovered(function, rows)
    if why is not None and implementation is not None:
        fail(ValueError, "implementation", repr(implementation), why)
    return reproducible_kernels.LANE if why is None else None


def loss_of(given: dict[str, Any]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    call = call_of(given)
    inputs, xp, parts = call.inputs, call.inputs.xp, terms.terms_of(call)
    out: Any = lane_of(reproducible.SOFTMAX, parts.rows, call.implementation, xp=xp).forward(parts.rows, xp)
    entries = terms.entries_of(call, parts, out)
    results = [reduce_entries(entries, call.reduction, call.denominator, xp=xp)]
    if call.with_stats:
        results.extend(terms.stats_of(call, entries, out, right_of(inputs)))
    is_float = [xp.isdtype(x.dtype, "real floating") for x in results]
    results = [rounded(x, xp.float32, xp=xp) if rounds else x for x, rounds in zip(results, is_float, strict=True)]
    return tuple(results), tuple(out)


def right_of(inputs: Inputs) -> Array:
    """In float32, which the logits are of: JAX lowers an arg-max of float64 only where programs are of 64 bits."""
    xp, distribution = inputs.xp, inputs.distribution
    if distribution is not None:
        distribution = xp.astype(distribution, xp.float32)
    inputs = inputs._replace(dtype=xp.float32, distribution=distribution)
    return terms.right_of(inputs, terms.answers_of(inputs))


def loss_gradients(
    given: dict[str, Any], saved: tuple[Array, ...], cotangents: Any, wanted: frozenset[str]
) -> dict[str, Array]:
    call = call_of({**given, "validate": False})
    out: Any = reproducible.Forward(*saved)
    inputs, options, xp, parts = call.inputs, call.options, call.inputs.xp, terms.terms_of(call)
    entries = terms.entries_of(call, parts, out)
    value, total, divisor, *_, z_loss = (*cotangents, *[None] * 5)[:6]
    wide = [None if g is None else xp.astype(g, xp.float64) for g in (value, total, divisor, z_loss)]
    g = Cotangents(0.0 if wide[0] is None else wide[0], *wide[1:])
    d = reduction_derivatives(entries, call.reduction, call.denominator, g, xp=xp)[1]
    known = terms.upstream_by(call, parts, d)
    if options.z_loss and g.z_loss is not None:
        units = xp.ones_like(entries.losses) if inputs.weights is None else inputs.weights
        units = units if inputs.keep is None else xp.where(inputs.keep, units, 0.0)
        known = known._replace(squared_lse=known.squared_lse + xp.times(2.0 * options.z_loss * g.z_loss, units))
        z_terms = terms.z_term(out, options, inputs)
        z_terms = z_terms if inputs.keep is None else xp.where(inputs.keep, z_terms, 0.0)
        d = d._replace(weights=d.weights + xp.times(g.z_loss, z_terms))
    targets_too = bool(wanted & {"class_weights", "labels"}) and known.dot is not None
    lane = lane_of(reproducible.SOFTMAX, parts.rows, call.implementation, xp=xp)
    upstream = softmax.upstream(known, out, xp)
    d_logits, d_targets = lane.backward(parts.rows, out, upstream, targets_too=targets_too, xp=xp)
    gradients = {"logits": d_logits, **terms.adjoints(call, parts, out, d, d_targets, wanted)}
    return {name: of_argument(gradients[name], name, given, call) for name in wanted}


def of_argument(gradient: Array, name: str, given: dict[str, Any], call: Call) -> Array:
    xp = call.inputs.xp
    if name in ("logits", "labels"):
        gradient = xp.moved_axis(gradient, -1, given["axis"])
    return to_argument(gradient, given[name], xp=xp)


def loss_results(given: dict[str, Any]) -> int:
    return 1 + len(LossStats._fields) if given["with_stats"] else 1


def entropy_call(given: dict[str, Any]) -> Call:
    get = given.__getitem__
    about = Given(mask=get("mask"), class_mask=get("class_mask"), class_shard=get("class_shard"))
    return of_logits(get("logits"), get("axis"), about, Options(softcap=get("softcap"), reproducible=True))


def entropy_of(given: dict[str, Any]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    call = entropy_call(given)
    rows, keep, xp = terms.rows_of(call), call.inputs.keep, call.inputs.xp
    out = lane_of(reproducible.ENTROPY, rows, xp=xp).forward(rows, xp)
    value = out.value if keep is None else xp.where(keep, out.value, 0.0)
    return (rounded(value, xp.float32, xp=xp),), tuple(out)


def entropy_gradients(
    given: dict[str, Any], saved: tuple[Array, ...], cotangents: Any, wanted: frozenset[str]
) -> dict[str, Array]:
    call, out = entropy_call(given), reproducible.Entropy(*saved)
    rows, xp = terms.rows_of(call), call.inputs.xp
    g = (xp.astype(cotangents[0], xp.float64),)
    d_logits, _ = lane_of(reproducible.ENTROPY, rows, xp=xp).backward(rows, out, g, targets_too=False, xp=xp)
    return {name: of_argument(d_logits, name, given, call) for name in wanted}


def one_result(given: dict[str, Any]) -> int:
    return 1


LOSS = Reproducible("loss", call_of, loss_of, loss_gradients, ("logits", *sorted(terms.AROUND)), loss_results)
registered(LOSS)
registered(Reproducible("entropy", entropy_call, entropy_of, entropy_gradients, ("logits",), one_result))


def restored(results: tuple[Array, ...]) -> Any:
    value, *stats = results
    return (value, LossStats(*stats)) if stats else value
