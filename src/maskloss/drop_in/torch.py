"""PyTorch's cross-entropy, with its signature and conventions: ``F.cross_entropy`` and ``nn.CrossEntropyLoss``.

Where the answer is not PyTorch's, docs/drop_in.md has a row that says so; ``quirks="theirs"`` answers as PyTorch does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from . import _torch_arguments as given
from . import _torch_quirks as theirs
from ._quirks import Quirks, are_theirs
from ._torch_arguments import Asked

__all__ = ["CrossEntropyLoss", "cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    quirks: Quirks = None,
) -> Tensor:
    r"""``torch.nn.functional.cross_entropy``, computed by maskloss.

    For an entry that is not ignored, with logits :math:`x`, class weights :math:`w`, :math:`C` classes and target
    distribution :math:`q` (1 at the target's class, or the probabilities given),

    .. math::

        \mathrm{loss} = \sum_c w_c \left((1 - \epsilon)\, q_c + \epsilon / C\right) (\mathrm{lse} - x_c),
        \qquad \mathrm{lse} = \log \sum_c e^{x_c}

    with :math:`\epsilon` = ``label_smoothing``.

    Parameters
    ----------
    input : Tensor, shape (C), (N, C) or (N, C, d1, ..., dK), floating
        Logits. The class axis is 1, or 0 where there is no batch.
    target : Tensor
        Class indices, int64 (or uint8, beside logits of at most two axes), of the shape (), (N) or (N, d1, ..., dK); or
        probabilities, floating and of the shape of `input`.
    weight : Tensor, shape (C), optional
        Weight of each class; beside class indices, of the dtype of `input` and without a gradient.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: `reduction` says it.
    ignore_index : int
        Target that marks an entry as not counting. Beside probabilities there is none.
    reduction : str
        ``"none"``, ``"sum"``, or ``"mean"``: of class indices the weighted mean over what is not ignored, of
        probabilities the sum over the number of entries, whatever they weigh.
    label_smoothing : float
        In [0, 1].
    quirks : None or "theirs"
        ``"theirs"`` answers as PyTorch does also where that is a bug: NaN where nothing is kept, for example. Slower;
        meant for comparisons with numbers that were recorded before.

    Returns
    -------
    Tensor
        0-d, or of the entries' shape for ``"none"``. float32 for half precision, else of the dtype that `input`, and
        beside probabilities `target` and `weight`, promote to.

    Raises
    ------
    TypeError, ValueError, RuntimeError, IndexError
        Whatever ``F.cross_entropy`` refuses is refused, with the type of its error.

    Examples
    --------
    >>> import torch
    >>> from maskloss.drop_in.torch import cross_entropy
    >>> logits = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]).log()
    >>> loss = cross_entropy(logits, torch.tensor([1, 0, -100]))
    >>> print(f"{loss:.4f}")  # (log 4/3 + log 2) / 2
    0.4904
    >>> nothing = torch.tensor([-100, -100, -100])
    >>> print(cross_entropy(logits, nothing))
    tensor(0.)
    >>> print(cross_entropy(logits, nothing, quirks="theirs"))
    tensor(nan)
    """
    as_theirs = are_theirs(quirks)
    reduction = given.reduction_of(reduction, size_average, reduce)
    given.check_tensors(input, target, weight)
    ignore_index = given.index_of(ignore_index)
    smoothing = given.smoothing_of(label_smoothing, as_theirs=as_theirs)
    asked = Asked(input, target, weight, ignore_index, reduction, smoothing)
    asked = given.probabilities(asked) if input.shape == target.shape else given.indices(asked)
    return theirs.loss(asked) if as_theirs else given.loss(asked)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``, computed by maskloss; and one, for code that asks ``isinstance``.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing, quirks
        As in :func:`cross_entropy`. `weight` is a buffer, as in PyTorch; there are no parameters.

    Examples
    --------
    >>> import torch
    >>> from maskloss.drop_in.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion
    CrossEntropyLoss(label_smoothing=0.1)
    >>> print(f"{criterion(torch.zeros(2, 4), torch.tensor([0, 3])):.4f}")  # log 4
    1.3863
    """

    quirks: Quirks

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        quirks: Quirks = None,
    ) -> None:
        are_theirs(quirks)
        cast("Any", super()).__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.quirks = quirks

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            quirks=self.quirks,
        )

    def extra_repr(self) -> str:
        """What is not the default."""
        of_weight = [] if self.weight is None else [f"weight=<{self.weight.numel()} classes>"]
        defaults: dict[str, Any] = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "quirks": None}
        options = [
            f"{name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual
        ]
        return ", ".join(of_weight + options)
