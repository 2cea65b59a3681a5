"""Defects to plant, as data. Each has been, or could be, somebody's bug; `tests` are those expected to find it."""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # under src/maskloss
    text: str  # in it exactly once
    replacement: str
    breaks: str
    tests: tuple[str, ...]  # what pytest is given


MUTANTS: list[Mutant] = []
