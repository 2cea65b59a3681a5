"""Cross-entropy in Triton kernels, for CUDA tensors; for those of the CPU under TRITON_INTERPRET=1.

A program takes a row and walks its classes in blocks, in the symbols of softmax.py, with the running shift m and

    s = sum_c exp(x_c - m)        T = sum_c t_c        a = sum_c t_c (x_c - m)

of the classes seen. A block that raises the shift to m' turns s into s exp(m - m') and a into a + T (m - m'). At last

    nll = log s - (x_y - m)        dot = T log s - a        lse = m + log s

A row that is not kept is not read: the host need not know how many are. A kept label that is no class makes NaN of its
loss and gradient. What a program adds up depends on its row
alone, in an order that Triton chooses by the strides: a row's loss is the same bits in any run, and in any batch that
is laid out alike.
"""

# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false, reportInvalidTypeForm=false
# pyright: reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# (A kernel is no Python, and Triton has no annotations.)

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
import triton.language as tl

from .._arrays import Array, Namespace
from .._arrays.torch import xp
from .._engine.lanes import Lane
from .._engine.unshifted import UNSHIFTED
from .._math.rows import RowFunction, Rows
from .._math.softmax import LARGEST as LARGEST_NUMBERS
from .._math.softmax import SOFTMAX, Forward

LARGEST = tl.constexpr(LARGEST_NUMBERS["float32"])
# Numbers of a row that a program holds at a time, and how many of them each warp does. On an H100 within 1 % of the
# best of 13 sizes, with 32000 and 128256 classes.
MOST, PER_WARP = 4096, 512
# Rows of a plane that a program takes at most; and of a plane that is worth it.
MOST_ROWS, LEAST_PLANE = 256, 32


def uncovered(function: RowFunction, rows: Rows) -> str | None:
    """Why these kernels cannot compute the rows."""
    covered = (
        function is SOFTMAX and rows.labels is not None and rows.class_mask is None and rows.dtype is torch.float32
    )
    if covered and (rows.targets is None or rows.targets.ndim == 1):
        return None
    accepted = "its kernels cover class indices without class_mask, in float32, bfloat16 and float16"
    return f"{accepted}; None chooses what covers the call"


@triton.jit
def tanh(z):
    """(1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where that cancels, Lambert's continued fraction:

    z / (1 + z^2 / (3 + z^2 / (5 + z^2 / (7 + z^2 / 9)))), whose error for |z| < 1/2 is 1e-10 of it.
    """
    size = tl.abs(z)
    e = tl.exp(-2.0 * size)
    far = (1.0 - e) / (1.0 + e)
    square = z * z
    near = z * (945.0 + square * (105.0 + square)) / (945.0 + square * (420.0 + 15.0 * square))
    return tl.where(size < 0.5, near, tl.where(z < 0.0, -far, far))


@triton.jit
def start_of(row, starts, plane, plane_stride, row_stride):
    """Where its logits start."""
    if plane is not None:
        start = row // plane * plane_stride + row % plane
    elif starts is not None:
        start = tl.load(starts + row)
    else:
        start = row * row_stride
    return start


