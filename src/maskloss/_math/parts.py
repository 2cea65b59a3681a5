"""The row functions of a class axis in parts: of what each process finds of its own classes, that of all.

With the shift m_r, the total s_r, the mass T_r and the moment a_r of the classes of part r, and m = max_r m_r,

    s = sum_r s_r exp(m_r - m)        T = sum_r T_r        a = sum_r a_r + T_r (m_r - m)

as in softmax.merged. Of the label, whose logit one part holds, there goes about exp(x_y - m), or x_y - m where that is
nearly 0: whichever gives lse - x_y its digits. So a maximum, and the sums of two to four numbers a row, are all that
a process learns of the others. The backward asks nothing: with s and m of all classes, dx_c is that of softmax.py, but
that T is of all classes, and that the label is one of this part's or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .._arrays import Array, Namespace
from .._shards import Part, all_max, all_sum, own_labels
from . import softmax
from .rows import (
    RowFunction,
    Rows,
    Value,
    allowed_logits,
    first_largest,
    registered,
    selected_logits,
    selected_targets,
    sum_of,
)
from .rows import is_largest as of_whole_rows
from .softmax import LARGEST, dtype_name, exponentials, finite_max, positive

# Of exp(x_y - m) beside a total of at least 1; below, its logarithm takes its place, which is negative.
NEAR = 1e-20


class Forward(NamedTuple):
    nll: Array | None
    dot: Array | None
    lse: Array | None
    total: Array
    shift: Array
    mass: Array | None


def nothing_held(rows: Rows, *, xp: Namespace) -> softmax.Forward:
    """Of no classes; the sums connect the result to the logits.

    The shift as well: what is a constant, Inductor sends to the other processes while it compiles (torch 2.13).
    """
    zero: Array = xp.sum(xp.astype(rows.logits, rows.dtype, copy=False), axis=-1)
    lowest = xp.stop_gradient(zero) - LARGEST[dtype_name(zero)]
    nll, dot = (None if given is None else zero for given in (rows.labels, rows.targets))
    return softmax.Forward(nll, dot, None, zero, lowest)


def own_rows(rows: Rows, *, xp: Namespace) -> Rows:
    """With the classes held here alone; a label that is not among them is 0."""
    labels = None if rows.labels is None else own_labels(rows.part, rows.labels, xp=xp)[0]
    return rows._replace(labels=labels, part=None, with_lse=True, for_backward=True)


def forward(rows: Rows, xp: Namespace, of_part: Callable[..., Any] = softmax.forward) -> Forward:
    own = own_rows(rows, xp=xp)
    return of_all(rows, of_part(own, xp) if rows.part.held else nothing_held(own, xp=xp), xp=xp)


def expression(rows: Rows, xp: Namespace, of_part: Callable[..., Any] = softmax.forward) -> Forward:
    """forward with derivatives of its own, of every order."""
    own = own_rows(rows, xp=xp)
    if not rows.part.held:
        return of_all(rows, nothing_held(own, xp=xp), xp=xp)
    return of_all(rows, with_lse_held(own, of_part(own, xp), xp=xp), xp=xp)


def with_lse_held(rows: Rows, out: softmax.Forward, *, xp: Namespace) -> softmax.Forward:
    """nll and dot with the derivatives that they have where lse is a constant, -dx_y and -sum_c t_c dx_c.

    Those by lse, as large as they are, would cancel in that of the total, s_r / s of them: with a small part of the
    total nothing of it would be left.
    """
    x, _ = selected_logits(rows, xp=xp)
    nll, dot = out.nll, out.dot
    if nll is not None and rows.labels is not None:
        at_label = xp.class_indices(x, rows.labels.dtype) == xp.expand_dims(rows.labels, axis=-1)
        label_logits = xp.sum(xp.where(at_label, x, 0.0), axis=-1)
        nll = xp.with_derivative_of(finite(-label_logits, xp=xp), nll)
    if dot is not None:
        lse = xp.stop_gradient(out.lse)
        cost = xp.expand_dims(finite(lse, xp=xp), axis=-1) - x
        spent = xp.sum(selected_targets(rows, xp=xp) * finite(cost, xp=xp), axis=-1)
        dot = xp.with_derivative_of(finite(spent, xp=xp), dot)
    return out._replace(nll=nll, dot=dot)


def finite(x: Array, *, xp: Namespace) -> Array:
    return xp.where(xp.isfinite(x), x, 0.0)


def of_all(rows: Rows, out: softmax.Forward, *, xp: Namespace) -> Forward:
    """From what this part's own rows give; nll and dot have the derivatives of a constant lse."""
    part = rows.part
    # With a total that has the derivative of lse, whatever the lane holds constant.
    nll, dot, _, total, own_shift = softmax.restated(out, xp)
    own_shift = xp.where(xp.isnan(own_shift), 0.0, own_shift)  # it is in the total as well
    (shift,) = all_max(part, own_shift, xp=xp)
    change, log_total = own_shift - shift, xp.stop_gradient(xp.log(positive(total, xp=xp)))
    total = total * xp.exp(change)
    numbers = [total]
    if nll is not None:
        infinite = nll == math.inf
        relative = log_total - xp.where(infinite, 0.0, nll)
        near, far = xp.exp(relative + change), xp.where(infinite, -math.inf, relative + change)
        _, here = own_labels(part, rows.labels, xp=xp)
        numbers.append(xp.where(here, xp.where(~infinite & (near > NEAR), near, far), 0.0))
    if dot is not None:
        mass = own_mass(rows, xp=xp)
        # A part that weighs nothing may have any shift.
        weightless = xp.broadcast_to(mass == 0, total.shape)
        numbers += [xp.where(weightless, 0.0, mass * (log_total + change)) - dot, mass]
    total, *numbers = all_sum(part, *numbers, xp=xp)
    log_total, mass = xp.log(positive(total, xp=xp)), None
    if dot is not None:
        *numbers, moment, mass = numbers
        dot = mass * log_total - moment
    if nll is not None:
        (at_label,) = numbers
        is_near = at_label > 0
        ratio = total / xp.where(is_near, at_label, 1.0)
        nll = xp.where(is_near, xp.log(ratio), log_total - at_label)
        nll = nll + xp.stop_gradient(xp.where(nll < 0, -nll, xp.zeros_like(nll)))  # of a loss of 0, by rounding
    lse = softmax.log_sum_exp(total, shift, xp=xp) if rows.with_lse else None
    return Forward(nll, dot, lse, total, shift, mass)


