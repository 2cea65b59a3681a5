"""The rows' sums for JAX where the rows of a class lie side by side, as those of images: along the classes' own axis.

Moved to the end, the classes would be a copy of the logits, and their gradient another.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays.jax import xp
from .._engine.unshifted import TOTALS
from .._math import softmax
from .._math.rows import Rows
from .jax_partition import spec_of

# Classes along another axis than the last are moved there if there are fewer planes, or rows in each: XLA's CPU backend
# divides the work by the former, and takes the latter side by side.
FEWEST_PLANES, LEAST_PLANE = 4, 4
HALVES = jnp.bfloat16, jnp.float16


def axis_of(rows: Rows) -> int:
    """Along which the classes are walked: where they lie, of planes enough for XLA's CPU backend to divide."""
    x, axis = rows.logits, rows.axis
    if axis == -1 or rows.part is not None or x.dtype in HALVES or any(spec_of(x)) or jax.device_count() > 1:
        return -1
    enough = math.prod(x.shape[:axis]) >= FEWEST_PLANES and math.prod(x.shape[axis:-1]) >= LEAST_PLANE
    return axis if enough else -1


def sums_of_planes(axis: int, with_terms: bool, x: Any, y: Any, keep: Any) -> list[Any]:
    """The same along another axis than the last. Selected last: what is not kept has no part in another's numbers."""

    def shifted() -> list[Any]:
        shift = softmax.finite_max(x, axis, xp=xp)
        terms = jnp.exp(x - jnp.expand_dims(shift, axis))
        return [jnp.sum(terms, axis=axis), shift, terms]

    if with_terms:
        total, shift, *terms = shifted()
    else:
        total = jnp.sum(jnp.exp(x), axis=axis)
        total, shift, *terms = unshifted_or_not(x.dtype, total, keep, lambda: shifted()[:2])
    label_logits = jnp.take_along_axis(x, jnp.expand_dims(y, axis), axis=axis, mode="clip")
    label_logits = jnp.squeeze(label_logits, axis)
    total, shift = of_kept(keep, total, shift)
    return [total, shift, label_logits if keep is None else jnp.where(keep, label_logits, 0.0), *terms]


def unshifted_or_not(dtype: Any, total: Any, keep: Any, shifted: Callable[[], list[Any]]) -> Any:
    low, high = TOTALS[is_wide(dtype)]
    in_range = (low <= total) & (total <= high)
    in_range = jnp.all(in_range if keep is None else in_range | ~keep)
    return lax.cond(in_range, lambda: [total, jnp.zeros_like(total)], shifted)


def of_kept(keep: Any, total: Any, shift: Any, *terms: Any) -> list[Any]:
    if keep is None:
        return [total, shift, *terms]
    return [jnp.where(keep, total, 1.0), jnp.where(keep, shift, 0.0), *terms]


def is_wide(dtype: Any) -> bool:
    """XLA's CPU backend makes one scalar loop of a sum of exponentials in float64: four times slower than in blocks."""
    return jnp.dtype(dtype) == jnp.float64
