"""Two examples whose numbers are derived by hand: the reference must give them, and then every backend gives them."""

import pytest

from tests.conformance.cases import CASES
from tests.conformance.runs import wanted
from tests.reference import mp


def value(name):
    w = wanted(name, "float64", CASES[name].options.get("reduction", "mean")).value
    return w.hi + w.lo


def test_forum():
    """https://discuss.pytorch.org/t/loss-of-bert-mask-language-modeling-and-next-sentence-prediction/113889

    Logits (0.3797, 0.6203) with label 0 cost d + log(1 + e^-d), d = 0.6203 - 0.3797 = 0.2406: 0.8207. Logits (0.4363,
    0.5637) with label 1 cost log(1 + e^-0.1274) = 0.6315. Their mean, the third entry masked, is 0.7261. The 0.4516
    of the thread has the masked entry's 0 in it, and averages in another order: (0.7261 * 2 / 3 = 0.4841) is what
    mean_over_all gives.
    """
    first = mp.mpf("0.2406") + mp.log(1 + mp.exp(mp.mpf("-0.2406")))
    second = mp.log(1 + mp.exp(mp.mpf("-0.1274")))
    assert value("forum") == pytest.approx(float((first + second) / 2), rel=1e-14)
    assert round(float(value("forum")), 4) == 0.7261


@pytest.mark.parametrize(
    ("reduction", "halvings"),
    [("sum", 14), ("mean", 14 / 6), ("mean_over_all", 14 / 9), ("mean_over_sequences", (3 / 2 + 7 / 3 + 4) / 3)],
)
def test_masked_lm(reduction, halvings):
    """p(label) is 1/2 and 1/4; 1/2, 1/8 and 1/8; 1/16: losses of 1, 2 | 1, 3, 3 | 4 times log 2.

    Their sum is 14, over 6 kept tokens of 9, and the sentences' means are 3/2, 7/3 and 4.
    """
    by_hand = float(halvings * mp.log(2))
    assert value(f"masked-lm-{reduction}") == pytest.approx(by_hand, rel=1e-14)
    assert value(f"masked-lm-hidden-{reduction}") == value(f"masked-lm-{reduction}")
