"""Flax NNX: the loss of a language model from its hidden states

`linear_cross_entropy` takes hidden states with kernel and bias of the output layer, and
makes a chunk of the logits at a time. An `nnx.Param` is taken as the array it stands
for; Flax keeps kernels as (features, classes), hence `kernel_layout="dv"`.
"""

try:
    import numpy as np
    import optax
    from flax import nnx
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install flax optax") from None

import maskloss as ml

VOCABULARY, FEATURES, SENTENCES, LENGTH = 61, 32, 16, 12


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, FEATURES, rngs=rngs)
        self.middle = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.output = nnx.Linear(FEATURES, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        return nnx.gelu(self.middle(self.embed(tokens)))


def loss_of(model, inputs, labels, mask):
    hidden, output = model(inputs), model.output
    options = {"bias": output.bias, "kernel_layout": "dv", "mask": mask}
    return ml.linear_cross_entropy(hidden, output.kernel, labels, **options)


def loss_of_optax(model, inputs, labels, mask):
    logits = model.output(model(inputs))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(where=mask)


def trained(loss):
    @nnx.jit
    def step(model, optimizer, batch):
        value, gradients = nnx.value_and_grad(loss)(model, *batch)
        optimizer.update(model, gradients)
        return value

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    return np.asarray([step(model, optimizer, batch) for _ in range(20)])


rng = np.random.default_rng(0)  # each token is the one before times 2, modulo 61
tokens = rng.integers(1, VOCABULARY, size=(SENTENCES, 1)) * 2 ** np.arange(LENGTH)
mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, size=(SENTENCES, 1))
batch = tokens[:, :-1] % VOCABULARY, tokens[:, 1:] % VOCABULARY, mask[:, 1:]
losses, of_optax = trained(loss_of), trained(loss_of_optax)
assert np.allclose(losses, of_optax, rtol=1e-4), "equal losses, and so equal gradients"
print(f"loss of the first step {losses[0]:.2f}, of the last {losses[-1]:.2f}")
