"""label_log_probs, entropy, reduce and the masked_* functions."""

import functools

import numpy as np

from tests.conformance.case import CLASSES, EVERY, HALF, MASK, REDUCTIONS, WEIGHTS, Case, X, Y, normal

MODES = ("eager", "jit", "vmap")
COMPILED = ("eager", "jit", "vmap", "compile")
OFF = np.where(np.arange(5) == 2, -np.inf, X)
ALLOWED = np.where(Y == 2, 3, Y)
HOLES = np.resize(np.array([np.nan, np.inf, -np.inf]), (3, 4))
V = normal(41, 3, 4)
POSITIVE = abs(WEIGHTS)


def label_log_probs():
    case = functools.partial(Case, function="label_log_probs", modes=MODES)
    yield case("llp-plain", "log p of the label", {"logits": X, "labels": Y})._replace(modes=COMPILED)
    yield case("llp-half", "half in, float32 out", {"logits": X, "labels": Y, "mask": MASK}, dtypes=HALF)
    yield case(
        "llp-mask",
        "exactly 0 where not kept, whatever is there",
        {"logits": np.where(MASK[..., None], X, HOLES[..., None]), "labels": np.where(MASK, Y, -100), "mask": MASK},
    )
    yield case(
        "llp-ignore",
        "an ignored label is not kept",
        {"logits": X, "labels": np.where(MASK, Y, -1)},
        {"ignore_index": -1},
    )
    yield case("llp-class-mask", "over the allowed classes", {"logits": X, "labels": ALLOWED, "class_mask": CLASSES})
    yield case("llp-softcap", "of capped logits", {"logits": X, "labels": Y}, {"softcap": 2.0})
    yield case("llp-minus-inf", "-inf for a label there", {"logits": OFF, "labels": Y})
    yield case("llp-axis", "axis 0", {"logits": np.moveaxis(X, -1, 0), "labels": Y, "mask": MASK}, {"axis": 0})
    yield case("llp-no-entry-axis", "logits of shape (C,)", {"logits": X[0, 0], "labels": np.array(Y[0, 0])})
    yield case("llp-no-entries", "no entries", {"logits": X[:, :0], "labels": Y[:, :0]})
    yield case("llp-offset", "no lost digits", {"logits": X + 1e4, "labels": Y})
    yield case("llp-uint8", "labels of any integer dtype", {"logits": X, "labels": Y.astype(np.uint8)})


def entropy():
    case = functools.partial(Case, function="entropy", modes=MODES)
    yield case("entropy-plain", "- sum p log p", {"logits": X})._replace(modes=COMPILED)
    yield case("entropy-half", "half in, float32 out", {"logits": X, "mask": MASK}, dtypes=HALF)
    yield case(
        "entropy-mask",
        "exactly 0 where not kept, whatever is there",
        {"logits": np.where(MASK[..., None], X, HOLES[..., None]), "mask": MASK},
    )
    yield case(
        "entropy-class-mask",
        "over the allowed classes",
        {"logits": np.where(CLASSES, X, np.nan), "class_mask": CLASSES},
    )
    yield case("entropy-minus-inf", "0 log 0 is 0", {"logits": OFF})._replace(modes=COMPILED)
    yield case(
        "entropy-minus-inf-but-one", "one class left: 0", {"logits": np.where(np.arange(5) == Y[..., None], X, -np.inf)}
    )
    yield case("entropy-softcap", "of capped logits", {"logits": X}, {"softcap": 2.0})
    yield case("entropy-axis", "axis 1", {"logits": np.moveaxis(X, -1, 1), "mask": MASK}, {"axis": 1})
    yield case("entropy-equal", "log C, with derivatives of 0", {"logits": np.full((3, 4, 5), 2.5)})
    yield case("entropy-confident", "near 0", {"logits": np.where(np.arange(5) == Y[..., None], 30.0, X)})
    yield case("entropy-offset", "no lost digits", {"logits": X + 1e4})
    yield case("entropy-no-entry-axis", "logits of shape (C,)", {"logits": X[0, 0]})
    yield case("entropy-nan", "NaN stays, there", {"logits": np.where((V > 1)[..., None], np.nan, X)})


