"""From checked inputs to one loss per entry, and back: the terms around the mathematics of the rows.

With target distribution q, class weights w_c, smoothing eps and K allowed classes, an entry has

    t_c  = ((1 - eps) q_c + eps / K) w_c
    loss = sum_c t_c (lse - x_c) + z_loss lse**2

For class indices q is [c = y], so that the sum is alpha nll + beta dot with alpha = (1 - eps) w_y, beta = eps / K and
targets w_c: no array of the logits' size is made for the target. For distributions it is dot with targets t_c.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .._arguments import is_exactly
from .._arrays import Array, Namespace
from .._call import Call, Options
from .._inputs import Inputs
from .._shards import all_sum, own_labels
from ..stats import LossStats
from .parts import is_largest, likeliest
from .reduce import (
    Derivatives,
    Entries,
    as_array,
    count_kept,
    divisor_of,
    reduce_entries,
    reduction_derivatives,
    total_and_divisor,
    weighted_losses,
)
from .rows import Rows, sum_of
from .softmax import Forward, Upstream

# Arguments around the logits that a loss has a derivative by.
AROUND = frozenset(("labels", "weights", "class_weights", "denominator"))


class Terms(NamedTuple):
    """loss = alpha nll + beta dot + ...; None: the term is absent (alpha, beta: 1 where its row term is present)."""

    rows: Rows
    alpha: Array | float | None
    beta: Array | float | None
    masses: Array | None  # m_i = sum_c w_c q_ic


def allowed_count(inputs: Inputs) -> Array | float:
    xp = inputs.xp
    if inputs.class_mask is None:
        return xp.count_of(inputs.classes, inputs.like.array)
    # At least 1: an entry with no allowed class is not kept, and must not divide by 0.
    (count,) = all_sum(inputs.part, xp.sum(xp.astype(inputs.class_mask, inputs.dtype), axis=-1), xp=xp)
    return xp.clip(count, 1.0)


def rows_of(call: Call) -> Rows:
    """Without labels and targets."""
    inputs, options = call.inputs, call.options
    given = inputs.keep, inputs.class_mask, None, options.softcap, inputs.dtype, not is_exactly(options.z_loss, 0.0)
    return Rows(inputs.logits, None, None, *given, part=inputs.part, axis=inputs.axis)


def terms_of(call: Call) -> Terms:
    inputs, eps = call.inputs, call.options.label_smoothing
    smooths, has_label = not is_exactly(eps, 0.0), not is_exactly(eps, 1.0)
    xp, class_weights, rows = inputs.xp, inputs.class_weights, rows_of(call)
    share = xp.over(eps, allowed_count(inputs)) if smooths else None
    if inputs.distribution is None:
        masses = None
        if class_weights is not None:
            masses = weights_of(inputs, class_weights)
            masses = masses if inputs.keep is None else xp.where(inputs.keep, masses, 0.0)
        alpha = 1.0 - eps if masses is None else (1.0 - eps) * masses
        targets = None
        if share is not None:
            targets = class_weights
            if targets is None:
                held = inputs.classes if inputs.part is None else inputs.part.held
                targets = xp.filled((held,), 1.0, inputs.dtype, inputs.like.array)
        # At eps = 1 the label has no part in the loss: with its cost infinite, 0 * inf would be NaN.
        rows = rows._replace(labels=inputs.labels if has_label else None, targets=targets)
        return Terms(rows, alpha if has_label else None, share, masses)
    targets = masses = inputs.distribution
    if class_weights is not None:
        class_weights = xp.of_rank(class_weights, len(inputs.entries) + 1)
        if inputs.class_mask is not None:
            class_weights = xp.where(inputs.class_mask, class_weights, 0.0)
    if share is not None:
        targets = xp.times(1.0 - eps, targets) + (share if isinstance(share, float) else xp.expand_dims(share, axis=-1))
    if class_weights is not None:
        targets, masses = targets * class_weights, masses * class_weights
    (masses,) = all_sum(inputs.part, xp.long_sum(masses), xp=xp)
    return Terms(rows._replace(targets=targets), None, 1.0, masses)


def weights_of(inputs: Inputs, class_weights: Array) -> Array:
    """That of each label's class."""
    labels, here = own_labels(inputs.part, inputs.labels, xp=inputs.xp)
    if here is None:
        return inputs.xp.take_classes(class_weights, labels)
    if class_weights.shape[0]:
        weights = inputs.xp.where(here, inputs.xp.take_classes(class_weights, labels), 0.0)
    else:  # of none held here, whose gradient is as long
        weights = inputs.xp.broadcast_to(inputs.xp.sum(class_weights), labels.shape)
    return all_sum(inputs.part, weights, xp=inputs.xp)[0]


