"""One batch of outputs on every installed backend, and beside the right value what the usual wrong ways give."""

from contextlib import suppress
from importlib.util import find_spec

import numpy as np
from objective import NO_LABEL, masked_lm, next_sentence, objective

import maskloss as ml

# The mean of the last 50 steps must lie this far below what a uniform guess gives: log V and log 2.
# log V - 4 = 5.0 is below the entropy of the labels' frequencies, 5.2, which needs no model of the context; 50 steps of
# 36 pairs near log 2 have a standard error of about 0.01.
LAST, MARGIN = 50, {"mlm": 4.0, "nsp": 0.04}


def fell(curves, uniform):
    """Per objective whether its loss, a number per step, fell."""
    return {key: bool(np.mean(curve[-LAST:]) < uniform[key] - MARGIN[key]) for key, curve in curves.items()}


def backends():
    """Name to the function that makes an array of it from a NumPy array, for each one that is installed."""
    found = {"numpy": np.asarray}
    if find_spec("torch"):
        import torch

        found["torch"] = torch.from_numpy
        if torch.cuda.is_available():
            found["torch cuda"] = lambda array: torch.from_numpy(array).cuda()
    if find_spec("jax"):
        import jax

        found["jax"] = jax.numpy.asarray
    if find_spec("array_api_strict"):
        import array_api_strict

        found["array-api-strict"] = array_api_strict.asarray
    with suppress(ImportError):
        import cupy

        if cupy.cuda.is_available():
            found["cupy"] = cupy.asarray
    return found


def to_numpy(array):
    for method in ("cpu", "get"):
        array = getattr(array, method)() if hasattr(array, method) else array
    return np.asarray(array)


def losses_and_gradients(asarray, mlm_head, nsp_logits, batch):
    """masked-LM loss, next-sentence loss, their sum, and the gradient of the sum with respect to all of the outputs."""
    (hidden, kernel, bias), nsp_logits = map(asarray, mlm_head), asarray(nsp_logits)
    batch = {name: asarray(array) for name, array in batch.items()}
    of_head = ml.value_and_grad(masked_lm, (0, 1, "bias"), has_aux=True)
    (mlm, _), mlm_grads = of_head(hidden, kernel, batch["mlm_labels"], bias=bias)
    pairs = {"mask": batch["is_pair"]}
    (nsp, _), nsp_grad = ml.value_and_grad(next_sentence, has_aux=True)(nsp_logits, batch["nsp_labels"], **pairs)
    both, _ = objective((hidden, kernel, bias), nsp_logits, batch)
    gradients = np.concatenate([to_numpy(g).ravel() for g in (*mlm_grads, nsp_grad)])
    return {"mlm": float(mlm), "nsp": float(nsp), "sum": float(both)}, gradients


def spread(values):
    """The largest difference between any two, elementwise; NaN if any is NaN."""
    return float(np.max(np.ptp(np.stack(values), axis=0)))


def agreement(mlm_head, nsp_logits, batch):
    """A row per backend in float32, each against NumPy's float64, and the largest difference between any two rows."""
    wide = tuple(x.astype(np.float64) for x in mlm_head)
    exact, exact_grad = losses_and_gradients(np.asarray, wide, np.float64(nsp_logits), batch)
    rows, gradients = {}, []
    for name, asarray in backends().items():
        losses, grad = losses_and_gradients(asarray, mlm_head, nsp_logits, batch)
        off = {"value": abs(losses["sum"] - exact["sum"]), "gradient": float(np.max(np.abs(grad - exact_grad)))}
        rows[name] = {**losses, "off": off}
        gradients.append(grad)
    values = [np.asarray([row[key] for key in ("mlm", "nsp", "sum")]) for row in rows.values()]
    return {
        "rows": rows,
        "float64": exact,
        "largest difference": {"value": spread(values), "gradient": spread(gradients)},
        "largest gradient": float(np.max(np.abs(exact_grad))),
    }


def plain_losses(logits, labels):
    """-log softmax at the label, as one writes it by hand."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]


def wrong_ways(mlm_head, nsp_logits, batch, sizes):
    """Rows of objective, what is done, what it gives (None: NaN) and the right value, all in NumPy."""
    hidden, kernel, bias = mlm_head
    mlm_logits = hidden @ kernel.T + bias
    labels, is_pair = batch["mlm_labels"], batch["is_pair"]
    kept = labels != NO_LABEL
    losses = plain_losses(mlm_logits, np.where(kept, labels, 0))
    nsp_losses = plain_losses(nsp_logits, batch["nsp_labels"])
    _, stats = objective(mlm_head, nsp_logits, batch)
    mlm, nsp = stats["mlm"].mean, stats["nsp"].mean

    ends = np.cumsum(sizes)
    assert ends[-1] == len(labels)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    per_part = [masked_lm(hidden[rows], kernel, labels[rows], bias=bias)[1] for rows in parts]
    micro = f"micro-batches of {', '.join(map(str, sizes))} sequences"

    broken = np.where(kept[..., None], hidden, np.nan)
    broken_logits = broken @ kernel.T + bias
    times_mask = (plain_losses(broken_logits, np.where(kept, labels, 0)) * kept).sum() / kept.sum()

    rows = {
        "masked-LM": {
            "maskloss": mlm,
            "mean over every slot, those without a label counted as 0": (losses * kept).mean(),
            f"mean of the means of {micro}": np.mean([s.mean for s in per_part]),
            "maskloss: LossStats of the same micro-batches, added": sum(per_part).mean,
            "NaN in the slots without a label, times the mask": times_mask,
            "maskloss: the same NaN": masked_lm(broken, kernel, labels, bias=bias)[0],
        },
        "next-sentence": {
            "maskloss": nsp,
            "mean over every sequence, single ones counted as 0": (nsp_losses * is_pair).mean(),
            "mean over every sequence, then times the mask, then the mean of that": (
                nsp_losses.mean() * is_pair
            ).mean(),
            "no mask: single ones counted as not next": nsp_losses.mean(),
        },
    }
    return [
        (name, what, None if np.isnan(value) else float(value), float(ways["maskloss"]))
        for name, ways in rows.items()
        for what, value in ways.items()
    ]
