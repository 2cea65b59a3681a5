"""From entries to one number: every reduction and its derivative, in one place, outside bindings and kernels.

Entry i of sequence r has the loss l_i, the weight w_i and the mass m_i = sum_c w_c q_ic; its unit is u_i = w_i m_i, and
w_i l_i and u_i are 0 where it is not kept. With S_r = sum_i w_i l_i and D_r = sum_i u_i over a sequence,

    mean                 S / D      (one sequence holds every entry)
    mean_over_kept       S / count  mean_over_all    S / number of entries      sum      S
    mean_over_sequences  sum_r (S_r / D_r) / number of r that kept something
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .._arrays import Array, Namespace

# What the sum of losses that weigh 1 is divided by: its place among 1, the kept entries and all. None: there is no sum.
DIVISORS = {"none": None, "sum": 0, "mean": 1, "mean_over_kept": 1, "mean_over_all": 2}


class Entries(NamedTuple):
    """Per entry; None: all kept, all 1."""

    losses: Array
    keep: Array | None
    weights: Array | None
    masses: Array | None


def quotient(total: Array, divisor: Array | float, *, xp: Namespace) -> Array:
    """total / divisor, and 0 with derivatives that are 0 where the divisor is 0."""
    if type(divisor) is float:  # and not NumPy's, which is one of Python's too
        return xp.over(total, divisor) if divisor else total * 0.0
    nothing = divisor == 0
    # Replaced before the division as well: the derivative of total / 0 is NaN, which where() would multiply by 0.
    return xp.where(nothing, 0.0, xp.over(total, xp.where(nothing, 1.0, divisor)))


def kept_of(entries: Entries, *, xp: Namespace) -> Array:
    return xp.ones_like(entries.losses, dtype=xp.bool) if entries.keep is None else entries.keep


def count_kept(entries: Entries, *, xp: Namespace) -> Array:
    return xp.sum(xp.astype(kept_of(entries, xp=xp), xp.int32))


def weighted_losses(entries: Entries) -> Array:
    return entries.losses if entries.weights is None else entries.weights * entries.losses


def units_of(entries: Entries, *, xp: Namespace) -> Array:
    units = xp.ones_like(entries.losses) if entries.weights is None else entries.weights
    if entries.masses is not None:
        units = units * entries.masses
    return units if entries.keep is None else xp.where(entries.keep, units, 0.0)


def by_sequence(x: Array, *, xp: Namespace) -> Array:
    """The entries of a sequence along the last axis: no or one entry axis is one sequence."""
    return x if x.ndim else xp.reshape(x, (1,))


def kept_sequences(entries: Entries, *, xp: Namespace) -> Array:
    """Which sequences kept something."""
    return xp.any(by_sequence(kept_of(entries, xp=xp), xp=xp), axis=-1)


def sequence_sums(entries: Entries, *, xp: Namespace) -> tuple[Array, Array]:
    """S_r and D_r."""
    each, units = weighted_losses(entries), units_of(entries, xp=xp)
    return xp.long_sum(by_sequence(each, xp=xp)), xp.long_sum(by_sequence(units, xp=xp))


def total_and_divisor(entries: Entries, reduction: str, *, xp: Namespace) -> tuple[Array, Array | float]:
    """Numerator and divisor of the reduction; for "sum" and "none" the divisor is that of "mean"."""
    if reduction == "mean_over_sequences":
        total, divisor = sequence_sums(entries, xp=xp)
        kept = kept_sequences(entries, xp=xp)
        return xp.sum_all(quotient(total, divisor, xp=xp)), xp.sum_all(xp.astype(kept, total.dtype))
    each = entries.losses if entries.weights is None else weighted_losses(entries)
    total = xp.sum_all(each)
    uniform = entries.keep is None and entries.weights is None and entries.masses is None
    if uniform or reduction == "mean_over_all":
        return total, xp.count_of(math.prod(each.shape), total)
    # Exact, where an integer holds any count.
    is_count = entries.weights is entries.masses is None and xp.index_dtype() == xp.int64
    if reduction == "mean_over_kept" or is_count:
        return total, xp.astype(count_kept(entries, xp=xp), each.dtype)
    return total, xp.sum_all(units_of(entries, xp=xp))


def divisor_of(entries: Entries, reduction: str, *, xp: Namespace) -> Array:
    """The same divisor where there are no losses yet; an integer where it is a count."""
    if reduction == "mean_over_sequences":
        return xp.sum(xp.astype(kept_sequences(entries, xp=xp), xp.index_dtype()))
    if reduction == "mean_over_all":
        entries = entries._replace(keep=None)
    elif reduction != "mean_over_kept" and not (entries.weights is None and entries.masses is None):
        return xp.sum_all(units_of(entries, xp=xp))
    return xp.sum(xp.astype(kept_of(entries, xp=xp), xp.index_dtype()))


def as_array(divisor: Array | float, total: Array, *, xp: Namespace) -> Array:
    return xp.full_like(total, divisor) if type(divisor) is float else divisor


def reduce_entries(entries: Entries, reduction: str, denominator: Array | None, *, xp: Namespace) -> Array:
    if reduction == "none":
        return weighted_losses(entries)
    if reduction == "sum":
        return xp.sum_all(weighted_losses(entries))
    total, divisor = total_and_divisor(entries, reduction, xp=xp)
    return quotient(total, divisor if denominator is None else denominator, xp=xp)


class Cotangents(NamedTuple):
    """Of what a call returns; None: 0."""

    value: Array | float
    total: Array | None = None
    denominator: Array | None = None
    z_loss: Array | None = None


OF_VALUE = Cotangents(1.0)


class Derivatives(NamedTuple):
    """Of a scalar reduction with respect to each part."""

    losses: Array
    weights: Array
    masses: Array
    denominator: Array


def reduction_derivatives(
    entries: Entries, reduction: str, denominator: Array | None, g: Cotangents = OF_VALUE, *, xp: Namespace
) -> tuple[Array, Derivatives]:
    """The value L, and the derivatives of it (times g.value; with those of the sums in the statistics).

    With d_each = dL/d(w_i l_i) and d_unit = dL/du_i:

    dL/dl_i = d_each w_i       dL/dw_i = d_each l_i + d_unit m_i       dL/dm_i = d_unit w_i

    where d_each = 1 / divisor, d_unit = -L / D for "mean", dL/ddenominator = -L / denominator, and for sequences the
    same again inside, by the chain rule through S_r / D_r.
    """
    total, own = total_and_divisor(entries, reduction, xp=xp)
    divisor = 1.0 if reduction in ("sum", "none") else own if denominator is None else denominator
    value, zeros = quotient(total, divisor, xp=xp), xp.zeros_like(entries.losses)
    d_total = xp.times(g.value, quotient(xp.ones_like(total), divisor, xp=xp))
    d_divisor = -xp.times(g.value, quotient(value, divisor, xp=xp))
    d_own = d_divisor if reduction == "mean" and denominator is None else None
    if g.total is not None:
        d_total = d_total + g.total
    if g.denominator is not None and reduction in ("mean", "sum", "none"):
        d_own = g.denominator if d_own is None else d_own + g.denominator
    d_each, d_unit = zeros + d_total, zeros if d_own is None else zeros + d_own
    if reduction == "mean_over_sequences":
        sequence_total, sequence_units = sequence_sums(entries, xp=xp)
        mean = quotient(sequence_total, sequence_units, xp=xp)
        d_sequence = quotient(xp.ones_like(mean), sequence_units, xp=xp), -quotient(mean, sequence_units, xp=xp)
        spread = by_sequence(zeros, xp=xp)
        d_each, d_unit = [xp.reshape(spread + xp.expand_dims(d * d_total, axis=-1), zeros.shape) for d in d_sequence]
    keep, weights, masses = entries.keep, entries.weights, entries.masses
    d_weights = xp.times(d_each, entries.losses) + (d_unit if masses is None else xp.times(d_unit, masses))
    d_losses, d_masses = (d_each, d_unit) if weights is None else (xp.times(d_each, weights), xp.times(d_unit, weights))
    if keep is not None:
        d_losses, d_weights, d_masses = [xp.where(keep, d, 0.0) for d in (d_losses, d_weights, d_masses)]
    return value, Derivatives(d_losses, d_weights, d_masses, d_divisor)