def own_mass(rows: Rows, *, xp: Namespace) -> Array:
    """A number for all rows, where their targets are one."""
    targets: Array = rows.targets
    if rows.class_mask is not None:  # which stands for the logits, that a projection's rows have not
        targets = selected_targets(rows._replace(logits=rows.class_mask), xp=xp)
    return xp.long_sum(targets)


def own_upstream(rows: Rows, out: Forward, g: Any, *, xp: Namespace) -> tuple[softmax.Forward, Any]:
    """What the backward of this part's own rows is given."""
    g_nll, g_dot, g_lse = g
    if g_nll is not None:
        _, here = own_labels(rows.part, rows.labels, xp=xp)
        g_nll, g_lse = xp.where(here, g_nll, 0.0), sum_of(g_lse, xp.where(here, 0.0, g_nll))
    if g_dot is not None:
        g_lse = sum_of(g_lse, g_dot * (out.mass - own_mass(rows, xp=xp)))
    return softmax.Forward(None, None, None, out.total, out.shift), (g_nll, g_dot, g_lse)


def backward(
    rows: Rows,
    out: Forward,
    g: Any,
    *,
    targets_too: bool,
    xp: Namespace,
    of_part: Callable[..., Any] = softmax.backward,
    **options: Any,
) -> tuple[Array, Array | None]:
    if not rows.part.held:
        return xp.zeros_like(rows.logits), None if rows.targets is None else xp.zeros_like(rows.targets)
    given = own_upstream(rows, out, g, xp=xp)
    return of_part(own_rows(rows, xp=xp), *given, targets_too=targets_too, xp=xp, **options)


