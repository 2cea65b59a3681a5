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
def start_of(row, starts, row_stride):
    return row * row_stride if starts is None else tl.load(starts + row)


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
    row_stride,
    class_stride,
    classes,
    softcap,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + start_of(row, starts, row_stride)
    end = classes
    if keep is not None:
        end = tl.where(tl.load(keep + row) != 0, classes, 0)
    m = tl.full((), -LARGEST, tl.float32)
    # In float64, a few numbers a block and a row: roundings of equal blocks would add up, and log s rounds at its own
    # size, but x_y - m, from which it is taken, may be large.
    s = tl.zeros((), tl.float64)
    T = tl.zeros((), tl.float64)
    a = tl.zeros((), tl.float64)
    for start in range(0, end, BLOCK):
        c = start + tl.arange(0, BLOCK)
        inside = c < classes
        x, _ = block_of(row_logits, c, class_stride, inside, softcap)
        # Finite, because inf - inf is NaN: a row of -inf has the total 0, and one with +inf the total inf.
        higher = tl.minimum(tl.maximum(m, tl.max(x, axis=0)), LARGEST)
        s = s * tl.exp(m - higher).to(tl.float64) + tl.sum(tl.exp(x - higher), axis=0).to(tl.float64)
        if targets is not None:
            t = tl.load(targets + c, mask=inside, other=0.0)
            # A cost that is infinite but weighs nothing is 0; so is T (m - m') before the first block.
            parts = tl.where((x == -float("inf")) & (t == 0.0), 0.0, t * (x - higher))
            a = a + tl.where(T == 0.0, 0.0, T * (m - higher).to(tl.float64)) + tl.sum(parts, axis=0).to(tl.float64)
            T = T + tl.sum(t, axis=0).to(tl.float64)
        m = higher
    kept = end > 0
    log_sum = tl.log(tl.where(s == 0.0, 1.0, s))
    if nll is not None:
        y = tl.load(labels + row).to(tl.int64)
        is_class = (y >= 0) & (y < classes)
        x_y, _ = block_of(row_logits, tl.where(is_class, y, 0), class_stride, kept, softcap)
        value = tl.where(is_class, log_sum - (x_y - m).to(tl.float64), float("nan"))
        tl.store(nll + row, tl.where(kept, value, 0.0).to(tl.float32))
    if dot is not None:
        tl.store(dot + row, tl.where(kept, T * log_sum - a, 0.0).to(tl.float32))
    if lse is not None:
        value = tl.where(s == 0.0, -float("inf"), m.to(tl.float64) + log_sum)
        tl.store(lse + row, tl.where(kept, value, 0.0).to(tl.float32))
    tl.store(total + row, tl.where(kept, s, 1.0).to(tl.float32))
    tl.store(shift + row, tl.where(kept, m, 0.0))


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
    row_stride,
    class_stride,
    d_row_stride,
    classes,
    softcap,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(classes, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = c < classes
    row_logits = logits + start_of(row, starts, row_stride)
    read = inside
    if keep is not None:
        read = c < tl.where(tl.load(keep + row) != 0, classes, 0)
    x, slope = block_of(row_logits, c, class_stride, read, softcap)
    s = tl.load(total + row)
    coefficient = tl.zeros((), tl.float32)
    if g_nll is not None:
        coefficient += tl.load(g_nll + row)
    if g_lse is not None:
        coefficient += tl.load(g_lse + row)
    if g_dot is not None:
        coefficient += tl.load(g_dot + row) * tl.load(targets_total)
    if g_nll is not None:
        y = tl.load(labels + row).to(tl.int64)
        coefficient = tl.where((y >= 0) & (y < classes), coefficient, float("nan"))
    d = tl.exp(x - tl.load(shift + row)) * (coefficient / tl.where(s == 0.0, 1.0, s))
    if g_nll is not None:
        d = tl.where(c == y, d - tl.load(g_nll + row), d)
    if g_dot is not None:
        d = d - tl.load(g_dot + row) * tl.load(targets + c, mask=inside, other=0.0)
    d = tl.where(read, d * slope, 0.0)
    tl.store(d_logits + row * d_row_stride + c, d.to(d_logits.dtype.element_ty), mask=inside)


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
    arrays = (*places_of(x), contiguous(rows.labels), contiguous(rows.targets), contiguous(rows.keep))
    sizes = (*strides_of(x), classes, rows.softcap)
    with on_device(x):
        # Contraction would round differently from one compiler, or one kernel, to the next.
        forward_kernel[(count,)](*arrays, *out, *sizes, **sizes_of(classes), enable_fp_fusion=False)
    return out


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, Array | None]:
    if targets_too and g[1] is not None:
        return UNSHIFTED.backward(rows, out, g, targets_too=True, xp=xp, d_logits=d_logits)
    g_nll, g_dot, g_lse = g
    x: Any = rows.logits
    classes, count = x.shape[-1], math.prod(x.shape[:-1])
    d: Any = torch.empty((count, classes), dtype=x.dtype, device=x.device) if d_logits is None else d_logits
    if not count:
        return d.reshape(x.shape), None
    targets: Any = contiguous(rows.targets) if g_dot is not None else None
    arrays = (contiguous(rows.labels), targets, None if targets is None else targets.sum(), contiguous(rows.keep))
    per_row = [contiguous(part) for part in (out.total, out.shift, g_nll, g_dot, g_lse)]
    sizes = sizes_of(classes)
    with on_device(x):
        backward_kernel[(count * triton.cdiv(classes, sizes["BLOCK"]),)](
            *places_of(x),
            *arrays,
            *per_row,
            d,
            *strides_of(x),
            d.stride(0),
            classes,
            rows.softcap,
            **sizes,
            enable_fp_fusion=False,
        )
    return d.reshape(x.shape), None


def places_of(x: Any) -> tuple[Any, Any]:
    """The logits, and where each row begins; None: at equal distances."""
    x = x.detach()
    if xp.flattens(x):
        return x, None
    starts: Any = torch.zeros((), dtype=torch.int64, device=x.device)
    for length, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        starts = starts.unsqueeze(-1) + stride * torch.arange(length, device=x.device)
    return x, starts.reshape(-1)


def strides_of(x: Any) -> tuple[int, int]:
    """Between rows that lie at equal distances, and between classes."""
    # That of a single row as well: Triton chooses the order of a sum by it.
    strides = [stride for length, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if length != 1]
    return (strides or [0, *x.stride()[:-1]])[-1], x.stride(-1)


def contiguous(x: Any) -> Any:
    return None if x is None else x.detach().contiguous()


def sizes_of(classes: int) -> dict[str, int]:
    block = min(MOST, triton.next_power_of_2(classes))
    return {"BLOCK": block, "num_warps": max(1, min(8, block // PER_WARP))}


def on_device(x: Any) -> Any:
    """Triton launches on the current device."""
    is_current = not x.is_cuda or x.device.index == torch.cuda.current_device()
    return contextlib.nullcontext() if is_current else torch.cuda.device(x.device)


LANE = Lane("triton", SOFTMAX, forward, backward)
