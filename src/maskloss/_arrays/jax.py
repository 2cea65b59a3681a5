"""JAX: arrays that are not written to, tracers, and meshes of devices."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JAX's own annotations are partial.)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as functions
import numpy as np
from jax.core import Tracer

from .standard import BINDINGS, MAGIC, MAGIC_BITS, Array, Namespace, is_static, of_bits, taken_from_copies

# Of integers that are added side by side.
FOLD = 4096


class Jax(Namespace):
    is_eager = False  # what is traced computes with constants, too
    gathers_classes = False
    welcome = ("numpy",)

    def conflict(self, x: Array, beside: Array) -> tuple[type[Exception], str, str, str] | None:
        # An uncommitted array goes wherever the other operands are; a tracer has no device.
        if self.is_tracer(x) or self.is_tracer(beside) or not (x.committed and beside.committed):
            return None
        return None if x.devices() == beside.devices() else super().conflict(x, beside)

    def is_tracer(self, x: Array) -> bool:
        return isinstance(x, Tracer)

    def reads_without_sync(self, x: Array) -> bool:
        if self.is_tracer(x):
            return False
        return x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())

    def index_dtype(self) -> Any:
        """Without x64 int64 is truncated to int32 (with 2**40 becoming 0 silently)."""
        return self.__array_namespace_info__().default_dtypes()["indexing"]

    def index_of(self, value: int, like: Array) -> Array:
        return np.asarray(value, np.int64)

    def device_kind(self, x: Array) -> str:
        if self.is_tracer(x):  # which may end on another than the default, and is told nothing of it
            return jax.default_backend()
        return next(iter(x.devices())).platform

    def placement(self, x: Array) -> dict[str, Any]:
        """JAX places arrays itself: a tracer has no device."""
        return {}

    def zero(self, dtype: Any, like: Array) -> Array:
        # Inside shard_map it varies over the axes of the mesh that `like` varies over, which its type says.
        return functions.zeros_like(like, dtype=dtype, shape=())

    def place_in(self, group: Any, x: Array) -> tuple[Any, Any, int]:
        try:
            return group, jax.lax.axis_index(group), jax.lax.psum(1, group)
        except NameError as error:
            accepted = "it must name an axis, or axes, of the mesh of jax.shard_map, inside which this is called"
            raise ValueError(f"class_shard has the group {group!r}; {accepted}") from error

    def all_sum(self, x: Array, group: Any) -> Array:
        return jax.lax.psum(x, group)

    def all_max(self, x: Array, group: Any) -> Array:
        return jax.lax.pmax(jax.lax.stop_gradient(x), group)

    def take_classes(self, values: Array, labels: Array) -> Array:
        sharding = jax.typeof(labels).sharding
        if any(axis is not None for axis in sharding.spec):  # an Explicit mesh wants to be told where the result lies
            return values.at[labels].get(mode="clip", out_sharding=sharding)
        return taken_from_copies(values, labels, is_static=is_static(*labels.shape), xp=self)

    def kept_apart(self, x: Array) -> Array:
        """A sum of sums XLA merges into one running sum (jaxlib 0.10.2)."""
        return jax.lax.optimization_barrier(x) if self.is_tracer(x) else x

    def sums_side_by_side(self, x: Array, axis: int) -> bool:
        return axis == x.ndim - 1

    def long_sum(self, x: Array, *, axis: int = -1) -> Array:
        # A mesh of Explicit axes says that this one lies in parts on several devices.
        is_split = jax.typeof(x).sharding.spec[axis] is not None
        return self.sum(x, axis=axis) if is_split else super().long_sum(x, axis=axis)

    def largest(self, x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
        # Along an axis that is split over devices XLA's maximum of maxima drops NaN (CPU, jaxlib 0.10.2).
        has_nan = self.any(self.isnan(x), axis=axis, keepdims=keepdims)
        return self.where(has_nan, self.nan, self.max(x, axis=axis, keepdims=keepdims))

    def argmax(self, x: Array, *, axis: int | None = None) -> Array:
        if axis is None:
            return functions.argmax(x)
        # Of int64 it cannot be lowered in a program of 32 bits, in which enable_x64 was called (jax 0.10.2).
        return jax.lax.argmax(x, axis % x.ndim, functions.int32)

    def sum_all(self, x: Array) -> Array:
        # An axis that is split over devices merges with no other.
        return self.sum_over(x, tuple(range(x.ndim)), keepdims=False)

    def stop_gradient(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def power_of_two(self, exponent: Array) -> Array:
        return from_bits((self.astype(exponent, self.int64) + 1023) << 52)

    def power_above(self, x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(self.maximum(x, 2.0**-901), self.int64)
        return from_bits(((bits >> 52) + 1) << 52)

    def settled(self, x: Array) -> Array:
        # To its own bits: a rounding to integers, which nothing is contracted through.
        return of_bits(x, 53, xp=self)

    def sum_as_integers(self, x: Array) -> Array:
        head = x.shape[-1] - x.shape[-1] % FOLD
        if head < 2 * FOLD or jax.device_count() > 1:  # a part that lies on several devices is not folded
            return super().sum_as_integers(x)
        # Numbers side by side are added to numbers side by side, 3 times as fast as to one. The barrier keeps two sums
        # from becoming one.
        bits = jax.lax.bitcast_convert_type(x + MAGIC, self.int64) - MAGIC_BITS
        blocks = self.reshape(bits[..., :head], (*x.shape[:-1], head // FOLD, FOLD))
        return self.sum(self.kept_apart(self.sum(blocks, axis=-2)), axis=-1) + self.sum(bits[..., head:], axis=-1)

    def no_constant(self, x: Array | float, beside: Array | float) -> Array | float:
        # A barrier keeps arrays from XLA, but no scalar (jaxlib 0.10.2).
        return x if type(beside) is float else self.where(beside == beside, x, self.nan)

    def rounded_to(self, x: Array, dtype: Any) -> Array:
        # XLA makes one conversion of two.
        return self.astype(x if dtype == self.float32 else of_bits(x, 24, xp=self), dtype)

    def with_derivative_of(self, formula: Array, value: Array) -> Array:
        return with_derivative_of(formula, value)

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return BINDINGS[self.name]().called(function, args, kwargs)


def from_bits(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, functions.float64)


@jax.custom_jvp
def with_derivative_of(formula: Any, value: Any) -> Any:
    """Where nothing is derived, the formula is not computed."""
    return value


@with_derivative_of.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return with_derivative_of(*primals), tangents[0]


xp = Jax("jax", functions)
