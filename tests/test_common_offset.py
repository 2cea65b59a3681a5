"""A common offset of the logits changes no digit of a loss, where adding it to the logits rounds nothing.

With logits that are multiples of 2**-6 below 2**6, and offsets of 2**13 and 2**14, logits + offset are exact in float32
(21 of 24 bits), and so are (logits + offset) - max(logits + offset) = logits - max(logits). Whatever is computed from
these differences is the same to the last bit; what is computed as lse - x_y is not, since lse rounds at 2**13.

Without an offset the engine need not subtract: the same numbers, to the rounding of exp and of a quotient.
"""

import numpy as np
import pytest

import maskloss as ml
from tests import backends

LABELS = np.array([0, 3, 2, 4])
OFFSETS = (2.0**13, 2.0**14)
SOFT = np.full((4, 5), 0.2)


def logits(offset):
    x = np.round(np.random.default_rng(5).normal(size=(4, 5)) * 4 * 64) / 64
    return (x + offset).astype(np.float32)


FUNCTIONS = {
    "indices": lambda x, put: ml.cross_entropy(x, put(LABELS), reduction="none"),
    "distributions": lambda x, put: ml.cross_entropy(x, put(SOFT.astype(np.float32)), reduction="none"),
    "smoothing": lambda x, put: ml.cross_entropy(x, put(LABELS), reduction="none", label_smoothing=0.1),
    "label_log_probs": lambda x, put: ml.label_log_probs(x, put(LABELS)),
    "entropy": lambda x, put: ml.entropy(x),
    "masked_log_softmax": lambda x, put: ml.masked_log_softmax(x),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_offset_changes_no_digit(backend, function):
    backends.holds_values(backend)

    def put(a):
        return backends.asarray(backend, a)

    with backends.settings(backend):
        first, second = (
            backends.to_numpy(backend, FUNCTIONS[function](put(logits(offset)), put)) for offset in OFFSETS
        )
        plain = backends.to_numpy(backend, FUNCTIONS[function](put(logits(0)), put))
    assert np.array_equal(first, second)
    # exp, twice, and the quotient err by a few 2**-24 each, relative to the ratio: absolute in its logarithm.
    finite = np.isfinite(first)
    assert np.all(np.abs(plain - first)[finite] <= 2.0**-20 * np.maximum(1, np.abs(first[finite])))


def test_check_can_fail():
    def nll(x):
        lse = np.log(np.sum(np.exp(x - x.max(-1, keepdims=True)), -1)) + x.max(-1)
        return lse - x[np.arange(4), LABELS]

    assert not np.array_equal(nll(logits(OFFSETS[0])), nll(logits(OFFSETS[1])))
