"""jax.export with symbols in the place of sizes: one program for every batch, with the numbers of the call itself."""

import numpy as np
import pytest

import maskloss as ml
from tests.backends import named, settings

jax = pytest.importorskip("jax")
jnp = jax.numpy

KERNEL = np.linspace(-1, 1, 35).reshape(7, 5)
CALLS = {
    "plain": lambda x, y: ml.cross_entropy(x, y),
    "gradient": lambda x, y: jax.grad(lambda x: ml.cross_entropy(x, y, mask=y > 0, label_smoothing=0.1))(x),
    "statistics": lambda x, y: ml.cross_entropy(x, y, reduction="mean_over_all", with_stats=True),
    "distributions": lambda x, y: ml.cross_entropy(x, x * x, class_mask=x > 0, z_loss=0.1, reduction="mean_over_all"),
    "smoothing": lambda x, y: ml.cross_entropy(x, y, label_smoothing=0.1, ignore_index=0),
    "label_log_probs": lambda x, y: ml.label_log_probs(x, y),
    "entropy": lambda x, y: ml.entropy(x, mask=y > 0),
    "linear": lambda x, y: jax.grad(lambda x: ml.linear_cross_entropy(x, jnp.asarray(KERNEL), y, mask=y > 0))(x),
    "linear_entropy": lambda x, y: ml.linear_entropy(x, jnp.asarray(KERNEL)),
    "reduce": lambda x, y: ml.reduce(x, mask=x > 0, reduction="mean_over_sequences"),
    "masked_mean": lambda x, y: ml.masked_mean(x, (y > 0)[:, None], axis=0),
    "masked_logsumexp": lambda x, y: ml.masked_logsumexp(x, axis=(0, 1)),
    "masked_softmax": lambda x, y: ml.masked_softmax(x),
}


@pytest.mark.parametrize("shape", ["b, 5", "b, c"])
@pytest.mark.parametrize("name", CALLS)
def test_one_program_for_every_size(backend, name, shape):
    named(backend, "jax")
    if shape == "b, c" and name.startswith("linear"):
        pytest.skip("the kernel says how many features there are")
    rng = np.random.default_rng(0)
    with settings(backend):
        function = CALLS[name]
        like = jax.ShapeDtypeStruct((2, 5), jnp.float64), jax.ShapeDtypeStruct((2,), jnp.int64)
        program = jax.export.export(jax.jit(function))(*jax.export.symbolic_args_specs(like, (shape, "b")))
        for rows in (1, 3000):
            x, y = jnp.asarray(rng.normal(size=(rows, 5))), jnp.asarray(rng.integers(0, 5, rows))
            for a, b in zip(jax.tree.leaves(program.call(x, y)), jax.tree.leaves(function(x, y)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
