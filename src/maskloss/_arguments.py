"""Every refusal of the package: arguments are checked here, one by one, before any arithmetic."""

from __future__ import annotations

import math
import operator
import sys
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from ._arrays import FLOATS, HALVES, INTEGERS, Array, Namespace, as_array, dtype_name, is_numpy_scalar, namespace_of
from ._capabilities import DTYPES, IMPLEMENTATIONS, LIBRARIES

Shape = tuple[int, ...]
Reduction = Literal["none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences"]
NO_LABELS = object()
CHOICES: dict[str, tuple[str | bool, ...]] = {
    "reduction": get_args(Reduction),
    "validate": ("auto", True, False),
    "kernel_layout": ("vd", "dv"),
    "implementation": tuple(IMPLEMENTATIONS),
    **dict.fromkeys(("with_stats", "has_aux", "keepdims", "reproducible"), (True, False)),
}
# Ends of the range, and what is accepted. Any other number is finite and real.
RANGES: dict[str, tuple[float | None, float, str]] = {
    "label_smoothing": (0.0, 1.0, "a number in [0, 1]"),
    "z_loss": (0.0, sys.float_info.max, "a finite number that is not negative"),
    "softcap": (sys.float_info.min, sys.float_info.max, "None or a finite positive number"),
    "correction": (0.0, math.inf, "a number that is not negative"),
    "empty": (None, math.inf, "a number"),
}
# Arrays that a number may stand for.
NUMBERS = ("mask", "weights", "class_mask", "denominator")
REAL = FLOATS | INTEGERS, "its dtype must be real: floating or integer"
FLOATING = FLOATS, f"its dtype must be real floating: {', '.join(DTYPES)}"
LABELS = "it must hold class indices of an integer dtype, or distributions of a floating one"
MASK = "it must be bool or integer 0/1; numbers that weigh go to weights"
# The dtypes of an argument, and what is accepted. All others are floating.
KINDS = {
    **dict.fromkeys(("weights", "class_weights", "denominator"), REAL),
    "labels": (FLOATS | INTEGERS, LABELS),
    "mask": (INTEGERS | {"bool"}, MASK),
    "class_mask": (frozenset({"bool"}), "it must be bool: True where the class exists"),
}


def fail(kind: type[Exception], name: str, given: object, accepted: str) -> NoReturn:
    raise kind(f"{name} is {given}; {accepted}")


def describe(value: object) -> str:
    """What an argument is, in words: its library and dtype and shape, or its type."""
    x: Any = value
    xp = namespace_of(x)
    if xp is None:
        text = repr(value)
        return f"{text if len(text) <= 40 else text[:40] + '...'} ({type(value).__name__})"
    return f"a {LIBRARIES[xp.name]} array of dtype {dtype_name(x)} and shape {tuple(x.shape)}"


def check_choice(**given: Any) -> None:
    for name, value in given.items():
        accepted = CHOICES[name]
        # 1 equals True, and of an array the answer is an array.
        if not (isinstance(value, (str, bool)) and value in accepted):
            kind = ValueError if isinstance(value, str) else TypeError
            fail(kind, name, repr(value), f"it must be one of {', '.join(map(repr, accepted))}")


def number_of(value: Any) -> Any:
    """What a Python number or a NumPy scalar (which array-api-compat takes for an array) holds; None of all else."""
    if type(value) in (int, float, bool):
        return value
    if hasattr(value, "__len__"):
        return None
    return value.item() if is_numpy_scalar(value) else value if isinstance(value, Real) else None


class Checked(NamedTuple):
    """A number that has been checked, as what a compiler sees of it."""

    number: Array


def is_exactly(x: Any, number: float) -> bool:
    """Of a number that was checked, and has no value where a compiler sees it."""
    return type(x) is float and x == number


def check_number(name: str, value: Any, dtype: Any = None, xp: Namespace | None = None) -> Any:
    """A number in its range that the dtype, if given, holds: another would become infinite there, or 0."""
    if type(value) is Checked:
        return value.number
    low, high, accepted = RANGES.get(name, (None, math.inf, "a finite real number"))
    if type(value) is not float:
        given = value if (held := number_of(value)) is None else held
        if isinstance(given, bool) or not isinstance(given, Real):
            fail(TypeError, name, describe(given), f"it must be {accepted}, a Python number")
        try:
            value = float(given)
        except OverflowError:
            fail(ValueError, name, describe(value), f"it must be {accepted}, within the range of floating numbers")
    if low is not None and not low <= value <= high:  # NaN fails too, here and below
        fail(ValueError, name, value, f"it must be {accepted}")
    if value and xp is not None:
        limits = xp.finfo(dtype)
        least, largest = float(limits.smallest_normal), float(limits.max)
        if not least <= abs(value) <= largest:
            accepted = f"float{limits.bits}, in which this is computed, holds finite numbers of a size"
            fail(ValueError, name, value, f"{accepted} from {least:.3g} to {largest:.3g}, and 0")
    return value


