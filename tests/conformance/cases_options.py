"""Every option alone and with others: reductions, weights, class weights, class masks, smoothing, z loss, softcap."""

import numpy as np

from tests.conformance.case import (
    ALLOWED,
    CLASS_WEIGHTS,
    CLASSES,
    COMPILED,
    MASK,
    REDUCTIONS,
    SOFT,
    WEIGHTS,
    Case,
    X,
    Y,
    normal,
    one_hot,
)

BASE = {"logits": X, "labels": Y}
KEPT = {**BASE, "mask": MASK}
ZERO_WEIGHTS = np.array([0.5, 0.0, 2.0, 1.5, 0.0])
PER_ENTRY = np.random.default_rng(4).random((3, 4, 5)) < 0.6
PER_ENTRY = PER_ENTRY | one_hot(Y, 5).astype(bool)
EVERYTHING = {
    "logits": X,
    "labels": ALLOWED,
    "mask": MASK,
    "weights": WEIGHTS,
    "class_weights": CLASS_WEIGHTS,
    "class_mask": CLASSES,
}
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0}


def reductions():
    for r in REDUCTIONS:
        modes = COMPILED if r == "mean" else COMPILED[:-1]
        yield Case(f"plain-{r}", "the reduction alone", BASE, {"reduction": r})
        yield Case(
            f"mask-{r}",
            "a row keeps nothing: it counts in mean_over_all and in nothing else",
            KEPT,
            {"reduction": r},
            modes=modes,
        )
        yield Case(
            f"weights-{r}", "weights are negative, zero and positive", {**KEPT, "weights": WEIGHTS}, {"reduction": r}
        )
        yield Case(
            f"everything-{r}",
            "all options at once",
            EVERYTHING,
            {**OPTIONS, "reduction": r},
            modes=COMPILED if r in ("mean", "mean_over_sequences") else COMPILED[:-1],
        )
        yield Case(
            f"everything-soft-{r}",
            "all options at once, distributions",
            {**EVERYTHING, "labels": SOFT},
            {**OPTIONS, "reduction": r},
        )
        yield Case(
            f"one-entry-axis-{r}",
            "one entry axis is one sequence",
            {"logits": X[0], "labels": Y[0], "mask": MASK[0], "weights": WEIGHTS[0]},
            {"reduction": r},
        )
        yield Case(
            f"three-entry-axes-{r}",
            "sequences run along the last entry axis",
            {"logits": normal(5, 2, 3, 4, 5), "labels": np.stack([Y, ALLOWED]), "mask": np.stack([MASK, ~MASK])},
            {"reduction": r},
            modes=("eager", "autodiff"),
        )


def denominators():
    for r in ("mean", "mean_over_kept", "mean_over_all", "mean_over_sequences"):
        yield Case(
            f"denominator-number-{r}",
            "a number replaces the divisor",
            {**KEPT, "weights": WEIGHTS},
            {"reduction": r, "denominator": 7},
        )
        yield Case(
            f"denominator-0d-{r}",
            "a 0-d array replaces the divisor and has a derivative",
            {**KEPT, "weights": WEIGHTS, "denominator": np.array(3.5)},
            {"reduction": r},
            modes=COMPILED if r == "mean" else COMPILED[:-1],
        )
    yield Case("denominator-float", "a Python float", KEPT, {"denominator": 2.5})
    yield Case("denominator-zero", "a divisor of 0 gives 0", KEPT, {"denominator": 0})
    yield Case(
        "denominator-0d-zero", "a 0-d divisor of 0 gives 0 and derivatives of 0", {**KEPT, "denominator": np.array(0.0)}
    )
    yield Case(
        "denominator-integer-array",
        "a 0-d integer array, as counts are",
        {**KEPT, "denominator": np.array(6)},
        {"reduction": "mean_over_kept"},
    )
    yield Case(
        "denominator-sequences-zero",
        "0 for mean_over_sequences too",
        KEPT,
        {"reduction": "mean_over_sequences", "denominator": 0},
    )
    yield Case(
        "divisor-cancels",
        "weights cancel to a divisor of exactly 0: the loss is 0, never NaN",
        {"logits": X[0], "labels": Y[0], "weights": np.array([1.5, -1.5, 0.5, -0.5])},
    )
    yield Case(
        "divisor-cancels-one-row",
        "one row's weights cancel: its mean is 0, and it is still a row that kept",
        {"logits": X, "labels": Y, "weights": np.array([[1.0, -1.0, 2.0, -2.0], [1.0, 2.0, 3.0, 4.0], [0, 0, 0, 0]])},
        {"reduction": "mean_over_sequences"},
    )
    yield Case(
        "divisor-no-class-weight",
        "every kept label has class weight 0: the divisor is 0",
        {"logits": X, "labels": np.where(Y % 2, 1, 4), "class_weights": np.array([1.0, 0, 1, 1, 0])},
    )
    yield Case(
        "divisor-nearly-cancels",
        "an ill-conditioned divisor: weights sum to 1/64",
        {"logits": X[0], "labels": Y[0], "weights": np.array([1.0, -1.0, 0.5, -0.484375])},
    )


