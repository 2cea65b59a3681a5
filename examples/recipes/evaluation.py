"""Evaluation: perplexity, accuracy and bits per byte over batches

Batches of an evaluation hold different numbers of tokens, since sentences are padded
and the last batch is short. The mean of the batches' means is then not the mean over
the tokens. `with_stats=True` returns sums beside the loss, and sums add: add the
`LossStats` of all batches, and divide once.
"""

try:
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install numpy") from None

import maskloss as ml

VOCABULARY, LENGTH, SENTENCES, BATCH = 50, 12, 22, 5
rng = np.random.default_rng(0)
labels = rng.integers(VOCABULARY, size=(SENTENCES, LENGTH))
lengths = np.sort(rng.integers(1, LENGTH + 1, size=SENTENCES))  # short sentences first
mask = np.arange(LENGTH) < lengths[:, None]  # False: padding
bytes_of_token = rng.integers(1, 9, size=VOCABULARY)

# What a model might say that knows longer sentences better.
logits = rng.normal(size=(SENTENCES, LENGTH, VOCABULARY)).astype("float32")
confidence = lengths[:, None, None] / 3
logits += confidence * (labels[..., None] == np.arange(VOCABULARY))

per_batch, n_bytes = [], 0
for start in range(0, SENTENCES, BATCH):
    rows = slice(start, start + BATCH)
    _, stats = ml.cross_entropy(
        logits[rows], labels[rows], mask=mask[rows], with_stats=True
    )
    per_batch.append(stats)
    n_bytes += bytes_of_token[labels[rows][mask[rows]]].sum()

stats = sum(per_batch)
bits_per_byte = stats.total / np.log(2) / n_bytes

# Everything at once, from the definition, in float64.
kept, targets = logits[mask].astype("float64"), labels[mask]
probabilities = np.exp(kept) / np.exp(kept).sum(1, keepdims=True)
losses = -np.log(probabilities[np.arange(len(kept)), targets])
assert np.isclose(stats.perplexity, np.exp(losses.mean()), rtol=1e-5)
assert np.isclose(stats.accuracy, (kept.argmax(1) == targets).mean())
assert np.isclose(
    bits_per_byte, losses.sum() / np.log(2) / bytes_of_token[targets].sum()
)

mean_of_means = np.mean([batch.mean for batch in per_batch])
assert not np.isclose(np.exp(mean_of_means), stats.perplexity, rtol=0.1)
print(f"tokens         {stats.count}")
print(f"perplexity     {stats.perplexity:.2f}")
print(f"accuracy       {stats.accuracy:.3f}")
print(f"bits per byte  {bits_per_byte:.3f}")
print(f"mean of means  {np.exp(mean_of_means):.2f}, which is no perplexity")
