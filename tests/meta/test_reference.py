"""The reference against derivations by hand, against finite differences of itself, and shown able to fail."""

import functools

import numpy as np
import pytest

from tests import reference as ref
from tests import reference_masked as refm

mp = ref.mp
LOG3 = np.log(3.0)
H = 2.0**-40


def close(a, b, digits=40):
    return abs(a - b) <= mp.mpf(10) ** -digits * max(1, abs(b))


def dyadic(rng, *shape):
    """Multiples of 2**-8: adding H = 2**-40 to them is exact in float64."""
    return np.round(rng.normal(size=shape) * 256) / 256


def test_logarithms_of_probabilities_give_back_their_logarithms():
    """Logits 0, log 3: p = 1/4, 3/4. Labels 0 and 1 cost log 4 and log 4/3; log 3 is rounded in its 17th digit."""
    logits = [[0.0, LOG3], [0.0, LOG3]]
    a, b = mp.log(4), mp.log(mp.mpf(4) / 3)
    assert close(ref.cross_entropy(logits, [0, 1]).value, (a + b) / 2, 15)
    out = ref.cross_entropy(logits, [0, 1], weights=[1.0, 3.0], reduction="sum")
    assert close(out.value, a + 3 * b, 15)
    assert (out.stats.count, out.stats.correct) == (2, 1)
    assert close(refm.label_log_probs(logits, [0, 1]).value[0], -a, 15)
    assert close(refm.entropy(logits).value[0], a / 4 + 3 * b / 4, 15)


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes():
    """p = 1/5 whatever the label; z_loss adds z log(5)**2.

    Smoothing 1/4 with class weights (2, 0, 0, 0, 0) and label 0: q' = ((3/4 + 1/20) * 2, 0, 0, 0, 0), so the loss is
    1.6 log 5; the divisor is w_0 = 2.
    """
    log5 = mp.log(5)
    assert close(ref.cross_entropy(np.zeros((3, 5)), [0, 1, 4]).value, log5)
    assert close(ref.cross_entropy(np.zeros((3, 5)), [0, 1, 4], z_loss=0.5).value, log5 + log5**2 / 2)
    assert close(ref.cross_entropy(np.zeros((3, 5)), [0, 1, 4], label_smoothing=0.25).value, log5)
    out = ref.cross_entropy(np.zeros((1, 5)), [0], class_weights=[2.0, 0, 0, 0, 0], label_smoothing=0.25)
    assert close(out.value, mp.mpf("0.8") * log5)
    out = ref.cross_entropy(np.zeros((1, 5)), [0], class_mask=[True, True, False, False, True])
    assert close(out.value, mp.log(3))