def masks():
    for name, mask in {
        "all-true": np.ones((3, 4), dtype=bool),
        "rows": np.array([[True], [False], [True]]),
        "columns": np.array([True, False, True, True]),
        "single": np.array([[True]]),
        "0d": np.array(True),
        "int8": MASK.astype(np.int8),
        "uint8": MASK.astype(np.uint8),
        "int32": MASK.astype(np.int32),
        "int64-rows": np.array([[1], [0], [1]]),
    }.items():
        yield Case(
            f"mask-{name}",
            "a mask broadcasts, and integers 0 and 1 are a mask",
            {**BASE, "mask": mask},
            {"reduction": "mean_over_kept"} if name == "rows" else {},
        )
    yield Case("mask-python-true", "a Python bool", BASE, {"mask": True})
    yield Case("mask-python-false", "a Python bool that keeps nothing", BASE, {"mask": False})


def nothing_kept():
    empty = {**BASE, "mask": np.zeros((3, 4), dtype=bool), "weights": WEIGHTS, "class_weights": CLASS_WEIGHTS}
    for r in REDUCTIONS:
        yield Case(
            f"nothing-kept-{r}",
            "0, with derivatives that are exactly 0 and connected",
            empty,
            {"reduction": r},
            modes=COMPILED if r == "mean" else COMPILED[:-1],
        )
    yield Case(
        "nothing-kept-weights",
        "weights of 0 are a mask of False",
        {**BASE, "weights": np.zeros((3, 4))},
        {"reduction": "mean_over_kept"},
    )
    yield Case(
        "nothing-kept-ignored",
        "every label is the ignored one",
        {"logits": X, "labels": np.full((3, 4), -100)},
        {"ignore_index": -100},
    )
    yield Case("nothing-kept-classes", "no class is allowed anywhere", {**BASE, "class_mask": np.zeros(5, dtype=bool)})


def weights():
    for name, w in {
        "rows": np.array([[2.0], [-0.5], [0.0]]),
        "columns": np.array([0.5, 0.0, 1.0, -2.0]),
        "0d": np.array(-1.5),
        "single": np.array([[3.0]]),
        "integers": np.array([[1, 2, 0, 3]] * 3),
    }.items():
        for r in ("mean", "mean_over_sequences"):
            yield Case(
                f"weights-{name}-{r}",
                "divisors use broadcast weights: (B, 1) counts T times each",
                {**KEPT, "weights": w},
                {"reduction": r},
                modes=COMPILED[:-1] if r == "mean" else ("eager",),
            )
    yield Case("weights-python", "a Python number", KEPT, {"weights": 2})
    yield Case("weights-python-float", "a Python number, with none", KEPT, {"weights": 0.5, "reduction": "none"})
    yield Case("weights-python-zero", "0 is masked", KEPT, {"weights": 0.0})
    yield Case(
        "weights-float64",
        "wider weights do not change the dtype of the result",
        {**KEPT, "weights": WEIGHTS},
        dtypes=("float32",),
        fixed=("weights",),
    )
    yield Case(
        "class-weights-float64",
        "nor do wider class weights",
        {**KEPT, "class_weights": CLASS_WEIGHTS},
        dtypes=("float32",),
        fixed=("class_weights",),
    )
    for r in ("none", "mean", "mean_over_sequences"):
        yield Case(
            f"class-weights-zeros-{r}",
            "a class of weight 0 costs nothing and leaves the divisor",
            {**KEPT, "class_weights": ZERO_WEIGHTS},
            {"reduction": r},
        )
    yield Case(
        "class-weights-smoothing",
        "smoothing spreads before the class weights",
        {**KEPT, "class_weights": ZERO_WEIGHTS},
        {"label_smoothing": 0.1},
        modes=COMPILED,
    )
    yield Case(
        "class-weights-smoothing-held",
        "constants, as they mostly are: another way to the gradient of the logits",
        {**KEPT, "class_weights": ZERO_WEIGHTS},
        {"label_smoothing": 0.1},
        held=("class_weights",),
    )
    yield Case(
        "class-weights-negative",
        "real, of any sign",
        {**KEPT, "class_weights": np.array([-0.5, 1.0, 0.25, 2.0, -1.0])},
        {"reduction": "sum"},
    )


