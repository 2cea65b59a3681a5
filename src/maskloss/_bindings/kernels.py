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

import triton
import triton.language as tl

from .._math.softmax import LARGEST as LARGEST_NUMBERS

LARGEST = tl.constexpr(LARGEST_NUMBERS["float32"])


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
def kept_of(row, is_row, keep):
    return is_row if keep is None else is_row & (tl.load(keep + row, mask=is_row, other=0) != 0)


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
    d_start = rows_of(program, None, plane, d_plane_stride, d_row_stride, ROWS)[2]
    c = classes_from((tl.program_id(0) % blocks) * BLOCK, plane, BLOCK)
    kept = kept_of(row, is_row, keep)
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
def raised(m, x):
    """Finite, because inf - inf is NaN: a row of -inf has the total 0, and one with +inf the total inf."""
    return tl.minimum(tl.maximum(m, tl.max(x, axis=0)), LARGEST)


@triton.jit
def total_with(x, s, m, higher):
    """s, which is away from m, with the terms of x, away from the higher shift."""
    return s * tl.exp(m - higher).to(tl.float64) + tl.sum(tl.exp(x - higher), axis=0).to(tl.float64)


@triton.jit
def cost_of(row_logits, y, m, log_sum, class_stride, classes, kept, softcap):
    """log s - (x_y - m)"""
    is_class = (y >= 0) & (y < classes)
    x_y, _ = block_of(row_logits, tl.where(is_class, y, 0), class_stride, kept, softcap)
    value = tl.where(is_class, log_sum - (x_y - m).to(tl.float64), float("nan"))
    return tl.where(kept, value, 0.0)


@triton.jit
def share_of(row, share, divisor):
    """share / divisor; of nothing kept, whose loss is 0, share."""
    g = (row * 0).to(tl.float64) + share
    return g if divisor is None else g / tl.maximum(tl.load(divisor), 1).to(tl.float64)


@triton.jit
def forward_kernel(
    logits,
    starts,
    labels,
    targets,
    keep,
    share,
    divisor,
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
    row, is_row, start_of_row = rows_of(tl.program_id(0), starts, plane, plane_stride, row_stride, ROWS)
    row_logits = logits + start_of_row
    kept = kept_of(row, is_row, keep)
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
        higher = raised(m, x)
        s = total_with(x, s, m, higher)
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
        value = cost_of(row_logits, y, m, log_sum, class_stride, classes, kept, softcap)
        if share is not None:
            value = value * share_of(row, share, divisor)
        tl.store(nll + row, value.to(tl.float32), mask=is_row)
    if dot is not None:
        tl.store(dot + row, tl.where(kept, T * log_sum - a, 0.0).to(tl.float32), mask=is_row)
    if lse is not None:
        value = tl.where(s == 0.0, -float("inf"), m.to(tl.float64) + log_sum)
        tl.store(lse + row, tl.where(kept, value, 0.0).to(tl.float32), mask=is_row)
    if total is not None:
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


@triton.jit
def loss_and_gradient_kernel(
    logits,
    starts,
    labels,
    keep,
    g_nll,
    share,
    divisor,
    nll,
    total,
    shift,
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
    """The gradient of g_nll nll; without g_nll that of share nll / divisor, which nll is then.

    A row is walked twice by its own program, the second time out of the cache, and may be written over.
    """
    row, is_row, start_of_row = rows_of(tl.program_id(0), starts, plane, plane_stride, row_stride, ROWS)
    d_start = rows_of(tl.program_id(0), None, plane, d_plane_stride, d_row_stride, ROWS)[2]
    row_logits = logits + start_of_row
    kept = kept_of(row, is_row, keep)
    end = tl.where(kept, classes, 0)
    m = (row * 0).to(tl.float32) - LARGEST
    s = (row * 0).to(tl.float64)
    for start in range(0, greatest(end, plane), BLOCK):
        c = classes_from(start, plane, BLOCK)
        x, _ = block_of(row_logits, c, class_stride, c < end, None)
        higher = raised(m, x)
        s = total_with(x, s, m, higher)
        m = higher
    counted = tl.where(s == 0.0, 1.0, s)
    y = tl.load(labels + row, mask=is_row, other=0).to(tl.int64)
    value = cost_of(row_logits, y, m, tl.log(counted), class_stride, classes, kept, None)
    if g_nll is not None:
        g = tl.load(g_nll + row, mask=is_row, other=0.0).to(tl.float64)
    else:
        g = share_of(row, share, divisor)
        value = value * g
    tl.store(nll + row, value.to(tl.float32), mask=is_row)
    if total is not None:
        tl.store(total + row, tl.where(kept, s, 1.0).to(tl.float32), mask=is_row)
        tl.store(shift + row, tl.where(kept, m, 0.0), mask=is_row)
    g = tl.where((y >= 0) & (y < classes), g, float("nan")).to(tl.float32)
    scale = g / counted.to(tl.float32)
    last = tl.where(is_row, classes, 0)
    for start in range(0, classes, BLOCK):
        c = classes_from(start, plane, BLOCK)
        x, _ = block_of(row_logits, c, class_stride, c < end, None)
        d = tl.exp(x - m) * scale
        d = tl.where(c < end, tl.where(c == y, d - g, d), 0.0).to(d_logits.dtype.element_ty)
        tl.store(d_logits + d_start + c.to(tl.int64) * d_class_stride, d, mask=c < last)


@triton.jit
def scale_kernel(
    d_logits,
    keep,
    factor,
    plane,
    d_plane_stride,
    d_row_stride,
    d_class_stride,
    classes,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradient times the factor in its place; nothing, where that is 1."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        _, _, d_start, c, _, _, read = block_of_rows(
            None, keep, plane, d_plane_stride, d_row_stride, d_plane_stride, d_row_stride, classes, BLOCK, ROWS
        )
        places = d_logits + d_start + c.to(tl.int64) * d_class_stride
        d = tl.load(places, mask=read, other=0.0).to(tl.float32) * by
        tl.store(places, d.to(d_logits.dtype.element_ty), mask=read)