@pytest.mark.parametrize(
    ("reduction", "by_hand"),
    [
        ("sum", mp.mpf("10.5")),
        ("mean", mp.mpf("10.5") / 4),
        ("mean_over_kept", mp.mpf("3.5")),
        ("mean_over_all", mp.mpf("1.75")),
        ("mean_over_sequences", (mp.mpf(5) / 3 + mp.mpf("5.5")) / 2),
    ],
)
def test_reductions(reduction, by_hand):
    """Kept: values 1, 2 with weights 1, 2 in the first row, 5.5 with weight 1 in the second.

    S = 1 + 4 + 5.5, sum w = 4, 3 kept of 6, and the rows' means are 5 / 3 and 5.5.
    """
    values = np.array([[1.0, 2.0, 9.0], [5.5, 9.0, 9.0]])
    weights = np.array([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    assert close(ref.reduce(values, mask=mask, weights=weights, reduction=reduction).value, by_hand)


def test_masked_functions():
    """Kept 1, 2, 4: sum 7, mean 7/3, var (1 + 4 + 16) / 3 - 49 / 9 = 14 / 9, with correction 1 7/3."""
    x, mask = [1.0, 2.0, np.nan, 4.0], [True, True, False, True]
    assert refm.masked_sum(x, mask).value == 7
    assert close(refm.masked_mean(x, mask).value.item(), mp.mpf(7) / 3)
    assert close(refm.masked_var(x, mask).value.item(), mp.mpf(14) / 9)
    assert close(refm.masked_var(x, mask, correction=1).value.item(), mp.mpf(7) / 3)
    assert close(refm.masked_std(x, mask).value.item(), mp.sqrt(14) / 3)
    assert (refm.masked_max(x, mask).value, refm.masked_min(x, mask).value) == (4, 1)
    assert close(refm.masked_logsumexp([0.0, 9.0, LOG3], [1, 0, 1]).value.item(), mp.log(4), 15)
    assert close(refm.masked_softmax([0.0, 9.0, LOG3], [1, 0, 1]).value[2], mp.mpf(3) / 4, 15)
    assert refm.masked_log_softmax([0.0, 9.0], [1, 0]).value.tolist() == [0, -mp.inf]
    assert refm.masked_mean(x, [0, 0, 0, 0]).value == 0


def test_infinite_logits():
    """-inf is probability 0 without NaN, a label there costs +inf, a row of -inf has the gradient -q'."""
    logits = [[0.0, 0.0, -np.inf]]
    assert close(ref.cross_entropy(logits, [0]).value, mp.log(2))
    assert ref.cross_entropy(logits, [2]).value == mp.inf
    assert close(refm.entropy(logits).value[0], mp.log(2))
    out = ref.cross_entropy([[-np.inf, -np.inf]], [1], gradients=("logits",))
    assert out.value == mp.inf
    assert out.gradients["logits"][0].tolist() == [[0, -1]]


def difference(of, at, index):
    """Central: the error is H**2 f''' / 6, about 1e-25, and the cancellation costs 12 of 50 digits."""
    up, down = at.copy(), at.copy()
    up[index] += H
    down[index] -= H
    return (of(up) - of(down)) / (2 * mp.mpf(H))


def options_of(rng, name):
    """Every argument at once, then one at a time where two exclude each other."""
    common = {
        "logits": dyadic(rng, 2, 3, 4),
        "labels": rng.integers(0, 2, (2, 3)),
        "mask": rng.random((2, 3)) < 0.8,
        "weights": dyadic(rng, 2, 1),
        "class_weights": abs(dyadic(rng, 4)),
        "label_smoothing": 0.125,
        "z_loss": 0.25,
        "class_mask": np.array([True, True, False, True]),
    }
    if name == "soft":
        return common | {"labels": dyadic(rng, 2, 3, 4), "class_mask": None}
    if name == "softcap":
        return common | {"softcap": 2.0, "weights": dyadic(rng, 3)}
    if name == "axis":
        return common | {"axis": 1, "logits": dyadic(rng, 2, 4, 3), "class_mask": common["class_mask"][:, None]}
    return common


@pytest.mark.parametrize("name", ["hard", "soft", "softcap", "axis"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences", "d"])
def test_gradients_by_finite_differences(name, reduction):
    arguments = options_of(np.random.default_rng(3), name)
    denominator = np.float64(2.5) if reduction == "d" else None
    arguments |= {"reduction": "mean" if reduction == "d" else reduction, "denominator": denominator}
    names = ["logits", "weights", "class_weights"]
    names += ["labels"] * (name == "soft") + ["denominator"] * (reduction == "d")
    gradients = ref.cross_entropy(**arguments, gradients=names, upstream=3).gradients
    for argument in names:
        at = np.asarray(arguments[argument])
        for index in np.ndindex(at.shape):

            def of(x, argument=argument):
                return 3 * ref.cross_entropy(**arguments | {argument: x}).value

            assert close(np.asarray(gradients[argument][0])[index], difference(of, at, index), 20), (argument, index)


MASKED = {
    "masked_sum": {}, "masked_mean": {}, "masked_var": {"correction": 0.5}, "masked_std": {}, "masked_max": {},
    "masked_min": {}, "masked_logsumexp": {}, "masked_softmax": {}, "masked_log_softmax": {},
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_masked_gradients_by_finite_differences(name):
    rng = np.random.default_rng(5)
    x, mask = dyadic(rng, 3, 4), rng.random((3, 4)) < 0.8
    function = functools.partial(getattr(refm, name), mask=mask, axis=1, **MASKED[name])
    weighed = name in ("masked_sum", "masked_mean", "masked_var", "masked_std")
    weights = abs(dyadic(rng, 1, 4)) + 1.0 if weighed else None
    function = functools.partial(function, weights=weights) if weighed else function
    up = dyadic(rng, *function(x).value.shape)

    def total(values):
        return mp.fsum(ref.number(u) * v for u, v in zip(up.flat, values.flat, strict=True) if not mp.isinf(v))

    gradients = function(x, upstream=up).gradients
    for index in np.ndindex(x.shape):
        assert close(gradients["x"][0][index], difference(lambda x: total(function(x).value), x, index), 20), index
    for index in np.ndindex(weights.shape) if weighed else ():
        by = difference(lambda w: total(function(x, weights=w).value), weights, index)
        assert close(gradients["weights"][0][index], by, 20), index


@pytest.mark.parametrize("name", ["label_log_probs", "entropy"])
def test_row_gradients_by_finite_differences(name):
    rng = np.random.default_rng(6)
    x, up = dyadic(rng, 3, 4), dyadic(rng, 3)
    first = (rng.integers(0, 4, 3),) if name == "label_log_probs" else ()

    def of(x, **more):
        return getattr(refm, name)(x, *first, mask=[True, False, True], softcap=2.0, **more)

    gradient = of(x, upstream=up).gradients["logits"][0]
    for index in np.ndindex(x.shape):
        by = difference(lambda x: mp.fsum(ref.number(u) * v for u, v in zip(up, of(x).value, strict=True)), x, index)
        assert close(gradient[index], by, 20)


def test_finite_differences_can_fail(monkeypatch):
    """The comparison above must notice probabilities that are off in their 12th digit."""
    real = ref.softmax_row

    def wrong(*args):
        row = real(*args)
        row.p = {v: p * (1 + mp.mpf(10) ** -12) for v, p in row.p.items()}
        return row

    monkeypatch.setattr(ref, "softmax_row", wrong)
    with pytest.raises(AssertionError):
        test_gradients_by_finite_differences("hard", "sum")


def test_what_is_masked_cannot_matter():
    logits = np.array([[0.0, 1.0], [np.nan, np.inf]])
    out = ref.cross_entropy(logits, [0, 10**6], mask=[True, False], gradients=("logits",))
    assert out.value == ref.cross_entropy(logits[:1], [0]).value
    assert out.gradients["logits"][0][1].tolist() == [0, 0]


def test_a_kept_label_outside_is_refused():
    with pytest.raises(ValueError, match="label 2"):
        ref.cross_entropy([[0.0, 1.0]], [2])
