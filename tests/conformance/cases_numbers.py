"""Numbers and shapes: infinities, NaN, offsets, huge and tiny logits, dtypes, axes, sizes, memory layouts."""

import functools

import numpy as np

from tests.conformance.case import (
    CLASS_WEIGHTS,
    COMPILED,
    EVERY,
    HALF,
    MASK,
    SOFT,
    WEIGHTS,
    Case,
    X,
    Y,
    distribution,
    integers,
    normal,
    one_hot,
)

AT_LABEL = one_hot(Y, 5).astype(bool)
OTHER = np.arange(5) == (Y[..., None] + 1) % 5  # one class that is not the label
NEAR_ONE = "lse is log(1 + t) for a small t, and 1 + t is rounded: the error is a last place of 1"


def infinities():
    off = np.where(OTHER, -np.inf, X)
    for r, modes in (("none", COMPILED[:-1]), ("mean", COMPILED)):
        yield Case(
            f"minus-inf-{r}",
            "probability 0, exactly, without NaN",
            {"logits": off, "labels": Y, "mask": MASK},
            {"reduction": r},
            modes=modes,
        )
    at = np.where(AT_LABEL & (np.arange(4)[:, None] == 1), -np.inf, X)
    for r in ("none", "sum", "mean"):
        yield Case(
            f"minus-inf-label-{r}",
            "a kept label there costs +inf",
            {"logits": at, "labels": Y, "mask": MASK},
            {"reduction": r},
        )
    yield Case(
        "minus-inf-label-masked", "a masked one costs nothing", {"logits": at, "labels": Y, "mask": np.arange(4) != 1}
    )
    yield Case(
        "minus-inf-soft-zero",
        "0 * inf is 0 in distributions",
        {"logits": np.where(np.arange(5) == 3, -np.inf, X), "labels": np.where(np.arange(5) == 3, 0.0, SOFT)},
        modes=COMPILED,
    )
    yield Case(
        "minus-inf-soft",
        "and q * inf where q is not 0",
        {"logits": np.where(np.arange(5) == 3, -np.inf, X), "labels": np.where(np.arange(5) == 3, 0.25, SOFT)},
        {"reduction": "none"},
        held=("labels",),
    )
    yield Case(
        "minus-inf-smoothing",
        "smoothing spread on a -inf logit costs +inf",
        {"logits": off, "labels": Y},
        {"label_smoothing": 0.1, "reduction": "none"},
    )
    yield Case(
        "minus-inf-smoothing-weight-zero",
        "not where the class weight is 0: nor in the derivative by it",
        {
            "logits": np.where(np.arange(5) == 3, -np.inf, X),
            "labels": np.where(Y == 3, 2, Y),
            "class_weights": np.where(np.arange(5) == 3, 0.0, CLASS_WEIGHTS),
        },
        {"label_smoothing": 0.1},
    )
    yield Case(
        "minus-inf-class-mask",
        "an excluded class is not a -inf logit: smoothing does not spread there",
        {"logits": off, "labels": Y, "class_mask": ~OTHER},
        {"label_smoothing": 0.1},
    )
    row = np.where(np.arange(4)[:, None] == 1, -np.inf, X)
    for r in ("none", "sum"):
        yield Case(
            f"minus-inf-row-{r}",
            "a kept row of -inf costs +inf, its softmax is 0, its gradient -q'",
            {"logits": row, "labels": Y},
            {"reduction": r},
        )
    yield Case(
        "minus-inf-row-z-loss",
        "lse ** 2 is infinite there, and its slope 2 lse p is 0",
        {"logits": row, "labels": Y},
        {"reduction": "sum", "z_loss": 0.1},
    )
    yield Case(
        "minus-inf-row-masked",
        "a masked one nothing",
        {"logits": row, "labels": Y, "mask": np.arange(4) != 1},
        modes=COMPILED,
    )
    yield Case(
        "minus-inf-z-loss", "lse is finite as long as one logit is", {"logits": off, "labels": Y}, {"z_loss": 0.1}
    )
    some = np.where((np.arange(3)[:, None, None] == 0) & (np.arange(5) == 2), np.nan, X)
    yield Case(
        "nan",
        "NaN in a kept entry's logits stays NaN, there",
        {"logits": some, "labels": Y},
        {"reduction": "none"},
        modes=COMPILED,
    )
    yield Case("nan-mean", "and in the mean", {"logits": some, "labels": Y})
    plus = np.where(OTHER & (np.arange(4)[:, None] == 2), np.inf, X)
    yield Case(
        "plus-inf",
        "lse is +inf: the loss is not finite",
        {"logits": plus, "labels": Y},
        {"reduction": "none"},
        held=("logits",),
        nonfinite=True,
    )


