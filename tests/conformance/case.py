"""What a case is, and the small arrays that cases share (shared shapes keep tracers' caches warm)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

HALF = ("float16", "bfloat16")
EVERY = ("float32", "float64", *HALF)
COMPILED = ("eager", "autodiff", "jit", "vmap", "compile")


class Case(NamedTuple):
    """Floating inputs are given in float64 and cast to each dtype.

    Under half precision all but logits, soft labels and values are cast to float32. Inputs are arrays (or Python
    numbers to be given as they are), options are not arrays.
    """

    name: str
    why: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any] = MappingProxyType({})
    function: str = "cross_entropy"
    dtypes: tuple[str, ...] = ("float32", "float64")
    modes: tuple[str, ...] = ("eager", "autodiff", "jit", "vmap")  # and "compile": one of the representative few
    layout: str = "plain"  # plain, strided, transposed, broadcast
    fixed: tuple[str, ...] = ()  # inputs that keep their dtype
    held: tuple[str, ...] = ()  # floating inputs that no derivative is taken of
    nonfinite: bool = False  # the formula gives NaN or an infinity, and which of them is nobody's business
    ulps: float = 4.0  # what is allowed; more only where `relaxed` says why
    floor: float = 0.0  # the least size in whose last places an error counts; more than 0 only where `relaxed` says why
    relaxed: str = ""


def normal(seed, *shape, scale=2.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def integers(seed, high, *shape):
    return np.random.default_rng(seed).integers(0, high, shape)


def distribution(seed, *shape):
    p = np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])
    return np.round(p * 64) / 64


def one_hot(labels, classes):
    return np.eye(classes)[labels]


X = normal(1, 3, 4, 5)
Y = integers(2, 5, 3, 4)
MASK = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
WEIGHTS = np.array([[0.5, -1.25, 3.0, 2.0], [1.5, 0.75, 0.0, 1.0], [2.0, 0.25, 1.0, 1.0]])
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 1.5, 0.25])
CLASSES = np.array([True, True, False, True, True])
ALLOWED = np.where(Y == 2, 3, Y)  # labels that CLASSES allows
SOFT = distribution(3, 3, 4, 5)
REDUCTIONS = ("none", "sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences")
