"""A common offset of the logits changes no digit of a loss, where adding it to the logits rounds nothing.

With logits that are multiples of 2**-6 below 2**6, and an offset of 2**13, logits + offset are exact in float32 (20 of
24 bits), and so are (logits + offset) - max(logits + offset) = logits - max(logits). Whatever is computed from these
differences is the same to the last bit; what is computed as lse - x_y is not, since lse rounds at 2**13.
"""

import backends
import numpy as np
import pytest

import maskloss as ml

LABELS = np.array([0, 3, 2, 4])
OFFSET = 2.0**13
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
    if backend.shapes_only:
        pytest.skip("holds no values")

    def put(a):
        return backends.asarray(backend, a)

    with backends.settings(backend):
        plain, moved = (
            backends.to_numpy(backend, FUNCTIONS[function](put(logits(offset)), put)) for offset in (0, OFFSET)
        )
    assert np.array_equal(plain, moved)


def test_check_can_fail():
    def nll(x):
        lse = np.log(np.sum(np.exp(x - x.max(-1, keepdims=True)), -1)) + x.max(-1)
        return lse - x[np.arange(4), LABELS]

    assert not np.array_equal(nll(logits(0)), nll(logits(OFFSET)))
