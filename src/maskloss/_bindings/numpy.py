"""NumPy: the engine as it is, and before it the commonest call with little to compute."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from .._arrays import Array
from .._engine.unshifted import TOTALS
from .._math.reduce import DIVISORS
from .eager import WAYS as WAYS
from .eager import of_logits as of_logits
from .eager import of_projection as of_projection
from .eager import reproducible as reproducible
from .eager import split_of as split_of
from .eager import value_and_grad as value_and_grad

# Of logits: a call of the engine, of 40 us and with the gradient 80, is a small part of a loss of more.
SMALL = 1 << 15
# Of exp(x_y), and so of the sum, that serves as it is: what underflows beside it is less than a rounding. And of the
# sum, up to which 1 / divisor is divided by it: the quotient is no subnormal number.
LEAST, GREATEST = TOTALS[0]
FLOATS, INDICES, MASKS = (np.dtype(np.float32), np.dtype(np.float64)), np.dtype(np.int64), np.dtype(np.bool_)


class Kept(NamedTuple):
    """Of the kept rows."""

    places: Array | None  # among all rows; None: all are kept
    terms: Array  # exp(x)
    totals: Array  # their sums
    at_label: Array  # the places of the labels' terms among all terms
    losses: Array


def kept_of(logits: Any, labels: Any, mask: Any, axis: int, ignore_index: int | None) -> Kept | None:
    """None for any other call, and where nothing is kept or the checks of every other call have to speak."""
    if not (
        type(logits) is type(labels) is np.ndarray
        and logits.dtype in FLOATS
        and labels.dtype == INDICES
        and logits.shape[:-1] == labels.shape != logits.shape
        and axis in (-1, labels.ndim)
        and 0 < logits.size <= SMALL
    ):
        return None
    if mask is not None and not (type(mask) is np.ndarray and mask.dtype == MASKS and mask.shape == labels.shape):
        return None
    classes, places = logits.shape[-1], None
    x, y = np.ascontiguousarray(logits).reshape(-1, classes), labels.reshape(-1)
    if ignore_index is not None:
        counts = labels != ignore_index
        mask = counts if mask is None else mask & counts
    if mask is not None:
        places = mask.reshape(-1).nonzero()[0]
        x, y = x[places], y[places]
    # As an unsigned number a negative one is larger than any class.
    if not y.size or np.maximum.reduce(y.view(np.uint64)) >= classes:
        return None
    terms = np.exp(x)
    totals = np.add.reduce(terms, 1)
    at_label = cast(Array, np.arange(0, terms.size, classes)) + y
    of_labels = terms.reshape(-1).take(at_label)
    # NaN fails too. Of non-negative terms no sum, however rounded, is less than one of them: no loss is negative.
    if not (np.minimum.reduce(of_labels) >= LEAST and np.maximum.reduce(totals) <= GREATEST):
        return None
    return Kept(places, terms, totals, at_label, np.log(totals / of_labels))


def common_loss(
    logits: Any, labels: Any, mask: Any, reduction: str, axis: int, ignore_index: int | None
) -> Array | None:
    if reduction not in DIVISORS:
        return None
    kept = kept_of(logits, labels, mask, axis, ignore_index)
    if kept is None:
        return None
    if reduction != "none":
        return mean_of(kept, labels, reduction)
    if kept.places is None:
        return kept.losses.reshape(labels.shape)
    losses: Array = np.zeros(labels.size, logits.dtype)
    losses[kept.places] = kept.losses
    return losses.reshape(labels.shape)


def divisor_of(kept: Kept, labels: Array, reduction: str) -> int:
    return (1, kept.losses.size, labels.size)[DIVISORS[reduction] or 0]


def mean_of(kept: Kept, labels: Array, reduction: str) -> Array:
    total = np.add.reduce(kept.losses)
    return np.asarray(total / divisor_of(kept, labels, reduction), total.dtype)


def common_value_and_gradient(
    logits: Any, labels: Any, *, mask: Any = None, reduction: Any = "mean", axis: Any = -1, ignore_index: Any = None
) -> tuple[Array, Array] | None:
    """By the logits."""
    if type(reduction) is not str or type(axis) is not int or DIVISORS.get(reduction) is None:
        return None
    if ignore_index is not None and type(ignore_index) is not int:
        return None
    kept = kept_of(logits, labels, mask, axis, ignore_index)
    if kept is None:
        return None
    g = kept.terms.dtype.type(1 / divisor_of(kept, labels, reduction))
    gradient: Array = kept.terms  # in their place
    gradient *= (g / kept.totals)[:, None]
    gradient.reshape(-1)[kept.at_label] -= g
    if kept.places is not None:
        gradient = np.zeros((labels.size, logits.shape[-1]), logits.dtype)
        gradient[kept.places] = kept.terms
    return mean_of(kept, labels, reduction), gradient.reshape(logits.shape)
