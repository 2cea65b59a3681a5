"""CuPy: NumPy's interface, numbers that a device has to be waited for."""

from __future__ import annotations

from array_api_compat import cupy as functions  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

from .numpy import NumPyLike

xp = NumPyLike("cupy", functions)
