"""The kernels of cross-entropy, launched on rows.

What a program takes is chosen here, where the rows of an array lie is said, and gradients are laid as the logits are.
"""

# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportIndexIssue=false
# (Triton has no annotations.)

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton

from .._arrays import Array, Namespace
from .._arrays.torch import xp
from .._engine.lanes import Lane
from .._engine.unshifted import UNSHIFTED
from .._math.rows import RowFunction, Rows
from .._math.softmax import SOFTMAX, Forward, Upstream
from . import kernels

# Numbers of a row that a program holds at a time, and how many of them each warp does. On an H100 within 1 % of the
# best of 13 sizes, with 32000 and 128256 classes; where loss and gradient are made at once, 16384 and 32 warps take 0.8
# of the time with 32000 classes, but a loss has the same bits whether its gradient is asked for or not.
MOST, PER_WARP = 4096, 512
# Rows of a plane that a program takes, how many of them each warp does, and of how many classes at a time, so that no
# sum goes from warp to warp: with 19, 21 and 150 classes within 15 % of the best of 5. And rows of a plane worth it.
MOST_ROWS, ROWS_PER_WARP, FEW, LEAST_PLANE = 1024, 256, 4, 32


def uncovered(function: RowFunction, rows: Rows) -> str | None:
    """Why these kernels cannot compute the rows."""
    covered = (
        function is SOFTMAX and rows.labels is not None and rows.class_mask is None and rows.dtype is torch.float32
    )
    if covered and (rows.targets is None or rows.targets.ndim == 1):
        return None
    accepted = "its kernels cover class indices without class_mask, in float32, bfloat16 and float16"
    return f"{accepted}; None chooses what covers the call"


def forward(rows: Rows, xp: Namespace, share: float | None = None, divisor: Any = None) -> Forward:
    """0 where not kept; given a share, nll is its part of the loss, share nll / divisor."""
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    nll, dot, lse, total, shift = (
        torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if asked else None
        for asked in (True, rows.targets is not None, rows.with_lse, True, True)
    )
    out = Forward(nll, dot, lse, total, shift)
    if not count:
        return out
    plane = plane_of(x)
    arrays = (*places_of(x, plane), contiguous(rows.labels), contiguous(rows.targets), contiguous(rows.keep))
    sizes = sizes_of(classes, plane)
    with on_device(x):
        # Contraction would round differently from one compiler, or one kernel, to the next.
        kernels.forward_kernel[(programs_of(count, plane, sizes),)](
            *arrays, share, divisor, *out, *layout_of(x, plane), classes, rows.softcap, **sizes, enable_fp_fusion=False
        )
    return out


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, Array | None]:
    if targets_too and g[1] is not None:
        return UNSHIFTED.backward(rows, out, g, targets_too=True, xp=xp, d_logits=d_logits)
    g_nll, g_dot, g_lse = g
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    plane, d = gradient_for(x, d_logits)
    if not count:
        return d.reshape(x.shape), None
    targets: Any = contiguous(rows.targets) if g_dot is not None else None
    arrays = (contiguous(rows.labels), targets, None if targets is None else targets.sum(), contiguous(rows.keep))
    per_row = [contiguous(part) for part in (out.total, out.shift, g_nll, g_dot, g_lse)]
    sizes = sizes_of(classes, plane)
    with on_device(x):
        kernels.backward_kernel[(programs_of(count, plane, sizes) * triton.cdiv(classes, sizes["BLOCK"]),)](
            *places_of(x, plane),
            *arrays,
            *per_row,
            d,
            *layout_of(x, plane),
            *layout_of(d, plane)[1:],
            classes,
            rows.softcap,
            **sizes,
            enable_fp_fusion=False,
        )
    return d.reshape(x.shape), None


def both(rows: Rows, known: Upstream, *, xp: Namespace, d_logits: Array | None = None) -> tuple[Forward, Array] | None:
    """Of class indices alone."""
    nll, dot, squared_lse = known
    if nll is None or not (dot is squared_lse is rows.softcap is None):
        return None
    return at_once(rows, contiguous(nll), None, None, d_logits, with_sums=True)


