"""What an implementation is to the functions that call it; and the one that every library has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import _linear, _rows
from ._arrays import Array, Namespace


def covers_all(rows: _rows.Rows) -> None:
    return None


class Way(NamedTuple):
    """How an implementation computes."""

    forward: Callable[..., _rows.Forward]  # of rows
    linear_forward: Callable[..., tuple[_rows.Forward, Array | None]]  # of a projection, and which arg-max is right
    uncovered: Callable[[_rows.Rows], str | None] = covers_all  # why it cannot; a projection's rows have no logits


def of_all_logits(why: str) -> Way:
    """As one expression, for the reason given."""

    def linear_forward(
        projection: _linear.Projection, rows: _rows.Rows, *, lse_too: bool, answers: Any, upstream: Any, xp: Namespace
    ) -> tuple[_rows.Forward, Array | None]:
        return _linear.from_all_logits(projection, rows, _rows.forward, why, lse_too=lse_too, answers=answers, xp=xp)

    return Way(_rows.forward, linear_forward)
