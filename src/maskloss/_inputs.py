"""Arguments -> one frozen, checked value. Every refusal of the package is made here, before any arithmetic."""

from __future__ import annotations

import operator
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from ._arrays import FLOATS, HALVES, INTEGERS, Array, Namespace, as_array, dtype_name, is_numpy_scalar, namespace_of
from ._capabilities import DTYPES, IMPLEMENTATIONS, LIBRARIES

Reduction = Literal["none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences"]
REDUCTIONS = get_args(Reduction)
NO_LABELS = object()
# Arguments that a number may stand for.
NUMBERS = ("mask", "weights", "class_mask", "denominator")


def fail(kind: type[Exception], name: str, given: object, accepted: str) -> NoReturn:
    raise kind(f"{name} is {given}; {accepted}")


def describe(value: object) -> str:
    """What an argument is, in words: its library and dtype and shape, or its type."""
    xp = namespace_of(value)
    if xp is None:
        text = repr(value)
        return f"{text if len(text) <= 40 else text[:40] + '...'} ({type(value).__name__})"
    return f"a {LIBRARIES[xp.name]} array of dtype {dtype_name(value)} and shape {shape_of(value)}"


def shape_of(x: Array) -> tuple[int, ...]:
    return tuple(x.shape)


def is_scalar(value: object) -> bool:
    """A Python number or a NumPy scalar (which array-api-compat takes for an array)."""
    return isinstance(value, Real) or is_numpy_scalar(value)


def number_of(value: Any) -> Any:
    """What a NumPy scalar holds, as Python has it; all else as it is."""
    return value.item() if not isinstance(value, Real) and is_numpy_scalar(value) else value


def check_real(name: str, value: Any, accepted: str = "a number") -> float:
    given = number_of(value)
    if isinstance(given, bool) or not isinstance(given, Real):
        fail(TypeError, name, describe(given), f"it must be {accepted}, a Python number")
    try:
        return float(given)
    except OverflowError:
        fail(ValueError, name, describe(value), f"it must be {accepted}, within the range of floating numbers")


def check_held(name: str, value: float, dtype: Any, xp: Namespace) -> float:
    """A number that the dtype of the computation holds: another would become infinite there, or 0."""
    limits = xp.finfo(dtype)
    low, high = float(limits.smallest_normal), float(limits.max)
    if value and not low <= abs(value) <= high:  # NaN fails too
        accepted = f"float{limits.bits}, in which this is computed, holds finite numbers of a size"
        fail(ValueError, name, value, f"{accepted} from {low:.3g} to {high:.3g}, and 0")
    return value


def check_number(name: str, value: Any, low: float, high: float, accepted: str) -> float:
    if type(value) is not float:
        value = check_real(name, value, accepted)
    if not low <= value <= high:  # NaN fails too
        fail(ValueError, name, value, f"it must be {accepted}")
    return value


def check_choice(name: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if type(value) is str and value in accepted:
        return
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in accepted):
        kind = ValueError if isinstance(value, str) else TypeError
        fail(kind, name, repr(value), f"it must be one of {', '.join(map(repr, accepted))}")


def check_reduction(reduction: Any, denominator: object) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    if denominator is not None and not reduction.startswith("mean"):
        fail(ValueError, "denominator", describe(denominator), f"reduction {reduction!r} has no divisor to replace")


def check_array(name: str, x: Any) -> Namespace:
    """Refuses what is no plain dense array of a known library; returns its namespace."""
    xp = namespace_of(x)
    if xp is None:
        number = " or a number" if name in NUMBERS else ""
        fail(TypeError, name, describe(x), f"it must be an array of {', '.join(LIBRARIES.values())}{number}")
    refusal = xp.refusal(x)
    if refusal is not None:
        fail(TypeError, name, *refusal)
    if dtype_name(x) == "object":
        fail(TypeError, name, describe(x), "object arrays are not accepted; convert it to a numeric dtype")
    return xp


def check_axis(axis: Any, ndim: int) -> int:
    try:
        index = operator.index(axis)
    except TypeError:
        fail(TypeError, "axis", describe(axis), "it must be an integer")
    if isinstance(axis, bool) or not -ndim <= index < ndim:
        fail(ValueError, "axis", repr(axis), f"it must lie in [{-ndim}, {ndim}) for an array of {ndim} dimensions")
    return index % ndim


