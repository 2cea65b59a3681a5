"""What a provider is: a way to compute the loss, with the words that the page says of it."""

from collections.abc import Callable
from typing import NamedTuple

from workloads import applies_always

EAGER, COMPILED = "eager", "compiled"


class Provider(NamedTuple):
    """build(case, arrays of the group) returns two callables without arguments, forward and forward + backward.

    The first returns the loss, the second (loss, gradient); None is what it does not have.
    """

    name: str
    call: str
    build: Callable
    applies: Callable = applies_always
    runs: str = "every case"
    kind: str = EAGER
    # (dtype or None for any, kept or None for any): (tolerances of value and gradient, or None: not compared), reason
    exceptions: tuple = ()


def exception_of(provider, case):
    """((tolerances of value and gradient) or None where it is not compared, why), or None."""
    for dtype, kept, tolerance, why in provider.exceptions:
        if dtype in (None, case.dtype) and kept in (None, case.kept):
            return tolerance, why
    return None


NOTHING_KEPT = (None, 0, None, "0/0 where nothing is kept")
