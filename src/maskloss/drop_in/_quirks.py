"""The one keyword that every drop-in adds to its framework's signature."""

from __future__ import annotations

from typing import Any, Literal

from .._arguments import fail

Quirks = Literal["theirs"] | None


def are_theirs(quirks: Any) -> bool:
    """Whether the framework's answer is wanted also where it is a quirk."""
    if quirks is None:
        return False
    if not isinstance(quirks, str):
        fail(TypeError, "quirks", repr(quirks), "it must be None or 'theirs'")
    if quirks != "theirs":
        fail(ValueError, "quirks", repr(quirks), "it must be None or 'theirs'")
    return True
