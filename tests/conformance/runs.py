"""One case on one backend: its arrays there, the calls it stands for, and the numbers expected of them."""

import functools
import math
from typing import Any, NamedTuple

import array_api_compat
import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
import numpy as np

import maskloss as ml
from tests import backends, reference, reference_masked
from tests.conformance.case import Case
from tests.conformance.cases import CASES
from tests.conformance.closeness import Expected, expected

POSITIONAL = {
    "cross_entropy": ("logits", "labels"),
    "label_log_probs": ("logits", "labels"),
    "entropy": ("logits",),
    "reduce": ("values",),
}
REDUCED = ("cross_entropy", "reduce")
# What is also a function of hidden states and a kernel.
LINEAR = {name: f"linear_{name}" for name in ("cross_entropy", "label_log_probs", "entropy")}
# The upstream gradient of a 0-d loss where the library takes one: not 1, and a power of two, so that it scales exactly.
UPSTREAM = -0.5


class Run(NamedTuple):
    backend: backends.Backend
    mode: str
    dtype: str
    case: Case


class Wanted(NamedTuple):
    value: Expected
    condition: float  # of the divisors
    stats: Any


def positional(case):
    return POSITIONAL.get(case.function, ("x",))


def is_array(a):
    return isinstance(a, np.ndarray)


def cast(case, dtype):
    wide = dtype if dtype in backends.FLOATS else "float32"
    narrow = ("logits", "labels", "values", "x")
    return {
        n: a.astype(np.dtype(dtype if n in narrow else wide))
        if is_array(a) and a.dtype.kind == "f" and n not in case.fixed
        else a
        for n, a in case.inputs.items()
    }


def reduction_of(case):
    return case.options.get("reduction", "mean") if case.function in REDUCED else None


def leaves(case, reduction):
    """The inputs that derivatives are taken of."""
    return tuple(
        n
        for n, a in case.inputs.items()
        if is_array(a)
        and a.dtype.kind == "f"
        and n not in case.held
        and not (n == "denominator" and reduction in ("none", "sum"))
    )


def upstream_of(shape):
    """Powers of two of both signs, a different one beside the next."""
    n = int(np.prod(shape, dtype=int))
    return np.array([(-1.0) ** i * 2.0 ** (i % 3 - 1) for i in range(n)]).reshape(shape)


def options_of(case, reduction):
    """The options for a reduction, which may differ from the case's own; "none" and "sum" take no denominator."""
    options = dict(case.options)
    if case.function in REDUCED:
        options["reduction"] = reduction
        if reduction in ("none", "sum"):
            options.pop("denominator", None)
    return options


def expectation(name, dtype, reduction):
    """The reference's function, its arguments bound, for a case and a reduction that may not be its own."""
    case = CASES[name]
    module = reference if case.function in REDUCED else reference_masked
    inputs = {n: a for n, a in cast(case, dtype).items() if n != "denominator" or reduction not in ("none", "sum")}
    return functools.partial(getattr(module, case.function), **inputs, **options_of(case, reduction))


@functools.cache
def wanted(name, dtype, reduction):
    out = expectation(name, dtype, reduction)()
    return Wanted(
        expected(out.value, np.maximum(out.scale, CASES[name].floor) if CASES[name].floor else out.scale),
        float(getattr(out, "condition", 1.0)),
        getattr(out, "stats", None),
    )


@functools.cache
def wanted_gradients(name, dtype, reduction):
    """{input: Expected} for upstream_of(value), and for 1 where the value is 0-d and REDUCED."""
    shape = wanted(name, dtype, reduction).value.hi.shape
    names = leaves(CASES[name], reduction)
    upstream = 1 if CASES[name].function in REDUCED and not shape else upstream_of(shape)
    out = expectation(name, dtype, reduction)(gradients=names, upstream=upstream)
    return {n: expected(*out.gradients[n]) for n in names}


def call(case, arrays, reduction=None, **more):
    """maskloss on the case's arrays."""
    first = positional(case)
    options = options_of(case, reduction) | more
    if reduction in ("none", "sum"):
        arrays = {n: a for n, a in arrays.items() if n != "denominator"}
    rest = {n: a for n, a in arrays.items() if n not in first}
    return getattr(ml, case.function)(*(arrays[n] for n in first), **rest, **options)


def denominator(case, arrays):
    """{"denominator": that of the same arguments}, where the labels are an array; of linear losses, not again."""
    if case.function != "cross_entropy" or not is_array(case.inputs["labels"]) or hasattr(ml.cross_entropy, "linear"):
        return {}
    names = ("mask", "weights", "class_weights", "class_mask", "ignore_index", "axis", "reduction", "validate")
    given = {n: a for n, a in {**arrays, **case.options}.items() if n in names}
    classes = case.inputs["logits"].shape[case.options.get("axis", -1)]
    return {"denominator": ml.denominator(arrays["labels"], classes=classes, **given)}


