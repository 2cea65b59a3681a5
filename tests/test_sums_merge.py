"""A row's sums, made of parts of its classes and merged, are those of the row: what a class axis in parts needs."""

import math

import numpy as np
import pytest

from maskloss._arrays import namespace_of
from maskloss._math import softmax
from maskloss._math.rows import Rows

ROWS = {
    "plain": ([1.0, -2.0, 0.5, 3.0, 0.0], [0.1, 0.2, 0.3, 0.2, 0.2]),
    "far apart": ([500.0, -500.0, 499.0, 0.0, 500.0], [0.5, 0.0, 0.25, 0.0, 0.25]),
    "weights of both signs": ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, -1.0, 2.0, -2.0, 0.0]),
    "probability 0": ([-math.inf, 1.0, -math.inf, 2.0, -math.inf], [0.0, 0.5, 0.0, 0.5, 0.0]),
    "a part of nothing but -inf": ([-math.inf, -math.inf, -math.inf, 2.0, 1.0], [0.0, 0.0, 0.0, 0.5, 0.5]),
}


def sums_of(x, t):
    rows = Rows(x, None, t, None, None, None, None, x.dtype, True)
    return rows, softmax.sums(x, rows, xp=namespace_of(x))


@pytest.mark.parametrize("parts", [(1,), (3,), (4,), (1, 2), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", ROWS)
def test_merged_is_whole(backend, name, parts):
    """lse = log sum_c exp(x_c) and dot = sum_c t_c (lse - x_c), where a class that weighs nothing costs nothing."""
    if backend.name != "numpy":
        pytest.skip("once, with NumPy")
    x, t = (np.asarray([row]) for row in ROWS[name])
    xp = namespace_of(x)
    merged, rows = None, None
    with np.errstate(all="ignore"):
        for a, b in zip((0, *parts), (*parts, 5), strict=True):
            rows, of_part = sums_of(x[:, a:b], t[:, a:b])
            merged = of_part if merged is None else softmax.merged(merged, of_part, xp=xp)
        out = softmax.finished(merged, None, rows, xp=xp)
    lse = math.log(math.fsum(math.exp(c - x.max()) for c in x[0])) + x.max()
    dot = math.fsum(weight * (lse - c) for weight, c in zip(t[0], x[0], strict=True) if weight)
    np.testing.assert_allclose([out.lse[0], out.dot[0]], [lse, dot], rtol=1e-14, atol=1e-14)
