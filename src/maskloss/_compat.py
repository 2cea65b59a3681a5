"""The only import of array-api-compat, and what the array API standard leaves to each library."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import mmap
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from array_api_compat import array_namespace, is_cupy_array, is_jax_array, is_numpy_array

Array = Any
Namespace = Any
F = TypeVar("F", bound=Callable[..., Any])

SPARSE_BYTES = 1 << 22
# Terms that a library may add one to the next, and numbers that copies of class weights may take to have no more.
RUNNING, COPIES, COMPILED_COPIES = 1 << 7, 1 << 20, 1 << 10
PRODUCT_ROWS = 1 << 12

INTEGERS = frozenset(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))
HALVES = frozenset(("float16", "bfloat16"))
FLOATS = HALVES | {"float32", "float64"}


_torch = sys.modules.get("torch")


def torch_module() -> Any:
    """torch, or None while nobody has imported it.

    Kept, as torch.compile, where it meets sys.modules, goes through all of it, and fails if an import comes in between.
    """
    global _torch
    if _torch is None:
        _torch = sys.modules.get("torch")
    return _torch


def library_of(x: object) -> str | None:
    """Name of the array library of `x`, or None where `x` is no array of a library known here."""
    # torch first: array-api-compat's tests are behind lru_cache, and torch.compile warns of it when it traces them.
    torch = torch_module()
    if torch is not None and isinstance(x, torch.Tensor):
        return "torch"
    kind = type(x)
    if (kind.__name__ == "ndarray" and kind.__module__ == "numpy") or is_numpy_array(x):
        return "numpy"
    if is_jax_array(x):
        return "jax"
    if is_cupy_array(x):
        return "cupy"
    if kind.__module__.partition(".")[0] == "array_api_strict":
        return "array_api_strict"
    return None


def as_array(x: Any) -> Any:
    """What stands for a JAX array, as the array: a parameter of Flax, say."""
    return x.__jax_array__() if library_of(x) is None and hasattr(x, "__jax_array__") else x


def is_static(*lengths: Any) -> bool:
    """Whether these are numbers, which can be compared: jax.export and torch.export may have symbols in their place."""
    return all(type(length) is int for length in lengths)


def count_of(count: Any, like: Array, *, xp: Namespace) -> Array | float:
    """A count as a number, or as an array where it is none yet: what is traced will meet other sizes."""
    return float(count) if is_static(count) else full((), count, like.dtype, like, xp=xp)


def namespace_of(x: Array) -> Namespace:
    if library_of(x) == "torch":
        from array_api_compat import torch  # by statement: torch.compile traces no import_module

        return torch
    return array_namespace(x)


def dtype_name(x: Array) -> str:
    """'float32', 'bfloat16', 'int64', ... for every library.

    `isdtype` cannot serve: it is a TypeError on NumPy and CuPy for ml_dtypes' bfloat16.
    """
    dtype = x.dtype
    # NumPy puts a dtype's name together in 4 us. Of torch's no cache: torch.compile warns of each that it traces.
    if type(dtype).__module__.startswith("numpy"):
        return _numpy_name(dtype)
    return str(dtype).rpartition(".")[2]


@functools.cache
def _numpy_name(dtype: Any) -> str:
    kinds: dict[str, str] = {"U": "str", "S": "bytes"}  # whose names count bits, as in str672
    return kinds.get(dtype.kind) or dtype.name


def placement(x: Array) -> dict[str, Any]:
    """The `device` argument for new arrays beside `x`. JAX places arrays itself: a tracer has no device."""
    return {} if library_of(x) == "jax" else {"device": x.device}


def full(shape: tuple[int, ...], value: Any, dtype: Any, like: Array, *, xp: Namespace) -> Array:
    """A new array beside `like`; in torch of its class as well, as DTensor meets no other."""
    if library_of(like) == "torch":
        return like.new_full(shape, value, dtype=dtype)
    return xp.full(shape, value, dtype=dtype, **placement(like))


def on_other_device(x: Array, logits: Array, library: str) -> bool:
    if library == "jax":
        # An uncommitted JAX array goes wherever the other operands are; a tracer has no device.
        placed = not is_tracer(x, library) and not is_tracer(logits, library) and x.committed and logits.committed
        return placed and x.devices() != logits.devices()
    return x.device != logits.device


def is_tracer(x: Array, library: str) -> bool:
    """True where `x` stands for values that do not exist yet: jit, compile, export, vmap, fake and meta tensors."""
    if library == "jax":
        return isinstance(x, sys.modules["jax"].core.Tracer)
    if library == "torch":
        torch = torch_module()
        # A subclass may hold no values (FakeTensor, FunctionalTensor) or hold them elsewhere (DTensor).
        return (
            torch.compiler.is_compiling()
            or type(x) not in (torch.Tensor, torch.nn.Parameter)
            or x.is_meta
            or torch.jit.is_tracing()
            or torch._C._are_functorch_transforms_active()
            or torch._C._functorch.is_legacy_batchedtensor(x)
            or (torch._C._len_torch_dispatch_stack() and is_made_fx(torch))
        )
    return False


def is_distributed(x: Array) -> bool:
    """Whether this torch tensor is a DTensor."""
    return hasattr(x, "full_tensor")


def is_made_fx(torch: Any) -> bool:
    """Within make_fx, whose tracing_mode="real" computes with the values it records."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def is_plain_tensor(x: Any) -> bool:
    """A dense torch tensor in this memory, that no transformation or tracing of torch's is about."""
    torch = torch_module()
    return (
        (type(x) is torch.Tensor or type(x) is torch.nn.Parameter)
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and not is_tracer(x, "torch")
        and not in_forward_mode()
    )


