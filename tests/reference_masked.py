"""Expected values of label_log_probs, entropy and the masked_* functions. See reference.py for the conventions.

d log p_k / d x_c = [c = k] - p_c                 d H / d x_c = p_c (u_c - H),  with H = sum_c p_c u_c
mean: w_i / W                                      var: 2 w_i (x_i - mean) / (W - correction)
std: d var / (2 std), 0 where std is 0             logsumexp: p_i
softmax: p_i (g_i - sum_j g_j p_j)                 log_softmax: g_i - p_i sum_j g_j
"""

from types import SimpleNamespace

import numpy as np

from tests.reference import (
    INF,
    NAN,
    ONE,
    ZERO,
    class_rows,
    floats,
    mp,
    number,
    over,
    rows,
    softmax_row,
    spread,
    table,
    times,
)


def result(value, scale, **gradients):
    return SimpleNamespace(value=value, scale=scale, gradients=gradients)


def kept_rows(logits, labels=None, *, mask=None, class_mask=None, ignore_index=None, axis=-1):
    shape, entries = rows(logits, axis)
    keep = spread(True if mask is None else mask, shape).astype(bool)
    class_mask = class_rows(class_mask, logits, axis)
    for i, xs in entries:
        allowed = None if class_mask is None else class_mask[i].tolist()
        ignored = labels is not None and ignore_index is not None and int(np.asarray(labels)[i]) == ignore_index
        if keep[i] and not ignored and xs and (allowed is None or any(allowed)):
            yield i, xs, range(len(xs)) if allowed is None else [c for c, a in enumerate(allowed) if a], allowed


def per_entry(logits, axis, upstream, kept, softcap, of_row):
    """of_row(row, xs, classes, i) -> value, scale, {c: d value / d capped x_c}, {c: scale}."""
    shape = rows(logits, axis)[0]
    moved = np.moveaxis(np.asarray(logits), axis, -1).shape
    value, scale, slope, slope_scale = table(shape), table(shape), table(moved), table(moved)
    up = spread(upstream, shape)
    for i, xs, classes, allowed in kept:
        row = softmax_row(xs, allowed, None if softcap is None else number(float(softcap)))
        value[i], scale[i], d, d_scale = of_row(row, xs, classes, i)
        for c in classes:
            u = number(float(up[i]))
            slope[i][c] = u * d[c] * row.slope[xs[c]]
            slope_scale[i][c] = abs(u) * d_scale[c]
    return result(value, scale, logits=(np.moveaxis(slope, -1, axis), np.moveaxis(slope_scale, -1, axis)))


def label_log_probs(
    logits, labels, *, mask=None, class_mask=None, ignore_index=None, softcap=None, axis=-1, upstream=1, gradients=()
):
    labels = np.asarray(labels)

    def of_row(row, xs, classes, i):
        k = int(labels[i])
        if k not in classes:
            raise ValueError(f"label {k} at {i}")
        cost = row.cost[xs[k]]
        p = {c: row.p[xs[c]] for c in classes}
        d = {c: (ONE if c == k else ZERO) - p[c] for c in classes}
        d_scale = {c: (ONE if c == k else ZERO) + times(p[c], 1 + abs(row.cost[xs[c]])) for c in classes}
        return -cost, max(abs(row.lse), abs(row.x[xs[k]]), abs(cost)), d, d_scale

    kept = kept_rows(logits, labels, mask=mask, class_mask=class_mask, ignore_index=ignore_index, axis=axis)
    return per_entry(logits, axis, upstream, kept, softcap, of_row)


def entropy(logits, *, mask=None, class_mask=None, softcap=None, axis=-1, upstream=1, gradients=()):
    def of_row(row, xs, classes, i):
        p = {c: row.p[xs[c]] for c in classes}
        u = {c: row.cost[xs[c]] for c in classes}
        h = mp.fsum(times(p[c], u[c]) for c in classes)
        d = {c: p[c] if p[c] == 0 else p[c] * (u[c] - h) for c in classes}
        weighed = mp.fsum(abs(times(p[c], row.x[xs[c]])) for c in classes)
        scale = NAN if row.lse != row.lse else max(h, abs(row.lse), weighed)
        d_scale = {c: p[c] if p[c] == 0 else p[c] * ((u[c] + h) * (1 + u[c]) + scale) for c in classes}
        return h, scale, d, d_scale

    kept = kept_rows(logits, mask=mask, class_mask=class_mask, axis=axis)
    return per_entry(logits, axis, upstream, kept, softcap, of_row)


