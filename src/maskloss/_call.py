"""One checked record of a call: what every public loss, and value_and_grad, makes of its arguments."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from . import _inputs
from ._arrays import Array
from ._engine.projection import Projection
from ._inputs import Inputs


class Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    softcap: float | None


class Call(NamedTuple):
    inputs: Inputs
    options: Options
    projection: Projection | None  # None: the logits are among the inputs
    reduction: str
    denominator: Array | None
    with_stats: bool
    implementation: str | None


# Arguments that are no arrays of the entries; the others go to prepare.
OPTIONS = ("label_smoothing", "z_loss", "softcap", "reduction", "denominator", "with_stats", "implementation")


def of_logits(logits: Any, labels: Any, **given: Any) -> Call:
    """Of cross_entropy's arguments, or fewer."""
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    return checked(_inputs.prepare(logits, labels, **given), None, **options)


def of_projection(
    hidden: Any, kernel: Any, labels: Any, *, chunk_size: Any = None, bias: Any = None, **given: Any
) -> Call:
    """Of linear_cross_entropy's arguments, or fewer."""
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    if chunk_size is not None and not (type(chunk_size) is int and chunk_size > 0):
        kind = ValueError if type(chunk_size) is int else TypeError
        accepted = "it must be None or a positive int: rows of logits at a time"
        _inputs.fail(kind, "chunk_size", _inputs.describe(chunk_size), accepted)
    inputs, hidden, kernel, bias = _inputs.prepare_linear(hidden, kernel, labels, bias=bias, **given)
    return checked(inputs, Projection(hidden, kernel, bias, chunk_size), **options)


def checked(
    inputs: Inputs,
    projection: Projection | None,
    *,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    softcap: Any = None,
    reduction: Any = "none",
    denominator: Any = None,
    with_stats: Any = False,
    implementation: Any = None,
) -> Call:
    _inputs.check_reduction(reduction, denominator)
    _inputs.check_choice("with_stats", with_stats, (True, False))
    z_loss = number("z_loss", z_loss, 0.0, sys.float_info.max, "a finite number that is not negative", inputs)
    label_smoothing = number("label_smoothing", label_smoothing, 0.0, 1.0, "a number in [0, 1]", inputs)
    if softcap is not None:
        accepted = "None or a finite positive number"
        softcap = number("softcap", softcap, sys.float_info.min, sys.float_info.max, accepted, inputs)
    if denominator is not None:
        denominator = _inputs.to_denominator(denominator, inputs.dtype, inputs.like)
    options = Options(label_smoothing, z_loss, softcap)
    return Call(inputs, options, projection, reduction, denominator, with_stats, implementation)


def number(name: str, value: Any, low: float, high: float, accepted: str, inputs: Inputs) -> float:
    value = _inputs.check_number(name, value, low, high, accepted)
    return _inputs.check_held(name, value, inputs.dtype, inputs.xp)
