"""Expected values: scalar loops in 50-digit arithmetic, written from the specification and from nothing else.

Every function takes NumPy arrays (or numbers) and returns NumPy arrays of mpmath numbers. Beside each value comes its
*scale*: the size of the quantities that any floating-point evaluation has to add up, in units of whose last place an
error is counted. NumPy only unpacks: no arithmetic below is its own.

Derivatives are formulas. With one entry's cost of class c written u_c = lse - x_c = -log p_c and Q = sum_c q'_c,

    loss           = sum_c q'_c u_c + z lse^2
    d loss / d x_c = Q p_c - q'_c + 2 z lse p_c             (times 1 - tanh^2 under softcap)
    d loss / d q'_c = u_c,   so d/d q_c = (1 - eps) w_c u_c and d/d w_c = ((1 - eps) q_c + eps / K) u_c

and with S = sum_i w_i loss_i, D = sum_i w_i m_i and L = S / D,

    dL / d loss_i = w_i / D,   dL / d w_i = (loss_i - m_i L) / D,   dL / d m_i = -w_i L / D.
"""

import functools
import itertools
from collections import Counter, defaultdict
from types import SimpleNamespace

import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 50
ZERO, ONE, INF, NAN = mp.mpf(0), mp.mpf(1), mp.inf, mp.nan

number = functools.cache(mp.mpf)
exp = functools.cache(mp.exp)


def floats(a):
    """A nested list of Python floats, exactly the numbers held: float16, bfloat16 and float32 embed in float64."""
    return np.asarray(a).astype(np.float64).tolist()


def table(shape, fill=ZERO):
    out = np.empty(shape, dtype=object)
    out.fill(fill)
    return out


def spread(a, shape):
    return np.broadcast_to(np.asarray(a), shape)


def times(a, b):
    """a * b where 0 * inf is 0."""
    return ZERO if (a == 0 and mp.isinf(b)) or (b == 0 and mp.isinf(a)) else a * b


def softmax_row(xs, allowed, softcap=None):
    """lse, and by distinct logit: the capped logit x, its slope, the cost u = lse - x, the probability p.

    All -inf: every cost is +inf and every probability 0. A +inf or NaN leaves nothing but NaN (lse +inf for +inf).
    """
    counts = Counter(xs) if allowed is None else Counter(itertools.compress(xs, allowed))
    if any(v != v for v in counts):
        nothing = defaultdict(lambda: NAN)
        return SimpleNamespace(lse=NAN, x=nothing, slope=nothing, cost=nothing, p=nothing)
    x = {v: number(v) if softcap is None else softcap * mp.tanh(number(v) / softcap) for v in counts}
    slope = {v: ONE if softcap is None else ONE - (x[v] / softcap) ** 2 for v in counts}
    top = max(x.values())
    if mp.isinf(top):
        cost, p = (INF, ZERO) if top < 0 else (NAN, NAN)
        cost, p = dict.fromkeys(counts, cost), dict.fromkeys(counts, p)
        return SimpleNamespace(lse=top, x=x, slope=slope, cost=cost, p=p)
    e = {v: exp(x[v] - top) for v in counts}
    z = mp.fsum(n * e[v] for v, n in counts.items())
    log_z = mp.log(z)
    cost = {v: log_z - (x[v] - top) for v in counts}
    return SimpleNamespace(lse=top + log_z, x=x, slope=slope, cost=cost, p={v: e[v] / z for v in counts})


def rows(logits, axis=-1):
    """The entries' shape, and for each entry its position and its logits."""
    moved = np.moveaxis(np.asarray(logits), axis, -1)
    return moved.shape[:-1], [(i, floats(moved[i])) for i in np.ndindex(moved.shape[:-1])]


def class_rows(a, like, axis):
    return None if a is None else np.moveaxis(spread(a, np.shape(like)), axis, -1)


def first_largest(values, indices):
    top = max(values[c] for c in indices)
    return next(c for c in indices if values[c] == top or top != top)


