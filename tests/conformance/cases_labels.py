"""Labels: dtypes, ignored ones, distributions, and whatever a masked entry may hold."""

import numpy as np

from tests.conformance.case import (
    CLASS_WEIGHTS,
    CLASSES,
    COMPILED,
    MASK,
    SOFT,
    WEIGHTS,
    Case,
    X,
    Y,
    integers,
    normal,
    one_hot,
)

FORUM = np.array([[0.3797, 0.6203], [0.4363, 0.5637], [0.3797, 0.6203]])
CANCELS = "lse is 0 = max + log z with z = 2 summed of 10 terms: 2 last places of z are 4 of a loss of 0.69 (XLA: 4.4)"


def dtypes():
    for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        yield Case(
            f"labels-{dtype}",
            "any integer dtype",
            {"logits": X, "labels": Y.astype(dtype), "mask": MASK},
            dtypes=("float32",),
            modes=COMPILED if dtype == "uint8" else COMPILED[:-1],
        )
    wide = {"logits": normal(11, 4, 300), "labels": np.array([0, 127, 200, 255], dtype=np.uint8)}
    yield Case("labels-uint8-above-127", "never read as negative", wide)
    yield Case("labels-uint8-ignore-255", "the largest of its dtype, ignored", wide, {"ignore_index": 255})
    yield Case(
        "labels-uint8-ignore-minus-100",
        "an ignored value that the dtype cannot hold marks nothing (156 is not -100)",
        {**wide, "labels": np.array([0, 127, 156, 255], dtype=np.uint8)},
        {"ignore_index": -100},
    )
    yield Case(
        "labels-int8-ignore-minus-100",
        "held by int8",
        {"logits": X, "labels": np.where(MASK, Y, -100).astype(np.int8)},
        {"ignore_index": -100},
    )
    yield Case(
        "labels-int8-many-classes",
        "more classes than the dtype can name",
        {"logits": normal(12, 4, 300), "labels": np.array([0, 100, 127, 5], dtype=np.int8)},
    )


def ignored():
    for value in (-100, -1, 0, 3, 10**6):
        yield Case(
            f"ignore-{value}",
            "the label value that marks an entry as not counting",
            {"logits": X, "labels": np.where(MASK, Y, value), "weights": WEIGHTS},
            {"ignore_index": value},
            modes=COMPILED if value == -100 else COMPILED[:-1],
        )
    yield Case(
        "ignore-and-mask",
        "both apply",
        {"logits": X, "labels": np.where(MASK, Y, -100), "mask": ~np.eye(3, 4, dtype=bool)},
        {"ignore_index": -100, "reduction": "mean_over_sequences"},
    )
    yield Case("ignore-none", "no magic number: 4 is a class", {"logits": X, "labels": np.full((3, 4), 4)})


def garbage():
    bad = np.resize(np.array([-100, -1, 10**6, 5, 2**40, -(2**40)]), (3, 4))
    holes = np.resize(np.array([np.nan, np.inf, -np.inf]), (3, 4))[..., None]
    logits = np.where(MASK[..., None], X, holes)
    labels = np.where(MASK, Y, bad)
    every = {"logits": logits, "labels": labels, "mask": MASK, "weights": np.where(MASK, WEIGHTS, holes[..., 0])}
    why = "what is not kept cannot reach the value or a gradient, whatever it holds"
    for r in ("none", "mean", "mean_over_sequences"):
        yield Case(f"garbage-{r}", why, every, {"reduction": r}, modes=COMPILED if r == "mean" else COMPILED[:-1])
    yield Case("garbage-half", why, {**every, "labels": np.where(MASK, Y, -100)}, dtypes=("float16", "bfloat16"))
    yield Case(
        "garbage-everything",
        why + ", under every option",
        {
            **every,
            "class_weights": CLASS_WEIGHTS,
            "class_mask": CLASSES,
            "labels": np.where(MASK, np.where(Y == 2, 1, Y), bad),
        },
        {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0},
    )
    yield Case(
        "garbage-soft",
        why + ", in distributions too",
        {**every, "labels": np.where(MASK[..., None], SOFT, holes)},
        {"label_smoothing": 0.1},
        modes=COMPILED,
    )
    yield Case(
        "garbage-weight-zero",
        "a weight of 0 is a mask",
        {"logits": np.where(MASK[..., None], X, np.nan), "labels": labels, "weights": np.where(MASK, 1.5, 0.0)},
    )
    yield Case(
        "garbage-ignored",
        "so is an ignored label",
        {"logits": np.where(MASK[..., None], X, np.nan), "labels": np.where(MASK, Y, -100)},
        {"ignore_index": -100},
    )
    yield Case(
        "garbage-huge",
        "finite but huge logits overflow nothing",
        {**every, "logits": np.where(MASK[..., None], X, 3e38)},
    )