def check_axis(axis: Any, ndim: int) -> int:
    try:
        index = operator.index(axis)
    except TypeError:
        fail(TypeError, "axis", describe(axis), "it must be an integer")
    if isinstance(axis, bool) or not -ndim <= index < ndim:
        fail(ValueError, "axis", repr(axis), f"it must lie in [{-ndim}, {ndim}) for an array of {ndim} dimensions")
    return index % ndim


class Like(NamedTuple):
    """The array that decides library, device and dtype for all the others."""

    name: str
    array: Array
    xp: Namespace
    dtype: Any = None  # of the computation: float32 for half precision

    def place(self, x: Array, own: Namespace, dtype: Any, shape: Shape) -> Array:
        """A checked array; converted in its own library, as JAX without x64 truncates what it is given."""
        xp = self.xp
        x = xp.astype(x, dtype, copy=False) if own is xp else xp.asarray(x.astype(dtype))
        return x if x.shape == shape else xp.broadcast_to(x, shape)

    def number(self, value: Any, dtype: Any, shape: Shape) -> Array:
        """A number as an array, which is made where it will be: no copy is waited for."""
        return self.xp.broadcast_to(self.xp.filled((), value, dtype, self.array), shape)


def array_of(name: str, x: Any, like: Like | None) -> tuple[Array, str, Namespace]:
    """A plain dense array of a known library, its dtype's name and its namespace: each accepted beside `like`."""
    xp = namespace_of(x)
    if xp is None:
        x = as_array(x)
        xp = namespace_of(x)
    if xp is None:
        number = " or a number" if name in NUMBERS else ""
        fail(TypeError, name, describe(x), f"it must be an array of {', '.join(LIBRARIES.values())}{number}")
    refusal = xp.refusal(x)
    if refusal is not None:
        fail(TypeError, name, *refusal)
    kind = dtype_name(x)
    if kind == "object":
        fail(TypeError, name, describe(x), "object arrays are not accepted; convert it to a numeric dtype")
    if like is not None and xp is like.xp:
        conflict = xp.conflict(x, like.array)
        if conflict is not None:
            error, given, other, mend = conflict
            fail(error, name, f"{given} beside {like.name} {other}", mend)
    elif like is not None and xp.name not in like.xp.welcome:
        given = f"a {LIBRARIES[xp.name]} array beside {LIBRARIES[like.xp.name]} {like.name}"
        fail(TypeError, name, given, f"convert it to {LIBRARIES[like.xp.name]}")
    kinds, accepted = KINDS.get(name, FLOATING)
    if kind not in kinds:
        fail(TypeError, name, describe(x), accepted)
    return x, kind, xp


def floating_like(name: str, x: Any) -> Like:
    x, kind, xp = array_of(name, x, None)
    return Like(name, x, xp, xp.float32 if kind in HALVES else x.dtype)


def broadcasts(given: Shape, shape: Shape) -> bool:
    return len(given) <= len(shape) and all(a in (1, b) for a, b in zip(given[::-1], shape[::-1], strict=False))


def check_broadcasts(name: str, x: Array, shape: Shape, what: str, like: Like) -> None:
    given = tuple(x.shape)
    if given == shape or broadcasts(given, shape):
        return
    others = ((*given, *[1] * k) for k in range(1, 1 + len(shape) - len(given)))
    fit = next((other for other in others if broadcasts(other, shape)), None)
    # Of what has a class axis, as class_mask, nothing follows for that of the logits.
    hint = "" if len(shape) == like.array.ndim else other_axis(given, like)
    hint = hint if fit is None else f"; along another axis it has the shape {fit}"
    fail(ValueError, name, describe(x), f"it must broadcast to the shape {shape} of {what}{hint}")


def other_axis(given: Shape, like: Like) -> str:
    """A hint, where the shape given, not that of the entries, is theirs along another class axis of the logits."""
    shape = tuple(like.array.shape)
    axes = range(len(shape)) if like.name == "logits" else ()
    axis = next((a for a in axes if shape[:a] + shape[a + 1 :] == given), None)
    return "" if axis is None else f"; if the classes lie along another axis, pass axis={axis}"


