"""What with_stats returns beside the loss."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from ._arguments import Like, describe, fail, floating_like
from ._arrays import Array, Namespace, namespace_of
from ._math.reduce import quotient


class LossStats(NamedTuple):
    """Sums over one batch that add up across batches; all 0-d arrays.

    A NamedTuple, hence a pytree in JAX and in PyTorch. ``a + b`` adds field by field, so that ``sum(stats).mean`` over
    the batches of an evaluation, or the shards of a data-parallel step, is the mean over all their entries, and not the
    mean of means. The fields stay connected to the gradient of the loss: what is kept from step to step is
    ``stats.detach()``. Sums start at 0, or at :meth:`zeros`.

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
    >>> print(float((a + b).accuracy), round(float((a + b).perplexity), 6))
    1.0 1.747161
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
        return xp.called(_sum_of, (self, other), {})

    __radd__ = __add__

    def __mul__(self, other: Any) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A tuple would repeat itself, and what scales a total scales no count."""
        accepted = "it only adds; scale its mean, or one field with _replace"
        fail(TypeError, "LossStats", f"multiplied by {describe(other)}", accepted)

    __rmul__ = __mul__

    @classmethod
    def zeros(cls, like: Array) -> LossStats:
        """The statistics of nothing, with the dtypes and on the device that those of such logits have.

        Parameters
        ----------
        like : array, real floating
            Logits, or hidden states of the linear losses. Its values are not read.

        Raises
        ------
        TypeError
            `like` is no array of floating numbers.

        Notes
        -----
        The first carry of ``jax.lax.scan`` over batches, whose dtypes stay as they are.

        Examples
        --------
        >>> import numpy as np
        >>> import maskloss as ml
        >>> print(ml.LossStats.zeros(np.ones((2, 3), np.float16)).mean.dtype)
        float32
        """
        of = floating_like("like", like)
        return cls(*of.xp.called(_zeros_of, (of,), {}))

    @property
    def mean(self) -> Array:
        """total / denominator; 0 where the denominator is 0."""
        xp: Any = namespace_of(self.total)
        return xp.called(quotient, (self.total, self.denominator), {"xp": xp})

    @property
    def accuracy(self) -> Array:
        """correct / count, the share of kept entries whose arg-max is the label; 0 where nothing is kept."""
        xp: Any = namespace_of(self.total)
        correct, count = (xp.astype(x, self.total.dtype) for x in (self.correct, self.count))
        return xp.called(quotient, (correct, count), {"xp": xp})

    @property
    def perplexity(self) -> Array:
        r""":math:`e^{\mathrm{mean}}`: the labels' perplexity, where the losses are plain; 1 where nothing is kept.

        Label smoothing, z-loss and class weights change the losses, and so this.
        """
        xp: Any = namespace_of(self.total)
        return xp.called(_exp_of, (self.mean,), {"xp": xp})

    def detach(self) -> LossStats:
        """The same numbers, of which no gradient is taken."""
        xp: Any = namespace_of(self.total)
        return LossStats(*(xp.stop_gradient(x) for x in self))


def _sum_of(a: LossStats, b: LossStats) -> LossStats:
    return LossStats(*(x + y for x, y in zip(a, b, strict=True)))


def _zeros_of(of: Like) -> tuple[Array, ...]:
    zero, none = of.xp.zero(of.dtype, of.array), of.xp.sum(of.xp.zero(of.xp.int32, of.array))
    return zero, zero, none, none, zero


def _exp_of(x: Array, *, xp: Namespace) -> Array:
    return xp.exp(x)
