"""The softmax of reproducible.py in Triton kernels, in exact.py's arithmetic and symbols.

A program takes a row and walks its classes twice: for the largest, and for T, whose terms are integers that depend on
it. Contraction would change bits (u u + C_1 is exact only after u u was rounded), and is off.
"""

# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false, reportInvalidTypeForm=false
# pyright: reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
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
from .kernels import block_of_rows, classes_from, greatest, kept_of, rows_of, start_of
from .launches import contiguous, gradient_for, layout_of, on_device, places_of, plane_of, programs_of, sizes_of

LOG2E, FRACTION = tl.constexpr(exact.LOG2E), tl.constexpr(exact.FRACTION)
B_1, C_1, B_2, C_2 = (tl.constexpr(x) for x in (exact.B_1, exact.C_1, exact.B_2, exact.C_2))
SQUARINGS = tl.constexpr(exact.SQUARINGS)
IN_UNITS, AS_NUMBERS = tl.constexpr(exact.IN_UNITS), tl.constexpr(exact.AS_NUMBERS)
ONE, ONE_UNIT = tl.constexpr(exact.ONE), tl.constexpr(float(exact.ONE))
LOG_TERMS, TERMS = tl.constexpr(tuple(exact.LOG_TERMS[::-1])), tl.constexpr(len(exact.LOG_TERMS))
LOG_UNIT = tl.constexpr(exact.LOG_UNIT)
LN2_UNITS, TO_UNITS = tl.constexpr(exact.LN2_UNITS), tl.constexpr(reproducible.TO_UNITS)
BIAS, LEAST = tl.constexpr(exact.BIAS), tl.constexpr(exact.LEAST)
MAGIC, MAGIC_BITS = tl.constexpr(ROUNDING), tl.constexpr(ROUNDING_BITS)
ROWS = 128


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
def halved(x, exponent, STEP: tl.constexpr):
    high = x >= ONE_UNIT * 2.0 ** (STEP - 0.5)
    return tl.where(high, x * 2.0**-STEP, x), tl.where(high, exponent + STEP, exponent)


@triton.jit
def log_of_units(total):
    """exact.log_of_units."""
    x = total.to(tl.float64)
    exponent = x * 0.0
    x, exponent = halved(x, exponent, 16.0)
    x, exponent = halved(x, exponent, 8.0)
    x, exponent = halved(x, exponent, 4.0)
    x, exponent = halved(x, exponent, 2.0)
    x, exponent = halved(x, exponent, 1.0)
    s = (x - ONE_UNIT) / (x + ONE_UNIT)
    square = s * s
    series = x * 0.0
    for i in tl.static_range(TERMS):
        # Less than 2^51, which MAGIC rounds.
        series = ((series * square + MAGIC) - MAGIC) + LOG_TERMS[i]
    last = (s * series * 4.0 + MAGIC) - MAGIC
    return (exponent * LN2_UNITS + last) * (0.5 / LOG_UNIT)