def reduce():
    case = functools.partial(Case, function="reduce", modes=("eager", "jit"))
    values = {"values": np.where(MASK, V, HOLES), "mask": MASK, "weights": WEIGHTS}
    for r in REDUCTIONS:
        yield case(f"reduce-{r}", "the same reductions, of values", values, {"reduction": r})._replace(
            modes=("eager", "jit", "compile") if r == "mean" else ("eager", "jit")
        )
        yield case(
            f"reduce-nothing-{r}",
            "nothing kept is 0",
            {"values": V, "mask": np.zeros((3, 4), dtype=bool)},
            {"reduction": r},
        )
    yield case("reduce-plain", "neither mask nor weights", {"values": V})
    yield case("reduce-denominator", "a 0-d denominator", {**values, "denominator": np.array(2.5)})
    yield case("reduce-denominator-zero", "0", values, {"denominator": 0})
    yield case("reduce-half", "half in, float32 out", {"values": V, "mask": MASK}, dtypes=HALF)
    yield case("reduce-0d", "one value", {"values": np.array(1.5)})
    yield case("reduce-1d", "one sequence", {"values": V[0], "mask": MASK[0]}, {"reduction": "mean_over_sequences"})
    yield case("reduce-empty", "no values", {"values": V[:0]}, {"reduction": "mean_over_all"})
    yield case("reduce-weights-rows", "weights broadcast", {"values": V, "weights": np.array([[2.0], [-1.0], [0.5]])})
    infinite = {"values": np.array([np.inf, 1.0]), "weights": np.array([1.0, -1.0])}
    yield case("reduce-cancels-infinite", "a divisor of 0, of an infinite sum", infinite, held=("values", "weights"))
    yield case("reduce-cancels", "a divisor of 0", {"values": V[0, :2], "weights": np.array([1.0, -1.0])})
    yield case("reduce-nan", "a kept NaN stays", {"values": np.array([1.0, np.nan])})


def masked():
    axes = {"all": {}, "last": {"axis": -1}, "first-keepdims": {"axis": 0, "keepdims": True}, "pair": {"axis": (0, 2)}}
    x = np.where(MASK[..., None], X, HOLES[..., None])
    for name in ("sum", "mean", "var", "std", "max", "min", "logsumexp"):
        case = functools.partial(Case, function=f"masked_{name}", modes=("eager", "jit"))
        for key, options in axes.items():
            yield case(f"{name}-{key}", "over the kept; garbage elsewhere", {"x": x, "mask": MASK[..., None]}, options)
        yield case(f"{name}-plain", "no mask", {"x": V}, {"axis": 1})._replace(
            modes=("eager", "jit") if name in ("min", "std") else ("eager", "jit", "compile")
        )
        yield case(f"{name}-half", "half in", {"x": V, "mask": MASK}, {"axis": 1}, dtypes=HALF)
        yield case(f"{name}-rows", "a row keeps nothing: the empty value", {"x": V, "mask": MASK}, {"axis": 1})
        yield case(f"{name}-nothing", "nothing kept", {"x": V, "mask": np.zeros((3, 4), dtype=bool)})
        yield case(f"{name}-no-elements", "no elements at all", {"x": V[:, :0]}, {"axis": 1})
        yield case(f"{name}-nan", "a kept NaN stays", {"x": np.where(V > 1, np.nan, V)}, {"axis": 0}, held=("x",))
        yield case(f"{name}-int-mask", "integers 0 and 1", {"x": V, "mask": MASK.astype(np.int8)}, {"axis": 1})
        yield case(f"{name}-0d", "a number", {"x": np.array(2.5)})
        if name != "sum":
            yield case(f"{name}-empty", "the empty value asked for", {"x": V, "mask": MASK}, {"axis": 1, "empty": -3.0})
        if name in ("sum", "mean", "var", "std"):
            weights = POSITIVE if name in ("var", "std") else WEIGHTS
            yield case(
                f"{name}-weights", "weighted", {"x": np.where(weights == 0, np.nan, V), "weights": weights}, {"axis": 0}
            )
            yield case(
                f"{name}-weights-rows",
                "weights broadcast",
                {"x": V, "mask": MASK, "weights": np.array([[2.0], [1.5], [0.0]])},
            )
    for name in ("var", "std"):
        case = functools.partial(Case, function=f"masked_{name}", modes=("eager", "jit"))
        yield case(f"{name}-correction", "divisor n - 1", {"x": V, "mask": MASK}, {"correction": 1, "axis": 0})
        yield case(f"{name}-offset", "two passes: no digits lost to a common offset", {"x": V + 1000.0}, {"axis": 1})
        yield case(f"{name}-constant", "0, without NaN in the derivative", {"x": np.full((3, 4), 0.75)}, {"axis": 1})
    yield Case(
        "mean-cancels",
        "weights of sum 0",
        {"x": V[0, :2], "weights": np.array([1.0, -1.0])},
        function="masked_mean",
        modes=("eager", "jit"),
    )
    yield Case(
        "logsumexp-minus-inf",
        "-inf is nothing",
        {"x": OFF, "mask": MASK[..., None]},
        {"axis": -1},
        function="masked_logsumexp",
        modes=("eager", "jit"),
    )
    yield Case(
        "logsumexp-all-minus-inf",
        "log 0 is -inf",
        {"x": np.full((3, 4), -np.inf)},
        {"axis": -1},
        function="masked_logsumexp",
        modes=("eager", "jit"),
        held=("x",),
    )
    yield Case(
        "logsumexp-offset",
        "no overflow",
        {"x": V + 1e4},
        {"axis": 1},
        function="masked_logsumexp",
        modes=("eager", "jit"),
    )
    for name in ("max", "min"):
        case = functools.partial(Case, function=f"masked_{name}", modes=("eager", "jit"))
        yield case(
            f"{name}-infinities",
            "infinities are numbers",
            {"x": np.where(V > 0, np.inf, -np.inf)},
            {"axis": 1},
            held=("x",),
        )