def soft():
    base = {"logits": X, "mask": MASK}
    yield Case(
        "one-hot",
        "an integer label and its one-hot distribution are the same",
        {**base, "labels": one_hot(Y, 5)},
        modes=COMPILED,
    )
    yield Case(
        "one-hot-everything",
        "under every option",
        {
            **base,
            "labels": one_hot(np.where(Y == 2, 1, Y), 5),
            "weights": WEIGHTS,
            "class_weights": CLASS_WEIGHTS,
            "class_mask": CLASSES,
        },
        {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0},
    )
    for r in ("none", "mean", "mean_over_kept", "mean_over_sequences"):
        yield Case(f"soft-{r}", "a distribution", {**base, "labels": SOFT}, {"reduction": r})
        yield Case(
            f"soft-class-weights-{r}",
            "divisor sum_i w_i sum_c w_c q_ic",
            {**base, "labels": SOFT, "weights": WEIGHTS, "class_weights": CLASS_WEIGHTS},
            {"reduction": r},
        )
    yield Case("soft-unnormalised", "not renormalised: it need not sum to 1", {**base, "labels": SOFT * 3})
    yield Case("soft-negative", "nor be positive", {**base, "labels": normal(13, 3, 4, 5)}, {"reduction": "sum"})
    yield Case(
        "soft-zeros",
        "a row of zeros costs nothing, and its derivative by q_c is -log p_c",
        {**base, "labels": np.where(np.arange(4)[:, None] == 1, 0.0, SOFT)},
    )
    yield Case(
        "soft-axis-1",
        "the distribution's classes lie on the logits' axis",
        {"logits": np.moveaxis(X, -1, 1), "labels": np.moveaxis(SOFT, -1, 1), "mask": MASK},
        {"axis": 1},
    )
    yield Case(
        "soft-float64",
        "a wider distribution does not change the dtype of the result",
        {**base, "labels": SOFT},
        dtypes=("float32",),
        fixed=("labels",),
    )


def examples():
    yield Case(
        "forum",
        "BERT losses averaged over what counts: 0.7261",
        {"logits": FORUM, "labels": np.array([0, 1, 1]), "mask": np.array([1, 1, 0])},
    )
    for r, arrays in MASKED_LM:
        yield Case(
            f"masked-lm-{r}",
            "logits are logs of probabilities: see test_examples.py",
            arrays,
            {"reduction": r},
            modes=COMPILED if r == "mean" else COMPILED[:-1],
            ulps=5.0,
            relaxed=CANCELS,
        )
        hidden = {
            **arrays,
            "logits": np.where(arrays["mask"][..., None], arrays["logits"], np.nan),
            "labels": np.where(arrays["mask"], arrays["labels"], -100),
        }
        yield Case(
            f"masked-lm-hidden-{r}",
            "the same with NaN and -100 in what is masked",
            hidden,
            {"reduction": r},
            ulps=5.0,
            relaxed=CANCELS,
        )


def masked_lm():
    """Three sentences of 2, 3 and 1 masked tokens, padded to 3, over 10 words.

    p(label) is 1/2, 1/4 | 1/2, 1/8, 1/8 | 1/16 and the other 9 words share the rest equally, so lse = 0 and a loss is
    a multiple of log 2.
    """
    powers = np.array([[1, 2, 1], [1, 3, 3], [4, 1, 1]])
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=bool)
    labels = integers(14, 10, 3, 3)
    p = np.where(np.arange(10) == labels[..., None], (0.5**powers)[..., None], ((1 - 0.5**powers) / 9)[..., None])
    return {"logits": np.log(p), "labels": labels, "mask": mask}


MASKED_LM = [(r, masked_lm()) for r in ("none", "sum", "mean", "mean_over_all", "mean_over_sequences")]
CASES = [*dtypes(), *ignored(), *garbage(), *soft(), *examples()]
