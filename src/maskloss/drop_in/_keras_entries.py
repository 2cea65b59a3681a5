"""The losses of Keras' entries, ours and theirs."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (Keras has no annotations.)

from __future__ import annotations

import math
from typing import Any, NoReturn

import keras
import numpy as np
from keras.src.backend import set_keras_mask

from .._arguments import Like, check_axis, check_kept, check_number, conjunction, describe, fail, floating_like
from .._arrays import FLOATS, HALVES, Array, Namespace, dtype_name, namespace_of
from .._inputs import to_indices
from ..losses import cross_entropy

ops: Any = keras.ops
# Up to which whole number a dtype holds all.
WHOLE = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24, "float64": 2**53}
TORCH_IGNORES = -100


def axis_of(axis: Any, ndim: int) -> int:
    try:
        return check_axis(int(axis) if isinstance(axis, bool) else axis, ndim)
    except ValueError as error:
        raise np.exceptions.AxisError(str(error)) from None  # torch's IndexError, and JAX' ValueError


def shape_of(y_pred: Any, axis: Any) -> tuple[int, ...]:
    shape = tuple(y_pred.shape)
    at = axis_of(axis, len(shape))
    return shape[:at] + shape[at + 1 :]


def floating(y_pred: Any) -> Any:
    return y_pred if keras.backend.is_float_dtype(y_pred.dtype) else ops.cast(y_pred, keras.config.floatx())


def in_float32(x: Any) -> Any:
    return x if dtype_name(x) == "float64" else ops.cast(x, "float32")


def checked(y_pred: Any, axis: Any) -> tuple[Like, int, int]:
    like, at = floating_like("y_pred", y_pred), axis_of(axis, y_pred.ndim)
    if y_pred.shape[at] == 0:
        fail(ValueError, "y_pred", describe(y_pred), f"its class axis ({at}) must hold at least one class")
    return like, at, y_pred.shape[at]


def index_losses(
    y_true: Any, y_pred: Any, from_logits: Any, ignore_class: Any, axis: Any, mask: Any = None, weights: Any = None
) -> tuple[Any, Any]:
    """Of each entry, 0 where it does not count; and the mask, without the class that is ignored."""
    like, at, classes = checked(y_pred, axis)
    xp = like.xp
    ignored_class = whole(ignore_class)
    given, own = labels_of(y_true, y_pred, at)
    labels = as_integers(given, own, classes, ignored_class)
    indices, allowed, ignored = to_indices(labels, own, classes, ignored_class, like)
    valid = mask if ignored is None else conjunction(mask, ~ignored)
    keep = valid if weights is None else conjunction(valid, weights != 0)
    if allowed is not None:
        invalid = ~allowed if keep is None else ~allowed & keep
        invalid = check_classes(invalid, given, classes, xp)
        indices = indices if invalid is None else xp.where(invalid, -1, indices)
    if from_logits:
        return cross_entropy(y_pred, indices, mask=keep, axis=at, reduction="none", validate=False), valid
    log_p = clipped_log(selected(in_float32(y_pred), keep, at), at)
    here = ops.expand_dims(ops.maximum(indices, 0), at)
    losses = -ops.squeeze(ops.take_along_axis(log_p, here, axis=at), at)
    losses = ops.where(indices < 0, math.nan, losses)
    return (losses if keep is None else ops.where(keep, losses, 0.0)), valid


def distribution_losses(
    y_true: Any, y_pred: Any, from_logits: Any, label_smoothing: Any, axis: Any, mask: Any = None, weights: Any = None
) -> Any:
    """Of each entry, 0 where it does not count."""
    if isinstance(axis, bool):
        fail(ValueError, "axis", repr(axis), "it must be an int")
    like, at, classes = checked(y_pred, axis)
    y_true = ops.convert_to_tensor(y_true)
    check_same_shape(y_true, y_pred)
    q = ops.cast(y_true, dtype_name(in_float32(y_pred)))
    keep = mask if weights is None else conjunction(mask, weights != 0)
    if from_logits:
        return cross_entropy(y_pred, q, mask=keep, axis=at, reduction="none", label_smoothing=label_smoothing)
    log_p, q = clipped_log(selected(in_float32(y_pred), keep, at), at), selected(q, keep, at)
    share = check_number("label_smoothing", label_smoothing, like.dtype, like.xp)
    losses = -ops.sum(((1 - share) * q + share / classes) * log_p, axis=at)
    return losses if keep is None else ops.where(keep, losses, 0.0)


def selected(x: Any, keep: Any, at: int, otherwise: float = 1.0) -> Any:
    return x if keep is None else ops.where(ops.expand_dims(keep, at), x, otherwise)


def clipped_log(p: Any, axis: int) -> Any:
    """Keras': log of what is scaled to sum 1, and kept from 0 and 1."""
    epsilon = keras.config.epsilon()
    return ops.log(ops.clip(p / ops.sum(p, axis=axis, keepdims=True), epsilon, 1 - epsilon))


def check_same_shape(y_true: Any, y_pred: Any) -> None:
    if tuple(y_true.shape) != tuple(y_pred.shape) or not y_pred.shape:
        accepted = f"y_true and y_pred must have the same shape, with a class axis; that is {describe(y_pred)}"
        fail(ValueError, "y_true", describe(y_true), accepted)


def refuse_shape(labels: Any, y_pred: Any, entries: tuple[int, ...]) -> NoReturn:
    accepted = f"class indices must have the shape {entries} of the entries; y_pred is {describe(y_pred)}"
    fail(ValueError, "y_true", describe(labels), accepted)