def denominator_of(call: Call) -> Array:
    """Of a call without logits."""
    inputs, xp = call.inputs, call.inputs.xp
    losses = xp.filled(inputs.entries, 0.0, inputs.dtype, inputs.like.array)
    entries = Entries(losses, inputs.keep, inputs.weights, terms_of(call).masses)
    return divisor_of(entries, call.reduction, xp=xp)


def weighed_nll(nll: Array, alpha: Array | float | None, inputs: Inputs) -> Array:
    """nll, and 0 where it is infinite but weighs nothing: 0 * inf is 0."""
    if isinstance(alpha, float):
        return nll
    return inputs.xp.where(inputs.xp.isinf(nll) & (alpha == 0), 0.0, nll)


def is_one(factor: Array | float | None) -> bool:
    return isinstance(factor, float) and factor == 1.0


def z_term(out: Forward, options: Options, inputs: Inputs) -> Array:
    """z_loss lse**2. Where lse is infinite it is replaced first: its derivative, 2 lse p, would be inf * 0."""
    xp, infinite = inputs.xp, inputs.xp.isinf(out.lse)
    lse = xp.where(infinite, 0.0, out.lse)
    return xp.where(infinite, math.inf, xp.times(options.z_loss * lse, lse))


def nan_where_invalid(x: Array, inputs: Inputs) -> Array:
    """Multiplied, not selected: so the gradient of the whole entry is NaN as well."""
    return x if inputs.invalid is None else x * inputs.xp.where(inputs.invalid, math.nan, inputs.xp.ones_like(x))


def entries_of(call: Call, terms: Terms, out: Forward) -> Entries:
    inputs, options = call.inputs, call.options
    xp = inputs.xp
    nll = dot = None
    if out.nll is not None:
        nll = out.nll if is_one(terms.alpha) else xp.times(terms.alpha, weighed_nll(out.nll, terms.alpha, inputs))
    if out.dot is not None:
        dot = out.dot if is_one(terms.beta) else xp.times(terms.beta, out.dot)
    losses = nll if dot is None else sum_of(nll, dot)
    if not is_exactly(options.z_loss, 0.0):
        losses = losses + z_term(out, options, inputs)
    if inputs.invalid is not None:
        losses = nan_where_invalid(losses, inputs)
    if inputs.keep is not None:
        losses = xp.where(inputs.keep, losses, 0.0)
    return Entries(losses, inputs.keep, inputs.weights, terms.masses)


def reduced(call: Call, terms: Terms, out: Forward) -> Array:
    return reduce_entries(entries_of(call, terms, out), call.reduction, call.denominator, xp=call.inputs.xp)


def stats_of(call: Call, entries: Entries, out: Forward, right: Array) -> LossStats:
    """`right` says of each entry whether its arg-max is the answer."""
    inputs, options, xp = call.inputs, call.options, call.inputs.xp
    total, divisor = total_and_divisor(entries, call.reduction, xp=xp)
    z_terms = xp.zeros_like(entries.losses) if is_exactly(options.z_loss, 0.0) else z_term(out, options, inputs)
    if inputs.keep is not None:
        z_terms = xp.where(inputs.keep, z_terms, 0.0)
        right = right & inputs.keep
    if inputs.invalid is not None:
        right = right & ~inputs.invalid
    z_total = xp.sum_all(weighted_losses(entries._replace(losses=z_terms)))
    divisor = as_array(divisor, total, xp=xp)
    correct = xp.sum(xp.astype(right, xp.int32))
    return LossStats(total, divisor, count_kept(entries, xp=xp), correct, z_total)


def answers_of(inputs: Inputs) -> Array:
    """The label of each entry; of a distribution, its likeliest class."""
    distribution, xp = inputs.distribution, inputs.xp
    if distribution is None:
        return inputs.labels
    if inputs.part is not None:
        return likeliest(row_of(inputs)._replace(logits=distribution), xp=xp)
    if inputs.class_mask is not None:
        distribution = xp.where(inputs.class_mask, distribution, -math.inf)
    return xp.argmax(distribution, axis=-1)


