"""array-api-strict: the standard and nothing else, on NumPy's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict as functions

from .standard import Array, Namespace


class Strict(Namespace):
    def reads_without_sync(self, x: Array) -> bool:
        return True

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import numpy as np

        with np.errstate(all="ignore"):  # which warns of inf - inf, overflow and the like
            return function(*args, **kwargs)


xp = Strict("array_api_strict", functions)
