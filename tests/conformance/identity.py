"""Golden bits: what reproducible=True gives of each case, as digests, the same for every library, mode and device.

`python -m tests.conformance.identity` computes them with NumPy and writes identity.json, if each number is within
1 ulp of the 50-digit reference, and each gradient within 2.
"""

import functools
import hashlib
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import maskloss as ml
from tests import backends
from tests.conformance.cases import CASES
from tests.conformance.closeness import errors, expected, ulp
from tests.conformance.modes import (
    MODES,
    forward,
    in_blocks,
    in_engine,
    in_narrow_kernels,
    in_preferred_kernels,
    reduced_to_none,
    upstream,
)
from tests.conformance.runs import (
    REDUCED,
    UPSTREAM,
    call,
    is_array,
    leaves,
    mapped,
    placed,
    reduction_of,
    wanted,
    wanted_gradients,
)
from tests.reference import number

GOLDEN = Path(__file__).parent / "identity.json"
FUNCTIONS = (
    *("cross_entropy", "label_log_probs", "entropy", "reduce", "masked_sum", "masked_mean"),
    *("masked_logsumexp", "masked_softmax", "masked_log_softmax"),
)
DTYPES = ("float32", "bfloat16", "float16")
# A sum of exponentials is of multiples of about 2^-42 of the largest, each rounded: 2^-43 of it for each class.
UNIT = 2.0**-43


def is_covered(case, dtype):
    """Arrays of float64 beside the logits are none of the promise's, and denominators none of its functions."""
    given = [a for a in case.inputs.values() if is_array(a) and a.dtype.kind == "f"]
    fixed = any(is_array(case.inputs[n]) and case.inputs[n].dtype == np.float64 for n in case.fixed)
    return case.function in FUNCTIONS and dtype in case.dtypes and bool(given) and not fixed


def names():
    return [(name, dtype) for name, case in CASES.items() for dtype in DTYPES if is_covered(case, dtype)]


def reproducible(observe):
    """Every case again, with reproducible=True."""

    def mode(*given):
        with pytest.MonkeyPatch.context() as patch:
            for name in FUNCTIONS:
                patch.setattr(ml, name, functools.partial(getattr(ml, name), reproducible=True))
            return observe(*given)

    return mode


def eager(case, arrays):
    """Where no library differentiates, by the gradient that others are given."""
    namespace_of = importlib.import_module("maskloss._arrays").namespace_of
    binding_of = importlib.import_module("maskloss._bindings").binding_of
    binding, seen = binding_of(namespace_of(next(iter(arrays.values())))), []

    def recorded(function, given):
        seen.append((function, given))
        return function.value_of(given)[0]

    out = forward(case, arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding, "reproducible", recorded)
        value = call(case, arrays, reduction_of(case))
    function, given = seen[-1]
    xp = namespace_of(value)
    up = np.asarray(upstream(case, tuple(value.shape)), dtype="float32")
    up = up if xp.name == "numpy" else xp.asarray(up.tolist(), dtype=xp.float32, device=value.device)
    # Which is 0 - loss.
    cotangents = (-up if case.function == "label_log_probs" else up), *[None] * 5
    wanted_names = frozenset(leaves(case, reduction_of(case)))
    with np.errstate(all="ignore"):
        made = function.gradients_of(given, function.value_of(given)[1], cotangents, wanted_names)
    return out | {"gradients": made}


OWN_MODES = {
    ("torch", "blocks"): in_engine(MODES["autograd", "blocks"]),
    ("torch", "kernels"): in_preferred_kernels,
    ("torch", "kernels-blocks"): functools.partial(in_narrow_kernels, observe=in_preferred_kernels),
}


def mode_of(backend, mode):
    if backend.gradient == "value_and_grad":
        return reproducible(in_blocks(eager) if mode == "blocks" else eager)
    return reproducible(OWN_MODES.get((backend.library, mode)) or MODES[backend.gradient, mode])


def found(backend, mode, name, dtype):
    """{part: arrays in NumPy} of a case. vmap is of the entries, whatever the reduction."""
    case = CASES[name]
    of_entries = mode == "vmap" and case.function in REDUCED
    with backends.settings(backend):
        out = mode_of(backend, mode)(case, placed(backend, case, dtype))
    parts = named(case, out, "entry " if of_entries else "")
    if of_entries:
        parts["entries"] = parts.pop("entry value")
        # Of what is not mapped the library adds up gradients itself.
        unmapped = [f"entry d {n}" for n in case.inputs if n not in mapped(case)[1]]
        parts = {part: arrays for part, arrays in parts.items() if part not in unmapped}
    return {part: [backends.to_numpy(backend, x) for x in arrays] for part, arrays in parts.items() if arrays}