def sizes():
    for offset in (1e4, -1e4, 3e4):
        yield Case(
            f"offset-{offset:g}",
            "a common offset of the logits: neither overflow nor lost digits",
            {"logits": X + offset, "labels": Y, "mask": MASK},
            modes=COMPILED if offset == 1e4 else COMPILED[:-1],
        )
    yield Case("offset-soft", "lse and the target nearly cancel", {"logits": X + 1e4, "labels": SOFT})
    yield Case("offset-half", "in half precision", {"logits": np.round(X) * 8 + 3e4, "labels": Y}, dtypes=HALF)
    yield Case("tiny", "logits of 1e-30: the loss is log C", {"logits": X * 1e-30, "labels": Y})
    yield Case(
        "tiny-subnormal",
        "subnormal logits, which may be flushed to 0: class 0 is the arg-max either way",
        {"logits": -np.sort(-X) * 1e-40, "labels": Y},
        dtypes=("float32",),
    )
    yield Case(
        "huge-label",
        "the label's logit is far above: the loss is 0",
        {"logits": np.where(AT_LABEL, 1e30, -1e30), "labels": Y},
    )
    yield Case("huge-other", "far below: the loss is their distance", {"logits": np.where(OTHER, 1e30, X), "labels": Y})
    yield Case("huge-float64", "1e300", {"logits": np.where(OTHER, 1e300, -1e300), "labels": Y}, dtypes=("float64",))
    yield Case(
        "spread",
        "logits 0, -50, -100, ..: probabilities down to the smallest normal number",
        {"logits": np.broadcast_to(-50.0 * np.arange(5), (3, 4, 5)).copy(), "labels": Y},
        floor=1.0,
        relaxed=NEAR_ONE,
    )
    yield Case("confident", "p(label) is 1 - 1e-6", {"logits": np.where(AT_LABEL, 14.0, X / 8), "labels": Y})
    yield Case(
        "confident-near-zero",
        "lse and the label's logit are near 0, the rest far below",
        {"logits": np.where(AT_LABEL, 1e-3, X - 12), "labels": Y},
        floor=1.0,
        relaxed=NEAR_ONE,
    )
    yield Case(
        "log-softmax",
        "logits that are log-probabilities: lse is 0 but for rounding",
        {"logits": X - np.log(np.exp(X).sum(-1, keepdims=True)), "labels": Y},
    )
    yield Case(
        "equal",
        "all logits 0.1: the loss is log C, the first arg-max is class 0",
        {"logits": np.full((3, 4, 5), 0.1), "labels": Y},
    )


