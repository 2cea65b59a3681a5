"""The softmax of reproducible.py in Triton kernels, in exact.py's arithmetic and symbols.

A program takes a row and walks its classes twice: for the largest, and for T, whose terms are integers that depend on
it. What is computed of these two, a few numbers a row, is computed by the functions that every library calls.
Contraction would change bits (u u + C_1 is exact only after u u was rounded), and is off.
"""

# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false, reportInvalidTypeForm=false
# pyright: reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# (A kernel is no Python, and Triton has no annotations.)

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .._arrays import Array, Namespace
from .._arrays.standard import MAGIC as ROUNDING
from .._arrays.standard import MAGIC_BITS as ROUNDING_BITS
from .._engine.lanes import Lane
from .._math import exact, reproducible
from .._math.reproducible import SOFTMAX, Forward
from .._math.rows import RowFunction, Rows
from .kernels import contiguous, on_device, places_of, sizes_of, start_of, strides_of

LOG2E, FRACTION = tl.constexpr(exact.LOG2E), tl.constexpr(exact.FRACTION)
B_1, C_1, B_2, C_2 = (tl.constexpr(x) for x in (exact.B_1, exact.C_1, exact.B_2, exact.C_2))
SQUARINGS = tl.constexpr(exact.SQUARINGS)
IN_UNITS, AS_NUMBERS, ONE = (tl.constexpr(x) for x in (exact.IN_UNITS, exact.AS_NUMBERS, exact.ONE))
BIAS, LEAST = tl.constexpr(exact.BIAS), tl.constexpr(exact.LEAST)
MAGIC, MAGIC_BITS = tl.constexpr(ROUNDING), tl.constexpr(ROUNDING_BITS)


def uncovered(function: RowFunction, rows: Rows) -> str | None:
    """Why these kernels cannot compute the rows."""
    plain = rows.targets is rows.class_mask is rows.softcap is rows.part is None
    if function is SOFTMAX and plain and rows.logits.shape[-1]:
        return None
    accepted = "with reproducible=True its kernels cover class indices without label_smoothing, class_mask, softcap"
    return f"{accepted} and class_shard; None chooses what covers the call"


@triton.jit
def exponentials(d, POWER: tl.constexpr):
    """exact.exponentials_into, its operations in its order."""
    magic: tl.constexpr = FRACTION * (MAGIC + BIAS + POWER)  # no float32, as a variable would be
    t = tl.maximum(d * LOG2E, -(BIAS + POWER) * FRACTION)
    k = t + magic
    f = t - (k - magic)
    u = f + B_1
    v = f + B_2
    q = (u * u + C_1) * (v * v + C_2)
    for _ in range(SQUARINGS):
        q = q * q
    return q * (k.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)


@triton.jit
def block_of(row_logits, c, class_stride, inside):
    return tl.load(row_logits + c.to(tl.int64) * class_stride, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def forward_kernel(logits, starts, keep, largest, total, row_stride, class_stride, classes, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + start_of(row, starts, row_stride)
    end = classes
    if keep is not None:
        end = tl.where(tl.load(keep + row) != 0, classes, 0)
    m = tl.full((), -float("inf"), tl.float32)
    is_nan = tl.zeros((), tl.int32)
    for start in range(0, end, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = block_of(row_logits, c, class_stride, c < classes)
        is_nan = tl.maximum(is_nan, tl.max((x != x).to(tl.int32), axis=0))
        m = tl.maximum(m, tl.max(x, axis=0))
    # Where m is infinite or NaN, T means nothing, and `finished` puts another in its place.
    shift = tl.where(tl.abs(m) < float("inf"), m, 0.0).to(tl.float64)
    # What each block adds with its MAGIC, modulo 2^64.
    added: tl.constexpr = (BLOCK * MAGIC_BITS + 2**63) % 2**64 - 2**63
    T = tl.zeros((), tl.int64)
    for start in range(0, end, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = block_of(row_logits, c, class_stride, c < classes)
        units = exponentials(x.to(tl.float64) - shift, IN_UNITS) + MAGIC
        T += tl.sum(units.to(tl.int64, bitcast=True), axis=0) - added
    kept = end > 0
    tl.store(largest + row, tl.where(kept, tl.where(is_nan != 0, float("nan"), m.to(tl.float64)), 0.0))
    tl.store(total + row, tl.where(kept, T, ONE))


@triton.jit
def backward_kernel(
    logits,
    starts,
    labels,
    at_labels,
    keep,
    shift,
    scale,
    d_logits,
    row_stride,
    class_stride,
    d_row_stride,
    classes,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(classes, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = c < classes
    read = inside
    if keep is not None:
        read = c < tl.where(tl.load(keep + row) != 0, classes, 0)
    x = block_of(logits + start_of(row, starts, row_stride), c, class_stride, read)
    d = exponentials(x.to(tl.float64) - tl.load(shift + row), AS_NUMBERS) * tl.load(scale + row)
    if at_labels is not None:
        d = tl.where(c == tl.load(labels + row), tl.load(at_labels + row), d)
    d = tl.where(read & ~(tl.abs(d) < LEAST), d, 0.0)
    d = d.to(tl.float32).to(d_logits.dtype.element_ty)
    tl.store(d_logits + row * d_row_stride + c, d, mask=inside)


def label_logits(rows: Rows, *, xp: Namespace) -> Array | None:
    return None if rows.labels is None else xp.astype(xp.take_label(rows.logits, rows.labels), rows.dtype)


def forward(rows: Rows, xp: Namespace) -> Forward:
    """What is not kept has numbers that mean nothing."""
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    largest, total = (torch.empty(x.shape[:-1], dtype=dtype, device=x.device) for dtype in (rows.dtype, torch.int64))
    if count:
        given = (*places_of(x), contiguous(rows.keep), largest, total, *strides_of(x), classes)
        with on_device(x):
            forward_kernel[(count,)](*given, **sizes_of(classes), enable_fp_fusion=False)
    return reproducible.finished(rows, largest, total, label_logits(rows, xp=xp), None, None, xp)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, None]:
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    d: Any = torch.empty((count, classes), dtype=x.dtype, device=x.device) if d_logits is None else d_logits
    if not count:
        return d.reshape(x.shape), None
    at_labels = None
    if g[0] is not None:
        at_labels = reproducible.label_gradients(label_logits(rows, xp=xp), out, g, xp=xp)
    per_row = (rows.labels, at_labels, rows.keep, out.shift, reproducible.scale_of(out, g, xp=xp))
    sizes = sizes_of(classes)
    with on_device(x):
        backward_kernel[(count * triton.cdiv(classes, sizes["BLOCK"]),)](
            *places_of(x),
            *map(contiguous, per_row),
            d,
            *strides_of(x),
            d.stride(0),
            classes,
            **sizes,
            enable_fp_fusion=False,
        )
    return d.reshape(x.shape), None


LANE = Lane("triton", SOFTMAX, forward, backward)
