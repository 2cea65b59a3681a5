"""What an implementation is to the functions that call it: a row of data with its callables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._math.rows import RowFunction, Rows


def covers_all(function: RowFunction, rows: Rows) -> None:
    return None


class Way(NamedTuple):
    lane_of: Callable[[RowFunction], Any]  # how it computes a row function
    # Why it cannot; the rows of a projection have no logits.
    uncovered: Callable[[RowFunction, Rows], str | None] = covers_all