def right_of(inputs: Inputs, answers: Array) -> Array:
    """Whether the arg-max of each entry's logits is its answer."""
    return is_largest(row_of(inputs), answers, xp=inputs.xp)


def row_of(inputs: Inputs) -> Rows:
    """All rows, as they were given."""
    return Rows(inputs.logits, None, None, None, inputs.class_mask, None, None, inputs.dtype, False, part=inputs.part)


def sum_to(x: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    """The adjoint of broadcasting from `shape`."""
    if tuple(x.shape) == shape:
        return x
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 != x.shape[lead + i])
    for axis in reversed(axes):
        x = xp.long_sum(x, axis=axis)
    return xp.reshape(x, shape)


def upstream_of(call: Call, terms: Terms) -> Upstream:
    """The derivative of a scalar loss by what a walk over the classes gives: linear in that, it is known before."""
    inputs, xp = call.inputs, call.inputs.xp
    losses = xp.filled(inputs.entries, 0.0, inputs.dtype, inputs.like.array)
    entries = Entries(losses, inputs.keep, inputs.weights, terms.masses)
    return upstream_by(call, terms, reduction_derivatives(entries, call.reduction, call.denominator, xp=xp)[1])


def upstream_by(call: Call, terms: Terms, derivatives: Derivatives) -> Upstream:
    inputs, z_loss = call.inputs, call.options.z_loss
    g = nan_where_invalid(derivatives.losses, inputs)
    xp = inputs.xp
    nll = None if terms.rows.labels is None else xp.times(g, terms.alpha)
    dot = None if terms.rows.targets is None else xp.times(g, terms.beta)
    return Upstream(nll, dot, None if is_exactly(z_loss, 0.0) else xp.times(2.0 * z_loss, g))


def adjoints(
    call: Call, terms: Terms, out: Forward, d: Derivatives, d_targets: Array, wanted: frozenset[str]
) -> dict[str, Array]:
    """From the derivatives of the reduction and of the rows to those of the arguments around the logits.

    With g = dL/dloss and the chain rule over the module's equations:

    class indices       dL/dw_y = (1 - eps) nll g + dL/dm       dL/dw_c = dL/dt_c
    distributions       dL/dq_c = w_c ((1 - eps) dL/dt_c + dL/dm)       dL/dw_c = (t_c / w_c) dL/dt_c + q_c dL/dm
    """
    inputs, eps, xp = call.inputs, call.options.label_smoothing, call.inputs.xp
    gradients = {"weights": d.weights, "denominator": d.denominator}
    class_weights, q = inputs.class_weights, inputs.distribution
    of_classes: Array = 1.0 if class_weights is None else class_weights
    if not wanted & {"class_weights", "labels"}:
        return gradients
    if q is not None:
        d_masses = xp.expand_dims(d.masses, axis=-1)
        d_q = (xp.times(1.0 - eps, d_targets) + d_masses) * of_classes
        gradients["labels"] = d_q if inputs.class_mask is None else xp.where(inputs.class_mask, d_q, 0.0)
        if class_weights is not None:
            unweighted: Array = terms_of(call._replace(inputs=inputs._replace(class_weights=None))).rows.targets
            each = xp.times(unweighted, d_targets) + xp.times(q, d_masses)
            gradients["class_weights"] = sum_to(each, class_weights.shape, xp=xp)
    elif inputs.labels is not None and class_weights is not None:
        d_label = d.masses
        if out.nll is not None:
            g = nan_where_invalid(d.losses, inputs)
            d_label = d_label + xp.times((1.0 - eps) * weighed_nll(out.nll, terms.alpha, inputs), g)
        classes = xp.class_indices(class_weights, inputs.labels.dtype)
        labels, here = own_labels(inputs.part, inputs.labels, xp=xp)
        at_label = classes == xp.expand_dims(labels, axis=-1)
        at_label = at_label if here is None else at_label & xp.expand_dims(here, axis=-1)
        d_weights = sum_to(xp.where(at_label, xp.expand_dims(d_label, axis=-1), 0.0), class_weights.shape, xp=xp)
        if d_targets is not None:
            d_weights = d_weights + sum_to(d_targets, class_weights.shape, xp=xp)
        gradients["class_weights"] = d_weights
    return gradients