def entry(xs, q, allowed, class_weights, weight, *, eps, z_loss, softcap):
    """One kept entry. q maps class to probability; classes that are not allowed have left it already."""
    r = softmax_row(xs, allowed, softcap)
    classes = range(len(xs)) if allowed is None else [c for c, a in enumerate(allowed) if a]
    s = {c: (1 - eps) * q.get(c, ZERO) + eps / len(classes) for c in (classes if eps else q)}
    w = {c: ONE if class_weights is None else number(class_weights[c]) for c in {*s, *q}}
    prime = {c: s[c] * w[c] for c in s}
    total = mp.fsum(prime.values())
    z_term = ZERO if z_loss == 0 else z_loss * r.lse**2
    if r.lse != r.lse:
        loss = scale = NAN
    else:
        loss = mp.fsum(times(prime[c], r.cost[xs[c]]) for c in prime) + z_term
        targets = mp.fsum(abs(times(prime[c], r.x[xs[c]])) for c in prime)
        scale = max(abs(times(total, r.lse)), targets, abs(z_term), abs(loss))
    best = first_largest(xs, classes)
    wanted = first_largest(q, q)
    return SimpleNamespace(
        kept=True,
        row=r,
        q=q,
        s=s,
        class_weights=w,
        prime=prime,
        total=total,
        loss=loss,
        scale=scale,
        weight=weight,
        m=mp.fsum(w[c] * q[c] for c in q),
        z_term=z_term,
        z_slope=ZERO if z_loss == 0 else 2 * z_loss * r.lse,
        correct=None if r.lse != r.lse else best == wanted,
        classes=classes,
    )


DROPPED = SimpleNamespace(kept=False, loss=ZERO, scale=ZERO, weight=ZERO, m=ZERO, z_term=ZERO, correct=False)


def all_entries(
    logits,
    labels,
    *,
    mask=None,
    weights=None,
    class_weights=None,
    class_mask=None,
    ignore_index=None,
    label_smoothing=0,
    z_loss=0,
    softcap=None,
    axis=-1,
):
    """The entries' shape and one record per entry, DROPPED where the entry does not count."""
    shape, entries = rows(logits, axis)
    labels = np.asarray(labels)
    soft = labels.dtype.kind not in "iu"
    labels = np.moveaxis(labels, axis, -1) if soft else labels
    keep = spread(True if mask is None else mask, shape).astype(bool)
    weights = spread(1 if weights is None else weights, shape)
    class_weights = None if class_weights is None else floats(class_weights)
    class_mask = class_rows(class_mask, logits, axis)
    eps, z_loss = number(float(label_smoothing)), number(float(z_loss))
    softcap = None if softcap is None else number(float(softcap))
    records = {}
    for i, xs in entries:
        allowed = None if class_mask is None else class_mask[i].tolist()
        weight = number(floats(weights[i]))
        ignored = not soft and ignore_index is not None and int(labels[i]) == ignore_index
        if not keep[i] or ignored or weight == 0 or not len(xs) or (allowed is not None and not any(allowed)):
            records[i] = DROPPED
            continue
        if soft:
            q = {c: number(v) for c, v in enumerate(floats(labels[i])) if allowed is None or allowed[c]}
        else:
            c = int(labels[i])
            if not 0 <= c < len(xs) or (allowed is not None and not allowed[c]):
                raise ValueError(f"label {c} at {i}")
            q = {c: ONE}
        records[i] = entry(xs, q, allowed, class_weights, weight, eps=eps, z_loss=z_loss, softcap=softcap)
    return shape, records


def groups_of(shape, records, reduction, denominator):
    """[(positions, divisor, whether the divisor is sum w m)], and the divisor of the groups' sum."""
    everything = list(records)
    d = None if denominator is None else number(float(denominator))
    if reduction in ("sum", "none"):
        return [(everything, ONE, False)], ONE
    if reduction == "mean_over_sequences":
        sequences = defaultdict(list)
        for i in everything:
            sequences[i[:-1]].append(i)
        kept = [g for g in sequences.values() if any(records[i].kept for i in g)]
        weighed = [(g, mp.fsum(records[i].weight * records[i].m for i in g), True) for g in kept]
        return weighed, number(len(kept)) if d is None else d
    if d is not None:
        return [(everything, d, False)], ONE
    kept = [i for i in everything if records[i].kept]
    divisor = {
        "mean": mp.fsum(records[i].weight * records[i].m for i in kept),
        "mean_over_kept": number(len(kept)),
        "mean_over_all": number(len(everything)),
    }[reduction]
    return [(everything, divisor, reduction == "mean")], ONE


def over(a, b):
    return ZERO if b == 0 else a / b


