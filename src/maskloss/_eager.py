"""The binding of a library without derivatives and tracers: the engine as it is."""

from __future__ import annotations

from typing import Any

from . import _linear, _rows, _stream
from ._arrays import Array, Namespace
from ._ways import Way

value_and_grad = None
entropy = _stream.entropy
linear_entropy = _linear.entropy


def small_loss(logits: Array, labels: Any, mask: Any, reduction: str) -> None:
    return None


def linear_forward(
    projection: _linear.Projection,
    rows: _rows.Rows,
    *,
    lse_too: bool,
    answers: Array | None,
    upstream: Any,
    xp: Namespace,
) -> tuple[_rows.Forward, Array | None]:
    return _linear.forward(projection, rows, lse_too=lse_too, answers=answers, xp=xp)


WAYS = {"analytic": Way(_stream.forward, linear_forward)}
