"""The capability data is so: what it lists as missing is refused with its reason, and what it does not list works."""

import importlib
import re
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
import numpy as np
import pytest

import maskloss as ml
from docs.scripts import capabilities
from maskloss import _arguments, _arrays, _capabilities
from tests.backends import asarray, settings

LIBRARIES = {b.name: b for b in _capabilities.BACKENDS}
MASK = np.array([[True, True, False], [True, False, True]])


def call(function, x, mask, labels):
    """A call of each public function on a (2, 3) array, reduced to a number."""
    f = getattr(ml, function)
    if function in ("cross_entropy", "label_log_probs"):
        result = f(x, labels, class_mask=mask)
    elif function == "denominator":
        result = f(labels, mask=mask[:, 2], weights=x[:, 0])
    elif function == "linear_entropy":
        result = f(x, x, mask=mask[:, 2])
    elif function.startswith("linear"):
        result = f(x, x, labels, mask=mask[:, 2])
    elif function == "entropy":
        result = f(x, class_mask=mask)
    elif function == "reduce" or function.endswith("softmax"):
        result = f(x, mask=mask)
    else:
        result = f(x, mask, axis=1)
    # log_softmax is -inf where not kept: the sum is over what is finite.
    return ml.masked_sum(result, abs(result) < 1e4)


def runs(backend):
    if backend.name not in ("numpy", "strict", "torch", "jax", "torch-cuda", "jax-gpu", "cupy"):
        return []
    return [(f"{backend.name}-{function}", (backend, function)) for function in capabilities.FUNCTIONS]


def arrays(backend, dtype="float64"):
    x = np.array([[0.5, -1.0, 2.0], [0.25, 3.0, -0.5]])
    return asarray(backend, x.astype(dtype)), asarray(backend, MASK), asarray(backend, np.array([1, 0]))


def test_every_dtype_listed(run):
    backend, function = run
    for dtype in _capabilities.DTYPES:
        if not _capabilities.reason_missing("*", backend.library, dtype):
            with settings(backend):
                assert np.isfinite(float(call(function, *arrays(backend, dtype))))


def test_gradient(run):
    backend, function = run
    reason = _capabilities.reason_missing(function, backend.library, "gradient")
    with settings(backend):
        x, mask, labels = arrays(backend)
        if reason:
            with pytest.raises(TypeError, match=reason):
                ml.value_and_grad(getattr(ml, function))(x)
        elif backend.gradient == "value_and_grad":
            given = (x, x, labels) if function.startswith("linear") else (x, labels)
            assert ml.value_and_grad(getattr(ml, function))(*given)[1].shape == x.shape
        else:
            gradient = ml.value_and_grad(lambda x: call(function, x, mask, labels))(x)[1]
            # A softmax sums to 1 whatever its logits: its gradient is 0 to rounding, and not otherwise.
            assert bool((abs(gradient) > 1e-12).any()) is (function != "masked_softmax")


def test_compiled(run):
    backend, function = run
    compiled = LIBRARIES[backend.library].compiled
    assert (compiled is None) is bool(_capabilities.reason_missing(function, backend.library, "jit"))
    with settings(backend):
        x, mask, labels = arrays(backend)
        if compiled == "torch.compile":
            torch = importlib.import_module("torch")
            jitted = torch.compile(call, fullgraph=True, backend="eager", dynamic=False)
            torch.testing.assert_close(jitted(function, x, mask, labels), call(function, x, mask, labels))
        elif compiled == "jax.jit":
            jax = importlib.import_module("jax")
            np.testing.assert_allclose(
                jax.jit(call, static_argnums=0)(function, x, mask, labels), call(function, x, mask, labels)
            )


def test_implementations(backend):
    """Each named implementation runs, or is refused for the reason that the data gives."""
    with settings(backend):
        x, _, labels = arrays(backend, "float32")
        for name, implementation in _capabilities.IMPLEMENTATIONS.items():
            missing = implementation.missing
            reason = missing.get(backend.library)
            if backend.library == "torch" and backend.device != "cuda" and not backend.environment:
                reason = missing.get("torch cpu")
            if reason:
                with pytest.raises(ValueError, match=re.escape(reason)):
                    ml.cross_entropy(x, labels, implementation=name)
            else:
                ml.cross_entropy(x, labels, implementation=name)


def test_a_named_implementation_runs_or_raises():
    numpy = _arguments.Like("logits", None, _arrays.Namespace("numpy", SimpleNamespace()))
    assert [_arguments.choose_implementation(name, numpy) for name in (None, "analytic", "autodiff")] == [
        *("analytic", "analytic", "autodiff")
    ]
    refused = r"implementation is 'triton'; here only \['analytic', 'autodiff'\] can run: its kernels take PyTorch"
    with pytest.raises(ValueError, match=refused):
        _arguments.choose_implementation("triton", numpy)
