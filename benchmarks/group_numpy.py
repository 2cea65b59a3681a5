"""NumPy's providers: SciPy and scikit-learn, as one writes a masked loss with them."""

import numpy as np
from provider import NOTHING_KEPT, Provider
from workloads import LLAMA, NARROW, SMALL, Arrays, is_shown

NAME = "numpy"
PACKAGES = ("numpy", "ml_dtypes", "scipy", "scikit-learn")


def start():
    pass


def before_case():
    pass


def arrays(case, given):
    if case.dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  (names bfloat16 to NumPy)
    return Arrays(given.logits.astype(case.dtype, copy=False), *given[1:])


def to_numpy(result):
    if isinstance(result, tuple):
        return tuple(to_numpy(r) for r in result)
    result = np.asarray(result)
    return result if result.dtype == np.float64 else result.astype(np.float32)


def maskloss(case, x):
    import maskloss as ml

    with_gradient = ml.value_and_grad(ml.cross_entropy)
    return (
        lambda: ml.cross_entropy(x.logits, x.labels, mask=x.mask, reduction=case.reduction),
        lambda: with_gradient(x.logits, x.labels, mask=x.mask),
    )


def wide(logits):
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

    def forward():
        log_probs = log_softmax(wide(x.logits), axis=-1)
        return reduced(-at(log_probs, x.labels), x.mask, case.reduction)

    def forward_backward():
        log_probs = log_softmax(wide(x.logits), axis=-1)
        value = reduced(-at(log_probs, x.labels), x.mask, case.reduction)
        gradient = minus_one_hot(np.exp(log_probs, out=log_probs), x.labels, x.mask)
        return value, gradient.astype(x.logits.dtype, copy=False)

    return forward, forward_backward


def scipy_logsumexp(case, x):
    from scipy.special import logsumexp

    def parts():
        lse = logsumexp(x.logits, axis=-1)
        return lse, reduced(lse - at(x.logits, x.labels), x.mask, case.reduction)

    def forward_backward():
        lse, value = parts()
        probs = x.logits - lse[..., None]
        return value, minus_one_hot(np.exp(probs, out=probs), x.labels, x.mask)

    return lambda: parts()[1], forward_backward


def scipy_kept_rows(case, x):
    from scipy.special import log_softmax

    def parts():
        labels = x.labels[x.mask]
        log_probs = log_softmax(x.logits[x.mask], axis=-1)
        return labels, log_probs, -at(log_probs, labels).mean()

    def forward_backward():
        labels, log_probs, value = parts()
        gradient = np.zeros_like(x.logits)
        gradient[x.mask] = minus_one_hot(np.exp(log_probs, out=log_probs), labels, None)
        return value, gradient

    return lambda: parts()[2], forward_backward


def sklearn(case, x):
    from scipy.special import softmax
    from sklearn.metrics import log_loss

    classes, mask = np.arange(case.classes), slice(None) if x.mask is None else x.mask
    return lambda: log_loss(x.labels[mask], softmax(x.logits[mask], axis=-1), labels=classes), None


def has_no_upstream(case, direction):
    """value_and_grad differentiates a scalar, and has no upstream gradient."""
    return direction == "forward" or case.reduction == "mean"


def of_the_table_but_one(case, direction):
    return is_shown(case) and case[:2] != LLAMA


def of_the_table_with_a_mask(case, direction):
    return is_shown(case) and case.kept is not None


def sklearn_is(case, direction):
    return is_shown(case) and case[:2] in (SMALL, NARROW) and direction == "forward"


PROVIDERS = (
    Provider(
        "maskloss",
        "`ml.cross_entropy(logits, labels, mask=mask)`; `ml.value_and_grad(ml.cross_entropy)`",
        maskloss,
        applies=has_no_upstream,
        runs='every case; with reduction "none" forward alone',
    ),
    Provider(
        "scipy",
        "`scipy.special.log_softmax`, the label taken, masked mean; gradient: its exp in place, minus one-hot",
        scipy,
        applies=has_no_upstream,
        runs='every case (bfloat16 cast to float32 and back); with reduction "none" forward alone',
        exceptions=(NOTHING_KEPT,),
    ),
    Provider(
        "scipy, kept rows",
        "the same on `logits[mask]`; the gradient written into zeros",
        scipy_kept_rows,
        applies=of_the_table_with_a_mask,
        runs="the grid's cases that have a mask",
        exceptions=(NOTHING_KEPT,),
    ),
    Provider(
        "scipy, logsumexp",
        "`scipy.special.logsumexp` less the label's logit; gradient: exp(logits - lse), minus one-hot",
        scipy_logsumexp,
        applies=of_the_table_but_one,
        runs="the grid's cases but 512 × 128256",
    ),
    Provider(
        "scikit-learn",
        "`sklearn.metrics.log_loss` of the softmax of the kept rows",
        sklearn,
        applies=sklearn_is,
        runs="the grid's cases of 256 × 1000 and 8192 × 32, forward: it is slow, and has no gradient",
        exceptions=(NOTHING_KEPT,),
    ),
)


def read(n):
    x = np.ones((max(n // 4096, 1), 4096), np.float32)
    return lambda: x.sum(-1)


def write(n):
    x = np.ones(max(n, 1), np.float32)
    return lambda: x.fill(0)


BANDWIDTH = "`x.sum(-1)` of 4096 columns; `x.fill(0)`; one thread, as all of NumPy here"


def tiny(given):
    import maskloss as ml

    logits, labels = given.logits, given.labels

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