def entropy(rows: Rows, xp: Namespace) -> Value:
    """H = log s - sum_c exp(x_c - m) (x_c - m) / s; a class of probability 0 adds 0."""
    x, _ = selected_logits(rows._replace(part=None), xp=xp)
    if rows.part.held:
        shift = finite_max(x, xp=xp)
        shift = xp.where(xp.isnan(shift), 0.0, shift)
    else:
        shift = nothing_held(rows, xp=xp).shift
    (shift,) = all_max(rows.part, shift, xp=xp)
    terms, away = exponentials(x, shift, xp=xp), x - xp.expand_dims(shift, axis=-1)
    away = xp.where(away == -math.inf, 0.0, away)
    total, moment = all_sum(rows.part, xp.long_sum(terms), xp.long_sum(terms * away), xp=xp)
    total = positive(total, xp=xp)
    return Value(xp.log(total) - moment / total)


def refused(*args: Any, **kwargs: Any) -> Any:
    raise TypeError("class_shard takes no forward derivative (jvp)")


SOFTMAX_IN_PARTS = registered(
    RowFunction(
        "softmax in parts",
        Forward,
        expression,
        backward,
        refused,
        differentiable=3,
        needed_from=3,
        upstream=softmax.upstream,
    )
)
ENTROPY_IN_PARTS = registered(RowFunction("entropy in parts", Value, entropy, refused, refused))
IN_PARTS = {"softmax": SOFTMAX_IN_PARTS, "entropy": ENTROPY_IN_PARTS}


class Best(NamedTuple):
    """The largest allowed logit of a row, and where it comes first among the classes held here."""

    largest: Array
    first: Array  # as many as there are: none is allowed


def best_of(rows: Rows, *, xp: Namespace) -> Best:
    x, class_mask = allowed_logits(rows, xp=xp), rows.class_mask
    *entries, held = x.shape
    if not held:
        return Best(xp.sum(x, axis=-1) - math.inf, xp.filled(tuple(entries), 0, xp.index_dtype(), x))
    largest = xp.max(x, axis=-1)
    first = xp.astype(first_largest(x, largest, class_mask, xp=xp), xp.index_dtype())
    return Best(largest, first if class_mask is None else xp.where(xp.any(class_mask, axis=-1), first, held))


def is_best(part: Part, best: Best, answers: Array, *, xp: Namespace) -> Array:
    """Whether the answer is the first class of all with the largest logit of all.

    A part that holds that adds 1 where the first such class is the answer, and more where it comes before.
    """
    largest, first = best
    is_nan = xp.isnan(largest)
    (greatest,) = all_max(part, xp.where(is_nan, -math.inf, largest), xp=xp)
    wins, place = (largest == greatest) & (first < part.held), first + part.start
    points = xp.where(wins, xp.where(place == answers, 1.0, xp.where(place < answers, 2.0, 0.0)), 0.0)
    (points,) = all_sum(part, xp.where(is_nan, 2.0, points), xp=xp)
    return points == 1


def is_largest(rows: Rows, answers: Array, *, xp: Namespace) -> Array:
    """Whether the first of the largest allowed logits of each row is that of its answer, whoever holds it."""
    if rows.part is None:
        return of_whole_rows(rows, answers, xp=xp)
    return is_best(rows.part, best_of(rows, xp=xp), answers, xp=xp)


def likeliest(rows: Rows, *, xp: Namespace) -> Array:
    """The first class with the largest allowed logit of all."""
    part, (largest, first) = rows.part, best_of(rows, xp=xp)
    (greatest,) = all_max(part, largest, xp=xp)
    place = xp.where((largest == greatest) & (first < part.held), first + part.start, part.classes)
    return -all_max(part, -place, xp=xp)[0]