def reduced(shape, records, *, reduction="mean", denominator=None, upstream=1):
    """The value, its scale, the condition of its divisors, the statistics, and the partial derivatives:

    a_i = dL/d loss_i, b_i = dL/d w_i and c_i = dL/d m_i (each with the scale of b), and dL/d denominator.
    """
    groups, outer = groups_of(shape, records, reduction, denominator)
    up = spread(upstream, shape) if reduction == "none" else table(shape, upstream)
    partial = {i: SimpleNamespace(a=ZERO, b=ZERO, c=ZERO, b_scale=ZERO) for i in records}
    means, scales, condition = [], [], ONE
    for group, divisor, weighed in groups:
        kept = [i for i in group if records[i].kept]
        mean = over(mp.fsum(records[i].weight * records[i].loss for i in kept), divisor)
        scale = over(mp.fsum(abs(records[i].weight) * records[i].scale for i in kept), abs(divisor))
        means.append(mean)
        scales.append(scale)
        if weighed and divisor != 0:
            condition = max(condition, mp.fsum(abs(records[i].weight * records[i].m) for i in kept) / abs(divisor))
        for i in kept:
            r, p = records[i], partial[i]
            u = over(over(number(float(up[i])), outer), divisor)
            p.a, p.c = u * r.weight, -u * r.weight * mean if weighed else ZERO
            p.b = ZERO if u == 0 else u * (r.loss - r.m * mean if weighed else r.loss)
            p.b_scale = ZERO if u == 0 else abs(u) * (r.scale + (abs(r.m) * scale if weighed else 0))
    value, scale = over(mp.fsum(means), outer), over(mp.fsum(scales), abs(outer))
    if reduction == "none":
        value, scale = table(shape), table(shape)
        for i, r in records.items():
            value[i], scale[i] = (r.weight * r.loss, abs(r.weight) * r.scale) if r.kept else (ZERO, ZERO)
    by_denominator = ZERO
    if denominator is not None:
        d = number(float(denominator))
        by_denominator = over(-value * upstream, d)
    return SimpleNamespace(
        value=value,
        scale=scale,
        condition=condition,
        partial=partial,
        denominator=by_denominator,
        stats=statistics(shape, records, reduction),
    )


def statistics(shape, records, reduction):
    """The batch's own total and divisor for the reduction asked (`denominator` never enters), counts, and scales.

    `correct` is None, for anything, where a kept entry's logits hold a NaN.
    """
    own = reduction if reduction.startswith("mean") else "mean"
    groups, outer = groups_of(shape, records, own, None)
    kept = [r for r in records.values() if r.kept]
    divisors = [d if own == "mean_over_sequences" else ONE for _, d, _ in groups]
    pairs = [(g, d) for (g, _, _), d in zip(groups, divisors, strict=True)]
    total = mp.fsum(over(mp.fsum(records[i].weight * records[i].loss for i in g), d) for g, d in pairs)
    scale = mp.fsum(over(mp.fsum(abs(records[i].weight) * records[i].scale for i in g), abs(d)) for g, d in pairs)
    weighed = own == "mean"
    denominator = outer if own == "mean_over_sequences" else groups[0][1]
    scales = SimpleNamespace(
        total=scale,
        denominator=mp.fsum(abs(r.weight * r.m) for r in kept) if weighed else denominator,
        z_loss=mp.fsum(abs(r.weight * r.z_term) for r in kept),
    )
    return SimpleNamespace(
        total=total,
        denominator=denominator,
        count=len(kept),
        scales=scales,
        correct=None if any(r.correct is None for r in kept) else sum(r.correct for r in kept),
        z_loss=mp.fsum(r.weight * r.z_term for r in kept),
    )


def logit_gradient(xs, r, a):
    """a * d loss / d x for one kept entry, with scales. p = exp(log p) multiplies an error of log p by |log p|."""
    factor = r.total + r.z_slope
    value, scale = [ZERO] * len(xs), [ZERO] * len(xs)
    known = {}
    for c in r.classes:
        v = xs[c]
        if v not in known:
            p = r.row.p[v]
            steep = p if p == 0 else p * (1 + abs(r.row.cost[v]))
            size = abs(r.total) + abs(r.z_slope)
            known[v] = (times(factor, p), abs(a) * times(size, steep), a * times(factor, p) * r.row.slope[v])
        base, base_scale, alone = known[v]
        if c in r.prime:
            value[c] = a * (base - r.prime[c]) * r.row.slope[v]
            scale[c] = base_scale + abs(a * r.prime[c])
        else:
            value[c], scale[c] = alone, base_scale
    return value, scale