def cells(x, mask, weights, axis, keepdims):
    """The result's shape, and per result cell its position and its kept elements (position, value, weight)."""
    x = np.asarray(x)
    axes = tuple(range(x.ndim)) if axis is None else tuple(a % x.ndim for a in np.atleast_1d(axis).tolist())
    keep = spread(True if mask is None else mask, x.shape).astype(bool)
    weights = spread(1 if weights is None else weights, x.shape)
    reduced = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    members = {j: [] for j in np.ndindex(reduced)}
    for i in np.ndindex(x.shape):
        if keep[i] and weights[i] != 0:
            j = tuple(0 if a in axes else k for a, k in enumerate(i))
            members[j].append((i, number(floats(x[i])), number(floats(weights[i]))))
    shape = reduced if keepdims else tuple(n for a, n in enumerate(x.shape) if a not in axes)
    return shape, reduced, members


def fold(x, mask, weights, axis, keepdims, upstream, of_cell):
    """of_cell([(value, weight)]) -> value, scale, [d/d x], [scale], [d/d w], [scale]."""
    shape, reduced, members = cells(x, mask, weights, axis, keepdims)
    value, scale = table(reduced), table(reduced)
    slope, slope_scale = table(np.shape(x)), table(np.shape(x))
    small = np.shape(weights) if weights is not None else ()
    by_w, by_w_scale = table(small), table(small)
    up = np.reshape(spread(upstream, shape), reduced)
    for j, group in members.items():
        value[j], scale[j], dx, dx_scale, dw, dw_scale = of_cell([(v, w) for _, v, w in group])
        u = number(float(up[j]))
        for (i, _, _), d, s, e, t in zip(group, dx, dx_scale, dw, dw_scale, strict=True):
            slope[i], slope_scale[i] = u * d, abs(u) * s
            k = tuple(0 if n == 1 else a for a, n in zip(i[len(i) - len(small) :], small, strict=True))
            by_w[k] += u * e
            by_w_scale[k] += abs(u) * t
    return result(value.reshape(shape), scale.reshape(shape), x=(slope, slope_scale), weights=(by_w, by_w_scale))


def masked_sum(x, mask=None, *, axis=None, keepdims=False, weights=None, upstream=1, gradients=()):
    def of_cell(group):
        size = mp.fsum(abs(w * v) for v, w in group)
        w, v = [w for _, w in group], [v for v, _ in group]
        return mp.fsum(v * w for v, w in group), size, w, list(map(abs, w)), v, list(map(abs, v))

    return fold(x, mask, weights, axis, keepdims, upstream, of_cell)


def nothing(empty, group):
    return number(float(empty)), ZERO, *([ZERO] * len(group) for _ in range(4))


def masked_mean(x, mask=None, *, axis=None, keepdims=False, weights=None, empty=0.0, upstream=1, gradients=()):
    def of_cell(group):
        total = mp.fsum(w for _, w in group)
        if total == 0:
            return nothing(empty, group)
        mean = mp.fsum(v * w for v, w in group) / total
        scale = mp.fsum(abs(v * w) for v, w in group) / abs(total)
        dx, dw = [w / total for _, w in group], [(v - mean) / total for v, _ in group]
        return mean, scale, dx, list(map(abs, dx)), dw, [(abs(v) + scale) / abs(total) for v, _ in group]

    return fold(x, mask, weights, axis, keepdims, upstream, of_cell)


def spread_of(group, correction):
    """mean, variance, its divisor and the variance's scale: x - mean is off by a last place of |x| + |mean|."""
    total = mp.fsum(w for _, w in group)
    mean = over(mp.fsum(v * w for v, w in group), total)
    divisor = total - number(float(correction))
    var = over(mp.fsum(w * (v - mean) ** 2 for v, w in group), divisor)
    steep = mp.fsum(abs(w) * ((v - mean) ** 2 + 2 * abs(v - mean) * (abs(v) + abs(mean))) for v, w in group)
    return mean, var, divisor, over(steep, abs(divisor))


