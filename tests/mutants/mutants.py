"""Defects to plant, as data. Each has been, or could be, somebody's bug; `tests` are those expected to find it."""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # under src/maskloss
    text: str  # in it exactly once
    replacement: str
    breaks: str
    tests: tuple[str, ...]  # what pytest is given
    backend: str = "numpy"


def ids(test, backend, mode, cases):
    dtypes = [("float16" if name.startswith("half") or name.endswith("half") else "float32", name) for name in cases]
    return tuple(f"tests/conformance/{test}[{backend}-{mode}-{dtype}-{name}]" for dtype, name in dtypes)


def values(*cases, backend="numpy", mode="eager"):
    return ids("test_values.py::test_values", backend, mode, cases)


def statistics(*cases):
    return ids("test_values.py::test_statistics", "numpy", "eager", cases)


def gradients(*cases, backend="numpy", mode="eager"):
    return ids("test_gradients.py::test_gradients", backend, mode, cases)


def refusals(*calls, backend="numpy"):
    return tuple(f"tests/test_bad_input.py::test_the_call_is_refused[{backend}-{call}]" for call in calls)


MUTANTS = [
    # Selection.
    Mutant(
        "multiply instead of select",
        "_rows.py",
        "x = xp.where(allowed, x, 0.0)\n    slope",
        "x = x * xp.astype(allowed, x.dtype)\n    slope",
        "0 * NaN is NaN: what is masked reaches the gradient",
        gradients("garbage-mean", backend="torch", mode="autodiff"),
        "torch",
    ),
    Mutant(
        "select after the exp",
        "_rows.py",
        "x = xp.where(allowed, x, 0.0)\n    slope",
        "pass\n    slope",
        "the value is selected at the end, but the derivative of what came before is 0 * NaN",
        gradients("garbage-mean", backend="torch", mode="autodiff"),
        "torch",
    ),
    Mutant(
        "excluded class in the softmax",
        "_rows.py",
        "x = xp.where(rows.class_mask, x, -math.inf)",
        "pass",
        "a class that does not exist takes probability",
        values("class-mask-mean"),
    ),
    Mutant(
        "excluded class of a distribution",
        "_inputs.py",
        "distribution = distribution if chosen is None else xp.where(chosen, distribution, 0.0)",
        "distribution = distribution",
        "NaN, or probability, at an excluded class or a masked entry reaches value and divisor",
        values("class-mask-soft-weights", "garbage-soft"),
    ),
    Mutant(
        "no allowed class, kept all the same",
        "_inputs.py",
        "keep = conjunction(keep, xp.any(allowed, axis=-1))",
        "pass",
        "an entry with no allowed class counts",
        values("class-mask-none-allowed"),
    ),
    Mutant(
        "weight 0 not masked",
        "_inputs.py",
        "keep = conjunction(keep, weights != 0)",
        "pass",
        "0 * NaN, and the entry counts",
        values("garbage-weight-zero", "nothing-kept-weights"),
    ),
    Mutant(
        "weights of what is masked",
        "_inputs.py",
        "weights = xp.where(keep, weights, 0.0)",
        "pass",
        "a NaN weight of a masked entry reaches the sums",
        values("garbage-mean"),
    ),
    # Labels.
    Mutant(
        "negative label wraps",
        "_inputs.py",
        "in_range = (indices >= 0) & (indices < classes)",
        "in_range = (indices >= -classes) & (indices < classes)",
        "-1 is the last class",
        refusals("a label of -1"),
    ),
    Mutant(
        "label C accepted",
        "_inputs.py",
        "in_range = (indices >= 0) & (indices < classes)",
        "in_range = (indices >= 0) & (indices <= classes)",
        "one class too many",
        refusals("a label of C"),
    ),
    Mutant(
        "label of an excluded class accepted",
        "_inputs.py",
        "bad = bad | ~take_label(allowed, indices, xp=xp)",
        "pass",
        "a class that does not exist may be the label",
        refusals("a label of an excluded class"),
    ),
    Mutant(
        "ignore_index cast to the labels' dtype",
        "_inputs.py",
        "if int(limits.min) <= ignore_index <= int(limits.max):\n            ignored = indices == ignore_index",
        "if True:\n            ignored = labels == xp.astype(xp.asarray(ignore_index), labels.dtype)",
        "-100 as uint8 is 156, which is a class",
        values("labels-uint8-ignore-minus-100"),
    ),
    Mutant(
        "ignore_index without effect",
        "_inputs.py",
        "keep = keep if ignored is None else conjunction(keep, ~ignored)",
        "pass",
        "an ignored label counts, or is refused",
        values("ignore-3", "ignore--100"),
    ),
    Mutant(
        "NumPy labels converted before the check",
        "_inputs.py",
        "        if not foreign:\n            labels = like.companion",
        "        if True:\n            labels = like.companion",
        "JAX without x64 truncates 2**40 to 0, which is a class",
        refusals("NumPy's label of 2**40", backend="jax-x32"),
        "jax-x32",
    ),
    # What is refused.
    Mutant(
        "floating mask accepted",
        "_inputs.py",
        'if name in FLOATS:\n        fail(TypeError, "mask"',
        'if name == "":\n        fail(TypeError, "mask"',
        "an additive mask of 0 and -inf would mean the opposite",
        refusals("a floating mask"),
    ),
    Mutant(
        "numpy.ma accepted",
        "_inputs.py",
        'kind in ("MaskedArray", "matrix")',
        'kind in ("matrix",)',
        "the mask inside is dropped without a word",
        refusals("numpy.ma labels"),
    ),
    Mutant(
        "device not compared",
        "_inputs.py",
        "if on_other_device(x, self.array, library):",
        "if False:",
        "the framework's own error, or a silent copy",
        refusals("mask on PyTorch's meta device", backend="torch"),
        "torch",
    ),
    Mutant(
        "NumPy arrays beside torch logits",
        "_inputs.py",
        'if library == "numpy" and self.library == "jax":\n                return',
        'if library == "numpy":\n                return',
        "another library's arrays are converted without a word",
        refusals("NumPy mask", backend="torch"),
        "torch",
    ),
    Mutant(
        "named implementation falls back",
        "_inputs.py",
        "if implementation == name and reason is not None:",
        "if False:",
        "an implementation that was named and cannot run is replaced",
        refusals("the analytic implementation on JAX", backend="jax"),
        "jax",
    ),
    # Arithmetic.
    Mutant(
        "no max shift",
        "_rows.py",
        "shift = xp.where(xp.isfinite(shift), shift, 0.0)",
        "shift = xp.zeros_like(shift)",
        "exp overflows",
        values("offset-10000"),
    ),
    Mutant(
        "nothing but -inf",
        "_rows.py",
        "shift = xp.where(xp.isfinite(shift), shift, 0.0)",
        "pass",
        "-inf - -inf is NaN",
        values("minus-inf-row-none"),
    ),
    Mutant(
        "lse in half precision",
        "_rows.py",
        "x = xp.astype(rows.logits, rows.dtype, copy=False)",
        "x = rows.logits",
        "three digits are left of the sum",
        values("half-mean", "half-accumulates"),
    ),
    Mutant(
        "lse before its use",
        "_rows.py",
        "nll = log_sum - (take_label(x, rows.labels, xp=xp) - shift)",
        "nll = lse - take_label(x, rows.labels, xp=xp)",
        "a common offset of the logits takes the digits of the loss",
        values("offset-10000"),
    ),
    Mutant(
        "0 * inf is NaN",
        "_rows.py",
        "return xp.where(xp.isinf(cost) & (targets == 0), 0.0, cost)",
        "return cost",
        "a -inf logit of probability 0 in the distribution makes the loss NaN",
        values("minus-inf-soft-zero"),
    ),
    Mutant(
        "cost selected on the target",
        "_rows.py",
        "return xp.where(xp.isinf(cost) & (targets == 0), 0.0, cost)",
        "return xp.where(targets == 0, 0.0, cost)",
        "the derivative by a q_c that happens to be 0 is lost",
        gradients("soft-zeros"),
    ),
    # Terms.
    Mutant(
        "smoothing over all classes",
        "_entries.py",
        "    if inputs.class_mask is None:\n        return float(inputs.logits.shape[-1])",
        "    if True:\n        return float(inputs.logits.shape[-1])",
        "eps is divided by the number of all classes, not of the allowed ones",
        values("class-mask-smoothing"),
    ),
    Mutant(
        "z loss without weights",
        "_entries.py",
        "losses = losses + options.z_loss * out.lse * out.lse",
        "losses = losses + options.z_loss * out.lse",
        "lse instead of its square",
        values("z-loss-1.0"),
    ),
    Mutant(
        "class weight missing from the divisor",
        "_reduce.py",
        "units = units * entries.masses",
        "pass",
        "the mean is over entries, not over weights",
        values("class-weights-zeros-mean"),
    ),
    Mutant(
        "smoothing after the class weights",
        "_entries.py",
        "            targets = class_weights\n            if targets is None:",
        "            targets = None\n            if targets is None:",
        "what smoothing spreads is not weighted by its class",
        values("class-weights-smoothing"),
    ),
    # Reductions.
    Mutant(
        "mean of nothing is NaN",
        "_reduce.py",
        "return xp.where(nothing, 0.0, total / xp.where(nothing, 1.0, divisor))",
        "return total / divisor",
        "0 / 0",
        values("nothing-kept-mean"),
    ),
    Mutant(
        "gradient of nothing is NaN",
        "_reduce.py",
        "return xp.where(nothing, 0.0, total / xp.where(nothing, 1.0, divisor))",
        "return xp.where(nothing, 0.0, total / divisor)",
        "the value is selected, its derivative is 0 * inf",
        gradients("nothing-kept-mean", backend="torch"),
        "torch",
    ),
    Mutant(
        "mean_over_sequences over all rows",
        "_reduce.py",
        "kept = xp.any(by_sequence(kept_of(entries, xp=xp), xp=xp), axis=-1)",
        "kept = xp.ones_like(total, dtype=xp.bool)",
        "a row that kept nothing counts",
        values("mask-mean_over_sequences"),
    ),
    Mutant(
        "mean_over_kept over all entries",
        "_reduce.py",
        'if reduction == "mean_over_all":',
        'if reduction in ("mean_over_all", "mean_over_kept"):',
        "masked entries count",
        values("mask-mean_over_kept"),
    ),
    Mutant(
        "mean_over_all over kept entries",
        "_reduce.py",
        'if reduction == "mean_over_all":',
        'if reduction == "":',
        "masked entries do not count",
        values("mask-mean_over_all"),
    ),
    Mutant(
        "denominator ignored",
        "_reduce.py",
        "return quotient(total, divisor if denominator is None else denominator, xp=xp)",
        "return quotient(total, divisor, xp=xp)",
        "gradient accumulation divides by each step's own count",
        values("denominator-number-mean"),
    ),
    Mutant(
        "divisor of weights as given",
        "_inputs.py",
        "weights = xp.broadcast_to(weights, entries)",
        "divided_by = weights.shape",
        "weights of shape (B, 1) count once, not T times",
        values("weights-rows-mean", "weights-0d-mean", "weights-single-mean"),
    ),
    # Derivatives.
    Mutant(
        "softcap derivative missing",
        "_rows.py",
        "d_logits = d_logits * slope",
        "pass",
        "the gradient is that of the capped logits",
        gradients("softcap-3.0"),
    ),
    Mutant(
        "z loss derivative missing",
        "_entries.py",
        "g_lse = 2.0 * options.z_loss * out.lse * g if options.z_loss else xp.zeros_like(g)",
        "g_lse = xp.zeros_like(g)",
        "the z loss is reported, not minimised",
        gradients("z-loss-1.0"),
    ),
    Mutant(
        "upstream gradient lost",
        "_torch.py",
        "log_sum, shift, g_nll, g_dot,",
        "log_sum, shift, None if g_nll is None else torch.ones_like(g_nll), g_dot,",
        "a loss that is scaled has the gradient of one that is not",
        gradients("plain-mean", backend="torch"),
        "torch",
    ),
    Mutant(
        "gradient in the dtype of the computation",
        "_rows.py",
        "return xp.astype(d_logits, rows.logits.dtype, copy=False), d_targets",
        "return d_logits, d_targets",
        "float16 logits get a float32 gradient, in twice the memory",
        gradients("half-mean", backend="torch"),
        "torch",
    ),
    Mutant(
        "label not in the gradient",
        "_rows.py",
        "d_logits = subtract_at_label(d_logits, rows.labels, g_nll, classes, xp=xp)",
        "pass",
        "the gradient is the softmax alone",
        gradients("plain-mean"),
    ),
    Mutant(
        "divisor without derivative",
        "_reduce.py",
        "d_unit = zeros + d_divisor",
        "d_unit = zeros",
        "the derivative by a weight misses that the weight is in the divisor",
        gradients("weights-mean"),
    ),
    Mutant(
        "mass without derivative",
        "_entries.py",
        "        d_weight = d.masses\n",
        "        d_weight = xp.zeros_like(d.masses)\n",
        "the derivative by a class weight misses that it is in the divisor",
        gradients("class-weights-zeros-mean"),
    ),
    # Statistics.
    Mutant(
        "statistics added wrong",
        "stats.py",
        "a + b for a, b in",
        "a for a, b in",
        "the sum of two batches is the first",
        ("tests/test_stats.py",),
    ),
    Mutant(
        "arg-max over excluded classes",
        "_entries.py",
        "scores = xp.where(inputs.class_mask, scores, -math.inf)",
        "pass",
        "a class that does not exist wins",
        statistics("class-mask-garbage"),
    ),
    Mutant(
        "correct counts what is masked",
        "_entries.py",
        "right = right & inputs.keep",
        "pass",
        "accuracy above 1",
        statistics("mask-mean"),
    ),
    Mutant(
        "z loss of what is masked",
        "_entries.py",
        "z_terms = xp.where(inputs.keep, z_terms, 0.0)",
        "pass",
        "the statistic holds what the loss does not",
        statistics("everything-mean"),
    ),
    Mutant(
        "denominator enters the statistics",
        "_entries.py",
        "return LossStats(total, divisor, ",
        "return LossStats(total, divisor * 0 + 100, ",
        "batches no longer add up",
        statistics("stats-denominator"),
    ),
    # Tracers, and the caller's arrays.
    Mutant(
        "wrong label inside a tracer is 0",
        "_entries.py",
        "losses = losses * xp.where(inputs.wrong, math.nan, xp.ones_like(losses))",
        "losses = xp.where(inputs.wrong, 0.0, losses)",
        "where a label cannot be checked it must not pass unnoticed",
        ("tests/test_labels_unread.py",),
    ),
    Mutant(
        "caller's logits written to",
        "_rows.py",
        "    slope = None\n    if rows.softcap",
        "    slope = None\n    x -= 1.0\n    if rows.softcap",
        "float32 logits are not copied before the arithmetic",
        values("plain-mean"),
    ),
    # Reductions of any values.
    Mutant(
        "masked_max of NaN",
        "reductions.py",
        "return self.x if self.keep is None else self.xp.where(self.keep, self.x, value)",
        "return self.x",
        "what is not kept counts as 0",
        values("max-rows"),
    ),
    Mutant(
        "variance about the mean of all",
        "reductions.py",
        "deviation = xp.where(v.keep, deviation, 0.0)",
        "pass",
        "the variance of the masked, weighted by their units",
        gradients("std-rows", backend="torch"),
        "torch",
    ),
    Mutant(
        "std with an infinite derivative",
        "reductions.py",
        "root = v.xp.sqrt(v.xp.where(zero, 1.0, variance))",
        "root = v.xp.sqrt(variance)",
        "the gradient of a constant's deviation is NaN",
        gradients("std-constant", backend="torch"),
        "torch",
    ),
    Mutant(
        "softmax of nothing is NaN",
        "reductions.py",
        "p = v.xp.exp(shifted) / v.xp.where(total == 0, 1.0, total)",
        "p = v.xp.exp(shifted) / total",
        "0 / 0",
        gradients("softmax-mask", backend="torch"),
        "torch",
    ),
]