def target_slope(r, xs, c):
    """d loss / d q'_c: the cost; 0 where x_c is -inf and q'_c is 0, a term that is 0 with its derivatives."""
    cost = r.row.cost[xs[c]]
    return ZERO if mp.isinf(cost) and r.prime.get(c, ZERO) == 0 else cost


def cross_entropy(logits, labels, *, reduction="mean", denominator=None, upstream=1, gradients=(), **options):
    """Value, scale, condition, stats; and gradients: {name: (values, scales)} for each name asked."""
    axis = options.get("axis", -1)
    shape, records = all_entries(logits, labels, **options)
    out = reduced(shape, records, reduction=reduction, denominator=denominator, upstream=upstream)
    out.gradients = {}
    xs_of = dict(rows(logits, axis)[1])
    kept = [i for i in records if records[i].kept]
    if "logits" in gradients:
        moved = np.moveaxis(np.asarray(logits), axis, -1).shape
        value, scale = table(moved), table(moved)
        for i in kept:
            value[i], scale[i] = logit_gradient(xs_of[i], records[i], out.partial[i].a)
        out.gradients["logits"] = np.moveaxis(value, -1, axis), np.moveaxis(scale, -1, axis)
    if "weights" in gradients:
        out.gradients["weights"] = gathered(options["weights"], shape, out.partial)
    if "class_weights" in gradients:
        n = len(options["class_weights"])
        value, scale = table(n), table(n)
        for i in kept:
            r, p = records[i], out.partial[i]
            for c in {*r.s, *r.q}:
                u = target_slope(r, xs_of[i], c)
                s, q = r.s.get(c, ZERO), r.q.get(c, ZERO)
                value[c] += times(p.a * s, u) + p.c * q
                scale[c] += abs(times(p.a * s, max(abs(u), abs(r.row.lse) if u else ZERO))) + abs(p.c * q)
        out.gradients["class_weights"] = value, scale
    if "labels" in gradients:
        moved = np.moveaxis(np.asarray(labels), axis, -1).shape
        value, scale = table(moved), table(moved)
        rest = 1 - number(float(options.get("label_smoothing", 0)))
        for i in kept:
            r, p = records[i], out.partial[i]
            for c in r.classes:
                u, w = target_slope(r, xs_of[i], c), r.class_weights[c]
                value[i][c] = times(p.a * rest * w, u) + p.c * w
                scale[i][c] = abs(times(p.a * rest * w, max(abs(u), abs(r.row.lse) if u else ZERO))) + abs(p.c * w)
        out.gradients["labels"] = np.moveaxis(value, -1, axis), np.moveaxis(scale, -1, axis)
    if "denominator" in gradients:
        out.gradients["denominator"] = out.denominator, abs(over(out.scale * upstream, number(float(denominator))))
    return out


def gathered(weights, shape, partial):
    """The entries' dL/d w_i, summed onto the shape the weights had before they were broadcast."""
    small = np.shape(weights)
    value, scale = table(small), table(small)
    for i, p in partial.items():
        j = tuple(0 if n == 1 else k for k, n in zip(i[len(i) - len(small) :], small, strict=True))
        value[j] += p.b
        scale[j] += p.b_scale
    return value, scale


def reduce(values, *, mask=None, weights=None, reduction="mean", denominator=None, upstream=1, gradients=()):
    """The same reductions of values given: m_i = 1."""
    values = np.asarray(values)
    shape = values.shape
    keep = spread(True if mask is None else mask, shape).astype(bool)
    each = spread(1 if weights is None else weights, shape)
    records = {}
    for i in np.ndindex(shape):
        w, v = number(floats(each[i])), number(floats(values[i]))
        records[i] = (
            DROPPED
            if not keep[i] or w == 0
            else SimpleNamespace(kept=True, loss=v, scale=abs(v), weight=w, m=ONE, z_term=ZERO, correct=False)
        )
    out = reduced(shape, records, reduction=reduction, denominator=denominator, upstream=upstream)
    out.gradients = {}
    if "values" in gradients:
        value = table(shape)
        for i, p in out.partial.items():
            value[i] = p.a
        out.gradients["values"] = value, np.vectorize(abs, otypes=[object])(value) if value.size else value
    if "weights" in gradients:
        out.gradients["weights"] = gathered(weights, shape, out.partial)
    if "denominator" in gradients:
        out.gradients["denominator"] = out.denominator, abs(over(out.scale * upstream, number(float(denominator))))
    return out
