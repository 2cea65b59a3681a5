"""Golden bits: every library, mode, device and dtype gives those of identity.json, and none of them is excepted.

Where each case compiles anew, the representative few; all of them with MASKLOSS_IDENTITY=all (`nox -s identity`).
"""

import os

import numpy as np
import pytest

from tests.backends import NARROW
from tests.conformance import identity
from tests.conformance.cases import CASES
from tests.conformance.runs import mapped

ALL = os.environ.get("MASKLOSS_IDENTITY") == "all"
# Backend: its modes, and those of them that compile, or are asked of other processes.
MODES = {
    "numpy": ("eager", "blocks"),
    "strict": ("eager",),
    "torch": ("eager", "blocks", "vmap", "compile"),
    "torch-triton": ("kernels", "kernels-blocks"),
    "torch-cuda": ("eager", "blocks", "kernels-blocks", "vmap", "compile"),
    "torch-processes": ("shards-reproducible", "shards-2-reproducible"),
    "jax": ("jit", "eager", "vmap"),
    "jax-x32": ("jit", "eager", "vmap"),
    "jax-gpu": ("jit", "eager", "vmap"),
    "jax-devices": ("devices", "devices-classes", "devices-both"),
    "cupy": ("eager", "blocks"),
}
COMPILED = ("compile", "jit", "devices", "devices-classes", "devices-both")
# And those that are slow in each case.
SLOW = ("torch-triton", "jax", "jax-x32", "jax-gpu", "jax-devices")
PARTS = 4
# Only with all.
SELDOM = [("torch-processes", "shards-2-reproducible"), ("jax-devices", "devices"), ("jax-devices", "devices-both")]
SELDOM += [
    (name, mode)
    for name in ("jax", "jax-x32", "jax-gpu")
    for mode in MODES["jax"]
    if (name, mode) != ("jax-x32", "jit")
]


def is_asked(backend, mode, name, dtype):
    case = CASES[name]
    logits = case.inputs.get("logits")
    if dtype != "float32" and backend.library == "array_api_strict":
        return False
    if mode.startswith("kernels"):
        # Triton's interpreter cuts off what bfloat16 has no room for (triton 3.9, _convert_float without a mode).
        dtypes = ("float32", "float16") if backend.environment else NARROW
        by_kernels = logits is not None or (case.function, mode) == ("masked_logsumexp", "kernels")
        if not by_kernels or dtype not in dtypes:
            return False
    if mode == "vmap" and (logits is None or "vmap" not in case.modes or not maps(case)):
        return False
    if mode.startswith("shards") and (logits is None or logits.size >= 1 << 15 or dtype != "float32"):
        return False
    if ALL or not (mode in COMPILED or mode.startswith("shards") or backend.name in SLOW):
        return True
    return "compile" in case.modes and (backend.name, mode) not in SELDOM


def maps(case):
    return mapped(case) is not None and "denominator" not in case.inputs


def runs(backend):
    """Each mode in parts, for the sake of as many processes."""
    for mode in MODES.get(backend.name, ()):
        asked = [pair for pair in identity.names() if is_asked(backend, mode, *pair)]
        if not ALL and (mode in COMPILED or mode.startswith("shards")):
            asked = asked[::3]
        for part in range(PARTS):
            if asked[part::PARTS]:
                yield f"{backend.name}-{mode}-{part}", (backend, mode, asked[part::PARTS])


def test_bits(run, record):
    backend, mode, pairs = run
    wrong = {}
    for name, dtype in pairs:
        if found := identity.differences(backend, mode, name, dtype):
            wrong[f"{name} {dtype}"] = found
        if ALL:
            record("reproducible", backend.name, dtype, mode, name, float(len(found)))
    assert wrong == {}


def test_golden_bits_are_those_of_every_case():
    assert sorted(identity.golden()) == sorted(f"{name} {dtype}" for name, dtype in identity.names())


def test_a_digest_tells_a_last_place_and_a_shape():
    x = np.linspace(0.0, 1.0, 12, dtype=np.float32)
    y = x.copy()
    y[5] = np.nextafter(y[5], np.float32(2))
    digests = {identity.digest([a]) for a in (x, y, x.reshape(3, 4), np.where(x == 0, -x, x))}
    assert len(digests) == 4
    assert identity.digest([np.float32([0.0, np.nan])]) == identity.digest([np.float32([0.0, -np.nan])])


@pytest.mark.parametrize("part", ["value", "d logits"])
def test_an_error_of_a_last_place_is_not_admitted(part):
    backend = identity.backends.BACKENDS["numpy"]
    parts = identity.found(backend, "eager", "plain-mean", "float32")
    assert max(identity.admitted("plain-mean", "float32", parts)) < 1.0
    (x,) = parts[part]
    moved = x
    for _ in range(4):
        moved = np.nextafter(moved, np.float32(np.inf))
    worst = identity.admitted("plain-mean", "float32", parts | {part: [moved]})
    assert max(worst) > 2.0