def check_kept(invalid: Array, validate: Any, xp: Namespace, message: Any) -> Array | None:
    """Raises for the first invalid entry where values may be read; elsewhere returns `invalid`: these become NaN."""
    if validate is False:
        return invalid
    if validate is True and xp.is_tracer(invalid):
        fail(ValueError, "validate", True, "inside a tracer (jit, compile, vmap) there are no values: use 'auto'")
    if validate == "auto" and not xp.reads_without_sync(invalid):
        return invalid
    if not bool(xp.any(invalid)):
        return None
    position = int(xp.argmax(xp.astype(xp.reshape(invalid, (-1,)), xp.uint8)))
    at: list[int] = []
    for length in reversed(invalid.shape):
        position, index = divmod(position, length)
        at.insert(0, index)
    raise ValueError(message(tuple(at)))


def to_mask(mask: Any, shape: Shape, what: str, like: Like, validate: Any = "auto") -> tuple[Array, Array | None]:
    """The mask as bool of the full shape, and where an integer mask that could not be read is neither 0 nor 1."""
    xp, value, invalid = like.xp, number_of(mask), None
    if value is not None:
        if not isinstance(value, Integral):
            fail(TypeError, "mask", describe(mask), MASK)
        if value not in (0, 1):
            raise ValueError(f"mask is {value}; it must be bool or integer 0/1")
        return like.number(bool(value), xp.bool, shape), None
    x, kind, own = array_of("mask", mask, like)
    check_broadcasts("mask", x, shape, what, like)
    if kind != "bool":
        # Looked at in its own library: JAX without x64 would make 0 of a NumPy 2**32.
        x = own.astype(x, own.index_dtype())
        invalid = check_kept((x != 0) & (x != 1), validate, own, partial(_mask_value, x))
        x = x != 0
    invalid = None if invalid is None else like.place(invalid, own, xp.bool, shape)
    return like.place(x, own, xp.bool, shape), invalid


def _mask_value(mask: Array, at: Shape) -> str:
    return f"mask{list(at) or ''} is {int(mask[at])}; it must be bool or integer 0/1"


def conjunction(first: Array | None, second: Array | None) -> Array | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def to_class_mask(class_mask: Any, full_shape: Shape, at: int, like: Like) -> Array:
    """Of the logits' shape, the classes last."""
    xp, value = like.xp, number_of(class_mask)
    if isinstance(value, bool):
        return xp.moved_axis(like.number(value, xp.bool, full_shape), at, -1)
    if value is not None:
        fail(TypeError, "class_mask", describe(class_mask), KINDS["class_mask"][1])
    x, _, own = array_of("class_mask", class_mask, like)
    check_broadcasts("class_mask", x, full_shape, "logits", like)
    return xp.moved_axis(like.place(x, own, xp.bool, full_shape), at, -1)


def to_weights(name: str, weights: Any, like: Like, shape: Shape, what: str) -> Array:
    if number_of(weights) is not None:
        return like.number(check_number(name, weights, like.dtype, like.xp), like.dtype, shape)
    x, _, own = array_of(name, weights, like)
    check_broadcasts(name, x, shape, what, like)
    return like.place(x, own, like.dtype, shape)


def check_per_class(name: str, x: Array, classes: int, what: str) -> None:
    if tuple(x.shape) != (classes,):
        fail(ValueError, name, describe(x), f"it must hold one {what} per class: shape ({classes},)")


def classes_of(classes: Any, class_weights: Any, class_mask: Any, at: int, like: Like) -> int:
    """How many classes there are: as said, or as those arrays hold that have an axis for them (`at`, from the end)."""
    held = [*getattr(class_weights, "shape", ())[-1:], *getattr(class_mask, "shape", ())[at : at + 1 or None]]
    held = [n for n in held if n > 1]
    if classes is None and not held and class_mask is not None:
        fail(ValueError, "classes", None, "class_mask does not say how many there are: give their number")
    # Without a number of classes every label that is not negative may be one.
    return check_classes(classes, held[0] if held else None) or int(like.xp.iinfo(like.xp.index_dtype()).max)


def check_classes(classes: Any, held: int | None) -> int | None:
    """The number of classes given, which must be that of the arrays given."""
    if classes is None:
        return held
    if isinstance(classes, bool) or not isinstance(classes, Integral):
        fail(TypeError, "classes", describe(classes), "it must be None or a Python int")
    if classes < 1 or held not in (None, classes):
        accepted = "there must be at least one" if held is None else f"the arrays given hold {held}"
        fail(ValueError, "classes", classes, accepted)
    return int(classes)


