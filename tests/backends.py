"""The backends of the conformance matrix, as data, and how to put an array on each and take it back."""

import contextlib
import importlib
import importlib.util
import os
from typing import NamedTuple

import numpy as np
import pytest

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")


class Backend(NamedTuple):
    name: str
    library: str  # the package, and what the arrays say they belong to
    modes: dict[str, tuple[str, ...]]  # mode -> dtypes
    gradient: str  # value_and_grad, autograd, vjp
    few: tuple[str, ...] = ()  # modes that run only the cases marked "compile": compilers take a second for each
    accelerator: bool = False
    device: str | None = None
    x64: bool = True
    limited: bool = False  # boolean indexing and data-dependent shapes off
    readonly: bool = False
    shapes_only: bool = False
    environment: tuple[tuple[str, str], ...] = ()  # variables, which a process has or not from its start


ALL = FLOATS + HALVES
SINGLE = ("float32",)
NARROW = SINGLE + HALVES
# In float64 NumPy asks the same engine, by blocks and of a projection.
# Blocks and projections convert the one half as the other, and float16 is NumPy's there.
TORCH = {
    "eager": ALL,
    "autodiff": FLOATS,
    "vmap": SINGLE,
    "blocks": (*SINGLE, "bfloat16"),
    "linear": (*SINGLE, "bfloat16"),
}
COMPILED = {"compile": SINGLE, "operators": SINGLE, "operators-linear": SINGLE}
STRICT = {"eager": FLOATS, "autodiff": SINGLE, "blocks": SINGLE, "linear": SINGLE}
X64 = {"eager": ("float64",), "jit": ("float64",), "vmap": ("float64",)}
X32 = {"eager": SINGLE, "jit": NARROW, "blocks": SINGLE, "linear": SINGLE}
PREFERRED = {"preferred": NARROW}  # the kernels as the default, and what they leave to others
TRITON = {"triton": NARROW, "triton-blocks": SINGLE, "triton-linear": (*SINGLE, "bfloat16")}
DEVICES = dict.fromkeys(("devices", "devices-linear", "devices-classes", "devices-both"), ("float64",))
INTERPRETED = (("TRITON_INTERPRET", "1"),)  # Triton's kernels, in Python
EIGHT = (("XLA_FLAGS", "--xla_force_host_platform_device_count=8"),)
CUPY = {"eager": (*FLOATS, "float16"), "autodiff": FLOATS, "blocks": SINGLE, "linear": FLOATS}
JAX_GPU = X64 | {"eager": ALL, "linear": SINGLE}
SHARDS = {"shards": SINGLE, "shards-2": ("float64",), "shards-linear": SINGLE}
SHARDS |= {f"entries{more}": SINGLE for more in ("", "-linear", "-and-shards", "-and-shards-linear")}
PROCESSES_FEW = ("entries-linear", "entries-and-shards-linear")
BACKENDS = {
    b.name: b
    for b in (
        Backend("numpy", "numpy", {"eager": ALL, "autodiff": FLOATS, "blocks": ALL, "linear": ALL}, "value_and_grad"),
        Backend("numpy-readonly", "numpy", {"eager": SINGLE}, "value_and_grad", ("eager",), readonly=True),
        Backend("strict", "array_api_strict", STRICT, "value_and_grad"),
        Backend("strict-limited", "array_api_strict", {"eager": SINGLE}, "value_and_grad", limited=True),
        Backend("strict-device", "array_api_strict", {"eager": SINGLE}, "value_and_grad", ("eager",), device="device1"),
        Backend("torch", "torch", TORCH | COMPILED, "autograd", tuple(COMPILED), device="cpu"),
        Backend("torch-processes", "torch", SHARDS, "autograd", PROCESSES_FEW, device="cpu"),
        Backend("torch-meta", "torch", {"eager": SINGLE}, "autograd", device="meta", shapes_only=True),
        Backend(
            "torch-triton",
            "torch",
            TRITON | PREFERRED,
            "autograd",
            ("preferred", "triton-blocks"),
            device="cpu",
            environment=INTERPRETED,
        ),
        Backend("torch-cuda", "torch", TORCH | TRITON, "autograd", accelerator=True, device="cuda"),
        Backend("jax", "jax", X64, "vjp", ("eager", "jit", "vmap"), device="cpu"),
        Backend("jax-x32", "jax", X32, "vjp", ("jit", "blocks", "linear"), device="cpu", x64=False),
        Backend(
            "jax-devices", "jax", DEVICES, "vjp", ("devices-classes", "devices-linear"), device="cpu", environment=EIGHT
        ),
        Backend("jax-gpu", "jax", JAX_GPU, "vjp", ("jit", "vmap", "linear"), True, "gpu"),
        Backend("cupy", "cupy", CUPY, "value_and_grad", accelerator=True),
    )
}


