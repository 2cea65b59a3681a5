"""A kept label that is no class, where labels are not read: loss and gradient of that entry are NaN, of no other."""

import importlib

import numpy as np
import pytest

import maskloss as ml
from tests import backends

BAD = np.array([[1, 5, 0], [-1, 2, -100]])  # of 3 classes; the last entry is masked
MASK = np.array([[True, True, True], [True, True, False]])
WRONG = (BAD < 0) | (BAD > 2)
LOGITS = np.linspace(-1, 1, 18).reshape(2, 3, 3)
KEPT_AND_WRONG = WRONG & MASK


def put(backend):
    return [backends.asarray(backend, a) for a in (LOGITS, BAD, MASK)]


def check(backend, losses, gradient):
    losses, gradient = (backends.to_numpy(backend, x) for x in (losses, gradient))
    assert np.array_equal(np.isnan(losses), KEPT_AND_WRONG)
    assert np.array_equal(np.isnan(gradient), np.broadcast_to(KEPT_AND_WRONG[..., None], gradient.shape))
    assert (losses[~MASK] == 0).all()
    assert (gradient[~MASK] == 0).all()


def cross_entropy(x, labels, mask, **options):
    return ml.cross_entropy(x, labels, mask=mask, reduction="none", **options)


@pytest.mark.parametrize("implementation", [None, "autodiff"])
def test_not_validated(backend, implementation):
    backends.holds_values(backend)
    with backends.settings(backend):
        x, labels, mask = put(backend)
        options = {"validate": False, "implementation": implementation}
        if backend.library == "torch":
            x.requires_grad_()
            losses = cross_entropy(x, labels, mask, **options)
            losses.sum().backward()
            gradient = x.grad
        elif backend.library == "jax":
            jax = importlib.import_module("jax")
            losses, back = jax.vjp(lambda x: cross_entropy(x, labels, mask, **options), x)
            (gradient,) = back(losses * 0 + 1)
        else:
            losses = cross_entropy(x, labels, mask, **options)
            total = ml.value_and_grad(ml.cross_entropy)
            _, gradient = total(x, labels, mask=mask, reduction="sum", validate=False)
        check(backend, losses, gradient)


def test_inside_jax_tracers(backend):
    backends.of_library(backend, "jax")
    jax = importlib.import_module("jax")
    with backends.settings(backend):
        given = put(backend)
        for function in (cross_entropy, jax.vmap(cross_entropy)):
            losses, back = jax.jit(lambda *a, f=function: (f(*a), jax.grad(lambda *b: f(*b).sum())(*a)))(*given)
            check(backend, losses, back)


@pytest.mark.parametrize("implementation", ["analytic", "autodiff"])
def test_inside_torch_vmap(backend, implementation):
    backends.of_library(backend, "torch")
    torch = importlib.import_module("torch")
    x, labels, mask = put(backend)
    x.requires_grad_()
    losses = torch.func.vmap(lambda *a: cross_entropy(*a, implementation=implementation))(x, labels, mask)
    losses.sum().backward()
    check(backend, losses, x.grad)


def test_inside_torch_compile(backend):
    backends.of_library(backend, "torch")
    torch = importlib.import_module("torch")
    x, labels, mask = put(backend)
    x.requires_grad_()
    losses = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)(x, labels, mask)
    losses.sum().backward()
    check(backend, losses, x.grad)


def test_statistics_count_the_wrong_entry_as_kept_and_not_correct(backend):
    backends.holds_values(backend)
    with backends.settings(backend):
        x, labels, mask = put(backend)
        _, stats = ml.cross_entropy(x, labels, mask=mask, validate=False, with_stats=True)
        assert int(stats.count) == 5
        # Logits rise along the classes: arg-max is class 2, the label of one kept entry.
        assert int(stats.correct) == 1
        assert np.isnan(float(stats.total))
