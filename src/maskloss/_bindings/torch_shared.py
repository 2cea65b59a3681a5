"""What the autograd.Functions of PyTorch share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._arrays.torch import in_forward_mode, xp
from .._engine.projection import Projection
from .._math.rows import Rows
from .torch_operators import PARTS

Tensor = Any

# The first fields of Rows, which autograd saves; the rest are none.
TENSORS = 1 + Rows._fields.index("kept")
SECOND = "a gradient that is differentiated again, or batched, is one expression"


def is_again(g: Sequence[Tensor | None]) -> bool:
    """Whether a gradient is differentiated again, or batched, and needs operations that can be."""
    return torch.is_grad_enabled() or in_forward_mode() or any(x is not None and xp.is_tracer(x) for x in g)


def owned(x: Tensor | None) -> Tensor | None:
    """autograd refuses to modify in place what a Function made as a view."""
    return x.clone() if x is not None and x._is_view() else x


def projected(ctx: Any, tensors: Sequence[Any]) -> tuple[Projection, Rows]:
    hidden, kernel, bias, *rest = tensors
    return Projection(hidden, kernel, bias, ctx.chunk_size), Rows(*rest, *ctx.others)


def needed(ctx: Any, start: int = 4) -> set[str]:
    hidden, kernel, bias, _, _, targets = ctx.needs_input_grad[start : start + 6]
    return {name for name, needed in zip(PARTS, (hidden, kernel, bias, targets), strict=True) if needed}
