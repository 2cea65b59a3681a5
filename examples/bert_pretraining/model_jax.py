"""The same small BERT in JAX, with Flax and Optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from objective import objective

normal = nn.initializers.normal(0.02)


def inputs(batch):
    return batch["tokens"], batch["part"], batch["attend"], batch["mlm_places"]


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x, attend):
        dim = x.shape[-1]
        qkv = nn.Dense(3 * dim, kernel_init=normal)(nn.LayerNorm()(x))
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in jnp.split(qkv, 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=attend[:, None, None, :])
        x = x + nn.Dense(dim, kernel_init=normal)(mixed.reshape(x.shape))
        h = nn.gelu(nn.Dense(4 * dim, kernel_init=normal)(nn.LayerNorm()(x)), approximate=False)
        return x + nn.Dense(dim, kernel_init=normal)(h)


class Bert(nn.Module):
    vocab_size: int
    length: int
    dim: int
    heads: int
    layers: int

    @nn.compact
    def __call__(self, tokens, part, attend, places):
        token = nn.Embed(self.vocab_size, self.dim, embedding_init=nn.initializers.normal(0.06))
        place = self.param("place", normal, (self.length, self.dim))
        x = token(tokens) + place[: tokens.shape[1]] + nn.Embed(2, self.dim, embedding_init=normal)(part)
        for _ in range(self.layers):
            x = Block(self.heads)(x, attend)
        x = nn.LayerNorm()(x)
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        pooled = jnp.tanh(nn.Dense(self.dim, kernel_init=normal)(x[:, 0]))
        masked = jnp.take_along_axis(x, places[..., None], axis=1)
        return (masked, token.embedding, bias), nn.Dense(2, kernel_init=normal)(pooled)


def train(batches, rates, record, **sizes):
    """Trains, calling record with both losses of a step; returns a function from a batch to the model's outputs."""
    model = Bert(**sizes)
    rates = jnp.asarray(rates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda i: rates[i], weight_decay=0.01))

    @jax.jit
    def start(batch):
        params = model.init(jax.random.key(0), *inputs(batch))
        return params, optimizer.init(params)

    @jax.jit
    def outputs(params, batch):
        return model.apply(params, *inputs(batch))

    def loss(params, batch):
        return objective(*outputs(params, batch), batch)

    @jax.jit
    def step(params, state, batch):
        gradients, stats = jax.grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, stats

    params = state = None
    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        if params is None:
            params, state = start(batch)
        params, state, stats = step(params, state, batch)
        record({name: of.mean.item() for name, of in stats.items()})

    return lambda batch: jax.tree.map(np.asarray, outputs(params, batch))
