"""Keras' losses of classes under their names and signatures: ``from maskloss.drop_in.keras import ...``.

On the backends of Keras that have arrays of maskloss': torch, jax and numpy. `quirks` is the one argument more:
``"theirs"`` answers as Keras does also where :doc:`the table </drop_in>` says that this does not.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedClassDecorator=false, reportUntypedBaseClass=false
# (Keras has no annotations.)

from __future__ import annotations

import warnings
from typing import Any

import keras
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.losses.loss import squeeze_or_expand_to_same_rank

from .._arguments import broadcasts, describe, fail
from ..reductions import reduce
from . import _keras_entries as entries
from ._quirks import Quirks, are_theirs

ops: Any = keras.ops
__all__ = [
    "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy",
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
]
SAVED = keras.saving.register_keras_serializable(package="maskloss")
MEANS = ("sum_over_batch_size", "mean")


def sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    *,
    quirks: Quirks = None,
) -> Any:
    r"""Cross-entropy of class indices, entry by entry.

    Parameters
    ----------
    y_true : array of integers
        In the shape of the entries, which are the axes of `y_pred` other than `axis`, or with an axis of size 1 there.
        Floating numbers that are integers are taken for them.
    y_pred : array, shape (..., C)
        Probabilities, which are scaled to sum 1 and clipped to :math:`[\epsilon, 1 - \epsilon]` as Keras does; logits
        with `from_logits`.
    from_logits : bool
        Whether `y_pred` holds logits.
    ignore_class : int, optional
        Label of entries that do not count: their loss is 0, and they are out of Keras' mask of the result.
    axis : int
        The class axis.
    quirks : "theirs", optional
        Answer as Keras does where the two differ.

    Returns
    -------
    array
        In the entries' shape; float32 for half precision, else of the dtype of `y_pred`.

    Raises
    ------
    ValueError, TypeError
        As Keras does.
    IndexError
        A kept label that is no class, as Keras does on torch, wherever values can be read. Where they cannot, inside
        jit, its loss is NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from maskloss.drop_in.keras import sparse_categorical_crossentropy
    >>> p = np.asarray([[0.5, 0.5], [0.25, 0.75]], dtype="float32")
    >>> losses = sparse_categorical_crossentropy(np.asarray([0, 1]), p)
    >>> print([round(float(loss), 4) for loss in losses])  # log 2 and log 4/3
    [0.6931, 0.2877]
    """
    if are_theirs(quirks):
        return entries.their_index_losses(y_true, y_pred, from_logits, ignore_class, axis)
    y_pred = entries.floating(ops.convert_to_tensor(y_pred))
    losses, valid = entries.index_losses(y_true, y_pred, from_logits, ignore_class, axis)
    if valid is not None:
        set_keras_mask(losses, valid)
    return losses


def categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    *,
    quirks: Quirks = None,
) -> Any:
    """Cross-entropy of distributions, entry by entry.

    Parameters
    ----------
    y_true : array
        Distributions over the classes, in the shape of `y_pred`; a one-hot may be of integers.
    label_smoothing : float
        In [0, 1]: the share of the target that is spread evenly over the classes.
    y_pred, from_logits, axis, quirks
        As in :func:`sparse_categorical_crossentropy`, and so are result and errors.

    Examples
    --------
    >>> import numpy as np
    >>> from maskloss.drop_in.keras import categorical_crossentropy
    >>> p = np.asarray([[0.5, 0.5], [0.25, 0.75]], dtype="float32")
    >>> losses = categorical_crossentropy(np.asarray([[1.0, 0.0], [0.5, 0.5]]), p)
    >>> print([round(float(loss), 4) for loss in losses])  # log 2 and (log 4 + log 4/3) / 2
    [0.6931, 0.837]
    """
    theirs = are_theirs(quirks)
    y_pred = ops.convert_to_tensor(y_pred)
    if y_pred.shape and y_pred.shape[-1] == 1:
        text = (
            f"y_pred is of shape {tuple(y_pred.shape)}: of one class the loss is always 0; two are a BinaryCrossentropy"
        )
        warnings.warn(text, SyntaxWarning, stacklevel=2)
    if theirs:
        return entries.their_distribution_losses(y_true, y_pred, from_logits, label_smoothing, axis)
    return entries.distribution_losses(y_true, entries.floating(y_pred), from_logits, label_smoothing, axis)


class Loss(keras.losses.Loss):
    """From the losses of entries to what Keras asks for."""

    quirks: Quirks = None
    axis: int = -1
    not_saved_by_keras: tuple[str, ...] = ("dtype",)

    def losses(self, y_true: Any, y_pred: Any, mask: Any, weights: Any) -> tuple[Any, Any]:
        """Of each entry, 0 where it does not count; and Keras' mask, without the class that is ignored."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        raise NotImplementedError

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if self.quirks is not None:
            return super().__call__(y_true, y_pred, sample_weight)
        mask = get_keras_mask(y_pred)
        with keras.name_scope(self.name):
            y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
            shape = entries.shape_of(y_pred, self.axis)
            if mask is not None:
                mask = ops.cast(ops.convert_to_tensor(mask), "bool")
                mask = ops.broadcast_to(of_entries("mask", mask, shape), shape)
            if sample_weight is not None:
                dtype = "float64" if self.dtype == "float64" else "float32"
                sample_weight = ops.convert_to_tensor(sample_weight, dtype=dtype)
                sample_weight = ops.broadcast_to(of_entries("sample_weight", sample_weight, shape), shape)
            losses, mask = self.losses(y_true, y_pred, mask, sample_weight)
            return ops.cast(reduced(losses, mask, sample_weight, self.reduction), self.dtype)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), **self.options(), "dtype": self.dtype, "quirks": self.quirks}
        for name in () if self.quirks is None else self.not_saved_by_keras:
            del config[name]
        return config


