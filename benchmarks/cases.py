"""What is measured: the cases as data, their arrays, and the least work that each is."""

import zlib
from typing import NamedTuple

import numpy as np

BERT, LLAMA, SMALL, NARROW = (2048, 30522), (512, 128256), (256, 1000), (8192, 32)
SHOWN, LARGE = (BERT, LLAMA, SMALL, NARROW), (4096, 50304)
OTHERS = ((1024, 50257), (256, 256000), (333, 9973))
UNTUNED = ((100, 5), (31, 7777), (1, 1000000))  # chosen before they were measured, and nothing was tuned to them
DIRECTIONS = FORWARD, BOTH = ("forward", "forward + backward")
DTYPES = ("float32", "bfloat16", "float64")
FRACTIONS = (100, 70, 50, 15, 2, 0)
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float64": 8}
NO_LABEL = -100
SERIES = 2**24  # logits of each case of the series of classes
QUICK = 16  # a quick run divides rows and classes by this


class Case(NamedTuple):
    rows: int
    classes: int
    dtype: str = "float32"
    kept: int | None = None  # in percent; None: no mask is given
    layout: str = "scattered"  # "prefix": the first rows are kept; "padded": sequences, each with a tail of padding
    logits: str = "normal"  # "peaked": one class stands out by 20, the label's or another
    reduction: str = "mean"  # "none" has random weights as its upstream gradient
    upstream: float = 1.0
    features: int | None = None  # of a projection, whose loss it then is
    cold: bool = False  # the cache is emptied before each call
    read: bool = True  # the gradient, once it is made: what is 0 in it may be memory that comes as it is read


class Arrays(NamedTuple):
    """What every provider is given: `ignored` are the labels with NO_LABEL where the mask is False."""

    inputs: tuple  # the logits; of a projection, hidden and kernel
    labels: object
    mask: object
    ignored: object
    upstream: object


def sizes_of(case):
    return [str(n) for n in (case.rows, case.features, case.classes) if n]


def name_of(case):
    kept = "no mask" if case.kept is None else f"{case.kept} % kept"
    parts = ["x".join(sizes_of(case)), case.dtype, kept]
    parts += [case.layout] * (case.layout != "scattered") + [case.logits] * (case.logits != "normal")
    parts += ["none"] * (case.reduction != "mean") + [f"upstream {case.upstream:g}"] * (case.upstream != 1)
    return ", ".join(parts + ["cold cache"] * case.cold + ["gradient not read"] * (not case.read))


def mask_of(case, rng):
    """bool, in the entries' shape, with `case.kept` percent True; at least one, unless that is 0."""
    if case.layout == "padded":
        sequences = 16 if case.rows % 16 == 0 else 1
        length = case.rows // sequences
        # Lengths rise evenly from 0 to twice the mean, or fall short of the full length by as much.
        half = min(case.kept, 100 - case.kept) / 100
        lengths = length * (case.kept / 100 + np.linspace(-half, half, sequences))
        return np.arange(length) < np.rint(lengths)[:, None]
    count = max(round(case.rows * case.kept / 100), int(case.kept > 0))
    mask = np.arange(case.rows) < count
    return mask if case.layout == "prefix" else rng.permutation(mask)


def arrays_of(case):
    """NumPy arrays, the inputs in float32: each library makes its own of them."""
    rng = np.random.default_rng(zlib.crc32(name_of(case).encode()))
    mask = None if case.kept is None else mask_of(case, rng)
    entries = (case.rows,) if mask is None else mask.shape
    # Repeated with a prime period, since to draw 62 million numbers takes longer than to measure with them.
    some = rng.standard_normal(1_000_003, dtype=np.float32)
    labels = rng.integers(0, case.classes, entries)
    if case.features:
        kernel = np.resize(some[::-1] / np.float32(case.features**0.5), (case.classes, case.features))
        inputs = np.resize(some, (case.rows, case.features)), kernel
    else:
        inputs = (np.resize(some, (*entries, case.classes)),)
    if case.logits == "peaked":
        flat, peaks = inputs[0].reshape(-1, case.classes), labels.reshape(-1)
        flat[np.arange(case.rows), (peaks + np.arange(case.rows) % 2) % case.classes] += 20
    ignored = labels if mask is None else np.where(mask, labels, NO_LABEL)
    upstream = rng.standard_normal(entries, dtype=np.float32) if case.reduction == "none" else None
    return Arrays(inputs, labels, mask, ignored, upstream)


def kept_rows(case, mask):
    return case.rows if mask is None else int(mask.sum())


def least_work(case, mask, direction):
    """What no implementation does without: the kept logits read once, the dense gradient written once.

    Of a projection, whose loss and gradients they are, the operations of three products of kept rows.
    """
    if case.features:
        return {"operations": 6 * kept_rows(case, mask) * case.features * case.classes}
    size = case.classes * ITEMSIZE[case.dtype]
    return {"read": kept_rows(case, mask) * size, "write": case.rows * size * (direction != FORWARD)}


def shown():
    """The grid, the page's first table, which comes first in a run."""
    return [Case(*shape, kept=kept) for shape in SHOWN for kept in (None, 15)]


def is_shown(case):
    return case in shown()


def others(group):
    """NumPy's are fewer: its peers take a second a call, on one core."""
    slow = group == "numpy"
    bert, small = Case(*BERT), Case(*SMALL)
    cases = [bert._replace(kept=k) for k in FRACTIONS if not (slow and k in (70, 2))]
    cases += [Case(*shape) for shape in OTHERS[slow:]] + [small._replace(kept=k) for k in (100, 0)]
    cases += [small._replace(dtype=d) for d in DTYPES[1:]]
    cases += [bert._replace(dtype="bfloat16"), bert._replace(kept=15, layout="prefix")]
    cases += [small._replace(kept=15, reduction="none"), bert._replace(kept=15, read=False)]
    cases += [Case(*shape) for shape in UNTUNED]
    if not slow:
        cases += [bert._replace(kept=2, read=False), Case(*LARGE, "bfloat16")]
        cases += [Case(*OTHERS[0], kept=15), bert._replace(dtype="bfloat16", kept=15), Case(*LLAMA, "bfloat16")]
        cases += [bert._replace(dtype="float64"), bert._replace(kept=15, reduction="none")]
        cases += [bert._replace(kept=15, layout="padded"), bert._replace(logits="peaked")]
        cases += [bert._replace(kept=15, upstream=3.0)]
    return cases + rows_series() + classes_series()[:: 2 if slow else 1]


def rows_series():
    return [Case(rows, BERT[1]) for rows in (8, 64, 512, 2048)]


def classes_series():
    return [Case(SERIES >> power, 1 << power) for power in (10, 12, 15, 16, 18, 20)]


def cases_of(group):
    """Each case once, those of the grid first."""
    return list(dict.fromkeys(shown() + others(group)))


def quick(case):
    return case._replace(rows=max(case.rows // QUICK, 16), classes=max(case.classes // QUICK // 16, 4))
