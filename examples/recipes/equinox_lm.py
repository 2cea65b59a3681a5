"""Equinox: a recurrent language model on padded sentences

A model is a pytree and the loss a function of it, which `eqx.filter_value_and_grad`
differentiates. With `with_stats=True` a step also says how often the model was right.
"""

try:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install equinox") from None

import maskloss as ml

VOCABULARY, FEATURES, SENTENCES, LENGTH = 23, 32, 16, 10


class Model(eqx.Module):
    cell: eqx.nn.GRUCell
    output: eqx.nn.Linear

    def __call__(self, tokens):
        def read(state, token):
            state = self.cell(jax.nn.one_hot(token, VOCABULARY), state)
            return state, self.output(state)

        return jax.lax.scan(read, jnp.zeros(FEATURES), tokens)[1]


@eqx.filter_value_and_grad(has_aux=True)
def loss_and_gradients(model, tokens, mask):
    logits, labels = jax.vmap(model)(tokens[:, :-1]), tokens[:, 1:]
    return ml.cross_entropy(logits, labels, mask=mask[:, 1:], with_stats=True)


@eqx.filter_jit
def step(model, tokens, mask):
    (loss, stats), gradients = loss_and_gradients(model, tokens, mask)
    return eqx.apply_updates(model, jax.tree.map(lambda g: -g, gradients)), loss, stats


keys, rng = jax.random.split(jax.random.key(0)), np.random.default_rng(0)
tokens = rng.integers(13, size=(SENTENCES, 1)) + np.arange(LENGTH)
lengths = rng.integers(2, LENGTH + 1, size=SENTENCES)
mask = np.arange(LENGTH) < lengths[:, None]
cell = eqx.nn.GRUCell(VOCABULARY, FEATURES, key=keys[0])
trained = Model(cell, eqx.nn.Linear(FEATURES, VOCABULARY, key=keys[1]))
for i in range(40):
    model = trained
    trained, loss, stats = step(model, tokens, mask)
    if i in (0, 39):
        print(f"step {i + 1:2}: loss {loss:.2f}, accuracy {stats.accuracy:.2f}")

# The last loss again, sentence by sentence, each cut to its length.
log_probs = np.asarray(jax.nn.log_softmax(jax.vmap(model)(tokens)))
cut = zip(log_probs, tokens, lengths, strict=True)
by_token = [-row[t, y[t + 1]] for row, y, n in cut for t in range(n - 1)]
assert np.isclose(loss, np.mean(by_token), rtol=1e-5)