def class_masks():
    allowed = {"logits": X, "labels": ALLOWED, "mask": MASK}
    for r, modes in (("none", COMPILED[:-1]), ("mean", COMPILED)):
        yield Case(
            f"class-mask-{r}",
            "the class is not there: not in the softmax, the divisor or the gradient",
            {**allowed, "class_mask": CLASSES},
            {"reduction": r},
            modes=modes,
        )
        yield Case(
            f"class-mask-per-entry-{r}",
            "another set of classes for each entry",
            {**KEPT, "class_mask": PER_ENTRY},
            {"reduction": r, "label_smoothing": 0.1},
        )
    soft = {"logits": X, "labels": SOFT, "mask": MASK, "class_mask": PER_ENTRY}
    yield Case(
        "class-mask-smoothing",
        "smoothing spreads over the allowed classes",
        {**allowed, "class_mask": CLASSES},
        {"label_smoothing": 0.1},
    )
    two = np.array([False, True, True, False, False])
    for cap, options in {"": {}, "-softcap": {"softcap": 3.0}}.items():
        yield Case(
            f"class-mask-minus-inf{cap}",
            "of nothing but -inf the first class that is allowed is the arg-max",
            {"logits": np.where(two, -np.inf, X), "labels": np.ones_like(Y), "class_mask": two},
            {"reduction": "sum", **options},
        )
    yield Case("class-mask-soft", "what a distribution holds at excluded classes is dropped, not renormalised", soft)
    yield Case(
        "class-mask-soft-weights",
        "and leaves the divisor",
        {**soft, "class_weights": CLASS_WEIGHTS},
        {"label_smoothing": 0.1},
    )
    yield Case(
        "class-mask-row",
        "one row of entries has another vocabulary",
        {**allowed, "class_mask": np.where(np.arange(3)[:, None, None] == 0, CLASSES, True)},
    )
    none = np.array(PER_ENTRY)
    none[0, 1], none[1, 2] = False, False
    yield Case(
        "class-mask-none-allowed",
        "an entry with no allowed class is not kept",
        {**KEPT, "class_mask": none},
        {"reduction": "mean_over_kept"},
    )
    yield Case(
        "class-mask-none-allowed-soft",
        "with distributions too",
        {**soft, "class_mask": none},
        {"reduction": "mean_over_kept"},
    )
    garbage = np.where(CLASSES, X, np.array([np.nan, np.inf, -np.inf])[np.arange(12).reshape(3, 4, 1) % 3])
    yield Case(
        "class-mask-garbage",
        "what an excluded class holds cannot reach anything",
        {**allowed, "logits": garbage, "class_mask": CLASSES},
        OPTIONS,
        modes=COMPILED,
    )
    yield Case(
        "class-mask-garbage-soft",
        "nor what a distribution holds there",
        {"logits": garbage, "labels": np.where(CLASSES, SOFT, np.nan), "class_mask": CLASSES},
        {"label_smoothing": 0.1},
    )
    yield Case(
        "class-mask-one-left",
        "the label alone is left: the loss is 0",
        {**BASE, "class_mask": one_hot(Y, 5).astype(bool)},
    )


def terms():
    for eps in (0.1, 0.5, 1.0):
        yield Case(
            f"smoothing-{eps}",
            "q' = (1 - eps) q + eps / K",
            KEPT,
            {"label_smoothing": eps},
            modes=COMPILED if eps == 0.1 else COMPILED[:-1],
        )
        yield Case(f"smoothing-soft-{eps}", "of a distribution", {**KEPT, "labels": SOFT}, {"label_smoothing": eps})
    for z in (0.0001, 1.0):
        yield Case(
            f"z-loss-{z}", "z * lse ** 2 is added", KEPT, {"z_loss": z}, modes=COMPILED if z == 1.0 else COMPILED[:-1]
        )
    yield Case(
        "z-loss-weights",
        "the weight multiplies it, the class weight does not",
        {**KEPT, "weights": WEIGHTS, "class_weights": ZERO_WEIGHTS},
        {"z_loss": 0.1},
    )
    for cap in (0.5, 3.0, 50.0):
        yield Case(
            f"softcap-{cap}",
            "logits become cap * tanh(logits / cap)",
            KEPT,
            {"softcap": cap},
            modes=COMPILED if cap == 3.0 else COMPILED[:-1],
        )
    wide = np.where(np.arange(5) == Y[..., None], -40.0, X * 20)
    yield Case(
        "softcap-saturated", "far beyond the cap the derivative is 0", {**KEPT, "logits": wide}, {"softcap": 1.0}
    )
    minus = np.where(np.arange(5) == 0, -np.inf, X)
    yield Case(
        "softcap-minus-inf",
        "a -inf logit becomes -cap, a finite logit",
        {**KEPT, "logits": minus},
        {"softcap": 2.0},
        modes=COMPILED,
    )
    yield Case(
        "softcap-minus-inf-smoothing",
        "so smoothing spread on it is finite",
        {**KEPT, "logits": minus},
        {"softcap": 2.0, "label_smoothing": 0.1},
    )
    yield Case(
        "stats-none",
        "statistics beside unreduced losses: those of the mean",
        EVERYTHING,
        {**OPTIONS, "reduction": "none"},
    )
    yield Case(
        "stats-denominator",
        "a denominator given never enters the statistics",
        KEPT,
        {"denominator": 100, "z_loss": 0.1},
    )


CASES = [*reductions(), *denominators(), *masks(), *nothing_kept(), *weights(), *class_masks(), *terms()]
