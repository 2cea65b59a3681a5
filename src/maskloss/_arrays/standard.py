"""The array API standard, and what it leaves to each library: the `xp` of the package.

Here it is written in the standard's own functions alone, for any library: nothing is known of where numbers lie or of
how memory is written to. A library's own module says what it does otherwise, or better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

Array = Any

# Longer sums are taken in levels: a running sum in float32 (XLA's, and NumPy's along a strided axis) errs by up to
# one rounding per term, which at 2**20 classes is more than the last places of lse can hide.
SUM_BLOCK = 1024
# Blocks of an axis along which each sum, also one over blocks, is a running one.
STRIDED_BLOCK = 16
# Added to a number below 2^51 it is rounded to an integer, which its last bits are beside these.
MAGIC, MAGIC_BITS = 1.5 * 2.0**52, 0x4338 << 48
# Terms that a library may add one to the next, and numbers that copies of class weights may take to have no more.
RUNNING, COPIES, COMPILED_COPIES = 1 << 7, 1 << 20, 1 << 10

# What binds a library to the package, by its name: an upper floor's, and there from the package's import on.
BINDINGS: dict[str, Callable[[], Any]] = {}


def is_static(*lengths: Any) -> bool:
    """Whether these are numbers, which can be compared: jax.export and torch.export may have symbols in their place."""
    return all(type(length) is int for length in lengths)


def called_while_traced(function: Any) -> Any:
    """A function that torch.compile calls while it traces, and whose result it takes for a constant."""
    # What torch.compiler.assume_constant_result sets, which imports Dynamo for it.
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_numpy_scalar(value: object) -> bool:
    for kind in type(value).__mro__:  # noqa: SIM110  (any() would call a generator for each)
        if kind.__name__ == "generic" and kind.__module__ == "numpy":
            return True
    return False


class Namespace:
    """The functions of a standard namespace, and beside them the package's own.

    Attributes
    ----------
    name : str
        Of the library, in _capabilities.
    has_out : bool
        Its functions compute into `out`, and its arrays are written to in place.
    is_parallel : bool
        Its functions share an array out among threads.
    frees_python : bool
        Its functions hold no lock of Python's while they compute, and share nothing out themselves.
    is_eager : bool
        What is computed outside a tracer has a value there and then.
    fuses : bool
        It traces for a compiler that makes one walk of many functions, and differentiates nothing.
    gathers_classes : bool
        It takes single classes from an axis that may lie on several devices.
    welcome : tuple of str
        Libraries whose arrays it converts itself.
    """

    has_out = False
    is_parallel = False
    frees_python = False
    is_eager = True
    fuses = False
    gathers_classes = True
    welcome: tuple[str, ...] = ()

    def __init__(self, name: str, functions: object) -> None:
        self.name = name
        own = {*dir(type(self)), "name"}
        given: dict[str, Any] = {**vars(functions)}
        # Copied: looked up in a module through __getattr__, each would cost a call more.
        vars(self).update({key: value for key, value in given.items() if key not in own})

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    # What an array is.

    def refusal(self, x: Array) -> tuple[str, str] | None:
        """What `x` is, and what is accepted, where it is an array of a kind that a wrong number would come of."""
        return None

    def conflict(self, x: Array, beside: Array) -> tuple[type[Exception], str, str, str] | None:
        """Why the two cannot meet: the exception, what each is, and the mend."""
        if x.device == beside.device:
            return None
        return ValueError, f"on device {x.device}", f"on {beside.device}", f"move it to {beside.device}"

    def is_tracer(self, x: Array) -> bool:
        """Whether `x` stands for values that do not exist yet: jit, compile, export, vmap, fake and meta tensors."""
        return False

    def reads_without_sync(self, x: Array) -> bool:
        """Whether Python may look at the values of `x` without waiting for a device."""
        return False

    def may_wait(self, x: Array) -> bool:
        """Whether Python may ask for a number, waiting for x's device, and take rows by what it is told."""
        return False

    def takes_kernels(self, x: Array) -> bool:
        """Whether Triton's kernels take `x`."""
        return False

    def prefers_kernels(self, x: Array) -> bool:
        """Whether they are the first choice for `x`."""
        return False

    def multiplies_halves(self, x: Array) -> bool:
        """Whether matrices of x's dtype are multiplied as they are, into float32."""
        return False

    def flattens(self, x: Array) -> bool:
        """Whether the axes before the last are one axis without a copy."""
        return True

    def plane_of(self, x: Array) -> int | None:
        """The rows of a plane, where the rows of a class lie side by side: x is (planes, rows, C) without a copy."""
        return None

    def index_dtype(self) -> Any:
        return self.int64

    def extremes(self, x: Array) -> tuple[Any, Any]:
        """The least and the greatest number of `x`, which Python may look at, and which has one."""
        number = float if self.isdtype(x.dtype, "real floating") else int
        return number(self.min(x)), number(self.max(x))

    # Groups of processes, of which each holds a part of the classes.

    def place_in(self, group: Any, x: Array) -> tuple[Any, Any, int]:
        """The group, and this process' rank in it and its size."""
        raise TypeError(f"class_shard has a group; {self.name} has no groups of processes: it takes PyTorch and JAX")

    def all_of(self, numbers: tuple[int, ...], group: Any, serial: int, x: Array) -> list[tuple[int, ...]] | None:
        """What each process has of these; None where they cannot differ."""
        return None

    def all_sum(self, x: Array, group: Any) -> Array:
        """The same on each process; its derivative, which each makes whole, is that of each number that was added."""
        raise NotImplementedError

    def own(self, x: Array, group: Any) -> Array:
        """The identity of what is the same on each process, before each makes its own of it: its derivative adds up."""
        return x

    def all_max(self, x: Array, group: Any) -> Array:
        """A constant."""
        raise NotImplementedError

    # New arrays.

    def index_of(self, value: int, like: Array) -> Array:
        """A class index, with all its digits, as a 0-d array."""
        return self.filled((), value, self.int64, like)

    def device_kind(self, x: Array) -> str:
        return str(x.device).partition(":")[0]

    def placement(self, x: Array) -> dict[str, Any]:
        """The `device` argument for new arrays beside `x`."""
        return {"device": x.device}

    def filled(self, shape: tuple[int, ...], value: Any, dtype: Any, like: Array) -> Array:
        """A new array beside `like`."""
        return self.full(shape, value, dtype=dtype, **self.placement(like))

    def zero(self, dtype: Any, like: Array) -> Array:
        return self.filled((), 0, dtype, like)

    def count_of(self, count: Any, like: Array) -> Array | float:
        """A count as a number, or as an array where it is none yet: what is traced will meet other sizes."""
        return float(count) if is_static(count) else self.filled((), count, like.dtype, like)

    def class_indices(self, x: Array, dtype: Any) -> Array:
        return self.arange(x.shape[-1], dtype=dtype, **self.placement(x))

    def sparse_zeros(self, shape: tuple[int, int], dtype: Any, like: Array) -> Array:
        """Zeros of which few will be written to."""
        return self.zeros(shape, dtype=dtype, **self.placement(like))

    def lasting_empty(self, size: int, dtype: Any, like: Array) -> Array:
        """Memory that outlives the call."""
        return self.empty(size, dtype=dtype)

    # Entries, rows and classes.

    def moved_axis(self, x: Array, source: int, destination: int) -> Array:
        """moveaxis by permute_dims: torch.vmap has no rule for moveaxis of integers."""
        if source % x.ndim == destination % x.ndim:
            return x
        order = [axis for axis in range(x.ndim) if axis != source % x.ndim]
        order.insert(destination % x.ndim, source % x.ndim)
        return self.permute_dims(x, tuple(order))

    def of_rank(self, x: Array, ndim: int) -> Array:
        """One number per class, in as many axes as the logits have: JAX may be told to promote no ranks."""
        return self.reshape(x, (*[1] * (ndim - 1), -1))

    def take_label(self, x: Array, labels: Array) -> Array:
        """x[..., labels], one element per row of the last axis; `labels` already lie in [0, C)."""
        return self.take_along_axis(x, self.expand_dims(labels, axis=-1), axis=-1)[..., 0]

    def take_classes(self, values: Array, labels: Array) -> Array:
        """values[labels] of one value per class."""
        return self.reshape(self.take(values, self.reshape(labels, (-1,)), axis=0), labels.shape)

    def subtract_at_label(self, x: Array, labels: Array, values: Array, *, in_place: bool) -> Array:
        """x with x[..., labels] -= values."""
        labels, values = self.expand_dims(labels, axis=-1), self.expand_dims(values, axis=-1)
        classes = self.of_rank(self.class_indices(x, labels.dtype), x.ndim)
        result = self.where(classes == labels, x - values, x)
        if in_place:
            x[...] = result
        return x if in_place else result

    def take_rows(self, x: Array, places: Array, *, out: Array | None) -> Array:
        """x[places] of a 2-d array, into `out`."""
        return self.take(x, places, axis=0)

    def put_rows(self, x: Array, places: Array, rows: Array) -> None:
        x[places, ...] = rows

    # Arithmetic.

    def clipped_below(self, x: Array, low: float) -> Array:
        return self.clip(x, low, None)

    def kept_apart(self, x: Array) -> Array:
        """x, made as it is: no compiler merges what follows into it."""
        return x

    def sums_side_by_side(self, x: Array, axis: int) -> bool:
        """Whether this axis is one that the library sums in a tree, as it does with what lies side by side."""
        return False

    def largest(self, x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
        return self.max(x, axis=axis, keepdims=keepdims)

    def long_sum(self, x: Array, *, axis: int = -1) -> Array:
        """Sum over an axis, in levels where it is long."""
        axis %= x.ndim
        length: Any = x.shape[axis]
        block = SUM_BLOCK if self.sums_side_by_side(x, axis) else STRIDED_BLOCK
        if not is_static(length) or length <= 2 * block:
            return self.sum(x, axis=axis)
        before, after, head = (slice(None),) * axis, x.shape[axis + 1 :], length - length % block
        blocks = self.reshape(x[(*before, slice(0, head), ...)], (*x.shape[:axis], head // block, block, *after))
        rest = self.sum(x[(*before, slice(head, None), ...)], axis=axis)
        return self.long_sum(self.kept_apart(self.sum(blocks, axis=axis + 1)), axis=axis) + rest

    def sum_over(self, x: Array, axes: tuple[int, ...], *, keepdims: bool) -> Array:
        if not axes:
            return self.sum(x, axis=axes, keepdims=keepdims)
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
        for axis in sorted(axes, reverse=True):
            x = self.kept_apart(self.long_sum(x, axis=axis))
        return self.reshape(x, shape) if keepdims else x

    def sum_all(self, x: Array) -> Array:
        return self.long_sum(x if x.ndim == 1 else self.reshape(x, (-1,)))

    def product(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        """The matrix product, into `out`, which may be wider than both."""
        return a @ b

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """total + a b, in the place of total where that can be written to."""
        return total + a @ b

    def stop_gradient(self, x: Array) -> Array:
        return x

    def with_derivative_of(self, formula: Array, value: Array) -> Array:
        """The value, with the derivative of the formula."""
        return value

    # Powers of two, and what stands between a product and a sum.

    def power_of_two(self, exponent: Array) -> Array:
        """2^exponent, exact, of integers in float64; 0 where that is no normal number."""
        return self.where(exponent < -1022.0, 0.0, self.pow(self.full_like(exponent, 2.0), exponent))

    def power_above(self, x: Array) -> Array:
        """The least power of two above x, of float64 numbers from 0 on; at least 2^-900."""
        x = self.clip(x, 2.0**-901, None)
        power = self.power_of_two(self.floor(self.log2(x)))
        power = self.where(power > x, power * 0.5, power)
        return self.where(power * 2.0 > x, power * 2.0, power * 4.0)

    def settled(self, x: Array) -> Array:
        """x, a product, as it was rounded: no compiler contracts it with a sum."""
        return x

    def times(self, a: Array | float, b: Array | float) -> Array:
        """a b, settled where bits are promised."""
        return a * b

    def no_constant(self, x: Array | float, beside: Array | float) -> Array | float:
        """x, NaN beside NaN, which a compiler takes for no constant: it rewrites arithmetic with these."""
        return x

    def over(self, a: Array | float, b: Array | float) -> Array:
        """a / b."""
        return a / b

    def sum_as_integers(self, x: Array) -> Array:
        """Sums along the last axis of x rounded to integers, which are less than 2^51."""
        return self.sum(self.astype(self.round(x), self.int64), axis=-1)

    def raised_to(self, x: Array, low: float) -> None:
        """x, not below low, in its place; NaN stays."""
        raise NotImplementedError

    def exponent_bits(self, x: Array) -> Array:
        """In the place of x: of its bits the last 11 as the exponent of a float64."""
        raise NotImplementedError

    def flush(self, x: Array, least: float, scratch: Array | None) -> None:
        """x in its place, 0 where it is less in size; NaN stays. Scratch is an array of its shape to compute in."""
        raise NotImplementedError

    def rounded_to(self, x: Array, dtype: Any) -> Array:
        """x of float64 by way of float32, to half precision as well."""
        return self.astype(self.astype(x, self.float32), dtype, copy=False)

    # Calls.

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the public function returns, with what the library asks for around it."""
        return function(*args, **kwargs)


def of_bits(x: Array, bits: int, *, xp: Any) -> Array:
    """Float64 rounded to so many significant bits; to 53, which it has, it stays as it is."""
    is_finite = xp.isfinite(x)
    size = xp.power_above(xp.where(is_finite, xp.abs(x), 0.0))
    return xp.where(is_finite, xp.round(x * (2.0**bits / size)) * (size * 2.0**-bits), x)


def flattens_by_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the axes before the last are one axis without a copy: n steps along one are a step along that before."""
    axes = [(n, stride) for n, stride in zip(shape[:-1], strides[:-1], strict=True) if n != 1]
    return len(shape) <= 2 or 0 in shape or all(a == n * b for (_, a), (n, b) in itertools.pairwise(axes))


def plane_by_strides(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> int | None:
    """The rows of a plane, of logits whose class axis was moved to the end; strides in multiples of `unit`."""
    axes = [(n, stride) for n, stride in zip(shape[:-1], strides[:-1], strict=True) if n != 1]
    if not axes or shape[-1] < 2 or 0 in shape or axes[-1][1] != unit or strides[-1] == unit:
        return None
    plane = 1
    while axes and axes[-1][1] == plane * unit:
        plane *= axes.pop()[0]
    outer = all(a == n * b for (_, a), (n, b) in itertools.pairwise(axes))
    return plane if outer and strides[-1] >= plane * unit else None


def taken_from_copies(values: Array, labels: Array, *, is_static: bool, xp: Namespace) -> Array:
    """values[labels], whose derivative adds one entry to the next, a running sum: of few entries each, from copies.

    What is compiled will meet other counts of entries than that of now.
    """
    count = math.prod(labels.shape)
    copies = min(-(-count // RUNNING) if is_static else COMPILED_COPIES, max(1, COPIES // values.shape[0]))
    if copies < 2:
        return Namespace.take_classes(xp, values, labels)
    copy = xp.arange(count, **xp.placement(labels)) % copies
    in_line = xp.reshape(labels, (-1,))
    return xp.reshape(xp.broadcast_to(values, (copies, *values.shape))[copy, in_line], labels.shape)
