"""PyTorch's providers, Keras on torch among them."""

import os

from provider import COMPILED, NOTHING_KEPT, Provider
from workloads import NARROW, SMALL, Arrays, is_shown

NAME = "torch"
PACKAGES = ("torch", "keras")
IN_BFLOAT16 = ("bfloat16", None, (1e-2, 5e-2), "log-probabilities are rounded to bfloat16, and so is the loss")


def start():
    os.environ.setdefault("KERAS_BACKEND", "torch")


def before_case():
    """Compiled functions start anew: else the second shape would be compiled for any shape, the first for its own."""
    import sys

    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def arrays(case, given):
    import torch

    logits = torch.from_numpy(given.logits).to(getattr(torch, case.dtype)).requires_grad_()
    rest = [None if a is None else torch.from_numpy(a) for a in given[1:]]
    return Arrays(logits, *rest)


def to_numpy(result):
    import torch

    if isinstance(result, tuple):
        return tuple(to_numpy(r) for r in result)
    wide = result.dtype if result.dtype == torch.float64 else torch.float32
    return result.detach().to(wide).numpy()


def runs(function, case, x):
    """forward and forward + backward of a function of (logits, labels, mask, ignored)."""
    import torch

    def forward():
        with torch.no_grad():
            return function(x.logits, x.labels, x.mask, x.ignored)

    def forward_backward():
        loss = function(x.logits, x.labels, x.mask, x.ignored)
        if case.upstream != 1:
            loss = loss * case.upstream
        loss.backward(None if x.upstream is None else x.upstream.to(loss.dtype).reshape(loss.shape))
        gradient, x.logits.grad = x.logits.grad, None
        return loss.detach(), gradient

    return forward, forward_backward


def maskloss(case):
    import maskloss as ml

    return lambda logits, labels, mask, ignored: ml.cross_entropy(logits, labels, mask=mask, reduction=case.reduction)


def native(case):
    import torch.nn.functional as F

    return lambda logits, labels, mask, ignored: F.cross_entropy(
        logits.flatten(0, -2), ignored.flatten(), ignore_index=-100, reduction=case.reduction
    )


def native_kept_rows(case):
    import torch.nn.functional as F

    return lambda logits, labels, mask, ignored: F.cross_entropy(logits[mask], labels[mask])


def keras(case):
    from keras.losses import SparseCategoricalCrossentropy

    # Keras' own mean divides by all entries, ignored or not, unless it sets the mask aside itself, as it does here.
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)
    return lambda logits, labels, mask, ignored: loss(ignored, logits)


def eager(function):
    return lambda case, x: runs(function(case), case, x)


def compiled(function):
    def build(case, x):
        import torch

        return runs(torch.compile(function(case), dynamic=False, fullgraph=True), case, x)

    return build


def when_compiled(case, direction):
    return is_shown(case)


def with_a_mask(case, direction):
    return case.kept is not None and case.reduction == "mean"


def where_keras_is(case, direction):
    return is_shown(case) and case[:2] in (SMALL, NARROW)


COMPILED_CASES = "the grid's cases: a compilation takes seconds"

PROVIDERS = (
    Provider("maskloss", "`ml.cross_entropy(logits, labels, mask=mask)`", eager(maskloss)),
    Provider(
        "F.cross_entropy",
        "`F.cross_entropy(logits, labels, ignore_index=-100)`, labels of -100 where masked",
        eager(native),
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
    Provider(
        "F.cross_entropy, kept rows",
        "`F.cross_entropy(logits[mask], labels[mask])`",
        eager(native_kept_rows),
        applies=with_a_mask,
        runs='where a mask is given, and the reduction is "mean"',
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
    Provider(
        "F.cross_entropy, torch.compile",
        "`torch.compile(..., dynamic=False)` of F.cross_entropy",
        compiled(native),
        applies=when_compiled,
        runs=COMPILED_CASES,
        kind=COMPILED,
        exceptions=(NOTHING_KEPT, IN_BFLOAT16),
    ),
    Provider(
        "maskloss, torch.compile",
        "`torch.compile(..., dynamic=False)` of ml.cross_entropy",
        compiled(maskloss),
        applies=when_compiled,
        runs=COMPILED_CASES,
        kind=COMPILED,
    ),
    Provider(
        "Keras",
        "`SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)`, Keras on torch",
        eager(keras),
        applies=where_keras_is,
        runs="the grid's cases of 256 × 1000 and 8192 × 32: it is slow",
    ),
)


def read(n):
    """A call that reads n float32."""
    import torch

    x = torch.ones(max(n // 4096, 1), 4096)
    return lambda: x.sum(-1)


def write(n):
    import torch

    x = torch.ones(max(n, 1))
    return lambda: x.fill_(0)


BANDWIDTH = "`x.sum(-1)` of 4096 columns; `x.fill_(0)`"


def tiny(given):
    """name -> for each direction (maskloss, the raw work of the same loss)."""
    import torch

    import maskloss as ml

    rows, labels, leaf = len(given.labels), torch.from_numpy(given.labels), torch.from_numpy(given.logits)
    leaf.requires_grad_()

    def raw():
        return (torch.logsumexp(leaf, -1) - leaf.gather(-1, labels[:, None])[:, 0]).sum() / rows

    def without_grad(function):
        with torch.no_grad():
            return function()

    def backward(function):
        function().backward()
        gradient, leaf.grad = leaf.grad, None
        return gradient

    ours = lambda: ml.cross_entropy(leaf, labels)  # noqa: E731
    pairs = [tuple(lambda f=f, g=g: g(f) for f in (ours, raw)) for g in (without_grad, backward)]
    return {"torch": pairs}


def warm_compiler():
    import torch

    torch.compile(lambda x: x + 1)(torch.ones(3))
