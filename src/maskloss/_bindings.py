"""What runs a call: of each library the module that knows its derivatives and its tracers, found by name.

A binding has WAYS, an implementation's functions by its name; entropy and linear_entropy; small_loss, an answer to the
commonest call with little to compute, or None; and value_and_grad, None where the library has no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import _linear, _rows
from ._arrays import Array, Namespace
from ._inputs import Inputs, choose_implementation, fail


def covers_all(rows: _rows.Rows) -> None:
    return None


class Way(NamedTuple):
    """How an implementation computes."""

    forward: Callable[..., _rows.Forward]  # of rows
    linear_forward: Callable[..., tuple[_rows.Forward, Array | None]]  # of a projection, and which arg-max is right
    uncovered: Callable[[_rows.Rows], str | None] = covers_all  # why it cannot; a projection's rows have no logits


def forward_of_all_logits(
    projection: _linear.Projection,
    rows: _rows.Rows,
    *,
    lse_too: bool,
    answers: Array | None,
    upstream: Any,
    xp: Namespace,
) -> tuple[_rows.Forward, Array | None]:
    why = "'autodiff' is one expression"
    return _linear.through_whole(projection, rows, _rows.forward, why, lse_too=lse_too, answers=answers, xp=xp)


AUTODIFF = Way(_rows.forward, forward_of_all_logits)


# By statement: torch.compile traces no import_module.
def torch_binding() -> Any:
    from . import _torch

    return _torch


def jax_binding() -> Any:
    from . import _jax_linear

    return _jax_linear


def eager_binding() -> Any:
    from . import _eager

    return _eager


BINDINGS: dict[str, Callable[[], Any]] = {"torch": torch_binding, "jax": jax_binding}


def binding_of(xp: Namespace) -> Any:
    return BINDINGS.get(xp.name, eager_binding)()


def way_of(inputs: Inputs, rows: _rows.Rows, implementation: str | None) -> Way:
    """The way that runs: the one named, or an error; None takes the first that can."""
    name = choose_implementation(implementation, inputs.like)
    way = AUTODIFF if name == "autodiff" else binding_of(inputs.xp).WAYS[name]
    why = None if implementation is None else way.uncovered(rows)
    if why is not None:
        fail(ValueError, "implementation", repr(implementation), why)
    return way