@triton.jit
def block_of(row_logits, c, class_stride, inside):
    return tl.load(row_logits + c.to(tl.int64) * class_stride, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def forward_kernel(
    logits,
    starts,
    labels,
    keep,
    nll,
    lse,
    total,
    shift,
    plane,
    plane_stride,
    row_stride,
    class_stride,
    classes,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, is_row, start_of_row = rows_of(tl.program_id(0), starts, plane, plane_stride, row_stride, ROWS)
    row_logits = logits + start_of_row
    kept = kept_of(row, is_row, keep)
    end = tl.where(kept, classes, 0)
    nothing = row * 0
    m = nothing.to(tl.float32) - float("inf")
    is_nan = nothing.to(tl.int32)
    for start in range(0, greatest(end, plane), BLOCK):
        c = classes_from(start, plane, BLOCK)
        x = block_of(row_logits, c, class_stride, c < end)
        is_nan = tl.maximum(is_nan, tl.max((x != x).to(tl.int32), axis=0))
        m = tl.maximum(m, tl.max(x, axis=0))
    away_from = tl.where(tl.abs(m) < float("inf"), m, 0.0).to(tl.float64)
    # What each block adds with its MAGIC, modulo 2^64.
    added: tl.constexpr = (BLOCK * MAGIC_BITS + 2**63) % 2**64 - 2**63
    T = nothing
    for start in range(0, greatest(end, plane), BLOCK):
        c = classes_from(start, plane, BLOCK)
        x = block_of(row_logits, c, class_stride, c < end)
        units = exponentials(x.to(tl.float64) - away_from, IN_UNITS) + MAGIC
        T += tl.sum(units.to(tl.int64, bitcast=True), axis=0) - added
    # As `finished`.
    largest = tl.where(is_nan != 0, float("nan"), m).to(tl.float64)
    T = tl.where(kept, tl.where(largest == -float("inf"), 0, T), ONE)
    log_total = log_of_units(tl.where(T > 0, T, ONE))
    value = tl.where(largest == -float("inf"), largest, log_total + largest)
    if nll is not None:
        y = tl.load(labels + row, mask=is_row, other=0)
        x_y = block_of(row_logits, y, class_stride, kept).to(tl.float64)
        loss = tl.where(largest < float("inf"), log_total - (x_y - away_from), value - x_y)
        tl.store(nll + row, tl.where(kept, loss, 0.0), mask=is_row)
    tl.store(lse + row, tl.where(kept, value, 0.0), mask=is_row)
    tl.store(total + row, T, mask=is_row)
    tl.store(shift + row, tl.where(kept, away_from, 0.0), mask=is_row)


@triton.jit
def rows_kernel(
    logits,
    starts,
    labels,
    lse,
    total,
    shift,
    g_nll,
    g_lse,
    scale,
    at_labels,
    plane,
    plane_stride,
    row_stride,
    class_stride,
    count,
    ROWS: tl.constexpr,
):
    """scale_of and label_gradients, of ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    row = tl.where(inside, row, 0)
    T = tl.load(total + row)
    is_number = tl.load(lse + row) < float("inf")
    counted = tl.where(T > 0, T, ONE).to(tl.float64)
    if g_nll is None:
        coefficient = tl.load(g_lse + row)
    elif g_lse is None:
        coefficient = tl.load(g_nll + row)
    else:
        coefficient = tl.load(g_nll + row) + tl.load(g_lse + row)
    coefficient = tl.where(is_number, coefficient, float("nan"))
    coefficient = tl.where((T > 0) | (coefficient != coefficient), coefficient, 0.0)
    tl.store(scale + row, coefficient * (TO_UNITS / counted), mask=inside)
    if g_nll is not None:
        row_logits = logits + start_of(row, starts, plane, plane_stride, row_stride)
        x_y = block_of(row_logits, tl.load(labels + row), class_stride, inside)
        units = exponentials(x_y.to(tl.float64) - tl.load(shift + row), IN_UNITS) + MAGIC
        E = units.to(tl.int64, bitcast=True) - MAGIC_BITS
        d = tl.load(g_nll + row) * tl.where(T > 0, (E - T).to(tl.float64) / counted, -1.0)
        if g_lse is not None:
            d = d + tl.load(g_lse + row) * tl.where(T > 0, E.to(tl.float64) / counted, 0.0)
        tl.store(at_labels + row, tl.where(is_number, d, float("nan")), mask=inside)


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
    plane,
    plane_stride,
    row_stride,
    class_stride,
    d_plane_stride,
    d_row_stride,
    d_class_stride,
    classes,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, start, d_start, c, is_row, inside, read = block_of_rows(
        starts, keep, plane, plane_stride, row_stride, d_plane_stride, d_row_stride, classes, BLOCK, ROWS
    )
    x = block_of(logits + start, c, class_stride, read)
    away = x.to(tl.float64) - tl.load(shift + row, mask=is_row, other=0.0)
    d = exponentials(away, AS_NUMBERS) * tl.load(scale + row, mask=is_row, other=0.0)
    if at_labels is not None:
        y = tl.load(labels + row, mask=is_row, other=0)
        d = tl.where(c == y, tl.load(at_labels + row, mask=is_row, other=0.0), d)
    d = tl.where(read & ~(tl.abs(d) < LEAST), d, 0.0)
    d = d.to(tl.float32).to(d_logits.dtype.element_ty)
    tl.store(d_logits + d_start + c.to(tl.int64) * d_class_stride, d, mask=inside)


def forward(rows: Rows, xp: Namespace) -> Forward:
    """0 where not kept."""
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    nll, lse, total, shift = (
        torch.empty(x.shape[:-1], dtype=dtype, device=x.device) if asked else None
        for asked, dtype in (
            (rows.labels is not None, rows.dtype),
            (True, rows.dtype),
            (True, torch.int64),
            (True, rows.dtype),
        )
    )
    if count:
        plane = plane_of(x)
        sizes = sizes_of(classes, plane)
        given = (*places_of(x, plane), contiguous(rows.labels), contiguous(rows.keep), nll, lse, total, shift)
        with on_device(x):
            forward_kernel[(programs_of(count, plane, sizes),)](
                *given, *layout_of(x, plane), classes, **sizes, enable_fp_fusion=False
            )
    return Forward(nll, None, lse, total, shift, None)


def backward(
    rows: Rows, out: Forward, g: Any, *, targets_too: bool, xp: Namespace, d_logits: Array | None = None
) -> tuple[Array, None]:
    x: Any = rows.logits
    count, classes = math.prod(x.shape[:-1]), x.shape[-1]
    plane, d = gradient_for(x, d_logits)
    if not count:
        return d.reshape(x.shape), None
    g_nll, _, g_lse = map(contiguous, g)
    labels, shift = contiguous(rows.labels), contiguous(out.shift)
    scale = torch.empty(count, dtype=rows.dtype, device=x.device)
    at_labels = None if g_nll is None else torch.empty_like(scale)
    places, layout, sizes = places_of(x, plane), layout_of(x, plane), sizes_of(classes, plane)
    off = {"enable_fp_fusion": False}
    with on_device(x):
        per_row = (labels, contiguous(out.lse), contiguous(out.total), shift, g_nll, g_lse, scale, at_labels)
        rows_kernel[(triton.cdiv(count, ROWS),)](*places, *per_row, *layout, count, ROWS=ROWS, **off)
        per_row = (labels, at_labels, contiguous(rows.keep), shift, scale)
        backward_kernel[(programs_of(count, plane, sizes) * triton.cdiv(classes, sizes["BLOCK"]),)](
            *places, *per_row, d, *layout, *layout_of(d, plane)[1:], classes, **sizes, **off
        )
    return d.reshape(x.shape), None


LANE = Lane("triton", SOFTMAX, forward, backward)
