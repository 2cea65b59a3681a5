"""Keras: one loss function on PyTorch and on JAX

A function of labels and logits is a loss of Keras, on either backend. Keras hands the
labels over as floating numbers; they are indices, so cast them back. Below, the same
model is trained on both backends, and by the textbook's formula in NumPy.
"""

import json
import os
import subprocess
import sys

os.environ["KERAS_BACKEND"] = sys.argv[1] if len(sys.argv) > 1 else "torch"
try:
    import keras
    import numpy as np
except ImportError as missing:
    raise SystemExit(
        f"{missing.name} is missing: pip install keras torch jax"
    ) from None

import maskloss as ml

CLASSES, STEPS, RATE, UNKNOWN = 7, 5, 1.0, -1
rng = np.random.default_rng(0)
features = rng.normal(size=(8, 6, 5)).astype("float32")  # 8 sequences of 6 entries
labels = np.where(rng.random((8, 6)) < 0.4, UNKNOWN, rng.integers(CLASSES, size=(8, 6)))
kernel = rng.normal(size=(5, CLASSES)).astype("float32")


def masked_loss(labels, logits):
    labels = keras.ops.cast(labels, "int32")
    return ml.cross_entropy(logits, labels, ignore_index=UNKNOWN)


model = keras.Sequential([keras.layers.Dense(CLASSES, use_bias=False)])
model.build(features.shape)
model.set_weights([kernel])
model.compile(optimizer=keras.optimizers.SGD(RATE), loss=masked_loss)
fitted = model.fit(features, labels, batch_size=len(labels), epochs=STEPS, verbose=0)
losses = fitted.history["loss"]
if len(sys.argv) > 1:
    print(json.dumps(losses))
    raise SystemExit

child = [sys.executable, __file__, "jax"]
done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
on_jax = json.loads(done.stdout.splitlines()[-1])

kept, formula = labels != UNKNOWN, []
one_hot = np.eye(CLASSES)[labels[kept]]
for _ in range(STEPS):
    powers = np.exp(features[kept] @ kernel)
    softmax = powers / powers.sum(1, keepdims=True)
    formula.append(-np.log((softmax * one_hot).sum(1)).mean())
    kernel = kernel - RATE * features[kept].T @ (softmax - one_hot) / kept.sum()
for name, found in {"torch": losses, "jax": on_jax, "formula": formula}.items():
    assert np.allclose(found, formula, rtol=1e-4)
    print(f"{name:8}", *(f"{loss:.3f}" for loss in found))
