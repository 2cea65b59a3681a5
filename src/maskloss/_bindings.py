"""What runs a call: of each library the module that knows its derivatives and its tracers, found by name.

A binding has WAYS, an implementation's functions by its name; entropy and linear_entropy; small_loss, an answer to the
commonest call with little to compute, or None; and value_and_grad, None where the library has no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _rows
from ._arrays import Namespace
from ._capabilities import LIBRARIES
from ._inputs import Inputs, choose_implementation, fail, reason_not_run
from ._ways import Way, of_all_logits


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
    if name == "autodiff":
        why = "'autodiff' is one expression" if implementation else reason_not_run("analytic", inputs.like)
        return of_all_logits(why or "")
    way = binding_of(inputs.xp).WAYS.get(name)
    if way is None:
        fail(ValueError, "implementation", repr(implementation), f"there is none for {LIBRARIES[inputs.xp.name]}")
    why = None if implementation is None else way.uncovered(rows)
    if why is not None:
        fail(ValueError, "implementation", repr(implementation), why)
    return way