def check_broadcasts(name: str, x: Array, shape: tuple[int, ...], what: str, hint_of: Any = None) -> None:
    given = shape_of(x)
    if not broadcasts(given, shape):
        others = ((*given, *[1] * k) for k in range(1, 1 + len(shape) - len(given)))
        fit = next((other for other in others if broadcasts(other, shape)), None)
        hint = "" if fit is None else f"; along another axis it has the shape {fit}"
        hint = hint_of(given) if hint_of is not None and not hint else hint
        fail(ValueError, name, describe(x), f"it must broadcast to the shape {shape} of {what}{hint}")


def broadcasts(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    pairs = zip(given[::-1], shape[::-1], strict=False)
    return len(given) <= len(shape) and all(a in (1, b) for a, b in pairs)


class Like(NamedTuple):
    """The array that decides library and device for all the others."""

    name: str
    array: Array
    xp: Namespace

    def check(self, name: str, x: Any) -> Array:
        """`x` as it is, an array of this library on this device; beside JAX's, NumPy's are welcome."""
        x = as_array(x)
        xp = check_array(name, x)
        if xp is not self.xp:
            if xp.name in self.xp.welcome:
                return x
            given = f"a {LIBRARIES[xp.name]} array beside {LIBRARIES[self.xp.name]} {self.name}"
            fail(TypeError, name, given, f"convert it to {LIBRARIES[self.xp.name]}")
        conflict = xp.conflict(x, self.array)
        if conflict is not None:
            kind, given, other, mend = conflict
            fail(kind, name, f"{given} beside {self.name} {other}", mend)
        return x

    def place(self, x: Array, dtype: Any) -> Array:
        """A checked array in a dtype; converted in its own library, as JAX without x64 truncates what it is given."""
        if namespace_of(x) is self.xp:
            return self.xp.astype(x, dtype, copy=False)
        return self.xp.asarray(x.astype(dtype))

    def number(self, name: str, value: Any, dtype: Any) -> Array:
        """A Python number or NumPy scalar as a 0-d array, which is made where it will be: no copy is waited for."""
        value = check_held(name, check_real(name, value, "a finite real number"), dtype, self.xp)
        return self.xp.filled((), value, dtype, self.array)


class Inputs(NamedTuple):
    """The arrays of one call, checked and neutralised; the class axis is last. None: not given, or of no effect."""

    like: Like
    xp: Namespace
    dtype: Any  # of the computation and the loss
    entries: tuple[int, ...]
    classes: int
    logits: Array | None  # None: they are made of hidden states, a chunk at a time
    labels: Array | None  # class indices in [0, C), 0 where the label given is none
    distribution: Array | None  # 0 where not kept or not allowed
    keep: Array | None
    invalid: Array | None  # kept entries to answer NaN: a label or mask value that is none, and could not be read
    weights: Array | None  # shape of the entries, 0 where not kept
    class_weights: Array | None
    class_mask: Array | None  # shape of the logits


def floating_like(name: str, x: Any) -> Like:
    x = as_array(x)
    xp = check_array(name, x)
    if dtype_name(x) not in FLOATS:
        fail(TypeError, name, describe(x), f"its dtype must be real floating: {', '.join(DTYPES)}")
    return Like(name, x, xp)


def compute_dtype(x: Array, xp: Namespace) -> Any:
    """float32 for half precision, else the dtype itself."""
    return xp.float32 if dtype_name(x) in HALVES else x.dtype


def to_mask(
    mask: Any, shape: tuple[int, ...], what: str, like: Like, validate: Any, hint_of: Any = None
) -> tuple[Array, Array | None]:
    """The mask as bool of the full shape, and where an integer mask that could not be read is neither 0 nor 1."""
    xp, accepted = like.xp, "it must be bool or integer 0/1"
    if is_scalar(mask):
        value = number_of(mask)
        if not isinstance(value, Integral):
            fail(TypeError, "mask", describe(mask), f"{accepted}; numbers that weigh go to weights")
        if value not in (0, 1):
            raise ValueError(f"mask is {value}; {accepted}")
        return xp.broadcast_to(xp.filled((), bool(value), xp.bool, like.array), shape), None
    x = like.check("mask", mask)
    name = dtype_name(x)
    if name in FLOATS:
        fail(TypeError, "mask", describe(mask), f"{accepted}; numbers that weigh go to weights")
    if name != "bool" and name not in INTEGERS:
        fail(TypeError, "mask", describe(mask), accepted)
    check_broadcasts("mask", x, shape, what, hint_of)
    invalid = None
    if name != "bool":
        # Looked at in its own library: JAX without x64 would make 0 of a NumPy 2**32.
        own = namespace_of(x) or xp
        x = own.astype(x, own.index_dtype())
        invalid = check_kept((x != 0) & (x != 1), validate, own, partial(_mask_value, x))
        x = x != 0
    invalid = None if invalid is None else xp.broadcast_to(like.place(invalid, xp.bool), shape)
    return xp.broadcast_to(like.place(x, xp.bool), shape), invalid


def _mask_value(mask: Array, at: tuple[int, ...]) -> str:
    return f"mask{list(at) or ''} is {int(mask[at])}; it must be bool or integer 0/1"


def to_weights(name: str, weights: Any, dtype: Any, like: Like, shape: tuple[int, ...], what: str) -> Array:
    if is_scalar(weights):
        return like.xp.broadcast_to(like.number(name, weights, dtype), shape)
    x = like.check(name, weights)
    if dtype_name(x) not in FLOATS | INTEGERS:
        fail(TypeError, name, describe(weights), "its dtype must be real: floating or integer")
    check_broadcasts(name, x, shape, what)
    return like.xp.broadcast_to(like.place(x, dtype), shape)


def to_denominator(denominator: Any, dtype: Any, like: Like) -> Array:
    if not is_scalar(denominator):
        denominator = like.check("denominator", denominator)
        if denominator.ndim:
            fail(ValueError, "denominator", describe(denominator), "it must be a number or a 0-d array")
    return to_weights("denominator", denominator, dtype, like, (), "a number")


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
    for length in reversed(shape_of(invalid)):
        position, index = divmod(position, length)
        at.insert(0, index)
    raise ValueError(message(tuple(at)))


def conjunction(first: Array | None, second: Array | None) -> Array | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def to_indices(
    labels: Array, classes: int, ignore_index: int | None, like: Like
) -> tuple[Array, Array | None, Array | None]:
    """Class indices (0 for what is none), where the label is one (None: everywhere), and where it is ignore_index.

    Found in the labels' own library: JAX without x64 would make 0 of a NumPy 2**40.
    """
    xp = namespace_of(labels) or like.xp
    indices = xp.astype(labels, xp.index_dtype(), copy=False)
    ignored = None
    looks = xp is like.xp and xp.is_eager and 0 not in indices.shape
    looks = looks and (ignore_index is None or not 0 <= ignore_index < classes)
    if looks and xp.reads_without_sync(indices):
        low, high = xp.extremes(indices)
        if low >= 0 and high < classes:
            return indices, None, None
    limits, own = xp.iinfo(labels.dtype), xp.iinfo(indices.dtype)
    # Compared only where the labels' own dtype can hold it: -100 as uint8 is 156, a class.
    if ignore_index is not None and int(limits.min) <= ignore_index <= int(limits.max):
        # What of an unsigned dtype is too large for the indices has wrapped there, and so must it.
        span = 2**own.bits
        ignored = indices == (int(ignore_index) - int(own.min)) % span + int(own.min)
    in_range = (indices >= 0) & (indices < classes)
    indices = xp.where(in_range, indices, 0)
    if xp is not like.xp:
        indices = like.xp.asarray(indices, dtype=like.xp.index_dtype())
        in_range, ignored = like.xp.asarray(in_range), None if ignored is None else like.xp.asarray(ignored)
    return indices, in_range, ignored


def check_labels(
    labels: Any, ignore_index: Any, entries: tuple[int, ...], full_shape: tuple[int, ...], at: int, like: Like
) -> Array:
    """The labels as an array: of integers and the entries' shape, or floating and of the logits' shape."""
    if is_scalar(labels):
        labels = _label_of(labels, like)
    # NumPy labels beside JAX logits stay NumPy's until to_indices has seen all their digits.
    x = like.check("labels", labels)
    kind, given = dtype_name(x), shape_of(x)
    if kind in FLOATS:
        if ignore_index is not None:
            fail(ValueError, "ignore_index", ignore_index, "labels that are distributions hold no index; use mask")
        if given != full_shape:
            hint = "; class indices must be of an integer dtype" if given == entries else ""
            if given == (*entries, full_shape[at]):
                hint = f"; its classes lie along the last axis, those of the logits along {at}"
            accepted = f"floating labels are distributions, of the logits' shape {full_shape}{hint}"
            fail(ValueError, "labels", describe(x), accepted)
        return x
    if kind not in INTEGERS:
        accepted = "class indices of an integer dtype, or distributions of a floating one"
        fail(TypeError, "labels", describe(x), f"it must hold {accepted}")
    if given != entries:
        hint = "; a one-hot must be floating" if given == full_shape else other_axis(given, full_shape, at, like)
        fail(ValueError, "labels", describe(x), f"class indices must have the entries' shape {entries}{hint}")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        fail(TypeError, "ignore_index", describe(ignore_index), "it must be a Python int")
    return x


def _label_of(label: Any, like: Like) -> Array:
    """A number as a 0-d array: of an integer every digit, whatever JAX has."""
    value = number_of(label)
    if isinstance(value, bool) or not isinstance(value, Integral):
        fail(TypeError, "labels", describe(label), "it must hold class indices, or distributions")
    if not -(2**63) <= int(value) < 2**63:
        fail(ValueError, "labels", value, "class indices must be held by int64")
    return like.xp.index_of(int(value), like.array)


def other_axis(given: tuple[int, ...], full_shape: tuple[int, ...], at: int, like: Like) -> str:
    """A hint, where the shape given is that of the entries along another class axis."""
    others = (a for a in range(len(full_shape)) if a != at and full_shape[:a] + full_shape[a + 1 :] == given)
    axis = next(others, None)
    # Hidden states have no other axis to name.
    return "" if axis is None or like.name == "hidden" else f"; if the classes lie along another axis, pass axis={axis}"


def prepare(logits: Any, labels: Any, *, axis: Any = -1, **options: Any) -> Inputs:
    """Checks and normalises; `labels` is NO_LABELS for a function that has none."""
    like = floating_like("logits", logits)
    logits, full_shape = like.array, shape_of(like.array)
    if logits.ndim == 0:
        fail(ValueError, "logits", describe(logits), "it needs a class axis: at least one dimension")
    at = check_axis(axis, len(full_shape))
    if full_shape[at] == 0:
        fail(ValueError, "logits", describe(logits), f"its class axis ({at}) must hold at least one class")
    what = "the entries (the axes of logits other than `axis`)"
    inputs = prepare_entries(like, full_shape, at, compute_dtype(logits, like.xp), labels, what, **options)
    return inputs._replace(logits=like.xp.moved_axis(logits, at, -1))


def prepare_linear(
    hidden: Any, kernel: Any, labels: Any, *, bias: Any, kernel_layout: Any, **options: Any
) -> tuple[Inputs, Array, Array, Array]:
    """The same without logits; and hidden, the kernel with a row for each class, and bias."""
    check_choice("kernel_layout", kernel_layout, ("vd", "dv"))
    like = floating_like("hidden", hidden)
    hidden = like.array
    if hidden.ndim == 0:
        fail(ValueError, "hidden", describe(hidden), "it needs a last axis of features: at least one dimension")
    given = [hidden]
    for name, x in (("kernel", kernel), ("bias", bias)):
        if x is None and name == "bias":
            continue
        array = like.check(name, x)
        if dtype_name(array) not in FLOATS:
            fail(TypeError, name, describe(x), f"its dtype must be real floating: {', '.join(DTYPES)}")
        given.append(array if namespace_of(array) is like.xp else like.xp.asarray(array))
    kernel, bias = given[1], given[2] if len(given) > 2 else None
    check_kernel(kernel, hidden.shape[-1], kernel_layout)
    if kernel_layout == "dv":
        kernel = like.xp.permute_dims(kernel, (1, 0))
    classes = kernel.shape[0]
    if bias is not None and shape_of(bias) != (classes,):
        fail(ValueError, "bias", describe(bias), f"it must hold one number per class: shape ({classes},)")
    wide = any(dtype_name(x) == "float64" for x in given)
    full_shape = (*shape_of(hidden)[:-1], classes)
    what = "the entries (the axes of hidden other than the last)"
    dtype = like.xp.float64 if wide else like.xp.float32
    inputs = prepare_entries(like, full_shape, len(full_shape) - 1, dtype, labels, what, **options)
    return inputs, hidden, kernel, bias


def check_kernel(kernel: Array, features: int, layout: str) -> None:
    shape, at = shape_of(kernel), layout.index("d")
    if len(shape) == 2 and shape[at] == features and shape[1 - at] > 0:
        return
    accepted = f"it must hold a row for each class, of as many features as hidden: shape (classes, {features})"
    if layout == "dv":
        accepted = f"with kernel_layout='dv' it must hold a column for each class: shape ({features}, classes)"
    if len(shape) == 2 and shape[1 - at] == features:
        accepted += f"; pass kernel_layout={layout[::-1]!r}, or its transpose"
    fail(ValueError, "kernel", describe(kernel), accepted)


def prepare_entries(
    like: Like,
    full_shape: tuple[int, ...],
    at: int,
    dtype: Any,
    labels: Any,
    what: str,
    *,
    mask: Any = None,
    weights: Any = None,
    class_weights: Any = None,
    class_mask: Any = None,
    ignore_index: Any = None,
    validate: Any = "auto",
) -> Inputs:
    """All but the logits, which have the shape given and the classes along the axis `at`."""
    check_choice("validate", validate, ("auto", True, False))
    xp: Namespace = like.xp
    classes, entries = full_shape[at], full_shape[:at] + full_shape[at + 1 :]
    if labels is not NO_LABELS:  # first: their shape tells a class axis that was forgotten
        labels = check_labels(labels, ignore_index, entries, full_shape, at, like)

    keep = invalid = None
    if mask is not None:
        hint_of = partial(other_axis, full_shape=full_shape, at=at, like=like)
        keep, invalid = to_mask(mask, entries, what, like, validate, hint_of)
    if class_mask is not None:
        class_mask = to_class_mask(class_mask, full_shape, at, like)
        keep = conjunction(keep, xp.any(class_mask, axis=-1))
    if weights is not None:
        weights = to_weights("weights", weights, dtype, like, entries, what)
        keep = conjunction(keep, weights != 0)
    if class_weights is not None:
        class_weights = like.check("class_weights", class_weights)
        if shape_of(class_weights) != (classes,):
            accepted = f"it must hold one weight per class: shape ({classes},)"
            fail(ValueError, "class_weights", describe(class_weights), accepted)
        class_weights = to_weights("class_weights", class_weights, dtype, like, (classes,), "the classes")

    indices = distribution = None
    if labels is not NO_LABELS:
        if dtype_name(labels) in FLOATS:
            distribution = xp.moved_axis(like.place(labels, dtype), at, -1)
        else:
            indices, in_range, ignored = to_indices(labels, classes, ignore_index, like)
            keep = conjunction(keep, None if ignored is None else ~ignored)
            allowed = in_range
            if class_mask is not None:
                allowed = conjunction(allowed, xp.take_label(class_mask, indices))
            if allowed is not None:
                bad = ~allowed if keep is None else ~allowed & keep
                bad = check_kept(bad, validate, xp, partial(_label_value, labels, classes))
                invalid = bad if invalid is None else invalid if bad is None else invalid | bad

    if keep is not None:
        invalid = None if invalid is None else invalid & keep
        weights = None if weights is None else xp.where(keep, weights, 0.0)
    if distribution is not None:
        for selected in (class_mask, None if keep is None else xp.expand_dims(keep, axis=-1)):
            distribution = distribution if selected is None else xp.where(selected, distribution, 0.0)
    made = (indices, distribution, keep, invalid, weights, class_weights, class_mask)
    return Inputs(like, xp, dtype, entries, classes, None, *made)


def to_class_mask(class_mask: Any, full_shape: tuple[int, ...], at: int, like: Like) -> Array:
    xp, value = like.xp, number_of(class_mask)
    if isinstance(value, bool):
        x = xp.filled((), value, xp.bool, like.array)
    else:
        x = None if is_scalar(value) else like.check("class_mask", class_mask)
        if x is None or dtype_name(x) != "bool":
            fail(TypeError, "class_mask", describe(class_mask), "it must be bool: True where the class exists")
    check_broadcasts("class_mask", x, full_shape, "logits")
    return xp.moved_axis(xp.broadcast_to(like.place(x, xp.bool), full_shape), at, -1)


def _label_value(labels: Array, classes: int, at: tuple[int, ...]) -> str:
    # A torch uint64 of 2**63 or more is no int, but its item is.
    label = labels[at]
    value, place = label.item() if hasattr(label, "item") else int(label), f"labels{list(at) or ''}"
    if 0 <= value < classes:
        return f"{place} is {value}, a class that class_mask excludes there; mask the entry or admit the class"
    return f"{place} is {value}, outside the classes [0, {classes}); mask the entry, or name the value in ignore_index"


def choose_implementation(implementation: Any, like: Like) -> str:
    """The implementation that runs: the one named, or an error; None takes the first that can."""
    for name in IMPLEMENTATIONS if implementation is None else ():
        if reason_not_run(name, like) is None:
            return name
    check_choice("implementation", implementation, tuple(IMPLEMENTATIONS))
    reason = reason_not_run(str(implementation), like)
    if reason is not None:
        runs = [name for name in IMPLEMENTATIONS if reason_not_run(name, like) is None]
        fail(ValueError, "implementation", repr(implementation), f"here only {runs} can run: {reason}")
    return str(implementation)


def reason_not_run(implementation: str, like: Like) -> str | None:
    missing, library = IMPLEMENTATIONS[implementation].missing, like.xp.name
    if not missing:
        return None
    reason = missing.get(library) or (missing.get(f"{library} compiled") if like.xp.is_compiling() else None)
    if reason is None and f"{library} cpu" in missing and not like.xp.takes_kernels(like.array):
        return missing[f"{library} cpu"]
    return reason