def to_denominator(denominator: Any, reduction: str, like: Like) -> Array:
    if not reduction.startswith("mean"):
        fail(ValueError, "denominator", describe(denominator), f"reduction {reduction!r} has no divisor to replace")
    if number_of(denominator) is None and array_of("denominator", denominator, like)[0].ndim:
        fail(ValueError, "denominator", describe(denominator), "it must be a number or a 0-d array")
    return to_weights("denominator", denominator, like, (), "a number")


def check_labels(
    labels: Any, ignore_index: Any, full_shape: Shape, at: int, like: Like
) -> tuple[Array, str, Namespace]:
    """array_of labels: integers of the entries' shape, or floating and of the logits' shape."""
    entries, value = full_shape[:at] + full_shape[at + 1 :], number_of(labels)
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, Integral):
            fail(TypeError, "labels", describe(labels), "it must hold class indices, or distributions")
        if not -(2**63) <= int(value) < 2**63:
            fail(ValueError, "labels", value, "class indices must be held by int64")
        labels = like.xp.index_of(int(value), like.array)
    # NumPy labels beside JAX logits stay NumPy's until to_indices has seen all their digits.
    x, kind, own = array_of("labels", labels, like)
    given = tuple(x.shape)
    if kind in FLOATS:
        if ignore_index is not None:
            fail(ValueError, "ignore_index", ignore_index, "labels that are distributions hold no index; use mask")
        if given != full_shape:
            hint = "; indices cast to floating? they must be of an integer dtype" if given == entries else ""
            hint = hint or other_axis(given, like)
            if given == (*entries, full_shape[at]):
                hint = f"; its classes lie along the last axis, those of the logits along {at}"
            accepted = f"floating labels are distributions, of the logits' shape {full_shape}{hint}"
            fail(ValueError, "labels", describe(x), accepted)
    elif given != entries:
        hint = "; a one-hot must be floating" if given == full_shape else other_axis(given, like)
        if not hint and math.prod(given) == math.prod(entries):
            hint = f"; they are as many as the entries: reshape them to {entries}"
        fail(ValueError, "labels", describe(x), f"class indices must have the entries' shape {entries}{hint}")
    elif ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        fail(TypeError, "ignore_index", describe(ignore_index), "it must be a Python int")
    return x, kind, own


def check_kernel(kernel: Array, features: int, layout: str, *, may_be_empty: bool) -> None:
    shape, at = tuple(kernel.shape), layout.index("d")
    if len(shape) == 2 and shape[at] == features and (shape[1 - at] > 0 or may_be_empty):
        return
    accepted = f"it must hold a row for each class, of as many features as hidden: shape (classes, {features})"
    if layout == "dv":
        accepted = f"with kernel_layout='dv' it must hold a column for each class: shape ({features}, classes)"
    if len(shape) == 2 and shape[1 - at] == features:
        accepted += f"; pass kernel_layout={layout[::-1]!r}, or its transpose"
    fail(ValueError, "kernel", describe(kernel), accepted)


def check_chunk_size(chunk_size: Any) -> None:
    if chunk_size is not None and not (type(chunk_size) is int and chunk_size > 0):
        kind = ValueError if type(chunk_size) is int else TypeError
        accepted = "it must be None or a positive int: rows of logits at a time"
        fail(kind, "chunk_size", describe(chunk_size), accepted)


def choose_implementation(implementation: Any, like: Like) -> str:
    """The implementation that runs: the one named, or an error; None takes the first that can."""
    for name in IMPLEMENTATIONS if implementation is None else ():
        if reason_not_run(name, like) is None:
            return name
    check_choice(implementation=implementation)
    reason = reason_not_run(str(implementation), like)
    if reason is not None:
        runs = [name for name in IMPLEMENTATIONS if reason_not_run(name, like) is None]
        fail(ValueError, "implementation", repr(implementation), f"here only {runs} can run: {reason}")
    return str(implementation)


def reason_not_run(implementation: str, like: Like) -> str | None:
    missing, xp = IMPLEMENTATIONS[implementation].missing, like.xp
    on_cpu = missing.get(f"{xp.name} cpu")
    if xp.name in missing:
        return missing[xp.name]
    return on_cpu if on_cpu and not xp.takes_kernels(like.array) else None