def named(case, out, prefix=""):
    if isinstance(out.get("gradients"), Exception):
        raise out["gradients"]
    parts = {"entries": [out["entries"]] if "entries" in out else [], f"{prefix}value": [out["value"]]}
    parts["stats"] = list(out["stats"]) if "stats" in out else []
    return parts | {f"{prefix}d {name}": [gradient] for name, gradient in out.get("gradients", {}).items()}


def of_entries(name, dtype):
    """The gradients of reduction "none", with NumPy."""
    case, backend = reduced_to_none(CASES[name]), backends.BACKENDS["numpy"]
    arrays = {n: a for n, a in placed(backend, case, dtype).items() if n != "denominator"}
    parts = named(case, mode_of(backend, "eager")(case, arrays), "entry ")
    return {part: arrays for part, arrays in parts.items() if part.startswith("entry d")}


def digest(arrays):
    """Of the bits, the sign of 0 among them; of a NaN there are many, which are one."""
    words = hashlib.sha256()
    for x in arrays:
        x = x.astype(np.float32) if x.dtype.kind not in "iub" else x.astype(np.int64)
        x = np.where(np.isnan(x), np.float32(np.nan), x) if x.dtype.kind == "f" else x
        words.update(str(x.shape).encode() + np.ascontiguousarray(x).tobytes())
    return words.hexdigest()[:16]


@functools.cache
def golden():
    return json.loads(GOLDEN.read_text())


def differences(backend, mode, name, dtype):
    """Which parts of a case are not the golden ones."""
    want = golden()[f"{name} {dtype}"]
    return [part for part, arrays in found(backend, mode, name, dtype).items() if digest(arrays) != want[part]]


def worst_of(got, want, dtype, rows):
    """In ulps, beyond what the units of a sum of exponentials may be off."""
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = rows * UNIT * np.where(np.isfinite(want.scale), np.maximum(want.scale, 1.0), 1.0)
        off = errors(got, want, dtype)
        return float(np.max(np.maximum(off - allowed / ulp(want.scale, dtype), 0.0), initial=0.0))


def admitted(name, dtype, parts):
    """The worst errors of the values and of the gradients."""
    case, worst = CASES[name], [0.0, 0.0]
    reduction = reduction_of(case)
    terms = case.inputs["logits"].shape[case.options.get("axis", -1)] if "logits" in case.inputs else 32
    if "entries" in parts:
        worst[0] = worst_of(parts["entries"][0], wanted(name, dtype, "none").value, "float32", terms)
    want = wanted(name, dtype, reduction)
    worst[0] = max(worst[0], worst_of(parts["value"][0], want.value, "float32", terms))
    for field, x in zip(ml.LossStats._fields, parts.get("stats", []), strict=False):
        value = getattr(want.stats, field)
        if value is not None:
            scale = max(getattr(want.stats.scales, field, value), number(case.floor))
            worst[0] = max(worst[0], worst_of(x, expected(number(value), scale), "float32", terms))
    gradients = wanted_gradients(name, dtype, reduction)
    scalar = case.function in REDUCED and want.value.hi.shape == ()
    factor = UPSTREAM if scalar else 1.0
    for leaf in leaves(case, reduction):
        (x,) = parts[f"d {leaf}"]
        hi, lo, scale = gradients[leaf]
        of = type(want.value)(hi * factor, lo * factor, scale * abs(factor))
        kind = dtype if leaf in ("logits", "labels", "values", "x") else "float32"
        worst[1] = max(worst[1], worst_of(x, of, kind, terms))
    return worst


def main():
    made, refused = {}, []
    for name, dtype in names():
        parts = found(backends.BACKENDS["numpy"], "eager", name, dtype)
        if not CASES[name].nonfinite:
            worst = admitted(name, dtype, parts)
            if worst[0] > 1 or worst[1] > 2:
                refused.append((name, dtype, *worst))
        if CASES[name].function in REDUCED:
            parts |= of_entries(name, dtype)
        made[f"{name} {dtype}"] = {part: digest(arrays) for part, arrays in parts.items()}
    for line in refused:
        print("not within the bounds:", *line)
    if "--write" in sys.argv and not refused:
        lines = [f"{json.dumps(case)}: {json.dumps(parts)}" for case, parts in made.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(len(made), "cases,", len(refused), "refused")


if __name__ == "__main__":
    main()