def at_once(
    rows: Rows, g_nll: Any, share: float | None, divisor: Any, d_logits: Any = None, *, with_sums: bool = False
) -> tuple[Forward, Any]:
    """Loss and gradient, in one kernel: without g_nll of share nll / divisor, as is then the loss."""
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    plane, d = gradient_for(x, d_logits)
    nll, total, shift = (
        torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) if asked else None
        for asked in (True, with_sums, with_sums)
    )
    out = Forward(nll, None, None, total, shift)
    if count:
        arrays = (*places_of(x, plane), contiguous(rows.labels), contiguous(rows.keep), g_nll, share, divisor)
        sizes = sizes_of(classes, plane)
        with on_device(x):
            kernels.loss_and_gradient_kernel[(programs_of(count, plane, sizes),)](
                *arrays,
                *(nll, total, shift, d),
                *layout_of(x, plane),
                *layout_of(d, plane)[1:],
                classes,
                **sizes,
                enable_fp_fusion=False,
            )
    return out, d.reshape(x.shape)


def scale(d_logits: Any, keep: Any, factor: Any) -> None:
    """What is kept of the gradient, times a number of the device, in its place."""
    count, classes = math.prod(d_logits.shape[:-1]), d_logits.shape[-1]
    plane = plane_of(d_logits)
    sizes = sizes_of(classes, plane)
    with on_device(d_logits):
        kernels.scale_kernel[(programs_of(count, plane, sizes) * triton.cdiv(classes, sizes["BLOCK"]),)](
            d_logits, contiguous(keep), factor, *layout_of(d_logits, plane), classes, **sizes
        )


def plane_of(x: Any) -> int | None:
    """How many rows lie side by side, with their classes apart, as those of images; None: too few, or none."""
    plane = xp.plane_of(x)
    return None if plane is None or plane < LEAST_PLANE else plane


def gradient_for(x: Any, d_logits: Any) -> tuple[int | None, Any]:
    """Rows of a plane, and where the gradient goes: in planes where the logits are.

    What made these would make a copy of any other. What is given has a row after the other.
    """
    if d_logits is not None:
        return None, d_logits
    plane = plane_of(x)
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    if plane is None:
        return plane, torch.empty((count, classes), dtype=x.dtype, device=x.device)
    made: Any = torch.empty((count // plane, classes, plane), dtype=x.dtype, device=x.device)
    return plane, made.permute(0, 2, 1).reshape(x.shape)


def places_of(x: Any, plane: int | None = None) -> tuple[Any, Any]:
    """The logits, and where each row begins; None: at equal distances, or in planes that do."""
    x = x.detach()
    if plane is not None or xp.flattens(x):
        return x, None
    starts: Any = torch.zeros((), dtype=torch.int64, device=x.device)
    for length, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        starts = starts.unsqueeze(-1) + stride * torch.arange(length, device=x.device)
    return x, starts.reshape(-1)


def layout_of(x: Any, plane: int | None) -> tuple[int | None, int | None, int, int]:
    """Rows of a plane; and between planes, between rows, and between classes how far it is."""
    if plane is None:
        return None, None, *strides_of(x)
    return plane, x.reshape(-1, plane, x.shape[-1]).stride(0), 1, x.stride(-1)


def strides_of(x: Any) -> tuple[int, int]:
    """Between rows that lie at equal distances, and between classes."""
    # That of a single row as well: Triton chooses the order of a sum by it.
    strides = [stride for length, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if length != 1]
    return (strides or [0, *x.stride()[:-1]])[-1], x.stride(-1)


def contiguous(x: Any) -> Any:
    return None if x is None else x.detach().contiguous()


def programs_of(count: int, plane: int | None, sizes: dict[str, int]) -> int:
    return count if plane is None else count // plane * triton.cdiv(plane, sizes["ROWS"])


def sizes_of(classes: int, plane: int | None = None) -> dict[str, int]:
    if plane is not None:
        rows = min(MOST_ROWS, triton.next_power_of_2(plane))
        block = min(FEW, triton.next_power_of_2(classes))
        return {"BLOCK": block, "ROWS": rows, "num_warps": max(1, rows // ROWS_PER_WARP)}
    block = min(MOST, triton.next_power_of_2(classes))
    return {"BLOCK": block, "ROWS": 1, "num_warps": max(1, block // PER_WARP)}


def on_device(x: Any) -> Any:
    """Triton launches on the current device."""
    is_current = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return contextlib.nullcontext() if is_current else torch.cuda.device(x.device)


LANE = Lane("triton", SOFTMAX, forward, backward, both)