def dtypes():
    arrays = {"logits": X, "labels": Y, "mask": MASK, "weights": WEIGHTS}
    for r in ("none", "mean", "mean_over_sequences"):
        yield Case(
            f"half-{r}",
            "half in, float32 out, the gradient in the logits' dtype",
            arrays,
            {"reduction": r},
            dtypes=EVERY,
            modes=COMPILED if r == "mean" else COMPILED[:-1],
        )
    yield Case(
        "half-soft",
        "distributions of half precision",
        {**arrays, "labels": SOFT},
        {"label_smoothing": 0.1},
        dtypes=EVERY,
    )
    yield Case(
        "half-options",
        "under the other options",
        {**arrays, "class_weights": CLASS_WEIGHTS},
        {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0},
        dtypes=HALF,
    )
    yield Case(
        "half-accumulates",
        "600 classes sum in float32",
        {"logits": normal(21, 4, 600), "labels": integers(22, 600, 4)},
        dtypes=HALF,
    )
    yield Case(
        "half-largest",
        "float16's largest number is 65504: the z loss would overflow in it",
        {"logits": np.where(AT_LABEL, 60000.0, X), "labels": Y},
        {"z_loss": 1e-4},
        dtypes=("float16",),
    )


def shapes():
    yield Case(
        "one-class",
        "the loss is 0, and so is the gradient",
        {"logits": X[..., :1], "labels": np.zeros((3, 4), dtype=np.int64), "mask": MASK},
    )
    yield Case("one-entry", "one entry", {"logits": X[:1, 0], "labels": Y[:1, 0]})
    yield Case(
        "no-entry-axis",
        "logits of shape (C,): one entry without axes",
        {"logits": X[0, 0], "labels": np.array(Y[0, 0])},
        modes=COMPILED,
    )
    yield Case("no-entry-axis-label-python", "a Python number as label", {"logits": X[0, 0], "labels": 3})
    yield Case(
        "no-entry-axis-masked", "masked", {"logits": X[0, 0], "labels": np.array(Y[0, 0]), "mask": np.array(False)}
    )
    yield Case(
        "no-entry-axis-soft",
        "a distribution of shape (C,)",
        {"logits": X[0, 0], "labels": SOFT[0, 0]},
        {"reduction": "mean_over_sequences"},
    )
    yield Case("no-entries", "zero entries: 0", {"logits": X[:0], "labels": Y[:0]})
    yield Case(
        "no-entries-mean-over-all",
        "zero entries are a divisor of 0",
        {"logits": X[:0], "labels": Y[:0]},
        {"reduction": "mean_over_all"},
    )
    yield Case(
        "no-entries-sequences",
        "sequences of no entries",
        {"logits": X[:, :0], "labels": Y[:, :0]},
        {"reduction": "mean_over_sequences"},
    )
    yield Case("no-entries-none", "an empty result", {"logits": X[:, :0], "labels": Y[:, :0]}, {"reduction": "none"})
    for axis in (0, 1, -2, 2):
        place = axis % 3
        yield Case(
            f"axis-{axis}",
            "the class axis may be anywhere",
            {
                "logits": np.moveaxis(X, -1, place),
                "labels": Y,
                "mask": MASK,
                "weights": WEIGHTS,
                "class_weights": CLASS_WEIGHTS,
            },
            {"axis": axis},
            modes=COMPILED if axis == 1 else COMPILED[:-1],
        )
    yield Case(
        "axis-1-class-mask",
        "a class mask broadcasts to the logits as they are given",
        {"logits": np.moveaxis(X, -1, 1), "labels": np.where(Y == 2, 0, Y), "class_mask": (np.arange(5) != 2)[:, None]},
        {"axis": 1, "reduction": "mean_over_sequences"},
    )
    for classes in (7, 127, 1001):
        yield Case(
            f"classes-{classes}",
            "no multiple of any block",
            {"logits": normal(classes, 3, classes), "labels": integers(classes + 1, classes, 3)},
        )
    yield Case(
        "many-entries",
        "sums of many entries",
        {
            "logits": np.round(normal(23, 8, 40, 33), 1),
            "labels": integers(24, 33, 8, 40),
            "mask": np.random.default_rng(25).random((8, 40)) < 0.3,
        },
        modes=("eager",),
    )
    yield Case(
        "many-classes-some-rows",
        "more than a block of numbers in a few rows",
        {"logits": np.round(normal(26, 4, 70000), 1), "labels": integers(27, 70000, 4), "mask": np.array([1, 0, 1, 0])},
        modes=("eager", "jit"),
        dtypes=("float32",),
    )
    yield from many_classes()
    yield Case(
        "classes-2**20",
        "2**20 classes",
        {"logits": np.round(normal(28, 1, 2**20), 1), "labels": np.array([2**20 - 1])},
        modes=("eager", "jit"),
        dtypes=("float32",),
    )


