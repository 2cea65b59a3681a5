"""JAX: gradients accumulated in `jax.lax.scan`, with the exact mean

Micro-batches keep different numbers of tokens, so that the mean of their means, and of
their gradients, is not that of the whole batch. Sum instead, and divide once: the carry
of the scan holds the sum of the gradients, and the sum of the `LossStats`, which starts
at `LossStats.zeros`.
"""

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install jax") from None

import maskloss as ml

MICRO_BATCHES, ROWS, LENGTH, FEATURES, CLASSES = 6, 4, 10, 16, 31


def loss_of(parameters, features, labels, mask, reduction):
    logits = jnp.tanh(features @ parameters[0]) @ parameters[1]
    options = {"mask": mask, "reduction": reduction, "with_stats": True}
    return ml.cross_entropy(logits, labels, **options)


gradients_and_stats = jax.grad(loss_of, has_aux=True)


@jax.jit
def accumulated(parameters, batch):
    def add(carry, micro_batch):
        gradients, stats = gradients_and_stats(parameters, *micro_batch, "sum")
        return (jax.tree.map(jnp.add, carry[0], gradients), carry[1] + stats), None

    nothing = jax.tree.map(jnp.zeros_like, parameters), ml.LossStats.zeros(batch[0])
    (gradients, stats), _ = jax.lax.scan(add, nothing, batch)
    return jax.tree.map(lambda g: g / stats.denominator, gradients), stats


rng = np.random.default_rng(0)
sizes = (FEATURES, FEATURES), (FEATURES, CLASSES)
parameters = [jnp.asarray(rng.normal(size=size) / 4, "float32") for size in sizes]
features = rng.normal(size=(MICRO_BATCHES, ROWS, LENGTH, FEATURES)).astype("float32")
labels = rng.integers(CLASSES, size=features.shape[:-1])
mask = rng.random(labels.shape) < np.linspace(0, 1, MICRO_BATCHES)[:, None, None]
gradients, stats = accumulated(parameters, (features, labels, mask))

# The gradient of the whole batch at once, and the mean of the micro-batches' gradients.
whole = (np.concatenate(x) for x in (features, labels, mask))
expected, _ = gradients_and_stats(parameters, *whole, "mean")
each = zip(features, labels, mask, strict=True)
of_each = [gradients_and_stats(parameters, *batch, "mean")[0] for batch in each]
mean_of_means = jax.tree.map(lambda *g: sum(g) / MICRO_BATCHES, *of_each)
for exact, g, h in zip(expected, gradients, mean_of_means, strict=True):
    assert np.allclose(g, exact, rtol=1e-4, atol=1e-6)
    assert abs(h - exact).max() > 0.1 * abs(exact).max()
print(
    f"loss {stats.mean:.3f} and accuracy {stats.accuracy:.3f} of {stats.count} tokens"
)