def labels_of(y_true: Any, y_pred: Any, at: int) -> tuple[Array, Namespace]:
    """In the entries' shape, with all their digits: Keras' own conversion makes 0 of a NumPy 2**32."""
    from_numpy = isinstance(y_true, (np.ndarray, list, tuple)) and keras.backend.backend() in ("jax", "numpy")
    labels: Any = np.asarray(y_true) if from_numpy else ops.convert_to_tensor(y_true)
    if labels.ndim == y_pred.ndim and labels.shape[at] == 1:
        labels = labels.squeeze(at)
    entries = shape_of(y_pred, at)
    if tuple(labels.shape) != entries:
        refuse_shape(labels, y_pred, entries)
    own = namespace_of(labels)
    if own is None:
        fail(TypeError, "y_true", describe(labels), "it must be an array of Keras' backend")
    return labels, own


def whole(ignore_class: Any) -> int | None:
    if ignore_class is None:
        return None
    if not isinstance(ignore_class, (int, float)) or ignore_class % 1 != 0:
        fail(ValueError, "ignore_class", repr(ignore_class), "it must be None or a whole number")
    return int(ignore_class)


def as_integers(labels: Any, own: Namespace, classes: int, ignored_class: int | None) -> Array:
    """Of floating labels, those that are no whole number become no class."""
    kind = dtype_name(labels)
    if kind not in FLOATS:
        return own.astype(labels, own.index_dtype()) if kind == "bool" else labels
    if classes > WHOLE[kind] + 1:
        accepted = f"{kind} holds no whole number between {WHOLE[kind]} and {WHOLE[kind] + 2}, of {classes} classes"
        fail(ValueError, "y_true", describe(labels), f"{accepted}: give integers")
    x = own.astype(labels, own.float32, copy=False) if kind in HALVES else labels
    is_whole = (x % 1 == 0) & (abs(x) < 2**31)
    return own.astype(own.where(is_whole, x, -2.0 if ignored_class == -1 else -1.0), own.index_dtype())


def check_classes(invalid: Any, labels: Any, classes: int, xp: Namespace) -> Any:
    """check_kept, with the error of Keras on torch."""

    def message(at: tuple[int, ...]) -> str:
        accepted = f"none of the classes [0, {classes}); give it a weight of 0, or name the value in ignore_class"
        return f"y_true{list(at) or ''} is {float(labels[at]):.10g}, {accepted}"

    try:
        return check_kept(invalid, "auto", xp, message)
    except ValueError as error:
        raise IndexError(str(error)) from None


def their_index_losses(y_true: Any, y_pred: Any, from_logits: Any, ignore_class: Any, axis: Any) -> Any:
    y_pred = ops.convert_to_tensor(y_pred)
    is_torch = keras.backend.backend() == "torch"
    at = axis_of(axis, y_pred.ndim)
    if len(y_true.shape) == y_pred.ndim and y_true.shape[at] == 1:
        y_true = ops.squeeze(y_true, at)
    entries = shape_of(y_pred, at)
    if tuple(y_true.shape) != entries or (not is_torch and entries != tuple(y_pred.shape[:-1])):
        ops.sparse_categorical_crossentropy(y_true, y_pred, axis=at)  # refuses in Keras' own words
        refuse_shape(y_true, y_pred, entries)
    valid = None
    if ignore_class is not None:
        valid = ops.not_equal(y_true, ops.cast(ignore_class, y_pred.dtype))
        y_true, y_pred = ops.where(valid, y_true, 0), selected(y_pred, valid, at, 0)
    log_p = their_log_p(y_pred, from_logits, at)
    labels = ops.cast(y_true, "int64" if is_torch else "int32")
    if is_torch:
        losses = their_losses_on_torch(log_p, labels, y_pred.shape[at], at)
    else:
        losses = -ops.sum(ops.one_hot(labels, y_pred.shape[at], axis=at) * log_p, axis=at)
    if valid is not None:
        losses = ops.where(valid, losses, 0)
        set_keras_mask(losses, valid)
    return losses


def their_losses_on_torch(log_p: Any, labels: Any, classes: int, at: int) -> Any:
    """F.nll_loss', whose ignore_index nobody named."""
    keep = labels != TORCH_IGNORES
    xp = floating_like("y_pred", log_p).xp
    check_classes(keep & ((labels < 0) | (labels >= classes)), labels, classes, xp)
    chosen = ops.take_along_axis(log_p, ops.expand_dims(ops.where(keep, labels, 0), at), axis=at)
    return ops.where(keep, -ops.squeeze(chosen, at), 0)


def their_distribution_losses(y_true: Any, y_pred: Any, from_logits: Any, label_smoothing: Any, axis: Any) -> Any:
    if isinstance(axis, bool):
        fail(ValueError, "axis", repr(axis), "it must be an int")
    at = axis_of(axis, y_pred.ndim)
    q = ops.cast(y_true, y_pred.dtype)
    if label_smoothing:
        q = q * (1 - label_smoothing) + label_smoothing / q.shape[-1]
    check_same_shape(q, y_pred)
    return -ops.sum(q * their_log_p(y_pred, from_logits, at), axis=at)


def their_log_p(y_pred: Any, from_logits: Any, at: int) -> Any:
    """By Keras' own operation, so that what it rounds is rounded."""
    return ops.log_softmax(y_pred, axis=at) if from_logits else clipped_log(y_pred, at)