def many_classes():
    """128255 terms of 1 beside one of exp(12), which a running sum of float32 meets with a rounding for each of them.

    With everything kept and with a mask, index and distribution, and far from 0, where a shift is taken.
    """
    above = np.zeros((1, 128256))
    above[0, 7] = 12.0
    label, why = np.array([7]), "a long row of small terms beside a large one is summed without losing them"
    given, two = {"logits": above, "labels": label}, np.concatenate([above, np.full_like(above, np.nan)])
    # Four levels of 16 terms in torch's cascade: up to 16 roundings of half a last place each, all alike where the
    # terms are; seen: 10 last places of the total. A running sum of them is off by hundreds.
    relaxed = {"ulps": 16.0, "relaxed": "a sum of equal terms, whose roundings add up"}
    case = functools.partial(Case, modes=COMPILED[:-1], **relaxed)
    yield case("long-rows-mean", why, given, modes=COMPILED)
    yield case("long-rows-none", why, given, {"reduction": "none"}, modes=COMPILED)
    yield case("long-rows-half", why, given, dtypes=HALF)
    yield case("long-rows-far", why, {**given, "logits": above - 80})
    yield case("long-rows-masked", why, {"logits": two, "labels": np.array([7, -1]), "mask": np.array([True, False])})
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 30.0}
    yield case(
        "long-rows-axis-0",
        "side by side in memory or not",
        {"logits": above[:, : 2**12].T, "labels": label, "class_weights": np.ones(2**12)},
        {"axis": 0, "label_smoothing": 0.1},
        dtypes=("float32",),
        held=("class_weights",),
    )
    above, single = above[:, : 2**15], {"dtypes": ("float32",)}
    yield case("long-rows-options", why, {**given, "logits": above}, options, **single)
    soft = np.where(above == 0, 0.25 / (2**15 - 1), 0.75)
    yield case("long-rows-soft", why, {"logits": above, "labels": soft}, held=("labels",), **single)
    beside = {
        "logits": np.broadcast_to(above[:, : 2**12].T, (2**12, 3)).copy(),
        "labels": np.full((2**12, 3), 2.0**-12),
    }
    yield case("long-rows-soft-axis-0", "rows that lie in no line", beside, {"axis": 0}, held=("labels",), **single)


def layouts():
    arrays = {"logits": X, "labels": Y, "mask": MASK, "weights": WEIGHTS}
    for layout in ("strided", "transposed"):
        yield Case(
            f"layout-{layout}",
            "the memory layout is nobody's business",
            arrays,
            layout=layout,
            modes=COMPILED if layout == "strided" else COMPILED[:-1],
        )
        yield Case(f"layout-{layout}-soft", "of distributions too", {**arrays, "labels": SOFT}, layout=layout)
    same = {n: np.broadcast_to(a[:1], a.shape).copy() for n, a in arrays.items()}
    yield Case(
        "layout-broadcast", "rows that share their memory (stride 0), and get a gradient each", same, layout="broadcast"
    )
    yield Case(
        "layout-broadcast-soft",
        "with distributions",
        {**same, "labels": np.broadcast_to(distribution(29, 1, 4, 5), (3, 4, 5)).copy()},
        {"label_smoothing": 0.1},
        layout="broadcast",
    )


CASES = [*infinities(), *sizes(), *dtypes(), *shapes(), *layouts()]
