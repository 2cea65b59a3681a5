"""Keras' losses of classes under their names and signatures: ``from maskloss.drop_in import keras``.

On the backends of Keras that have arrays of maskloss': torch, jax and numpy. `quirks` is the one argument more:
``"theirs"`` answers as Keras does also where :doc:`the table </drop_in>` says that this does not.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedClassDecorator=false, reportUntypedBaseClass=false
# (Keras has no annotations.)

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

from .._arguments import Like, broadcasts, check_kept, describe, fail, floating_like
from .._arrays import INTEGERS, dtype_name
from .._inputs import to_indices
from ..exponentials import masked_log_softmax
from ..losses import cross_entropy
from ..reductions import reduce
from ._quirks import Quirks, are_theirs

MEANS = ("sum_over_batch_size", "mean")
IGNORED_BY_TORCH = -100


class Loss(keras.losses.Loss):
    """What both losses have in common: from losses of entries to the one that Keras asks for."""

    def __init__(self, name: Any, reduction: Any, dtype: Any, quirks: Quirks, **options: Any):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.quirks = quirks
        self.has_quirks = are_theirs(quirks)
        self.options = options

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if self.has_quirks:
            return super().__call__(y_true, y_pred, sample_weight)
        mask = get_keras_mask(y_pred)
        with ops.name_scope(self.name):
            y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
            entries = entries_of(y_pred, self.options["axis"])
            keep = None if mask is None else ops.cast(of_entries("mask", mask, entries), "bool")
            weights = None
            if sample_weight is not None:
                dtype = "float64" if self.dtype == "float64" else "float32"
                weights = ops.convert_to_tensor(sample_weight, dtype=dtype)
                weights = of_entries("sample_weight", weights, entries)
            losses, keep = self.losses(y_true, y_pred, keep, weights)
            return ops.cast(reduced(losses, keep, weights, self.reduction), self.dtype)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), **self.options, "dtype": self.dtype, "quirks": self.quirks}
        lost = ("dtype", *self.not_saved_by_keras) if self.has_quirks else ()
        return {name: value for name, value in config.items() if name not in lost}