def in_forward_mode() -> bool:
    """Within torch.autograd.forward_ad.dual_level()."""
    return torch_module().autograd.forward_ad._current_level >= 0


def has_tangent(x: Any) -> bool:
    """A dual tensor of torch's forward mode."""
    return torch_module().autograd.forward_ad.unpack_dual(x).tangent is not None


def reads_without_sync(x: Array, library: str) -> bool:
    """Whether Python may look at the values of `x` without waiting for a device."""
    if library == "cupy" or is_tracer(x, library):
        return False
    if library == "jax":
        return x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())
    return library != "torch" or x.device.type == "cpu"


def may_wait(x: Array, library: str) -> bool:
    """Whether Python may ask x's device for a number and wait: not while a CUDA graph is captured."""
    if library != "torch":
        return library == "numpy"
    return not (x.is_cuda and torch_module().cuda.is_current_stream_capturing())


def multiplies_halves(x: Array, library: str) -> bool:
    """Whether matrices of x's dtype are multiplied as they are, into float32.

    Not those of float16: dL/dlogits of a mean over many rows is below what float16 holds.
    """
    return library == "torch" and x.is_cuda and dtype_name(x) == "bfloat16" and has_wide_products()


@functools.cache
def has_wide_products() -> bool:
    """Whether mm and addmm take out_dtype, which torch 2.7 to 2.9 lack."""
    operators = torch_module().ops.aten
    return all("dtype_out" in operator.overloads() for operator in (operators.mm, operators.addmm))


def extremes(x: Array, library: str) -> tuple[Any, Any]:
    """The least and the greatest of numbers that Python may look at, of which there is one."""
    if library == "torch":
        low, high = x.aminmax()
        return low.item(), high.item()
    if library == "array_api_strict":
        x = sys.modules["numpy"].asarray(x.to_device(sys.modules["array_api_strict"].Device("CPU_DEVICE")))
    return x.min().item(), x.max().item()


def index_dtype(library: str, xp: Namespace) -> Any:
    """The dtype of indices: int64, but JAX without x64 truncates int64 to int32 (with 2**40 becoming 0 silently)."""
    return xp.__array_namespace_info__().default_dtypes()["indexing"] if library == "jax" else xp.int64


def class_indices(x: Array, dtype: Any, *, xp: Namespace) -> Array:
    return xp.arange(x.shape[-1], dtype=dtype, **placement(x))


def moved_axis(x: Array, source: int, destination: int, *, xp: Namespace) -> Array:
    """moveaxis by permute_dims: torch.vmap has no rule for moveaxis of integers."""
    order = [axis for axis in range(x.ndim) if axis != source % x.ndim]
    order.insert(destination % x.ndim, source % x.ndim)
    return x if order == sorted(order) else xp.permute_dims(x, tuple(order))


def take_label(x: Array, labels: Array, *, xp: Namespace) -> Array:
    """x[..., labels], one element per row of the last axis; `labels` already lie in [0, C)."""
    if library_of(x) == "torch":
        # torch's take_along_axis recompiles for every new shape under torch.compile; gather does not.
        return x.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if is_numpy_array(x) and x.ndim == 2:
        # A tenth of the calls that take_along_axis makes.
        return x[sys.modules["numpy"].arange(x.shape[0]), labels]
    return xp.take_along_axis(x, xp.expand_dims(labels, axis=-1), axis=-1)[..., 0]


