"""Modules of PyTorch, imported by name: ``import maskloss`` alone imports no framework."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Parameter

from ._arguments import Reduction, describe, fail
from ._arrays.torch import is_distributed
from ._shards import ClassShard
from .linear import linear_cross_entropy

__all__ = ["LinearCrossEntropyLoss"]

ACCEPTED = "it must be a torch.nn.Parameter, a torch.nn.Linear or a torch.nn.Embedding"
DISTRIBUTED = (
    "a module that was sharded by itself has its whole kernel in its own forward alone: fully_shard the loss in its "
    "place, or the model that holds both, and call the loss in that model's forward"
)
OWN_FORWARD = (
    "its weight alone is read, and what else it does (LoRA, torch.nn.utils.prune, the old weight_norm) would be left "
    "out: merge that, use torch.nn.utils.parametrizations, or pass the weight, a Parameter"
)
# The options that are the model's, and their defaults.
DEFAULTS: dict[str, Any] = {
    **{"kernel_layout": "vd", "chunk_size": None, "ignore_index": None, "label_smoothing": 0.0, "z_loss": 0.0},
    **{"softcap": None, "reduction": "mean", "implementation": None, "class_shard": None},
}


def check_projection(projection: Any) -> None:
    """That it multiplies by its weight, and does no more."""
    if not isinstance(projection, Linear | Embedding):  # as PEFT replaces one
        fail(TypeError, "kernel", describe(projection), ACCEPTED)
    # An Embedding's forward is not the projection's: it may scale what it looks up.
    does_more = isinstance(projection, Linear) and type(projection).forward is not Linear.forward
    if does_more or any(hasattr(projection, name) for name in ("weight_orig", "weight_g")):
        given = f"{type(projection).__name__}, whose forward does more than multiply by its weight"
        fail(TypeError, "kernel", given, OWN_FORWARD)


class LinearCrossEntropyLoss(torch.nn.Module):
    r"""Masked cross-entropy of the logits :math:`h K^\top + b` without the logits, as a module that holds the kernel.

    In the place of an output projection and its loss. It calls :func:`maskloss.linear_cross_entropy`, and makes a chunk
    of the logits of kept entries at a time, also under ``torch.compile``.

    Parameters
    ----------
    kernel : Parameter, Linear or Embedding
        The output projection, a row for each class. A Parameter becomes this module's; so does one that another module
        has as well, which ties them. Of a Linear or an Embedding the module is held, and its weight (and bias) read at
        each call, so that a weight that is replaced, tied, moved or sharded later is followed. Either way
        ``parameters()`` of a model that holds both gives it once.
    bias : Parameter, optional
        By default that of the Linear, if it has one.
    kernel_layout, chunk_size, ignore_index, label_smoothing, z_loss, softcap, reduction, implementation, class_shard
        As in :func:`maskloss.linear_cross_entropy`, for every call. A Linear or an Embedding is ``"vd"``.
    class_weights : Tensor, shape (V,), optional
        The same. A buffer, as the `weight` of ``torch.nn.CrossEntropyLoss``.

    Raises
    ------
    TypeError, ValueError
        A kernel or bias of another kind; a Linear whose forward does more than multiply by its weight; a bias beside a
        Linear that has one. When called, as :func:`maskloss.linear_cross_entropy`.

    Notes
    -----
    Under FSDP2 call the loss in the forward of the model that ``fully_shard`` was given, or ``fully_shard`` the loss
    itself: there its kernel is whole. A head that is sharded by itself and read from outside is refused.

    Examples
    --------
    A language model whose head is its embedding:

    >>> import torch
    >>> from maskloss.torch import LinearCrossEntropyLoss
    >>> kernel = torch.tensor([[0.25, 1.0], [0.75, 1.0]]).log()
    >>> embed = torch.nn.Embedding.from_pretrained(kernel, freeze=False)
    >>> loss = LinearCrossEntropyLoss(embed, ignore_index=-100)
    >>> loss
    LinearCrossEntropyLoss(
      classes=2, features=2, bias=False, ignore_index=-100
      (projection): Embedding(2, 2)
    )
    >>> hidden = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    >>> print(f"{loss(hidden, torch.tensor([0, -100])):.4f}")  # log 4
    1.3863
    """

    def __init__(
        self,
        kernel: Parameter | Linear | Embedding,
        bias: Parameter | None = None,
        *,
        kernel_layout: Literal["vd", "dv"] = "vd",
        chunk_size: int | None = None,
        class_weights: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        implementation: str | None = None,
        class_shard: ClassShard | None = None,
    ) -> None:
        super().__init__()
        given: Any = kernel
        holds_module = not isinstance(given, Parameter)
        if holds_module:
            check_projection(given)
        given = bias
        if given is not None and not isinstance(given, Parameter):
            fail(TypeError, "bias", describe(given), "it must be a torch.nn.Parameter or None")
        if holds_module and getattr(kernel, "bias", None) is not None and bias is not None:
            fail(ValueError, "bias", "given beside a kernel that has one", "pass the kernel's Parameter, or no bias")
        if holds_module and kernel_layout != "vd":
            fail(ValueError, "kernel_layout", repr(kernel_layout), f"of a {type(kernel).__name__} it is 'vd'")
        self.projection = kernel if holds_module else None
        self.kernel = None if holds_module else kernel
        self.bias = bias
        self.register_buffer("class_weights", class_weights)
        self.options: dict[str, Any] = {
            **{"kernel_layout": kernel_layout, "chunk_size": chunk_size, "ignore_index": ignore_index},
            **{"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap, "reduction": reduction},
            **{"implementation": implementation, "class_shard": class_shard},
        }

    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """As they are now."""
        held: Any = self
        kernel: Tensor = held.kernel if held.projection is None else held.projection.weight
        bias: Tensor | None = getattr(held.projection, "bias", None) if held.bias is None else held.bias
        return kernel, bias

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        weights: Tensor | float | None = None,
        class_mask: Tensor | None = None,
        denominator: Tensor | float | None = None,
        with_stats: bool = False,
        validate: bool | Literal["auto"] = "auto",
    ) -> Any:
        """The loss, or with `with_stats` a pair of it and :class:`maskloss.LossStats`.

        Parameters
        ----------
        hidden : Tensor, shape (..., D)
            Hidden states.
        labels, mask, weights, class_mask, denominator, with_stats, validate
            As in :func:`maskloss.linear_cross_entropy`, for this call.
        """
        if self.projection is not None:
            check_projection(self.projection)
        kernel, bias = self.kernel_and_bias()
        if is_distributed(kernel) and not is_distributed(hidden):
            fail(ValueError, "kernel", "a DTensor, split over processes, beside hidden of this one", DISTRIBUTED)
        about = {"mask": mask, "weights": weights, "class_mask": class_mask, "denominator": denominator}
        about |= {"with_stats": with_stats, "validate": validate, "class_weights": self.class_weights}
        loss: Any = linear_cross_entropy
        return loss(hidden, kernel, labels, bias=bias, **about, **self.options)

    def extra_repr(self) -> str:
        """The sizes, and what is not the default."""
        kernel, bias = self.kernel_and_bias()
        sizes = kernel.shape if self.options["kernel_layout"] == "vd" else kernel.shape[::-1]
        shown = [f"classes={sizes[0]}, features={sizes[-1]}, bias={bias is not None}"]
        shown += ["class_weights=True"] * ("class_weights" in dict(self.named_buffers()))
        return ", ".join(shown + [f"{n}={x!r}" for n, x in self.options.items() if x != DEFAULTS[n]])
