"""softmax.py and entropy.py in exact.py's arithmetic: every number depends on those of its row alone.

With d_c = x_c - max_c x_c and integers E_c, ONE exp(d_c) rounded, whose sum is T,

    lse - x_c = log(T / ONE) - d_c        p_c = ONE exp(d_c) / T        dx_y = g_nll (E_y - T) / T, of class indices

The rest is as there. A row with +inf or NaN has no such sum: its lse is that, and its gradient NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .._arrays import Array, Namespace
from .._shards import all_max, all_sum, own_labels
from . import exact
from .exact import AS_NUMBERS, IN_UNITS, ONE, in_units, log_of_units, total_of
from .rows import RowFunction, Rows, registered, selected_logits, selected_targets, sum_of, through_selection

# Of exponentials as numbers to those in units.
TO_UNITS = 2.0 ** (IN_UNITS - AS_NUMBERS)


class Forward(NamedTuple):
    nll: Array | None
    dot: Array | None
    lse: Array
    total: Array  # T, of int64; 0 where every class has probability 0
    shift: Array  # finite
    mass: Array | None


class Entropy(NamedTuple):
    value: Array
    total: Array
    shift: Array


def logits_of(rows: Rows, *, xp: Namespace) -> tuple[Array, Array | None]:
    """selected_logits, with a tanh that is the same everywhere."""
    if rows.softcap is None:
        return selected_logits(rows, xp=xp)
    x, _ = selected_logits(rows._replace(softcap=None, class_mask=None), xp=xp)
    tanh = exact.tanh(xp.over(x, rows.softcap), xp=xp)
    capped = xp.settled(rows.softcap * tanh)
    if rows.class_mask is not None:
        capped = xp.where(rows.class_mask, capped, -math.inf)
    return capped, 1.0 - xp.times(tanh, tanh)


def largest_of(x: Array, rows: Rows, *, xp: Namespace) -> Array:
    """The largest logit of each row."""
    # XLA takes ten times as long for the maximum of float64 (jaxlib 0.10.2); uncapped logits are of float32.
    narrow = x if rows.softcap is not None else xp.astype(x, xp.float32)
    largest = xp.largest(narrow, axis=(-1,), keepdims=False) if x.shape[-1] else xp.sum(narrow, axis=-1) - math.inf
    largest = xp.astype(largest, xp.float64)
    if rows.part is not None:
        (is_nan,) = all_sum(rows.part, xp.astype(xp.isnan(largest), xp.int32), xp=xp)
        (largest,) = all_max(rows.part, xp.where(xp.isnan(largest), -math.inf, largest), xp=xp)
        largest = xp.where(is_nan > 0, math.nan, largest)
    return largest


def shift_of(largest: Array, *, xp: Namespace) -> Array:
    return xp.where(xp.isfinite(largest), largest, 0.0)


def label_logits(x: Array, rows: Rows, *, xp: Namespace) -> Array | None:
    if rows.labels is None:
        return None
    labels, here = own_labels(rows.part, rows.labels, xp=xp)
    if here is None:
        return xp.take_label(x, labels)
    found = xp.where(here, xp.take_label(x, labels), 0.0) if x.shape[-1] else xp.sum(x, axis=-1)
    return all_sum(rows.part, found, xp=xp)[0]


def counted(total: Array, *, xp: Namespace) -> Array:
    """T, and ONE where every class has probability 0."""
    return xp.where(total > 0, total, ONE)


def log_of(total: Array, *, xp: Namespace) -> Array:
    return log_of_units(counted(total, xp=xp), xp=xp)


def from_numbers(total: Array, *, xp: Namespace) -> Array:
    """What makes probabilities of exponentials as numbers."""
    return xp.over(TO_UNITS, xp.astype(counted(total, xp=xp), xp.float64))


def costs(x: Array, out: Any, *, xp: Namespace) -> Array:
    """lse - x_c."""
    return xp.expand_dims(log_of(out.total, xp=xp), axis=-1) - (x - xp.expand_dims(out.shift, axis=-1))


def shares(x: Array, out: Any, *, xp: Namespace) -> Array:
    """p_c, of rows that have any."""
    e = exact.exponentials(x - xp.expand_dims(out.shift, axis=-1), AS_NUMBERS, xp=xp)
    return e * xp.expand_dims(from_numbers(out.total, xp=xp), axis=-1)


def weightless(x: Array, targets: Array, *, xp: Namespace) -> Array:
    """As softmax.costs: 0 * inf is 0."""
    return xp.isinf(x) & (targets == 0)


def finished(
    rows: Rows, largest: Array, total: Array, at_label: Array | None, mass: Array | None, moment: Array | None, xp: Any
) -> Forward:
    shift = shift_of(largest, xp=xp)
    total = xp.where(largest == -math.inf, 0, total)
    log_total = log_of(total, xp=xp)
    lse, is_undefined = xp.where(largest == -math.inf, largest, log_total + largest), ~(largest < math.inf)
    nll = dot = None
    if at_label is not None:
        nll = xp.where(is_undefined, lse - at_label, log_total - (at_label - shift))
    if mass is not None:
        dot = xp.where(is_undefined, lse, xp.times(mass, log_total) - moment)
    return Forward(nll, dot, lse, total, shift, mass)


def forward(rows: Rows, xp: Namespace) -> Forward:
    x, _ = logits_of(rows, xp=xp)
    largest = largest_of(x, rows, xp=xp)
    away = x - xp.expand_dims(shift_of(largest, xp=xp), axis=-1)
    units = xp.sum_as_integers(exact.exponentials(away, IN_UNITS, xp=xp))
    (total,) = all_sum(rows.part, units, xp=xp)
    mass = moment = None
    if rows.targets is not None:
        mass, moment = mass_and_moment(away, rows, xp=xp)
    return finished(rows, largest, total, label_logits(x, rows, xp=xp), mass, moment, xp)


def mass_and_moment(away: Array, rows: Rows, *, xp: Namespace) -> tuple[Array, Array]:
    """sum_c t_c and sum_c t_c d_c."""
    targets = xp.broadcast_to(selected_targets(rows._replace(logits=away), xp=xp), away.shape)
    nothing = weightless(away, targets, xp=xp)
    return (
        total_of(xp.where(nothing, 0.0, targets), away.ndim - 1, part=rows.part, xp=xp),
        total_of(targets * xp.where(nothing, 0.0, away), away.ndim - 1, part=rows.part, xp=xp),
    )


def others_of(out: Forward, g: Any, *, xp: Namespace) -> Array | None:
    """What p_c is weighed by beside g_nll."""
    _, g_dot, g_lse = g
    return sum_of(g_lse, None if g_dot is None else xp.times(g_dot, out.mass))


def scale_of(out: Forward, g: Any, *, xp: Namespace) -> Array:
    """What exponentials as numbers are multiplied by in the gradient: NaN of +inf or NaN, 0 of nothing but -inf."""
    coefficient = xp.where(out.lse < math.inf, sum_of(g[0], others_of(out, g, xp=xp)), math.nan)
    coefficient = xp.where((out.total > 0) | xp.isnan(coefficient), coefficient, 0.0)
    return coefficient * from_numbers(out.total, xp=xp)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, into: Array | None = None
) -> tuple[Array, Array | None]:
    g_nll, g_dot, _ = g
    x, slope = logits_of(rows, xp=xp)
    e = exact.exponentials(x - xp.expand_dims(out.shift, axis=-1), AS_NUMBERS, xp=xp)
    d_logits, d_targets = xp.times(e, xp.expand_dims(scale_of(out, g, xp=xp), axis=-1)), None
    if g_nll is not None and x.shape[-1]:
        labels, here = own_labels(rows.part, rows.labels, xp=xp)
        at_label = xp.class_indices(x, labels.dtype) == xp.expand_dims(labels, axis=-1)
        at_label = at_label if here is None else at_label & xp.expand_dims(here, axis=-1)
        of_label = label_gradients(xp.take_label(x, labels), out, g, xp=xp)
        d_logits = xp.where(at_label, xp.expand_dims(of_label, axis=-1), d_logits)
    if g_dot is not None:
        targets = selected_targets(rows, xp=xp)
        g_dot = xp.expand_dims(g_dot, axis=-1)
        d_logits = d_logits - xp.times(g_dot, targets)
        if targets_too:
            cost = costs(x, out, xp=xp)
            d_targets = g_dot * xp.where(weightless(cost, targets, xp=xp), 0.0, cost)
            d_targets = d_targets if rows.class_mask is None else xp.where(rows.class_mask, d_targets, 0.0)
    return through_selection(d_logits, slope, rows, xp=xp), d_targets


def label_gradients(label_logits: Array, out: Forward, g: Any, *, xp: Namespace) -> Array:
    """(g_nll + others) p_y - g_nll, in which E_y - T is exact."""
    e = exact.exponentials(label_logits - out.shift, IN_UNITS, xp=xp)
    units, divisor = in_units(e, xp=xp), xp.astype(counted(out.total, xp=xp), xp.float64)
    others = others_of(out, g, xp=xp)
    d = xp.times(g[0], xp.where(out.total > 0, xp.over(xp.astype(units - out.total, xp.float64), divisor), -1.0))
    if others is not None:
        d = d + xp.times(others, xp.where(out.total > 0, xp.over(xp.astype(units, xp.float64), divisor), 0.0))
    return xp.where(out.lse < math.inf, d, math.nan)


def probabilities(rows: Rows, out: Forward, *, xp: Namespace) -> Array:
    """p_c; 0 of what does not exist."""
    x, _ = logits_of(rows, xp=xp)
    p = xp.where(xp.expand_dims(out.total > 0, axis=-1) & (x > -math.inf), shares(x, out, xp=xp), 0.0)
    return xp.where(xp.expand_dims(out.lse < math.inf, axis=-1), p, math.nan)


def log_probabilities(rows: Rows, out: Forward, *, xp: Namespace) -> Array:
    """x_c - lse."""
    x, _ = logits_of(rows, xp=xp)
    return xp.where(xp.expand_dims(out.lse < math.inf, axis=-1), -costs(x, out, xp=xp), math.nan)


def entropy(rows: Rows, xp: Namespace) -> Entropy:
    """H = log(T / ONE) - sum_c E_c d_c / T."""
    x, _ = logits_of(rows, xp=xp)
    largest = largest_of(x, rows, xp=xp)
    shift = shift_of(largest, xp=xp)
    away = x - xp.expand_dims(shift, axis=-1)
    e = exact.exponentials(away, IN_UNITS, xp=xp)
    moments = xp.sum_as_integers(xp.settled(e * xp.where(away == -math.inf, 0.0, away)))
    total, moment = all_sum(rows.part, xp.sum_as_integers(e), moments, xp=xp)
    total = xp.where(largest == -math.inf, 0, total)
    mean = xp.over(xp.astype(moment, xp.float64), xp.astype(counted(total, xp=xp), xp.float64))
    value = log_of(total, xp=xp) - mean
    value = xp.where(total > 0, value, 0.0)
    return Entropy(xp.where(largest < math.inf, value, math.nan), total, shift)


def entropy_backward(
    rows: Rows, out: Entropy, g: Any, *, targets_too: bool, xp: Namespace, into: Array | None = None
) -> tuple[Array, None]:
    x, slope = logits_of(rows, xp=xp)
    cost = costs(x, out, xp=xp)
    slope_of_value = xp.where(xp.isinf(cost), 0.0, cost) - xp.expand_dims(out.value, axis=-1)
    d_logits = shares(x, out, xp=xp) * slope_of_value * xp.expand_dims(g[0], axis=-1)
    d_logits = xp.where(xp.expand_dims(out.total > 0, axis=-1) | xp.isnan(d_logits), d_logits, 0.0)
    return through_selection(d_logits, slope, rows, xp=xp), None


def refused(*args: Any, **kwargs: Any) -> Any:
    raise TypeError("reproducible=True takes no forward derivative (jvp)")


SOFTMAX = registered(
    RowFunction("reproducible softmax", Forward, forward, backward, refused, differentiable=3, needed_from=2)
)
ENTROPY = registered(RowFunction("reproducible entropy", Entropy, entropy, entropy_backward, refused))