def missing(backend):
    """Why the backend cannot run here, or None."""
    if importlib.util.find_spec(backend.library) is None:
        return f"the package {backend.library} is not installed"
    if backend.environment == INTERPRETED and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    for name, value in backend.environment:
        if os.environ.get(name) != value:
            return f"{name} is not {value}"
    if not backend.accelerator:
        return None
    if backend.library == "torch":
        torch = importlib.import_module("torch")
        return None if torch.cuda.is_available() else "torch.cuda.is_available() is False"
    if backend.library == "cupy":
        try:
            cupy = importlib.import_module("cupy")
        except ImportError as error:
            return f"cupy does not import: {error}"
        return None if cupy.cuda.is_available() else "cupy.cuda.is_available() is False"
    try:
        importlib.import_module("jax").devices("gpu")
    except RuntimeError as error:
        return f"jax has no GPU: {error}"
    return None


def chosen(names):
    """The backends asked for; with none named, every CPU backend whose package is installed."""
    if names:
        unknown = sorted(set(names) - set(BACKENDS))
        if unknown:
            raise ValueError(f"no backend {', '.join(unknown)}: choose from {', '.join(BACKENDS)}")
        return tuple(names)
    return tuple(b.name for b in BACKENDS.values() if not b.accelerator and missing(b) is None)


def named(backend, *names):
    """Skips a test that is for the backends of these names."""
    if backend.name not in names:
        pytest.skip(f"for {', '.join(names)}")


def with_processes(backend):
    """Skips a test of torch.distributed where there is none; torch, where there is."""
    named(backend, "torch")
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    return torch


def of_library(backend, *libraries):
    """Skips a test that is for numbers in these libraries, wherever they lie."""
    if backend.library not in libraries or backend.shapes_only:
        pytest.skip(f"for {', '.join(libraries)}")


def holds_values(backend):
    if backend.shapes_only:
        pytest.skip("holds no values")


@contextlib.contextmanager
def settings(backend):
    """x64 on or off, flags of array-api-strict, JAX's device: whatever is global in the library."""
    if backend.library == "jax":
        jax = importlib.import_module("jax")
        if backend.environment == EIGHT:  # XLA asks for the parts of a program outside of any `with` (jax 0.10.2)
            jax.config.update("jax_enable_x64", backend.x64)
        precision = "float32" if backend.accelerator else None  # a GPU's own default is TF32
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.enable_x64(backend.x64))
            stack.enter_context(jax.default_device(jax.devices(backend.device)[0]))
            stack.enter_context(jax.default_matmul_precision(precision))
            yield
    elif backend.limited:
        strict = importlib.import_module("array_api_strict")
        with strict.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
            yield
    else:
        yield


def asarray(backend, a):
    """A fresh array on the backend from a NumPy array."""
    a = np.array(a, order="C")
    if backend.library == "numpy":
        a.flags.writeable = not backend.readonly
        return a
    if backend.library == "torch":
        torch = importlib.import_module("torch")
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.astype(np.float32)).to(torch.bfloat16).to(backend.device)
        return torch.from_numpy(a).to(backend.device)
    if backend.library == "jax":
        return importlib.import_module("jax.numpy").asarray(a)
    if backend.library == "cupy":
        return importlib.import_module("cupy").asarray(a)
    strict = importlib.import_module("array_api_strict")
    return strict.asarray(a, device=strict.Device(backend.device) if backend.device else None)


def to_numpy(backend, x):
    """The numbers held, as a NumPy array of the same dtype (torch's bfloat16 as float32, which holds it)."""
    if backend.library == "torch":
        torch = importlib.import_module("torch")
        x = x.detach().cpu()
        return (x.to(torch.float32) if x.dtype is torch.bfloat16 else x).numpy().copy()
    if backend.library == "cupy":
        return x.get()
    if backend.library == "array_api_strict" and backend.device:
        strict = importlib.import_module("array_api_strict")
        x = strict.asarray(x, device=strict.Device("CPU_DEVICE"))
    return np.array(x)


def dtype_name(x):
    return str(x.dtype).rpartition(".")[2]


def library(x):
    return {"jaxlib": "jax"}.get(type(x).__module__.partition(".")[0], type(x).__module__.partition(".")[0])


def device(x):
    """The device, as something that compares equal on the same device."""
    return "cpu" if library(x) == "numpy" else x.device


def same(backend, x, before):
    """Whether the array still holds what `before` (of to_numpy) held."""
    return backend.shapes_only or np.array_equal(to_numpy(backend, x), before, equal_nan=before.dtype.kind not in "iub")
