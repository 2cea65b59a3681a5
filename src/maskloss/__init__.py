"""Masked cross-entropy and reductions: one definition for NumPy, PyTorch, JAX and CuPy."""

from ._shards import ClassShard
from .differentiation import value_and_grad
from .exponentials import masked_log_softmax, masked_logsumexp, masked_softmax
from .linear import ChunkSizeWarning, linear_cross_entropy, linear_entropy, linear_label_log_probs
from .losses import cross_entropy, denominator, entropy, label_log_probs
from .reductions import masked_max, masked_mean, masked_min, masked_std, masked_sum, masked_var, reduce
from .stats import LossStats

__version__ = "0.1.0"

__all__ = [
    "ChunkSizeWarning",
    "ClassShard",
    "LossStats",
    "cross_entropy",
    "denominator",
    "entropy",
    "label_log_probs",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_label_log_probs",
    "masked_log_softmax",
    "masked_logsumexp",
    "masked_max",
    "masked_mean",
    "masked_min",
    "masked_softmax",
    "masked_std",
    "masked_sum",
    "masked_var",
    "reduce",
    "value_and_grad",
]
