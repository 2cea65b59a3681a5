"""The same answer on a GPU, and in Triton's interpreter, as on the CPU: a case on both, compared with each other.

Gradients are within their bound of the truth on both, which test_gradients.py asks.
"""

import numpy as np

from tests.backends import BACKENDS, missing
from tests.conformance.closeness import ulp
from tests.conformance.observed import bound_of, observe, reduction_in, want
from tests.conformance.observed import runs as runs_on

ON_CPU = {"torch-triton": "torch", "torch-cuda": "torch", "jax-gpu": "jax", "cupy": "numpy"}


def runs(backend):
    """The runs whose CPU counterpart is the same call in the same dtype, or its default."""
    if backend.name not in ON_CPU:
        return []
    return [(name, run) for name, run in runs_on(backend) if run.mode in ("eager", "triton", "jit")]


def test_the_same_on_the_cpu(run):
    """Each is within its case's ulps of the truth: they are at most twice as far apart."""
    twin = BACKENDS[ON_CPU[run.backend.name]]
    assert missing(twin) is None
    mode = run.mode if run.mode in twin.modes else "eager"
    here, there = (observe(r).outputs for r in (run, run._replace(backend=twin, mode=mode)))
    name, reduction = ("entries", "none") if "entries" in here else ("value", reduction_in(run))
    a, b, scale = here[name].numbers, there[name].numbers, want(run, reduction).value.scale
    bound = (
        2 * bound_of(run, reduction, want(run, reduction).condition) * ulp(np.asarray(scale, float), here[name].dtype)
    )
    same = (np.abs(a - b) <= bound) | (a == b) | (np.isnan(a) & np.isnan(b))
    assert same.all() or run.case.nonfinite, (a, b)
