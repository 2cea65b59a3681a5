"""What is measured in NumPy: SciPy and scikit-learn, as one writes a masked loss with them. CuPy has ours alone."""

import importlib

import numpy as np

import maskloss as ml

from .cases import Arrays
from .library import Library


def maskloss(case, x):
    with_gradient, (logits,) = ml.value_and_grad(ml.cross_entropy), x.inputs
    return (
        lambda: ml.cross_entropy(logits, x.labels, mask=x.mask, reduction=case.reduction),
        lambda: with_gradient(logits, x.labels, mask=x.mask),
    )


def supported(logits):
    """SciPy has no bfloat16."""
    return logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float32)


def at(rows, labels):
    return np.take_along_axis(rows, labels[..., None], -1)[..., 0]


def reduced(losses, mask, reduction):
    if reduction == "none":
        return losses if mask is None else losses * mask
    return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()


def minus_one_hot(probs, labels, mask):
    """The gradient of the mean, in the memory of the probabilities."""
    places = labels[..., None]
    np.put_along_axis(probs, places, np.take_along_axis(probs, places, -1) - 1, -1)
    scale = 1 / labels.size if mask is None else (mask / mask.sum())[..., None].astype(probs.dtype)
    probs *= scale
    return probs


def scipy(case, x):
    from scipy.special import log_softmax

    (logits,) = x.inputs

    def parts():
        log_probs = log_softmax(supported(logits), axis=-1)
        return log_probs, reduced(-at(log_probs, x.labels), x.mask, case.reduction)

    def forward_backward():
        log_probs, value = parts()
        gradient = minus_one_hot(np.exp(log_probs, out=log_probs), x.labels, x.mask)
        return value, gradient.astype(logits.dtype, copy=False)

    return lambda: parts()[1], forward_backward


def scipy_logsumexp(case, x):
    from scipy.special import logsumexp

    (logits,) = x.inputs

    def parts():
        lse = logsumexp(logits, axis=-1)
        return lse, reduced(lse - at(logits, x.labels), x.mask, case.reduction)

    def forward_backward():
        lse, value = parts()
        probs = logits - lse[..., None]
        return value, minus_one_hot(np.exp(probs, out=probs), x.labels, x.mask)

    return lambda: parts()[1], forward_backward


def scipy_kept_rows(case, x):
    from scipy.special import log_softmax

    (logits,) = x.inputs

    def parts():
        labels = x.labels[x.mask]
        log_probs = log_softmax(logits[x.mask], axis=-1)
        return labels, log_probs, -at(log_probs, labels).mean()

    def forward_backward():
        labels, log_probs, value = parts()
        gradient = np.zeros_like(logits)
        gradient[x.mask] = minus_one_hot(np.exp(log_probs, out=log_probs), labels, None)
        return value, gradient

    return lambda: parts()[2], forward_backward


def sklearn(case, x):
    from scipy.special import softmax
    from sklearn.metrics import log_loss

    (logits,) = x.inputs
    classes, mask = np.arange(case.classes), slice(None) if x.mask is None else x.mask
    return lambda: log_loss(x.labels[mask], softmax(logits[mask], axis=-1), labels=classes), None


PAGE = {
    "maskloss": maskloss,
    "scipy": scipy,
    "scipy, kept rows": scipy_kept_rows,
    "scipy, logsumexp": scipy_logsumexp,
    "scikit-learn": sklearn,
}


class NumPy(Library):
    builders = PAGE

    def arrays(self, case, given, device):
        if case.dtype == "bfloat16":
            import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
        return Arrays(tuple(x.astype(case.dtype, copy=False) for x in given.inputs), *given[1:])

    def read(self, gradient):
        # ml_dtypes adds bfloat16 one by one.
        return gradient.sum() if gradient.dtype.kind == "f" else gradient.view(np.int16).max()

    def reading(self, n):
        x = np.ones((max(n // 4096, 1), 4096), np.float32)
        return lambda: x.sum(-1)

    def writing(self, n):
        x = np.ones(max(n, 1), np.float32)
        return lambda: x.fill(0)

    def tiny(self, given):
        (logits,), labels = given.inputs, given.labels

        def raw_parts():
            shifted = logits - logits.max(-1, keepdims=True)
            e = np.exp(shifted)
            total = e.sum(-1, keepdims=True)
            losses = np.log(total)[:, 0] - np.take_along_axis(shifted, labels[:, None], -1)[:, 0]
            return e, total, losses.mean()

        def raw_gradient():
            e, total, value = raw_parts()
            e /= total
            e[np.arange(len(labels)), labels] -= 1
            e /= len(labels)
            return value, e

        with_gradient = ml.value_and_grad(ml.cross_entropy)
        forward = (lambda: ml.cross_entropy(logits, labels), lambda: raw_parts()[2])
        return {"numpy": [forward, (lambda: with_gradient(logits, labels), raw_gradient)]}


def maskloss_on_cupy(case, x):
    function, device = ml.value_and_grad(ml.cross_entropy), x.inputs[0].device

    def call():
        result = function(*x.inputs, x.labels, mask=x.mask)
        if device != "cpu":
            device.synchronize()
        return result

    return None, call


ON_DEVICE = {"maskloss": maskloss_on_cupy}


class CuPy(Library):
    """In a trial, on NumPy."""

    builders = ON_DEVICE

    def arrays(self, case, given, device):
        xp = importlib.import_module("cupy" if device == "cuda" else "numpy")
        inputs = tuple(xp.asarray(x) for x in given.inputs)
        return Arrays(inputs, *(None if x is None else xp.asarray(x) for x in given[1:]))

    def wide(self, array):
        return super().wide(array.get() if hasattr(array, "get") else array)

    def speeds(self, case, device, take):
        return {}