@triton.jit
def rows_of(program, starts, plane, plane_stride, row_stride, ROWS: tl.constexpr):
    """A row, or ROWS of a plane: which, whether there are so many, and where their logits start."""
    if plane is None:
        row = program.to(tl.int64)
        is_row = row >= 0
        start = start_of(row, starts, plane, plane_stride, row_stride)
    else:
        blocks = tl.cdiv(plane, ROWS)
        place = (program % blocks) * ROWS + tl.arange(0, ROWS)
        number = (program // blocks).to(tl.int64)
        row = number * plane + place
        is_row = place < plane
        start = number * plane_stride + place
    return row, is_row, start


@triton.jit
def classes_from(start, plane, BLOCK: tl.constexpr):
    c = start + tl.arange(0, BLOCK)
    return c if plane is None else c[:, None]


@triton.jit
def greatest(end, plane):
    return end if plane is None else tl.max(end, axis=0)


@triton.jit
def block_of_rows(
    starts,
    keep,
    plane,
    plane_stride,
    row_stride,
    d_plane_stride,
    d_row_stride,
    classes,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program's rows, where they and their gradients start, its classes; which are rows, are written, are read."""
    blocks = tl.cdiv(classes, BLOCK)
    program = tl.program_id(0) // blocks
    row, is_row, start = rows_of(program, starts, plane, plane_stride, row_stride, ROWS)
    _, _, d_start = rows_of(program, None, plane, d_plane_stride, d_row_stride, ROWS)
    c = classes_from((tl.program_id(0) % blocks) * BLOCK, plane, BLOCK)
    kept = is_row
    if keep is not None:
        kept = kept & (tl.load(keep + row, mask=is_row, other=0) != 0)
    return row, start, d_start, c, is_row, c < tl.where(is_row, classes, 0), c < tl.where(kept, classes, 0)


@triton.jit
def block_of(row_logits, c, class_stride, inside, softcap):
    """The logits of the classes c, and d(these)/d(logits)."""
    x = tl.load(row_logits + c.to(tl.int64) * class_stride, mask=inside, other=0.0).to(tl.float32)
    slope = 1.0
    if softcap is not None:
        tanh_x = tanh(x / softcap)
        x = softcap * tanh_x
        slope = 1.0 - tanh_x * tanh_x
    # After softcap, which would make a number of it.
    return tl.where(inside, x, -float("inf")), slope


@triton.jit
def forward_kernel(
    logits,
    starts,
    labels,
    targets,
    keep,
    nll,
    dot,
    lse,
    total,
    shift,
    plane,
    plane_stride,
    row_stride,
    class_stride,
    classes,
    softcap,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, kept, start_of_row = rows_of(tl.program_id(0), starts, plane, plane_stride, row_stride, ROWS)
    is_row = kept
    row_logits = logits + start_of_row
    if keep is not None:
        kept = kept & (tl.load(keep + row, mask=is_row, other=0) != 0)
    end = tl.where(kept, classes, 0)
    nothing = row * 0
    m = nothing.to(tl.float32) - LARGEST
    # In float64, a few numbers a block and a row: roundings of equal blocks would add up, and log s rounds at its own
    # size, but x_y - m, from which it is taken, may be large.
    s = nothing.to(tl.float64)
    T = nothing.to(tl.float64)
    a = nothing.to(tl.float64)
    for start in range(0, greatest(end, plane), BLOCK):
        c = classes_from(start, plane, BLOCK)
        x, _ = block_of(row_logits, c, class_stride, c < end, softcap)
        # Finite, because inf - inf is NaN: a row of -inf has the total 0, and one with +inf the total inf.
        higher = tl.minimum(tl.maximum(m, tl.max(x, axis=0)), LARGEST)
        s = s * tl.exp(m - higher).to(tl.float64) + tl.sum(tl.exp(x - higher), axis=0).to(tl.float64)
        if targets is not None:
            t = tl.load(targets + c, mask=c < classes, other=0.0)
            # A cost that is infinite but weighs nothing is 0; so is T (m - m') before the first block.
            parts = tl.where((x == -float("inf")) & (t == 0.0), 0.0, t * (x - higher))
            a = a + tl.where(T == 0.0, 0.0, T * (m - higher).to(tl.float64)) + tl.sum(parts, axis=0).to(tl.float64)
            T = T + tl.sum(t, axis=0).to(tl.float64)
        m = higher
    log_sum = tl.log(tl.where(s == 0.0, 1.0, s))
    if nll is not None:
        y = tl.load(labels + row, mask=is_row, other=0).to(tl.int64)
        is_class = (y >= 0) & (y < classes)
        x_y, _ = block_of(row_logits, tl.where(is_class, y, 0), class_stride, kept, softcap)
        value = tl.where(is_class, log_sum - (x_y - m).to(tl.float64), float("nan"))
        tl.store(nll + row, tl.where(kept, value, 0.0).to(tl.float32), mask=is_row)
    if dot is not None:
        tl.store(dot + row, tl.where(kept, T * log_sum - a, 0.0).to(tl.float32), mask=is_row)
    if lse is not None:
        value = tl.where(s == 0.0, -float("inf"), m.to(tl.float64) + log_sum)
        tl.store(lse + row, tl.where(kept, value, 0.0).to(tl.float32), mask=is_row)
    tl.store(total + row, tl.where(kept, s, 1.0).to(tl.float32), mask=is_row)
    tl.store(shift + row, tl.where(kept, m, 0.0), mask=is_row)


@triton.jit
def backward_kernel(
    logits,
    starts,
    labels,
    targets,
    targets_total,
    keep,
    total,
    shift,
    g_nll,
    g_dot,
    g_lse,
    d_logits,
    plane,
    plane_stride,
    row_stride,
    class_stride,
    d_plane_stride,
    d_row_stride,
    d_class_stride,
    classes,
    softcap,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, start, d_start, c, is_row, inside, read = block_of_rows(
        starts, keep, plane, plane_stride, row_stride, d_plane_stride, d_row_stride, classes, BLOCK, ROWS
    )
    x, slope = block_of(logits + start, c, class_stride, read, softcap)
    s = tl.load(total + row, mask=is_row, other=1.0)
    coefficient = (row * 0).to(tl.float32)
    if g_nll is not None:
        of_nll = tl.load(g_nll + row, mask=is_row, other=0.0)
        coefficient += of_nll
    if g_lse is not None:
        coefficient += tl.load(g_lse + row, mask=is_row, other=0.0)
    if g_dot is not None:
        of_dot = tl.load(g_dot + row, mask=is_row, other=0.0)
        coefficient += of_dot * tl.load(targets_total)
    if g_nll is not None:
        y = tl.load(labels + row, mask=is_row, other=0).to(tl.int64)
        coefficient = tl.where((y >= 0) & (y < classes), coefficient, float("nan"))
    moved = x - tl.load(shift + row, mask=is_row, other=0.0)
    d = tl.exp(moved) * (coefficient / tl.where(s == 0.0, 1.0, s))
    if g_nll is not None:
        d = tl.where(c == y, d - of_nll, d)
    if g_dot is not None:
        d = d - of_dot * tl.load(targets + c, mask=c < classes, other=0.0)
    d = tl.where(read, d * slope, 0.0).to(d_logits.dtype.element_ty)
    tl.store(d_logits + d_start + c.to(tl.int64) * d_class_stride, d, mask=inside)


def forward(rows: Rows, xp: Namespace) -> Forward:
    """0 where not kept."""
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
        forward_kernel[(programs_of(count, plane, sizes),)](
            *arrays, *out, *layout_of(x, plane), classes, rows.softcap, **sizes, enable_fp_fusion=False
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
    plane = plane_of(x) if d_logits is None else None
    d: Any = gradient_like(x, plane) if d_logits is None else d_logits
    if not count:
        return d.reshape(x.shape), None
    targets: Any = contiguous(rows.targets) if g_dot is not None else None
    arrays = (contiguous(rows.labels), targets, None if targets is None else targets.sum(), contiguous(rows.keep))
    per_row = [contiguous(part) for part in (out.total, out.shift, g_nll, g_dot, g_lse)]
    sizes = sizes_of(classes, plane)
    with on_device(x):
        backward_kernel[(programs_of(count, plane, sizes) * triton.cdiv(classes, sizes["BLOCK"]),)](
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


def plane_of(x: Any) -> int | None:
    """How many rows lie side by side, with their classes apart, as those of images; None: too few, or none."""
    plane = xp.plane_of(x)
    return None if plane is None or plane < LEAST_PLANE else plane


def gradient_like(x: Any, plane: int | None) -> Any:
    """In planes where the logits are: what made these would make a copy of any other."""
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    if plane is None:
        return torch.empty((count, classes), dtype=x.dtype, device=x.device)
    made: Any = torch.empty((count // plane, classes, plane), dtype=x.dtype, device=x.device)
    return made.permute(0, 2, 1).reshape(x.shape)


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
        block = min(MOST // rows, triton.next_power_of_2(classes))
        return {"BLOCK": block, "ROWS": rows, "num_warps": max(1, min(8, rows * block // PER_WARP))}
    block = min(MOST, triton.next_power_of_2(classes))
    return {"BLOCK": block, "ROWS": 1, "num_warps": max(1, min(8, block // PER_WARP))}


def on_device(x: Any) -> Any:
    """Triton launches on the current device."""
    is_current = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return contextlib.nullcontext() if is_current else torch.cuda.device(x.device)


LANE = Lane("triton", SOFTMAX, forward, backward)
