"""PyTorch on a GPU: what waits for the device, what a CUDA graph replays, what Inductor compiles, 2**31 logits."""

import importlib

import numpy as np
import pytest

import maskloss as ml
from tests.backends import named

IMPLEMENTATIONS = (None, "analytic", "triton")
OPTIONS = ({}, {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 5.0})
SAME_BITS = {"reproducible": True}


@pytest.fixture
def torch(backend):
    named(backend, "torch-cuda")
    return importlib.import_module("torch")


def given(torch, rows=8, classes=600, dtype=None):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(2 * rng.normal(size=(rows, classes))).to("cuda", dtype or torch.float32)
    labels = torch.from_numpy(rng.integers(0, classes, rows)).cuda()
    return logits.requires_grad_(), labels, torch.from_numpy(rng.random(rows) < 0.5).cuda()


def with_gradient(torch, loss, logits):
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def close(torch, found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-8)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", [*OPTIONS, SAME_BITS], ids=["plain", "options", "reproducible"])
def test_does_not_wait(backend, torch, implementation, options):
    """A step of training asks the device nothing: not how many are kept, not where."""
    logits, labels, mask = given(torch)

    def loss(x):
        return ml.cross_entropy(x, labels, mask=mask, weights=0.5, implementation=implementation, **options)

    wanted = with_gradient(torch, loss, logits)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = with_gradient(torch, loss, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close(torch, found, wanted)


def captured(torch, loss, x):
    """A CUDA graph, and what its replays write to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        with_gradient(torch, loss, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = with_gradient(torch, loss, x)
    return graph, replayed


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", [{}, SAME_BITS], ids=["plain", "reproducible"])
def test_a_graph_replays_with_other_numbers(backend, torch, implementation, options):
    """Captured with one mask, replayed with another."""
    logits, labels, mask = given(torch)

    def loss(x):
        return ml.cross_entropy(x, labels, mask=mask, implementation=implementation, **options)

    graph, replayed = captured(torch, loss, logits)
    mask.copy_(~mask)
    with torch.no_grad():
        logits.mul_(-1)
    graph.replay()
    close(torch, replayed, with_gradient(torch, loss, logits))


def test_a_graph_of_a_linear_loss(backend, torch):
    hidden, labels, mask = given(torch, 16, 32)
    kernel = torch.randn(50, 32, device="cuda", requires_grad=True)

    def loss(x):
        return ml.linear_cross_entropy(x, kernel, labels, mask=mask)

    graph, replayed = captured(torch, loss, hidden)
    mask.copy_(~mask)
    graph.replay()
    close(torch, replayed, with_gradient(torch, loss, hidden))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_inductor(backend, torch, implementation, masked, monkeypatch):
    monkeypatch.setattr(importlib.import_module("maskloss._bindings.torch"), "LEAST_SKIPPED", 1)
    logits, labels, mask = given(torch)

    def loss(x):
        return ml.cross_entropy(x, labels, mask=mask if masked else None, implementation=implementation, **OPTIONS[1])

    compiled = torch.compile(loss, fullgraph=True)
    close(torch, with_gradient(torch, compiled, logits), with_gradient(torch, loss, logits))


@pytest.mark.parametrize("masked", [False, True])
def test_inductor_of_a_linear_loss(backend, torch, masked):
    hidden, labels, mask = given(torch, 16, 32)
    kernel = torch.randn(50, 32, device="cuda", requires_grad=True)

    def loss(x):
        return ml.linear_cross_entropy(x, kernel, labels, mask=mask if masked else None)

    compiled = torch.compile(loss, fullgraph=True)
    close(torch, with_gradient(torch, compiled, hidden), with_gradient(torch, loss, hidden))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_more_than_2_to_the_31_logits(backend, torch, implementation):
    """The last rows of a batch of 2.2e9 logits are as alone; bfloat16, which holds them in 4.4 GB."""
    rows, classes, few = 17000, 129280, 3
    logits, labels, _ = given(torch, few, classes, torch.bfloat16)
    large = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    large[-few:] = logits.detach()
    places = torch.zeros(rows, dtype=torch.int64, device="cuda")
    places[-few:] = labels

    def loss(x, y):
        return ml.cross_entropy(x, y, reduction="none", implementation=implementation)[-few:].sum()

    (value, gradient), alone = (
        with_gradient(torch, lambda x, y=y: loss(x, y), x)
        for x, y in ((large.requires_grad_(), places), (logits, labels))
    )
    torch.testing.assert_close(value, alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient[-few:], alone[1], rtol=2**-8, atol=1e-10)
    assert not gradient[:-few].any()
