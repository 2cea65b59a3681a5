"""What a type checker makes of the public functions: pyright reads this file, and nothing runs it."""

# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnknownMemberType=false
# (An error that is expected and missing is one; JAX's own annotations are partial.)

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import torch

import maskloss as ml

tensor, labels = torch.zeros(2, 3), torch.tensor([0, 1])
assert_type(ml.cross_entropy(tensor, labels), torch.Tensor)
assert_type(ml.cross_entropy(tensor, labels, axis=1, mask=labels > 0, weights=2.0, reduction="none"), torch.Tensor)
assert_type(ml.cross_entropy(tensor, labels, with_stats=True), tuple[torch.Tensor, ml.LossStats])
assert_type(ml.linear_cross_entropy(tensor, tensor, labels, kernel_layout="vd"), torch.Tensor)
assert_type(ml.linear_cross_entropy(tensor, tensor, labels, with_stats=True)[1].accuracy, Any)
assert_type(ml.label_log_probs(tensor, labels), torch.Tensor)
assert_type(ml.masked_mean(tensor, labels[:, None] > 0, axis=-1), torch.Tensor)
assert_type(ml.denominator(labels), torch.Tensor)
assert_type(ml.value_and_grad(ml.cross_entropy)(tensor, labels), tuple[Any, Any])

array: npt.NDArray[np.float32] = np.zeros((2, 3), np.float32)
assert_type(ml.cross_entropy(array, np.asarray([0, 1])), npt.NDArray[np.float32])
assert_type(ml.cross_entropy(jnp.zeros((2, 3)), jnp.asarray([0, 1])), jax.Array)

ml.cross_entropy(tensor, labels, reduction="average")  # pyright: ignore[reportArgumentType]
ml.cross_entropy(tensor, labels, ignored=0)  # pyright: ignore[reportCallIssue]
