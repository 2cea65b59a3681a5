"""One checked record of a call: what every public loss, and value_and_grad, makes of its arguments."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypedDict

from . import _arguments
from ._arguments import Like, Reduction, describe, fail
from ._arrays import FLOATS, Array, dtype_name
from ._capabilities import NOT_REPRODUCIBLE
from ._engine.projection import Projection
from ._inputs import Given, Inputs, prepare
from ._math.exact import CLASSES, flushed_argument, order_free
from ._shards import ClassShard


class LossOptions(TypedDict, total=False):
    """The types of what every loss takes beside its arrays and with_stats, by which it has overloads."""

    mask: Any
    weights: Any
    class_weights: Any
    class_mask: Any
    ignore_index: int | None
    label_smoothing: float
    z_loss: float
    softcap: float | None
    reduction: Reduction
    denominator: Any
    validate: bool | Literal["auto"]
    implementation: str | None
    class_shard: ClassShard | None
    reproducible: bool


class ProjectionOptions(LossOptions, total=False):
    bias: Any
    kernel_layout: Literal["vd", "dv"]
    chunk_size: int | None


class Options(NamedTuple):
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    reproducible: bool = False


class Call(NamedTuple):
    inputs: Inputs
    options: Options
    projection: Projection | None  # None: the logits are among the inputs
    reduction: str
    denominator: Array | None
    with_stats: bool
    implementation: str | None


PLAIN = Options()


def in_double(like: Like) -> Like:
    """What reproducible=True computes in, where it can."""
    device = f"{like.xp.name} {like.xp.device_kind(like.array)}"
    for what in (dtype_name(like.array), device, "DTensor" if hasattr(like.array, "placements") else ""):
        if what in NOT_REPRODUCIBLE:
            fail(ValueError, "reproducible", f"True beside {like.name} of {what}", NOT_REPRODUCIBLE[what])
    return like._replace(dtype=like.xp.float64)


def check_not_reproducible(reproducible: Any) -> None:
    _arguments.check_choice(reproducible=reproducible)
    if reproducible:
        fail(ValueError, "reproducible", True, NOT_REPRODUCIBLE["linear"])


def check_room(name: str, terms: int) -> None:
    """Whether the integers that exponentials are made of have room for that many."""
    if terms > CLASSES:
        accepted = f"with reproducible=True a sum of exponentials has room for {CLASSES}"
        fail(ValueError, name, f"of {terms} numbers along the axis", accepted)


def of_logits(logits: Any, axis: Any, given: Given, options: Options = PLAIN, *reducing: Any) -> Call:
    """Of cross_entropy's arguments, or fewer; those at the end are `checked`'s."""
    like = _arguments.floating_like("logits", logits)
    if options.reproducible:
        like, names = in_double(like), ("labels", "weights", "class_weights")
        given = given._replace(**{name: flushed_argument(getattr(given, name)) for name in names})
    logits, shape = like.array, tuple(like.array.shape)
    if not shape:
        fail(ValueError, "logits", describe(logits), "it needs a class axis: at least one dimension")
    at = _arguments.check_axis(axis, len(shape))
    if shape[at] == 0 and given.class_shard is None:
        fail(ValueError, "logits", describe(logits), f"its class axis ({at}) must hold at least one class")
    what = "the entries (the axes of logits other than `axis`)"
    moved = logits if at == len(shape) - 1 else like.xp.moved_axis(logits, at, -1)
    return checked(prepare(like, moved, shape, at, what, given), None, options, *reducing)


def of_labels(labels: Any, axis: Any, classes: Any, given: Given, reduction: Any) -> Call:
    """Of denominator's: a call without logits, which the labels stand for."""
    labels, kind, xp = _arguments.array_of("labels", labels, None)
    shape, weighing = tuple(labels.shape), (labels, given.weights, given.class_weights)
    wide = any(dtype_name(x) == "float64" for x in weighing if hasattr(x, "dtype"))
    like = Like("labels", labels, xp, xp.float64 if wide else xp.float32)
    at = _arguments.check_axis(axis, len(shape) + (kind not in FLOATS))
    if kind in FLOATS:
        classes = _arguments.check_classes(classes, shape[at])
    else:
        classes = _arguments.classes_of(classes, given.class_weights, given.class_mask, at - len(shape) - 1, like)
        shape = (*shape[:at], classes, *shape[at:])
    what = "the entries (the axes of labels, without the classes)"
    return checked(prepare(like, None, shape, at, what, given._replace(labels=labels)), None, PLAIN, reduction)


def of_projection(
    projection: tuple[Any, Any, Any, Any, Any], given: Given, options: Options = PLAIN, *reducing: Any
) -> Call:
    """Of linear_cross_entropy's: hidden, kernel, bias, kernel_layout, chunk_size, and as above."""
    hidden, kernel, bias, layout, chunk_size = projection
    _arguments.check_chunk_size(chunk_size)
    _arguments.check_choice(kernel_layout=layout)
    like = _arguments.floating_like("hidden", hidden)
    hidden, xp, wide = like.array, like.xp, like.dtype == like.xp.float64
    if hidden.ndim == 0:
        fail(ValueError, "hidden", describe(hidden), "it needs a last axis of features: at least one dimension")
    kernel, kind, own = _arguments.array_of("kernel", kernel, like)
    wide, kernel = wide or kind == "float64", kernel if own is xp else xp.asarray(kernel)
    if bias is not None:
        bias, kind, own = _arguments.array_of("bias", bias, like)
        wide, bias = wide or kind == "float64", bias if own is xp else xp.asarray(bias)
    _arguments.check_kernel(kernel, hidden.shape[-1], layout, may_be_empty=given.class_shard is not None)
    if layout == "dv":
        kernel = xp.permute_dims(kernel, (1, 0))
    classes = kernel.shape[0]
    if bias is not None:
        _arguments.check_per_class("bias", bias, classes, "number")
    like = like._replace(dtype=xp.float64 if wide else xp.float32)
    what, shape = "the entries (the axes of hidden other than the last)", (*hidden.shape[:-1], classes)
    inputs = prepare(like, None, shape, len(shape) - 1, what, given)
    return checked(inputs, Projection(hidden, kernel, bias, chunk_size), options, *reducing)


def checked(
    inputs: Inputs,
    projection: Projection | None,
    options: Options,
    reduction: Any = "none",
    denominator: Any = None,
    with_stats: Any = False,
    implementation: Any = None,
) -> Call:
    label_smoothing, z_loss, softcap, is_reproducible = options
    dtype, xp = inputs.dtype, inputs.xp
    _arguments.check_choice(reduction=reduction, with_stats=with_stats)
    if type(z_loss) is not float or z_loss:
        z_loss = _arguments.check_number("z_loss", z_loss, dtype, xp)
    if type(label_smoothing) is not float or label_smoothing:
        label_smoothing = _arguments.check_number("label_smoothing", label_smoothing, dtype, xp)
    if softcap is not None:
        softcap = _arguments.check_number("softcap", softcap, dtype, xp)
    if denominator is not None:
        denominator = _arguments.to_denominator(denominator, reduction, inputs.like)
    if is_reproducible:
        check_room("logits", inputs.classes)
        inputs = inputs._replace(xp=order_free(xp))
    options = Options(label_smoothing, z_loss, softcap, is_reproducible)
    return Call(inputs, options, projection, reduction, denominator, with_stats, implementation)
