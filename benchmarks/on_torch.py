"""What is measured in PyTorch, Keras on torch among it."""

import os
import sys

import torch
import torch.nn.functional as F

import maskloss as ml

from .cases import NO_LABEL, Arrays
from .library import Library


def backward(loss, inputs, upstream):
    """Into `grad`, which is None before, as in training."""
    loss.backward(upstream)
    gradients = tuple(x.grad for x in inputs)
    for x in inputs:
        x.grad = None
    return gradients


def runs(function, case, x, gradients_of=backward):
    """forward and forward + backward of a function of (*inputs, labels, mask, ignored)."""
    given = (*x.inputs, x.labels, x.mask, x.ignored)

    def forward():
        with torch.no_grad():
            return function(*given)

    def forward_backward():
        loss = function(*given)
        if case.upstream != 1:
            loss = loss * case.upstream
        upstream = None if x.upstream is None else x.upstream.to(loss.dtype).reshape(loss.shape)
        gradients = gradients_of(loss, x.inputs, upstream)
        return loss.detach(), *gradients

    return forward, forward_backward


def maskloss(case, **options):
    if case.features:
        return lambda hidden, kernel, labels, mask, ignored: ml.linear_cross_entropy(
            hidden, kernel, labels, mask=mask, **options
        )
    return lambda logits, labels, mask, ignored: ml.cross_entropy(
        logits, labels, mask=mask, reduction=case.reduction, **options
    )


def native(case):
    if case.features:
        return lambda hidden, kernel, labels, mask, ignored: F.cross_entropy(F.linear(hidden, kernel), ignored)
    return lambda logits, labels, mask, ignored: F.cross_entropy(
        logits.flatten(0, -2), ignored.flatten(), ignore_index=NO_LABEL, reduction=case.reduction
    )


def native_kept_rows(case):
    if case.features:
        return lambda hidden, kernel, labels, mask, ignored: F.cross_entropy(
            F.linear(hidden[mask], kernel), labels[mask]
        )
    return lambda logits, labels, mask, ignored: F.cross_entropy(logits[mask], labels[mask])


def keras(case):
    from keras.losses import SparseCategoricalCrossentropy

    # Keras' own mean divides by all entries, ignored or not, unless it sets the mask aside itself, as it does here.
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=NO_LABEL)
    return lambda logits, labels, mask, ignored: loss(ignored, logits)


def fused(case):
    return lambda hidden, kernel, labels, mask, ignored: F.linear_cross_entropy(hidden, kernel, ignored)


def fused_in_chunks(case):
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, kernel, labels, mask, ignored: F.linear_cross_entropy(
        hidden, kernel, ignored, options=options
    )


def products(case, x):
    hidden, kernel = (leaf.detach() for leaf in x.inputs)

    def call():
        logits = hidden @ kernel.T
        return logits @ kernel, logits.T @ hidden

    return None, call


def eager(function, gradients_of=backward):
    return lambda case, x: runs(function(case), case, x, gradients_of)


def compiled(function, gradients_of=backward):
    def build(case, x):
        return runs(torch.compile(function(case), dynamic=False, fullgraph=True), case, x, gradients_of)

    return build


PAGE = {
    "maskloss": eager(maskloss),
    "F.cross_entropy": eager(native),
    "F.cross_entropy, kept rows": eager(native_kept_rows),
    "F.cross_entropy, torch.compile": compiled(native),
    "maskloss, torch.compile": compiled(maskloss),
    "Keras": eager(keras),
}


class Torch(Library):
    builders = PAGE

    def start(self, device):
        os.environ.setdefault("KERAS_BACKEND", "torch")

    def before_case(self):
        """Compiled functions start anew: else the second shape would be compiled for any, the first for its own."""
        if "torch._dynamo" in sys.modules:
            sys.modules["torch._dynamo"].reset()

    def arrays(self, case, given, device):
        dtype = getattr(torch, case.dtype)
        inputs = tuple(torch.from_numpy(x).to(device, dtype).requires_grad_() for x in given.inputs)
        return Arrays(inputs, *(None if x is None else torch.from_numpy(x).to(device) for x in given[1:]))

    def wide(self, array):
        return array.detach().to("cpu", torch.float64 if array.dtype == torch.float64 else torch.float32).numpy()

    def read(self, gradient):
        return gradient.sum()

    def reading(self, n):
        x = torch.ones(max(n // 4096, 1), 4096)
        return lambda: x.sum(-1)

    def writing(self, n):
        x = torch.ones(max(n, 1))
        return lambda: x.fill_(0)

    def product(self, side):
        a, b = torch.ones(side, side), torch.ones(side, side)
        return lambda: a @ b

    def tiny(self, given):
        """name -> for each direction (maskloss, the raw work of the same loss)."""
        rows, labels, leaf = len(given.labels), torch.from_numpy(given.labels), torch.from_numpy(given.inputs[0])
        leaf.requires_grad_()

        def raw():
            return (torch.logsumexp(leaf, -1) - leaf.gather(-1, labels[:, None])[:, 0]).sum() / rows

        def ours():
            return ml.cross_entropy(leaf, labels)

        def without_grad(function):
            with torch.no_grad():
                return function()

        def gradient(function):
            return backward(function(), (leaf,), None)

        return {"torch": [tuple(lambda f=f, g=g: g(f) for f in (ours, raw)) for g in (without_grad, gradient)]}

    def warm_compiler(self):
        torch.compile(lambda x: x + 1)(torch.ones(3))


LINEAR = {
    "maskloss": eager(maskloss),
    "F.linear + F.cross_entropy": eager(native),
    "the same, kept rows": eager(native_kept_rows),
    "the same, torch.compile": compiled(native),
    "maskloss, torch.compile": compiled(maskloss),
    "F.linear_cross_entropy": eager(fused),
    "F.linear_cross_entropy, chunked": eager(fused_in_chunks),
    "three products": products,
}


class TorchLinear(Torch):
    builders = LINEAR
    read = Library.read

    def __init__(self, providers):
        had = hasattr(F, "linear_cross_entropy")
        super().__init__([p for p in providers if had or not p.name.startswith("F.linear_cross_entropy")])
