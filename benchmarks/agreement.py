"""A benchmark of a wrong answer is none: before a case is timed, its providers must agree."""

import numpy as np

# Relative, of the value; and of each gradient in the 2-norm. A gradient in bfloat16 has 8 bits: each entry is off by up
# to 2**-9 of itself.
VALUE = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 1e-3}
GRADIENT = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 4e-3}
ROWS = 256


class Disagreement(Exception):
    pass


def distance(got, expected):
    got, expected = np.ravel(got), np.ravel(expected)
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) or 1))


def distance_by_labels(got, expected, labels):
    """The larger of two: that of the labels' entries, and that of all the others, which are far smaller."""
    classes = expected.shape[-1]
    got, expected, labels = got.reshape(-1, classes), expected.reshape(-1, classes), labels.reshape(-1)
    squares = np.zeros((2, 2))
    for start in range(0, len(labels), ROWS):
        rows, at = slice(start, start + ROWS), labels[start : start + ROWS, None]
        for i, part in enumerate((got[rows] - expected[rows], expected[rows].copy())):
            squares[i, 0] += float((np.take_along_axis(part, at, 1) ** 2).sum())
            np.put_along_axis(part, at, 0, 1)
            squares[i, 1] += float(np.vdot(part, part))
    off, scale = np.sqrt(squares)
    # What is not the label's is all rounding where it is 1e-12 of it.
    scale = np.where(scale > 1e-6 * scale.max(), scale, scale.max())
    return float(np.max(off / np.where(scale == 0, 1, scale)))


def check(case, name, got, expected, labels, *, tolerance=None, against="maskloss"):
    """got and expected: the value and, if it has any, the gradients, in NumPy."""
    value_within, gradient_within = tolerance or (VALUE[case.dtype], GRADIENT[case.dtype])
    for i, (found, wanted) in enumerate(zip(got, expected, strict=False)):
        what, within = ("gradient", gradient_within) if i else ("value", value_within)
        if i and found.shape != wanted.shape:
            raise Disagreement(f"{name}: a gradient of shape {found.shape}, {against}'s has {wanted.shape}")
        of_logits = i and not case.features
        off = distance_by_labels(found, wanted, labels) if of_logits else distance(found, wanted)
        if not off <= within:
            raise Disagreement(f"{name}: the {what} is {off:.2g} from {against}'s, relative; accepted is {within:.2g}")
