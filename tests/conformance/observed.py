"""What a run gave, taken to NumPy, and the comparison with what is wanted."""

import functools
from typing import Any, NamedTuple

import numpy as np

from tests import backends
from tests.conformance.cases import CASES
from tests.conformance.closeness import errors, summation
from tests.conformance.modes import MODES
from tests.conformance.processes import WAYS, splits_entries
from tests.conformance.runs import (
    LINEAR,
    Run,
    devices_of,
    is_array,
    is_linear,
    is_of_kernels,
    leaves,
    mapped,
    placed,
    reduction_of,
    wanted,
)

# What runs where two implementations are compared.
COMPARED = ("blocks", "operators", "operators-linear", "triton", "triton-blocks", "triton-linear")


class Seen(NamedTuple):
    library: str
    device: Any
    dtype: str
    shape: tuple[int, ...]
    numbers: np.ndarray | None  # None where there are none (torch's meta device)


class Observed(NamedTuple):
    inputs: dict[str, Seen]
    changed: list[str]
    outputs: dict[str, Seen]
    stats: dict[str, Seen]
    gradients: dict[str, Seen] | Exception


def seen(backend, x):
    numbers = None if backend.shapes_only else backends.to_numpy(backend, x)
    return Seen(backends.library(x), backends.device(x), backends.dtype_name(x), tuple(x.shape), numbers)


def observe(run):
    return _observe(run.backend.name, run.mode, run.dtype, run.case.name)


@functools.lru_cache(maxsize=4)  # the values and then the gradients of a run ask
def _observe(name, mode, dtype, case_name):
    backend, case = backends.BACKENDS[name], CASES[case_name]
    with backends.settings(backend):
        arrays = placed(backend, case, dtype)
        inputs = {n: seen(backend, a) for n, a in arrays.items() if is_array(case.inputs[n])}
        out = MODES[backend.gradient, mode](case, arrays)
        changed = [n for n, before in inputs.items() if not backends.same(backend, arrays[n], before.numbers)]
        stats = out.get("stats")
        gradients = out.get("gradients", {})
        return Observed(
            inputs,
            changed,
            {n: seen(backend, x) for n, x in out.items() if n not in ("stats", "gradients")},
            {} if stats is None else {n: seen(backend, a) for n, a in stats._asdict().items()},
            gradients if isinstance(gradients, Exception) else {n: seen(backend, a) for n, a in gradients.items()},
        )


def runs(backend, gradients=False):
    """Every (id, Run) on a backend; with gradients, those that take one."""
    for case in CASES.values():
        for mode, dtypes in backend.modes.items():
            listed = "autodiff" if mode in COMPARED else "jit" if mode.startswith("devices") else mode
            listed = "eager" if mode in ("linear", "preferred", *WAYS) else listed
            if mode.endswith("linear") and not is_linear(case):
                continue
            if mode in WAYS and (case.function not in LINEAR or (WAYS[mode].entries > 1 and not splits_entries(case))):
                continue
            if mode.startswith("triton") and not is_of_kernels(case):
                continue
            if mode.startswith("devices") and max(devices_of(case, mode.partition("-")[2]), default=1) == 1:
                continue
            if listed not in case.modes or (mode in backend.few and "compile" not in case.modes):
                continue
            if (mode == "vmap" and mapped(case) is None) or (gradients and not differentiated(backend, mode, case)):
                continue
            for dtype in dtypes:
                if dtype in case.dtypes:
                    yield f"{backend.name}-{mode}-{dtype}-{case.name}", Run(backend, mode, dtype, case)


def differentiated(backend, mode, case):
    by_value = backend.gradient == "value_and_grad"
    covered = not by_value or (case.function == "cross_entropy" and mode in ("eager", "blocks", "linear"))
    return covered and bool(leaves(case, reduction_of(case)))


def result_dtype(run):
    keeps = run.dtype in backends.FLOATS or run.case.function in ("masked_max", "masked_min")
    return run.dtype if keeps else "float32"


def reduction_in(run):
    """The reduction a mode computes: a slice of entries has its own, so vmap leaves them unreduced."""
    reduction = reduction_of(run.case)
    return "none" if run.mode == "vmap" and reduction else reduction


def want(run, reduction):
    return wanted(run.case.name, run.dtype, reduction)


def number_of_entries(run):
    return int(np.prod(want(run, "none").value.hi.shape, dtype=int))


def compare(run, got, expected, bound, dtype, what):
    """The worst error in ulps, after asserting that none exceeds the bound; None where there are no numbers."""
    if got.numbers is None:
        assert got.shape == expected.hi.shape, what
        return None
    numbers = np.asarray(got.numbers, dtype=np.float64)
    if run.case.nonfinite:
        numbers = np.where(np.isfinite(numbers) | np.isfinite(expected.hi), numbers, expected.hi)
    ulps = errors(numbers, expected, dtype)
    if ulps.size and not ulps.max() <= bound:
        at = np.unravel_index(int(ulps.argmax()), ulps.shape)
        raise AssertionError(
            f"{what}{list(map(int, at))}: {numbers[at]!r}, expected {expected.hi[at]!r}; {ulps[at]:.3g} ulps,"
            f" {bound:.3g} allowed\ngot {numbers}\nexpected {expected.hi}"
        )
    return float(ulps.max()) if ulps.size else 0.0


def belongs(run, array, like, dtype, what):
    library = run.backend.library
    assert array.library == library, f"{what} is of {array.library}"
    assert array.device == like.device, f"{what} is on {array.device}, not {like.device}"
    assert array.dtype == dtype, f"{what} is {array.dtype}, not {dtype}"


def bound_of(run, reduction, condition):
    """Of a reduced value and of gradients: an entry's error, a division, and what summing the entries may add."""
    if reduction is None or reduction == "none":
        return run.case.ulps
    return run.case.ulps + 1 + summation(number_of_entries(run), condition)