def namespace(x):
    return array_api_compat.array_namespace(x)


def laid_out(backend, a, layout):
    """An array of the backend with the numbers of `a`, in the memory layout asked for."""
    if a.ndim == 0 or layout == "plain":
        return backends.asarray(backend, a)
    if layout == "strided":
        return backends.asarray(backend, np.repeat(a, 2, axis=-1))[..., ::2]
    if layout == "transposed":
        x = backends.asarray(backend, np.transpose(a))
        return namespace(x).permute_dims(x, tuple(reversed(range(a.ndim))))
    x = backends.asarray(backend, a[:1])
    return namespace(x).broadcast_to(x, a.shape)


def placed(backend, case, dtype):
    return {n: laid_out(backend, a, case.layout) if is_array(a) else a for n, a in cast(case, dtype).items()}


def is_linear(case):
    """Whether the logits can be a product with the identity: finite where kept, the classes last, and not too many."""
    if case.function not in LINEAR or "axis" in case.options:
        return False
    logits, labels = case.inputs["logits"], case.inputs.get("labels")
    rows = np.isfinite(logits).all(-1)
    for name, dropped in (("mask", 0), ("weights", 0)):
        if name in case.inputs:
            rows = rows | (np.asarray(case.inputs[name]) == dropped)
    if is_array(labels) and labels.dtype.kind in "iu" and "ignore_index" in case.options:
        rows = rows | (labels == case.options["ignore_index"])
    return logits.shape[-1] <= 64 and not case.nonfinite and bool(rows.all())


def is_of_kernels(case):
    """Class indices, of classes that all exist, of which the label has a part in the loss."""
    labels = case.inputs.get("labels")
    indices = is_array(labels) and labels.dtype.kind in "iu"
    given = case.function == "cross_entropy" and "class_mask" not in case.inputs
    return given and indices and case.options.get("label_smoothing", 0.0) < 1 and case.inputs["logits"].size > 0


def class_axis(case):
    """Of the first input, whose other axes are the entries'; None where it has no classes."""
    return case.options.get("axis", -1) % case.inputs["logits"].ndim if "logits" in case.inputs else None


def axes_of(case, shape):
    """For each axis of an input, the axis of the first input that it goes along; of one that broadcasts, none."""
    whole, at = next(iter(case.inputs.values())).shape, class_axis(case)
    entries = [i for i in range(len(whole)) if i != at]
    if shape == whole:
        return list(range(len(whole)))
    return entries if shape == tuple(whole[i] for i in entries) else [None] * len(shape)


def devices_of(case, kind):
    """Over how many devices of eight each axis of the first input is split: the entries', the classes', or both."""
    shape, at = next(iter(case.inputs.values())).shape, class_axis(case)
    counts, left = [1] * len(shape), 8
    if kind in ("classes", "both") and at is not None and shape[at]:
        most = left if kind == "classes" else 4
        counts[at] = max(n for n in range(1, most + 1) if shape[at] % n == 0)
        left //= counts[at]
    for i, length in enumerate(shape):
        if i != at and length and kind != "classes":
            counts[i] = max(n for n in range(1, left + 1) if length % n == 0)
            left //= counts[i]
    of_both = kind == "both" and (at is None or counts[at] == 1 or math.prod(counts) == counts[at])
    return [1] * len(shape) if of_both else counts


def mapped(case):
    """For vmap over the entries' first axis: the case for one slice, and the inputs that have that axis.

    None where there is no such axis. An axis of length 1 that broadcasts stays, and is taken off inside.
    """
    axis = case.options.get("axis", -1)
    ndim = case.inputs["logits"].ndim
    if ndim < 2 or axis % ndim == 0 or case.inputs["logits"].shape[0] == 0:
        return None
    length = case.inputs["logits"].shape[0]
    full = {
        "logits": ndim,
        "labels": case.inputs["labels"].ndim if is_array(case.inputs.get("labels")) else None,
        "mask": ndim - 1,
        "weights": ndim - 1,
        "class_mask": ndim,
    }
    split, squeezed = set(), set()
    for n, a in case.inputs.items():
        if is_array(a) and a.ndim and a.ndim == full.get(n):
            (split if a.shape[0] == length else squeezed).add(n)
    options = dict(case.options) | ({"axis": axis - 1} if axis > 0 else {})
    return case._replace(options=options), split, squeezed
