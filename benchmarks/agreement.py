"""A benchmark of a wrong answer is none: before a case is timed, its providers must agree."""

import numpy as np

# Relative, of the value; and of the gradient in the 2-norm, apart for the labels' entries and for the others, which are
# far smaller. A gradient in bfloat16 has 8 bits: each entry is off by up to 2**-9 of itself.
VALUE = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 1e-3}
GRADIENT = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 4e-3}
ROWS = 256


class Disagreement(Exception):
    pass


def value_distance(got, expected):
    got, expected = np.ravel(got), np.ravel(expected)
    scale = np.linalg.norm(expected.astype(float))
    return float(np.linalg.norm(got.astype(float) - expected.astype(float)) / (scale or 1))


def gradient_distance(got, expected, labels):
    """The larger of two relative distances: that of the labels' entries, and that of all the others."""
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
    """got and expected: (value, gradient or None) in NumPy."""
    value_within, gradient_within = tolerance or (VALUE[case.dtype], GRADIENT[case.dtype])
    distances = [("value", value_distance(got[0], expected[0]), value_within)]
    if got[1] is not None:
        if got[1].shape != expected[1].shape:
            raise Disagreement(f"{name}: a gradient of shape {got[1].shape}, {against}'s has {expected[1].shape}")
        distances.append(("gradient", gradient_distance(got[1], expected[1], labels), gradient_within))
    for what, distance, within in distances:
        if not distance <= within:
            raise Disagreement(
                f"{name}: the {what} is {distance:.2g} from {against}'s, relative; accepted is {within:.2g}"
            )