@SAVED
class SparseCategoricalCrossentropy(Loss):
    """Keras' loss of class indices: :func:`sparse_categorical_crossentropy`, with weights and a reduction.

    Parameters
    ----------
    from_logits, ignore_class, axis, quirks
        As there.
    reduction : str or None
        ``"sum_over_batch_size"`` or ``"mean"``: the sum of weighted losses over the number of entries, those of weight
        0 included, those that are ignored or masked not. ``"mean_with_sample_weight"``: over the sum of the weights of
        entries that count. ``"sum"``. ``None`` or ``"none"``: each.
    name, dtype
        Keras'.

    Examples
    --------
    >>> import numpy as np
    >>> from maskloss.drop_in.keras import SparseCategoricalCrossentropy
    >>> loss = SparseCategoricalCrossentropy(ignore_class=-100)
    >>> p = np.asarray([[0.5, 0.5], [0.25, 0.75]], dtype="float32")
    >>> print(round(float(loss(np.asarray([0, -100]), p)), 4))
    0.6931
    """

    not_saved_by_keras = ("dtype", "axis")

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: Any = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
        *,
        quirks: Quirks = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        are_theirs(quirks)
        self.from_logits, self.ignore_class, self.axis, self.quirks = from_logits, ignore_class, axis, quirks

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.quirks is not None:
            y_true, y_pred = squeeze_or_expand_to_same_rank(y_true, y_pred)
        return sparse_categorical_crossentropy(y_true, y_pred, **self.options(), quirks=self.quirks)

    def losses(self, y_true: Any, y_pred: Any, mask: Any, weights: Any) -> tuple[Any, Any]:
        return entries.index_losses(y_true, y_pred, **self.options(), mask=mask, weights=weights)

    def options(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "ignore_class": self.ignore_class, "axis": self.axis}


@SAVED
class CategoricalCrossentropy(Loss):
    """Keras' loss of distributions: :func:`categorical_crossentropy`, with weights and a reduction.

    Parameters
    ----------
    from_logits, label_smoothing, axis, quirks
        As there.
    reduction, name, dtype
        As in :class:`SparseCategoricalCrossentropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from maskloss.drop_in.keras import CategoricalCrossentropy
    >>> loss = CategoricalCrossentropy(reduction="mean_with_sample_weight")
    >>> p = np.asarray([[0.5, 0.5], [0.25, 0.75]], dtype="float32")
    >>> print(round(float(loss(np.eye(2), p, sample_weight=np.asarray([1.0, 0.0]))), 4))
    0.6931
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Any = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
        *,
        quirks: Quirks = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        are_theirs(quirks)
        self.from_logits, self.label_smoothing, self.axis, self.quirks = from_logits, label_smoothing, axis, quirks

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if self.quirks is not None:
            y_true, y_pred = squeeze_or_expand_to_same_rank(y_true, y_pred)
        return categorical_crossentropy(y_true, y_pred, **self.options(), quirks=self.quirks)

    def losses(self, y_true: Any, y_pred: Any, mask: Any, weights: Any) -> tuple[Any, Any]:
        return entries.distribution_losses(y_true, y_pred, **self.options(), mask=mask, weights=weights), mask

    def options(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing, "axis": self.axis}


def of_entries(name: str, x: Any, shape: tuple[int, ...]) -> Any:
    """Keras' alignment: to the right, but for a last axis of size 1 that one of the two has more."""
    given, n = tuple(x.shape), len(x.shape)
    if n == len(shape) + 1 and given[-1] == 1:
        return of_entries(name, ops.squeeze(x, -1), shape)
    if 0 < n == len(shape) - 1 and shape[-1] == 1:
        return of_entries(name, ops.expand_dims(x, -1), shape)
    if not broadcasts(given, shape):
        accepted = f"it must broadcast to the shape {shape} of the entries; one for each sample has an axis of size 1"
        fail(ValueError, name, describe(x), accepted)
    if 0 < n < len(shape) and given == shape[:n] == shape[-n:] and set(given) != {1}:
        accepted = f"beside entries of shape {shape} it may belong to the first axis or to the last; give it both axes"
        fail(ValueError, name, describe(x), accepted)
    return x


def reduced(losses: Any, mask: Any, weights: Any, reduction: Any) -> Any:
    if reduction not in MEANS:
        ours: Any = {None: "none", "mean_with_sample_weight": "mean"}.get(reduction, reduction)
        return reduce(losses, mask=mask, weights=weights, reduction=ours)
    if mask is None:
        return reduce(losses, weights=weights, reduction="mean_over_all")
    count = ops.sum(ops.cast(mask, "int32"))  # entries of weight 0 are among them
    return reduce(losses, mask=mask, weights=weights, reduction="mean_over_kept", denominator=count)
