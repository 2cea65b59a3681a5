"""PyTorch: a graph behind each tensor, tracers of many kinds, devices, subclasses."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import mmap
import os
import warnings
from collections.abc import Callable
from shutil import which
from typing import Any

import torch
from array_api_compat import torch as functions

from .standard import Array, Namespace, flattens_by_strides, plane_by_strides, taken_from_copies
from .torch_functions import all_max, all_sum, gathered, own, product

internals: Any = torch  # what has no annotations, or is private
# Of zeros of which few will be written to, from which on the kernel keeps the others.
SPARSE_BYTES = 1 << 22


class Torch(Namespace):
    has_out = is_parallel = True

    def refusal(self, x: Array) -> tuple[str, str] | None:
        if not x.is_nested and x.layout is torch.strided:
            return None
        return f"a torch {'nested' if x.is_nested else 'sparse'} tensor", "it must be a dense tensor"

    def conflict(self, x: Array, beside: Array) -> tuple[type[Exception], str, str, str] | None:
        # A plain 0-d tensor is a number to a DTensor.
        if is_distributed(x) is not is_distributed(beside) and (x.ndim or is_distributed(x)):
            kinds = "that are a DTensor", "that are a plain tensor"
            given, other = ("a DTensor", kinds[1]) if is_distributed(x) else ("a plain tensor", kinds[0])
            return TypeError, given, other, "pass .full_tensor() of the DTensor, or distribute the other as well"
        return super().conflict(x, beside)

    def is_tracer(self, x: Array) -> bool:
        # A subclass may hold no values (FakeTensor, FunctionalTensor) or hold them elsewhere (DTensor).
        return (
            torch.compiler.is_compiling()
            or type(x) not in (torch.Tensor, torch.nn.Parameter)
            or x.is_meta
            or internals.jit.is_tracing()
            or in_transform()
            or internals._C._functorch.is_legacy_batchedtensor(x)
            or (internals._C._len_torch_dispatch_stack() > 0 and is_made_fx())
        )

    def reads_without_sync(self, x: Array) -> bool:
        return not self.is_tracer(x) and x.device.type == "cpu"

    def may_wait(self, x: Array) -> bool:
        """Not while a CUDA graph is captured."""
        return not (x.is_cuda and torch.cuda.is_current_stream_capturing())

    def takes_kernels(self, x: Array) -> bool:
        """Those of CUDA, and under Triton's interpreter those of the CPU."""
        return x.device.type == ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")

    def prefers_kernels(self, x: Array) -> bool:
        return x.is_cuda and not self.is_tracer(x) and runs_kernels(x.device.index)

    def multiplies_halves(self, x: Array) -> bool:
        """Not those of float16: dL/dlogits of a mean over many rows is below what float16 holds."""
        return x.is_cuda and x.dtype is torch.bfloat16 and has_wide_products()

    def flattens(self, x: Array) -> bool:
        return x.ndim <= 2 or flattens_by_strides(x.shape, x.stride())

    def plane_of(self, x: Array) -> int | None:
        return None if x.is_contiguous() else plane_by_strides(x.shape, x.stride(), 1)

    def extremes(self, x: Array) -> tuple[Any, Any]:
        low, high = x.aminmax()
        return low.item(), high.item()

    def filled(self, shape: tuple[int, ...], value: Any, dtype: Any, like: Array) -> Array:
        """Of the class of `like` as well, as DTensor meets no other."""
        return like.new_full(shape, value, dtype=dtype)

    def sparse_zeros(self, shape: tuple[int, int], dtype: Any, like: Array) -> Array:
        """Kept by the kernel where not written to: torch writes its own, for longer than all else of a gradient."""
        size = math.prod(shape) * dtype.itemsize
        if like.device.type == "cpu" and hasattr(mmap, "MAP_ANONYMOUS") and size >= SPARSE_BYTES:
            with contextlib.suppress(OSError):  # out of memory: torch says so in its own way
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                return torch.frombuffer(memory, dtype=dtype).reshape(shape)
        return super().sparse_zeros(shape, dtype, like)

    def lasting_empty(self, size: int, dtype: Any, like: Array) -> Array:
        # Made in inference mode it could not be written outside of it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=dtype, device=like.device)

    def any(self, x: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
        # DTensor's, along an axis that is split, is added over the devices as a number (torch 2.13): True may be 2.
        if is_distributed(x):
            return self.sum(x, axis=axis, keepdims=keepdims) > 0
        return functions.any(x, axis=axis, keepdims=keepdims)

    def max(self, x: Array, *, axis: Any = None, keepdims: bool = False) -> Array:
        if is_distributed(x) and axis == -1:
            return largest_of_parts(settled(x.detach()), keepdims)
        return functions.max(x, axis=axis, keepdims=keepdims)

    def argmax(self, x: Array, *, axis: int | None = None) -> Array:
        if not is_distributed(x) or axis != -1:
            return torch.argmax(x, dim=axis)
        # DTensor's gathers what is split: the first class whose logit is the largest, by two numbers a row.
        classes = self.class_indices(x, torch.int64)
        return -self.max(self.where(x == self.max(x, axis=-1, keepdims=True), -classes, -x.shape[-1]), axis=-1)

    def class_indices(self, x: Array, dtype: Any) -> Array:
        return split_alike(super().class_indices(x, dtype), x) if is_distributed(x) else super().class_indices(x, dtype)

    def take_label(self, x: Array, labels: Array) -> Array:
        if is_distributed(x):  # of classes that are split, gather is an IndexError later on (torch 2.13)
            at_label = self.class_indices(x, labels.dtype) == labels.unsqueeze(-1)
            if x.dtype is torch.bool:
                return self.any(at_label & x, axis=-1)
            return settled(self.where(at_label, x, 0.0).sum(-1))
        # take_along_axis recompiles for every new shape under torch.compile; gather does not.
        return x.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    def take_classes(self, values: Array, labels: Array) -> Array:
        # A DTensor meets no other tensor, as those of indices are.
        if is_distributed(values) or not (in_transform() or (values.requires_grad and torch.is_grad_enabled())):
            return super().take_classes(values, labels)
        return taken_from_copies(values, labels, is_static=not torch.compiler.is_compiling(), xp=self)

    def subtract_at_label(self, x: Array, labels: Array, values: Array, *, in_place: bool) -> Array:
        if is_distributed(x):
            return super().subtract_at_label(x, labels, values, in_place=False)
        labels, values = labels.unsqueeze(-1), values.unsqueeze(-1)
        return x.scatter_add_(-1, labels, -values) if in_place else x.scatter_add(-1, labels, -values)

    def take_rows(self, x: Array, places: Array, *, out: Array | None) -> Array:
        return torch.index_select(x, 0, places, out=out)

    def put_rows(self, x: Array, places: Array, rows: Array) -> None:
        x.index_copy_(0, places, rows.to(x.dtype))

    def clipped_below(self, x: Array, low: float) -> Array:
        return x.clip(low, None)

    def long_sum(self, x: Array, *, axis: int = -1) -> Array:
        # In a cascade (https://github.com/pytorch/pytorch/pull/39516); levels would keep torch.compile from fusing it.
        return settled(x.sum(axis)) if is_distributed(x) else x.sum(axis)

    def sum_over(self, x: Array, axes: tuple[int, ...], *, keepdims: bool) -> Array:
        return self.sum(x, axis=axes, keepdims=keepdims)

    def sum_all(self, x: Array) -> Array:
        return (x if x.ndim == 1 else x.reshape(-1)).sum()

    def product(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        """Of float32 in float32 under autocast as well."""
        if out is None:
            return product(a, b)
        return torch.mm(a, b, out=out) if a.dtype == out.dtype else torch.mm(a, b, out_dtype=out.dtype, out=out)

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        if a.dtype == total.dtype:
            return total.addmm_(a, b)
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # pyright: ignore

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def with_derivative_of(self, formula: Array, value: Array) -> Array:
        return value.detach() + (formula - formula.detach())

    def power_of_two(self, exponent: Array) -> Array:
        return ((exponent.long() + 1023) << 52).view(torch.float64)

    def power_above(self, x: Array) -> Array:
        bits = x.clip(2.0**-901, None).view(torch.int64)
        return (((bits >> 52) + 1) << 52).view(torch.float64)

    def raised_to(self, x: Array, low: float) -> None:
        x.clamp_(min=low)

    def flush(self, x: Array, least: float, scratch: Array | None) -> None:
        internals.ops.aten.hardshrink.out(x, math.nextafter(least, 0.0), out=x)

    def exponent_bits(self, x: Array) -> Array:
        x.view(torch.int64).bitwise_left_shift_(52)
        return x

    def place_in(self, group: Any, x: Array) -> tuple[Any, Any, int]:
        if is_distributed(x):
            raise TypeError("logits are a DTensor, which says itself how it is split; class_shard is for plain tensors")
        group = group.get_group() if hasattr(group, "get_group") else group
        distributed: Any = internals.distributed
        if not (distributed.is_available() and isinstance(group, distributed.ProcessGroup)):
            kind = f"the group {group!r} ({type(group).__name__})"
            raise TypeError(
                f"class_shard has {kind}; it must be a torch ProcessGroup, or a DeviceMesh of one dimension"
            )
        return group, distributed.get_rank(group), distributed.get_world_size(group)

    def all_of(self, numbers: tuple[int, ...], group: Any, serial: int, x: Array) -> list[tuple[int, ...]] | None:
        return gathered(numbers, group.group_name, x.device, serial)

    def all_sum(self, x: Array, group: Any) -> Array:
        return all_sum(x, group)

    def own(self, x: Array, group: Any) -> Array:
        return own(x, group)

    def all_max(self, x: Array, group: Any) -> Array:
        return all_max(x, group)

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not internals.jit.is_tracing():
            return function(*args, **kwargs)
        with warnings.catch_warnings():  # of shapes that are looked at, which decide on errors alone
            warnings.simplefilter("ignore", internals.jit.TracerWarning)
            return function(*args, **kwargs)


class Fused(Torch):
    fuses = True


def is_distributed(x: Array) -> bool:
    """Whether this is a DTensor."""
    return hasattr(x, "placements")  # and not by a method, which Dynamo does not see (torch 2.13)


def split_alike(numbers: Array, x: Array) -> Array:
    """A number for each class as a DTensor, split as the classes of x are."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [Shard(0) if placement == Shard(x.ndim - 1) else Replicate() for placement in x.placements]
    everywhere = DTensor.from_local(numbers, x.device_mesh, [Replicate()] * len(placements), run_check=False)
    return everywhere.redistribute(placements=placements)


def settled(x: Array) -> Array:
    """Added over the devices here and now: left to DTensor, it may rather move what these numbers meet next."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if placement.is_partial() else placement for placement in x.placements]
    return x.redistribute(placements=placements)


def largest_of_parts(x: Array, keepdims: bool) -> Array:
    """The maximum along the last axis, as a constant. Of an empty part DTensor's own is an error (torch 2.13)."""
    from torch.distributed.tensor import Partial, Shard

    part, last, kept = x.to_local(), Shard(x.ndim - 1), [1] * keepdims
    if part.shape[-1]:
        part = part.amax(-1, keepdim=keepdims)
    else:
        lowest = -math.inf if part.dtype.is_floating_point else torch.iinfo(part.dtype).min
        part = part.new_full((*part.shape[:-1], *kept), lowest)
    placements = [Partial("max") if placement == last else placement for placement in x.placements]
    return settled(from_part(part, x.device_mesh, placements, (*x.shape[:-1], *kept)))


def from_part(part: Array, mesh: Any, placements: Any, shape: tuple[int, ...]) -> Array:
    """A DTensor of that shape, of which this process has the part."""
    from torch.distributed.tensor import DTensor

    whole = torch.empty(shape, device="meta")
    size, stride = whole.shape, whole.stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=size, stride=stride)


def in_transform() -> bool:
    """Within one of torch.func."""
    return internals._C._are_functorch_transforms_active()


def is_made_fx() -> bool:
    """Within make_fx, whose tracing_mode="real" computes with the values it records."""
    return internals._C._get_dispatch_mode(internals._C._TorchDispatchModeKey.PROXY) is not None


@functools.cache
def runs_kernels(device: int) -> bool:
    """Whether Triton is here, and the compiler that it calls, and compiles for this device. (AMD's are untried.)"""
    compilers = os.environ.get("CC"), which("gcc"), which("clang")
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None or not any(compilers):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def in_forward_mode() -> bool:
    """Within internals.autograd.forward_ad.dual_level()."""
    return internals.autograd.forward_ad._current_level >= 0


def has_tangent(x: Any) -> bool:
    """A dual tensor of forward mode."""
    return internals.autograd.forward_ad.unpack_dual(x).tangent is not None


@functools.cache
def has_wide_products() -> bool:
    """Whether mm and addmm take out_dtype, which torch 2.7 to 2.9 lack."""
    operators = torch.ops.aten
    return all("dtype_out" in operator.overloads() for operator in (operators.mm, operators.addmm))


xp, fused = Torch("torch", functions), Fused("torch", functions)
