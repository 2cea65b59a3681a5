"""A block of rows of logits, and what a function of such rows consists of.

`into`, where a function takes it, is an array of the block's shape to compute in, which may be the logits themselves;
None allocates. A block that fits the cache then costs no memory traffic, where each fresh array costs a page fault per
4 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .._arrays import Array, Namespace


class Rows(NamedTuple):
    """What forward and backward both need.

    logits (..., C); labels (...) in [0, C); targets broadcasts to (..., C); keep (...); class_mask (..., C).
    """

    logits: Array  # None: a projection makes them
    labels: Array | None
    targets: Array | None
    keep: Array | None
    class_mask: Array | None
    kept: Array | None  # the places among the flattened entries where `keep` is true, once they have been looked for
    softcap: float | None
    dtype: Any  # of the computation
    with_lse: bool
    for_backward: bool = False  # whether what the backward needs is asked for
    part: Any = None  # of the classes, where other processes hold the others
    axis: int = -1  # from the end: along which the classes lay before they were moved there


class Value(NamedTuple):
    """Of a function that gives one number a row."""

    value: Array


class Found(NamedTuple):
    """What a run of a row function gives of each entry."""

    out: Any  # of the function
    right: Array | None = None  # whether the arg-max is the answer
    zero: Array | None = None  # a number 0, whose derivative is that, by `out`, of the loss that is made of it


def as_known(known: Any, out: Any, xp: Namespace) -> Any:
    return known


def as_given(out: Any, xp: Namespace) -> Any:
    return out


class RowFunction(NamedTuple):
    """A function of each row, as the pair forward and backward, with which its automatic differentiation agrees.

    forward(rows, xp) gives numbers per row in a NamedTuple: first those that may be differentiated, last those
    that backward needs, the others None. backward(rows, out, g, *, targets_too, xp, into) takes the upstream gradient
    of each of the former, None where there is none, and gives those of the logits, in rows.dtype, and of the targets,
    not yet summed to their shape. tangents(rows, out, t_logits, t_targets, xp) is the derivative along these.
    """

    name: str
    out: Any  # the NamedTuple
    forward: Callable[..., Any]
    backward: Callable[..., tuple[Array, Array | None]]
    tangents: Callable[..., tuple[Array | None, ...]]
    traced_plainly: bool = True  # where forward is traced, its own differentiation will do
    differentiable: int = 1  # numbers of `out`
    needed_from: int = 1  # the first that backward needs
    upstream: Callable[[Any, Any, Any], Any] = as_known  # (known, out, xp) -> g, of what is known of it before the loss
    restated: Callable[[Any, Any], Any] = as_given  # (out, xp) -> out, with which backward can be differentiated

    def needed(self, out: Any) -> Any:
        """What backward needs of it."""
        return self.out._make((*[None] * self.needed_from, *out[self.needed_from :]))

    def restored(self, values: Any) -> Any:
        """`out` of its first fields."""
        return self.out._make((*values, *[None] * (len(self.out._fields) - len(values))))


FUNCTIONS: dict[str, RowFunction] = {}


def registered(function: RowFunction) -> RowFunction:
    """By its name, which is what an operator of a compiler can be given of it."""
    return FUNCTIONS.setdefault(function.name, function)


def allowed_of(rows: Rows, *, xp: Namespace) -> Array | None:
    """Which logits exist: those of kept rows and, there, of classes that class_mask admits. None: all."""
    if rows.keep is None:
        return rows.class_mask
    keep = xp.expand_dims(rows.keep, axis=-1)
    return keep if rows.class_mask is None else keep & rows.class_mask


def selected_logits(rows: Rows, *, xp: Namespace) -> tuple[Array, Array | None]:
    """Logits as they enter the function, and d(these)/d(logits) where softcap makes it other than 1.

    Selection comes before any arithmetic, so that what is not kept reaches neither value nor derivative.
    """
    x: Array = xp.astype(rows.logits, rows.dtype, copy=False)
    slope = None
    if rows.keep is rows.class_mask is rows.softcap is None:
        return x, slope
    allowed = allowed_of(rows, xp=xp)
    if allowed is not None:
        x = xp.where(allowed, x, 0.0)
    if rows.softcap is not None:
        x, slope = capped(x, rows.softcap, xp=xp)
    if rows.class_mask is not None:
        x = xp.where(rows.class_mask, x, -math.inf)
    return x, slope


def capped(x: Array, softcap: float, *, xp: Namespace) -> tuple[Array, Array]:
    tanh = xp.tanh(x / softcap)
    return softcap * tanh, 1.0 - tanh * tanh


def through_selection(d_logits: Array, slope: Array | None, rows: Rows, *, xp: Namespace) -> Array:
    """The adjoint of selected_logits; also its derivative."""
    allowed = allowed_of(rows, xp=xp)
    # A tangent may hold NaN where nothing is kept, a slope there is 1.
    d_logits = d_logits if slope is None else d_logits * slope
    return d_logits if allowed is None else xp.where(allowed, d_logits, 0.0)


def selected_targets(rows: Rows, *, xp: Namespace) -> Array:
    targets: Array = rows.targets
    if targets.ndim == 1:
        targets = xp.of_rank(targets, rows.logits.ndim)
    return targets if rows.class_mask is None else xp.where(rows.class_mask, targets, 0.0)


def sum_of(*terms: Array | None) -> Array:
    """Of those that are not None; None where all are."""
    total = None
    for term in terms:
        total = term if total is None else total if term is None else total + term
    return total


def is_largest(rows: Rows, answers: Array, *, xp: Namespace) -> Array:
    """Whether the first of the largest allowed logits of each row is that of its answer."""
    x = allowed_logits(rows, xp=xp)
    # arg-max takes a NaN for the largest, and a NaN is no right answer.
    largest = xp.take_label(x, answers) if rows.class_mask is None and xp.gathers_classes else xp.max(x, axis=-1)
    return (first_largest(x, largest, rows.class_mask, xp=xp) == answers) & ~xp.isnan(largest)


def allowed_logits(rows: Rows, *, xp: Namespace) -> Array:
    """As they were given, and -inf where class_mask admits none."""
    x = xp.astype(rows.logits, rows.dtype, copy=False)
    return x if rows.class_mask is None else xp.where(rows.class_mask, x, -math.inf)


def first_largest(x: Array, largest: Array, class_mask: Array | None, *, xp: Namespace) -> Array:
    """The first class with the largest of the allowed logits; of nothing but -inf the first that is allowed."""
    first = xp.argmax(x, axis=-1)
    if class_mask is None:
        return first
    first_allowed = xp.argmax(xp.astype(class_mask, xp.uint8), axis=-1)
    return xp.where(largest == -math.inf, first_allowed, first)
