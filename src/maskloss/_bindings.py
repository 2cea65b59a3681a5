"""What runs a call, by the binding of its library: the module that knows its derivatives and its tracers.

A binding has WAYS, an implementation's functions by its name; entropy and linear_entropy; small_loss, an answer to the
commonest call with little to compute, or None; and value_and_grad, None where the library has no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import _rows
from ._arrays import Array, Namespace
from ._call import Call
from ._capabilities import LIBRARIES
from ._entries import Terms, answers_of, entries_of, loss_of, right_of, terms_of, upstream_of
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


def rows_of(call: Call, terms: Terms) -> tuple[_rows.Forward, Array | None]:
    """What the rows give, and, for statistics, whether the arg-max of each entry is its answer."""
    inputs, projection, xp = call.inputs, call.projection, call.inputs.xp
    way, lse_too = way_of(inputs, terms.rows, call.implementation), call.options.z_loss > 0
    if projection is None:
        return way.forward(terms.rows, lse_too=lse_too, xp=xp), right_of(inputs) if call.with_stats else None
    answers = answers_of(inputs) if call.with_stats else None
    upstream = None if call.reduction == "none" else partial(upstream_of, call, terms)
    return way.linear_forward(projection, terms.rows, lse_too=lse_too, answers=answers, upstream=upstream, xp=xp)


def loss(call: Call) -> Any:
    terms = terms_of(call.inputs, call.options)
    return loss_of(call, terms, *rows_of(call, terms))


def log_probs(call: Call) -> Array:
    terms = terms_of(call.inputs, call.options)
    # 0 - loss, not -loss: what is not kept is 0, not -0.
    return 0.0 - entries_of(call.inputs, call.options, terms, rows_of(call, terms)[0]).losses


def entropy(call: Call) -> Array:
    inputs, xp = call.inputs, call.inputs.xp
    binding, cap = binding_of(xp), call.options.softcap
    rows = _rows.Rows(inputs.logits, None, None, inputs.keep, inputs.class_mask, cap, inputs.dtype)
    if call.projection is None:
        result = binding.entropy(rows, xp=xp)
    else:
        result = binding.linear_entropy(call.projection, rows, xp=xp)
    return result if inputs.keep is None else xp.where(inputs.keep, result, 0.0)