def take_classes(values: Array, labels: Array, *, xp: Namespace) -> Array:
    """values[labels] of one value per class.

    Its derivative adds one entry to the next, a running sum: of few entries each, from as many copies of the values.
    """
    library, count = library_of(labels), math.prod(labels.shape)
    if library == "jax":
        sharding = sys.modules["jax"].typeof(labels).sharding
        if any(axis is not None for axis in sharding.spec):  # an Explicit mesh wants to be told where the result lies
            return values.at[labels].get(mode="clip", out_sharding=sharding)
    labels_in_line = xp.reshape(labels, (-1,))
    # What is compiled will meet other counts.
    wanted = -(-count // RUNNING) if is_static(count) and not is_compiling(library or "") else COMPILED_COPIES
    copies = min(wanted, max(1, COPIES // values.shape[0]))
    if copies < 2 or not is_differentiated(values, library or ""):
        return xp.reshape(xp.take(values, labels_in_line, axis=0), labels.shape)
    copy = xp.arange(count, **placement(labels)) % copies
    return xp.reshape(xp.broadcast_to(values, (copies, *values.shape))[copy, labels_in_line], labels.shape)


def is_differentiated(x: Array, library: str) -> bool:
    """Whether the derivative with respect to x may be asked for, in reverse mode."""
    if library != "torch":
        return library == "jax"
    torch = torch_module()
    if is_distributed(x):  # meets no other tensor, as those of indices are
        return False
    return torch._C._are_functorch_transforms_active() or (x.requires_grad and torch.is_grad_enabled())


def sums_in_a_tree(x: Array, axis: int) -> bool:
    """Whether the library's sum over this axis is no running one: what lies side by side most add up in a tree."""
    library = library_of(x)
    if library == "numpy":  # which walks the axis of the shortest stride, of what was broadcast, first
        shorter = (n > 1 and abs(stride) < x.itemsize for n, stride in zip(x.shape, x.strides, strict=True))
        return x.strides[axis] == x.itemsize and not any(shorter)
    return library != "array_api_strict" and axis == x.ndim - 1


def kept_apart(x: Array) -> Array:
    """x, which XLA makes as it is: a sum of sums it merges into one running sum (jaxlib 0.10.2)."""
    return sys.modules["jax"].lax.optimization_barrier(x) if is_jax_array(x) and is_tracer(x, "jax") else x


def is_split(x: Array, axis: int) -> bool:
    """Whether JAX was told, by a mesh of Explicit axes, that this axis lies in parts on several devices."""
    return is_jax_array(x) and sys.modules["jax"].typeof(x).sharding.spec[axis] is not None


def of_rank(x: Array, ndim: int, *, xp: Namespace) -> Array:
    """One number per class, in as many axes as the logits have: JAX may be told to promote no ranks."""
    return xp.reshape(x, (*[1] * (ndim - 1), -1))


def subtract_at_label(x: Array, labels: Array, values: Array, *, in_place: bool, xp: Namespace) -> Array:
    """x with x[..., labels] -= values."""
    library = library_of(x)
    if library in ("numpy", "cupy") and x.ndim == 2:
        x = x if in_place else x.copy()
        x[xp.arange(x.shape[0], **placement(x)), labels] -= values
        return x
    labels, values = xp.expand_dims(labels, axis=-1), xp.expand_dims(values, axis=-1)
    if library == "torch":
        return x.scatter_add_(-1, labels, -values) if in_place else x.scatter_add(-1, labels, -values)
    classes = of_rank(class_indices(x, labels.dtype, xp=xp), x.ndim, xp=xp)
    result = xp.where(classes == labels, x - values, x)
    return assign(x, result) if in_place else result


def flattens(x: Array) -> bool:
    """Whether the axes before the last are one axis without a copy."""
    library = library_of(x)
    if x.ndim <= 2 or library == "array_api_strict":
        return True
    strides = x.stride() if library == "torch" else x.strides
    axes = [(n, stride) for n, stride in zip(x.shape[:-1], strides[:-1], strict=True) if n != 1]
    return 0 in x.shape or all(a == n * b for (_, a), (n, b) in itertools.pairwise(axes))


def take_rows(x: Array, places: Array, *, out: Array | None) -> Array:
    """x[places] of a 2-d array, into `out`."""
    if library_of(x) == "torch":
        return torch_module().index_select(x, 0, places, out=out)
    if not x.flags.c_contiguous:
        return x[places]  # take would copy the whole array first
    # "raise" would go through a buffer; the places are in range.
    return sys.modules["numpy"].take(x, places, axis=0, out=out, mode="clip")


def put_rows(x: Array, places: Array, rows: Array) -> None:
    if library_of(x) == "torch":
        x.index_copy_(0, places, rows.to(x.dtype))
    else:
        x[places] = rows


def autocasts(x: Array) -> bool:
    """Whether torch's autocast would multiply x in another dtype."""
    if library_of(x) != "torch":
        return False
    amp, device = torch_module().amp, x.device.type
    return amp.is_autocast_available(device) and torch_module().is_autocast_enabled(device)


def as_asked(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Where operations have the dtypes that they are given."""
    return torch_module().autocast(x.device.type, enabled=False) if autocasts(x) else contextlib.nullcontext()


def product(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """The matrix product, into `out`, which may be wider than both."""
    if out is None:
        return a @ b
    library = library_of(a)
    if library == "torch":
        torch = torch_module()
        return torch.mm(a, b, out=out) if a.dtype == out.dtype else torch.mm(a, b, out_dtype=out.dtype, out=out)
    return sys.modules[library or ""].matmul(a, b, out=out)


def add_product(total: Array, a: Array, b: Array) -> Array:
    """total + a b, in the place of total where that can be written to."""
    library = library_of(total)
    if library == "torch":
        if a.dtype == total.dtype:
            return total.addmm_(a, b)
        return torch_module().addmm(total, a, b, out_dtype=total.dtype, out=total)
    if library not in ("numpy", "cupy"):
        return total + a @ b
    for start in range(0, total.shape[0], PRODUCT_ROWS):  # of the product, which has an array of its own
        total[start : start + PRODUCT_ROWS] += a[start : start + PRODUCT_ROWS] @ b
    return total


def sparse_zeros(shape: tuple[int, int], dtype: Any, like: Array, *, xp: Namespace) -> Array:
    """Zeros of which few will be written to: where the kernel can keep the others, it does.

    NumPy's zeros are such (calloc); torch writes each of its own, which for a gradient takes longer than all its rest.
    """
    if library_of(like) == "torch" and like.device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS"):
        size = math.prod(shape) * dtype.itemsize
        if size >= SPARSE_BYTES:
            with contextlib.suppress(OSError):  # out of memory: torch says so in its own way
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                return torch_module().frombuffer(memory, dtype=dtype).reshape(shape)
    return xp.zeros(shape, dtype=dtype, **placement(like))


def lasting_empty(size: int, dtype: Any, like: Array) -> Array:
    """Memory that outlives the call."""
    if library_of(like) == "torch":
        torch = torch_module()
        # Made in inference mode it could not be written outside of it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=dtype, device=like.device)
    return sys.modules["numpy"].empty(size, dtype=dtype)


def assign(x: Array, values: Array) -> Array:
    """x, which then holds the values."""
    x[...] = values
    return x


def stop_gradient(x: Array, *, xp: Namespace) -> Array:
    if library_of(x) == "torch":
        return x.detach()
    if is_jax_array(x):
        return sys.modules["jax"].lax.stop_gradient(x)
    return x


def on_arrays(function: F) -> F:
    """Makes a public function behave on NumPy as elsewhere: it returns arrays, and does not warn of what is defined.

    NumPy makes a scalar of a 0-d result, and warns of inf - inf, overflow and the like.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        library = next(filter(None, map(library_of, args[:1] or kwargs.values())), None)
        if library == "torch" and torch_module().jit.is_tracing():
            with warnings.catch_warnings():  # of shapes that are looked at, which decide on errors alone
                warnings.simplefilter("ignore", torch_module().jit.TracerWarning)
                return function(*args, **kwargs)
        if library not in ("numpy", "array_api_strict"):
            return function(*args, **kwargs)
        with sys.modules["numpy"].errstate(all="ignore"):
            return as_arrays(function(*args, **kwargs))

    return cast("F", wrapper)


def as_arrays(x: Any) -> Any:
    """Each NumPy scalar in nested tuples as a 0-d array."""
    if isinstance(x, tuple):
        given: Any = cast(object, x)
        items = [as_arrays(item) for item in given]
        return type(given)(*items) if hasattr(given, "_fields") else tuple(items)
    return sys.modules["numpy"].asarray(x) if library_of(x) == "numpy" else x


def takes_kernels(x: Any) -> bool:
    """Whether Triton's kernels take this tensor: a CUDA tensor, and under its interpreter one of the CPU."""
    return x.device.type == ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def is_compiling(library: str) -> bool:
    """Inside torch.compile or torch.export."""
    return library == "torch" and torch_module().compiler.is_compiling()
