"""What with_stats returns beside the loss."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from ._arguments import describe, fail
from ._arrays import Array, namespace_of
from ._math.reduce import quotient


class LossStats(NamedTuple):
    """Sums over one batch that add up across batches; all 0-d arrays.

    A NamedTuple, hence a pytree in JAX and in PyTorch. ``a + b`` adds field by field, so that ``sum(stats).mean`` over
    the batches of an evaluation, or the shards of a data-parallel step, is the mean over all their entries, and not the
    mean of means. The fields stay connected to the gradient of the loss: to print one inside a PyTorch training step,
    take its ``.item()``.

    Attributes
    ----------
    total : array
        Numerator of the mean: the sum of ``weights * loss`` over kept entries (for ``"mean_over_sequences"``, the sum
        of the sequences' means).
    denominator : array
        Divisor of the batch's own mean under the reduction asked for (that of ``"mean"`` for ``"sum"`` and ``"none"``).
        The ``denominator`` argument never enters it.
    count : array
        Kept entries, integer.
    correct : array
        Kept entries whose label is the first arg-max of the logits over the allowed classes, integer.
    z_loss : array
        The plain weighted sum of the terms that ``z_loss`` added.

    Examples
    --------
    >>> import numpy as np
    >>> import maskloss as ml
    >>> logits = np.log(np.asarray([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]))
    >>> _, a = ml.cross_entropy(logits[:1], np.asarray([0]), with_stats=True)
    >>> _, b = ml.cross_entropy(logits[1:], np.asarray([1, 0]), with_stats=True)
    >>> both = a + b  # (log 2 + log 4/3 + log 2) / 3
    >>> print(both.count, both.correct, round(float(both.mean), 6))
    3 3 0.557992
    """

    total: Array
    denominator: Array
    count: Array
    correct: Array
    z_loss: Array

    def __add__(self, other: Any) -> LossStats:  # pyright: ignore[reportIncompatibleMethodOverride]
        if type(other) is int and other == 0:  # sum() starts from it
            return self
        if not isinstance(other, LossStats):  # a tuple would grow longer
            fail(TypeError, "LossStats", f"added to {describe(other)}", "it adds to another")
        xp: Any = namespace_of(self.total)
        return LossStats(*(xp.asarray(a + b) for a, b in zip(self, other, strict=True)))

    __radd__ = __add__

    def __mul__(self, other: Any) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A tuple would repeat itself, and what scales a total scales no count."""
        accepted = "it only adds; scale its mean, or one field with _replace"
        fail(TypeError, "LossStats", f"multiplied by {describe(other)}", accepted)

    __rmul__ = __mul__

    @property
    def mean(self) -> Array:
        """total / denominator; 0 where the denominator is 0."""
        xp: Any = namespace_of(self.total)
        return quotient(self.total, self.denominator, xp=xp)