def softmax():
    for name in ("softmax", "log_softmax"):
        case = functools.partial(Case, function=f"masked_{name}", modes=("eager", "jit"))
        yield case(f"{name}-plain", "no mask", {"x": X})._replace(modes=("eager", "jit", "compile"))
        yield case(
            f"{name}-mask",
            "over the kept; garbage elsewhere; a row keeps nothing",
            {"x": np.where(MASK, V, HOLES), "mask": MASK},
        )
        yield case(f"{name}-axis", "axis 0", {"x": np.where(MASK, V, HOLES), "mask": MASK}, {"axis": 0})
        yield case(f"{name}-classes", "a mask that broadcasts", {"x": X, "mask": CLASSES})
        yield case(f"{name}-minus-inf", "a kept -inf is probability 0", {"x": OFF, "mask": MASK[..., None]})
        yield case(f"{name}-offset", "no lost digits", {"x": X + 1e4})
        yield case(f"{name}-half", "half in", {"x": V, "mask": MASK}, dtypes=EVERY[2:])
        yield case(f"{name}-nan", "a kept NaN stays in its row", {"x": np.where(V > 1, np.nan, V)}, held=("x",))
        yield case(f"{name}-1d", "one row", {"x": V[0], "mask": MASK[0]})


def long_sums():
    """More terms than a running sum can take: the small ones of a row beside a large one, and along any axis."""
    above = np.zeros((1, 2**15))
    above[0, 7] = 12.0
    modes, single = ("eager", "jit"), ("float32",)
    # Three levels of 16 terms, four in torch's cascade: up to 16 roundings of half a last place each, all alike where
    # the terms are. A running sum of them is off by hundreds.
    relaxed = {"ulps": 32.0, "relaxed": "a sum of equal terms, whose roundings add up"}
    case = functools.partial(Case, modes=modes, dtypes=single, **relaxed)
    given = {"logits": above, "labels": np.array([7])}
    yield case("llp-long-rows", "of a long row", given, function="label_log_probs")
    yield case("entropy-long-rows", "of a long row", {"logits": above}, function="entropy")
    columns = np.broadcast_to(above[:, : 2**11].T, (2**11, 3)).copy()
    yield case("entropy-long-columns", "that lies in no line", {"logits": columns}, {"axis": 0}, function="entropy")
    tenths, weights = np.full((2**12, 2), 0.1), np.full((2**12, 1), 0.3)
    for name in ("sum", "mean", "var", "logsumexp", "softmax", "log_softmax"):
        x = np.where(np.arange(2**12)[:, None] == 7, 12.0, 0.0 * tenths) if "soft" in name or "exp" in name else tenths
        if name == "var":
            x = np.where(np.arange(2**12)[:, None] % 2, 0.5, tenths)
        yield case(
            f"{name}-long-axis", "along an axis that is not the last", {"x": x}, {"axis": 0}, function=f"masked_{name}"
        )
    given = {"x": tenths, "weights": weights}
    yield case("mean-long-axes-weights", "weighted, along both", given, function="masked_mean")
    yield case("reduce-long-axes", "of entries of two axes", {"values": tenths, "weights": weights}, function="reduce")


CASES = [*label_log_probs(), *entropy(), *reduce(), *masked(), *softmax(), *long_sums()]
