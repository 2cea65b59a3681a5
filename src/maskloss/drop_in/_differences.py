"""Where a drop-in answers otherwise than its framework: the table in the documentation and the tests are made of it."""

from __future__ import annotations

from typing import NamedTuple

from . import _keras_rows, _optax_rows, _torch_rows


class Difference(NamedTuple):
    name: str  # of its test
    where: str  # the functions or classes
    when: str  # the call, in words
    theirs: str  # what the framework answers, and so does quirks="theirs"
    ours: str  # what the drop-in answers by default
    why: str


DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "torch": tuple(Difference(*row) for row in _torch_rows.ROWS),
    "optax": tuple(Difference(*row) for row in _optax_rows.ROWS),
    "keras": tuple(Difference(*row) for row in _keras_rows.ROWS),
}