def masked_var(
    x,
    mask=None,
    *,
    axis=None,
    keepdims=False,
    weights=None,
    correction=0.0,
    empty=0.0,
    upstream=1,
    gradients=(),
    root=False,
):
    def of_cell(group):
        if mp.fsum(w for _, w in group) == 0:
            return nothing(empty, group)
        mean, var, divisor, scale = spread_of(group, correction)
        if divisor <= 0:
            return nothing(empty, group)
        out = mp.sqrt(var) if root else var
        chain = over(ONE, 2 * out) if root else ONE
        out_scale = max(out, scale * chain if out else max(abs(v) for v, _ in group)) if root else scale
        dx = [chain * 2 * w * (v - mean) / divisor for v, w in group]
        dx_scale = [chain * 2 * abs(w) * (abs(v) + abs(mean)) / divisor for v, w in group]
        dw = [chain * ((v - mean) ** 2 - var) / divisor for v, w in group]
        dw_scale = [
            chain * ((v - mean) ** 2 + 2 * abs(v - mean) * (abs(v) + abs(mean)) + scale) / divisor for v, w in group
        ]
        return out, out_scale, dx, dx_scale, dw, dw_scale

    return fold(x, mask, weights, axis, keepdims, upstream, of_cell)


def masked_std(*args, **options):
    return masked_var(*args, root=True, **options)


def masked_max(x, mask=None, *, axis=None, keepdims=False, empty=None, upstream=1, gradients=(), sign=1):
    def of_cell(group):
        if not group:
            return nothing(-sign * INF if empty is None else empty, group)
        values = [v for v, _ in group]
        best = NAN if any(v != v for v in values) else sign * max(sign * v for v in values)
        dx = [ONE if v == best else ZERO for v in values]
        return best, ZERO, dx, [ZERO] * len(dx), [ZERO] * len(dx), [ZERO] * len(dx)

    return fold(x, mask, None, axis, keepdims, upstream, of_cell)


def masked_min(*args, **options):
    return masked_max(*args, sign=-1, **options)


def masked_logsumexp(x, mask=None, *, axis=None, keepdims=False, empty=-INF, upstream=1, gradients=()):
    def of_cell(group):
        if not group:
            return nothing(empty, group)
        values = [float(v) for v, _ in group]
        row = softmax_row(values, None)
        p = [row.p[v] for v in values]
        steep = [times(q, 1 + abs(row.cost[v])) for q, v in zip(p, values, strict=True)]
        top = max(row.x[v] for v in values)
        scale = abs(row.lse) if mp.isinf(row.lse) else max(abs(row.lse), abs(top), abs(row.lse - top))
        return row.lse, scale, p, steep, p, steep

    return fold(x, mask, None, axis, keepdims, upstream, of_cell)


def masked_softmax(x, mask=None, *, axis=-1, upstream=1, gradients=(), log=False):
    x = np.asarray(x)
    keep = np.moveaxis(spread(True if mask is None else mask, x.shape).astype(bool), axis, -1)
    up = np.moveaxis(spread(upstream, x.shape), axis, -1)
    entries = rows(x, axis)[1]
    full = np.moveaxis(x, axis, -1).shape
    value, scale = table(full, -INF if log else ZERO), table(full)
    slope, slope_scale = table(full), table(full)
    for i, xs in entries:
        kept = [c for c, k in enumerate(keep[i].tolist()) if k]
        if not kept:
            continue
        row = softmax_row(xs, keep[i].tolist())
        p = {c: row.p[xs[c]] for c in kept}
        u = {c: row.cost[xs[c]] for c in kept}
        g = {c: number(float(up[i][c])) for c in kept}
        through = mp.fsum(g[c] * (ONE if log else p[c]) for c in kept)
        sizes = mp.fsum(abs(g[c]) * (ONE if log else times(p[c], 1 + u[c])) for c in kept)
        for c in kept:
            steep = times(p[c], 1 + u[c])
            value[i][c] = -u[c] if log else p[c]
            scale[i][c] = max(u[c], abs(row.x[xs[c]]), abs(row.lse)) if log else steep
            slope[i][c] = g[c] - p[c] * through if log else p[c] * (g[c] - through)
            slope_scale[i][c] = abs(g[c]) + steep * sizes if log else steep * (abs(g[c]) + sizes)
    back = [np.moveaxis(a, -1, axis) for a in (value, scale, slope, slope_scale)]
    return result(back[0], back[1], x=(back[2], back[3]))


def masked_log_softmax(*args, **options):
    return masked_softmax(*args, log=True, **options)
