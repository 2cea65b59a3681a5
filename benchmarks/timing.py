"""Interleaved timing: the order, the ratios with their spread, the fitted line; no clock outside of `sample`."""

import gc
import math
from time import perf_counter

import numpy as np

SHORT = 5e-3  # seconds: a shorter call is repeated within its sample
FEW, MOST = 7, 25  # rounds


def order(names, turn):
    """Forward, then reversed: each name has the same mean place, so that a steady drift cancels.

    The start rotates with the turn, so that every name comes after itself as often as any other does.
    """
    start = turn % len(names)
    turned = names[start:] + names[:start]
    return turned + turned[::-1]


def sample(call, repeats):
    """Seconds per call; what a call returns is freed before the next."""
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


def fastest(call, take, least=1):
    """Seconds per call, the best of five samples of at least so many calls."""
    once = max(take(call, 1) for _ in range(2))
    repeats = max(least, min(1000, round(SHORT / once)))
    return min(take(call, repeats) for _ in range(5))


def rounds_within(limit, per_round, fewest):
    """As many as the limit has room for, at most MOST; at least FEW where twice the limit has room, else `fewest`."""
    least = FEW if FEW * per_round <= 2 * limit else fewest
    return int(min(MOST, max(least, limit // per_round)))


def interleaved(calls, *, limit, fewest, take=sample):
    """name -> seconds per call, one number for each round: the mean of its two samples. Each has been called before."""
    names, repeats, per_round = list(calls), {}, 0.0
    for name, call in calls.items():
        once = take(call, 1)
        if once < SHORT:
            once = min(once, take(call, 1))
        repeats[name] = max(1, math.ceil(SHORT / once))
        per_round += 2 * once * repeats[name]
    seconds = {name: [] for name in names}
    for turn in range(rounds_within(limit, per_round, fewest)):
        gc.collect()
        gc.disable()
        samples = [(name, take(calls[name], repeats[name])) for name in order(names, turn)]
        gc.enable()
        for name in names:
            seconds[name].append(sum(s for n, s in samples if n == name) / 2)
    return seconds


def middle(values):
    """Median and both quartiles."""
    return tuple(float(q) for q in np.quantile(values, [0.5, 0.25, 0.75]))


def ratios(theirs, ours):
    """Median and quartiles over the rounds of their time over ours, each pair of the same round."""
    return middle(np.divide(theirs, ours))


def overheads(ours, raw):
    """Median and quartiles over the rounds of our time less that of the raw work."""
    return middle(np.subtract(ours, raw))


def line(sizes, seconds):
    """a and b of t = a + b * size, and the largest relative deviation.

    Least squares of the relative deviations: of the absolute ones the largest size would decide alone, and a, which is
    what small sizes cost, would be its rounding error.
    """
    sizes, seconds = np.asarray(sizes, float), np.asarray(seconds, float)
    scaled = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
    a, b = np.linalg.lstsq(scaled, np.ones_like(seconds), rcond=None)[0]
    return float(a), float(b), float(np.max(np.abs((a + b * sizes) / seconds - 1)))
