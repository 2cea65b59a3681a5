"""A row function that nobody here has heard of: its mathematics alone, and it runs on every library and every lane.

Binary cross-entropy of each class, with targets t_c in [0, 1]:

    loss = sum_c (log(1 + exp(x_c)) - t_c x_c)        dx_c = sigmoid(x_c) - t_c        dt_c = -x_c
"""

import functools
import importlib

import numpy as np
import pytest

from maskloss import _bindings, _call
from maskloss._arrays import on_arrays
from maskloss._inputs import Given
from maskloss._math import terms
from maskloss._math.rows import RowFunction, Value, registered, selected_logits, selected_targets, through_selection
from tests.backends import asarray, of_library, settings, to_numpy


def forward(rows, xp):
    x, _ = selected_logits(rows, xp=xp)
    # log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))
    softplus = xp.where(x > 0, x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))
    return Value(xp.long_sum(softplus - selected_targets(rows, xp=xp) * x))


def backward(rows, out, g, *, targets_too, xp, into=None):
    x, slope = selected_logits(rows, xp=xp)
    g = xp.expand_dims(g[0], axis=-1)
    d_logits = g * (1.0 / (1.0 + xp.exp(-x)) - selected_targets(rows, xp=xp))
    return through_selection(d_logits, slope, rows, xp=xp), -g * x if targets_too else None


def tangents(rows, out, t_logits, t_targets, xp):
    one = xp.ones_like(rows.logits[..., 0])
    d_logits, d_targets = backward(rows, out, (one,), targets_too=True, xp=xp)
    terms = [d * t for d, t in ((d_logits, t_logits), (d_targets, t_targets)) if t is not None]
    return (xp.sum(sum(terms), axis=-1),)


BINARY = registered(RowFunction("binary", Value, forward, backward, tangents))


@on_arrays
def binary_cross_entropy(logits, labels, **options):
    call = _call.of_logits(logits, -1, Given(labels, **options))
    return _bindings.values(call, BINARY, terms.rows_of(call)._replace(targets=call.inputs.distribution))


@on_arrays
def linear_binary_cross_entropy(hidden, kernel, labels, *, chunk_size, **options):
    call = _call.of_projection((hidden, kernel, None, "vd", chunk_size), Given(labels, **options))
    return _bindings.values(call, BINARY, terms.rows_of(call)._replace(targets=call.inputs.distribution))


def case():
    rng = np.random.default_rng(0)
    x, t, h, k = rng.normal(size=(3, 4, 5)), rng.random((3, 4, 5)), rng.normal(size=(3, 4, 2)), rng.normal(size=(5, 2))
    mask = rng.random((3, 4)) < 0.6
    x[~mask], h[~mask] = np.nan, np.nan
    return x, t, h, k, mask


def expected_of(x, t, mask):
    """Loss, d logits and d targets of the sum over what is kept."""
    x = np.where(mask[..., None], x, 0.0)
    losses = np.where(mask, (np.logaddexp(0.0, x) - t * x).sum(-1), 0.0)
    kept = mask[..., None]
    return losses, np.where(kept, 1 / (1 + np.exp(-x)) - t, 0.0), np.where(kept, -x, 0.0)


def test_values(backend):
    of_library(backend, backend.library)
    x, t, h, k, mask = case()
    with settings(backend):
        given = functools.partial(asarray, backend)
        found = binary_cross_entropy(given(x), given(t), mask=given(mask))
        of_hidden = linear_binary_cross_entropy(given(h), given(k), given(t), mask=given(mask), chunk_size=3)
        tolerance = {"rtol": 1e-5 if "float32" in str(found.dtype) else 1e-12, "atol": 1e-6}
        np.testing.assert_allclose(to_numpy(backend, found), expected_of(x, t, mask)[0], **tolerance)
        np.testing.assert_allclose(to_numpy(backend, of_hidden), expected_of(h @ k.T, t, mask)[0], **tolerance)


def test_torch_derivatives(backend):
    of_library(backend, "torch")
    torch = importlib.import_module("torch")
    x, t, h, k, mask = (torch.from_numpy(a) for a in case())
    _, d_x, d_t = (torch.from_numpy(a) for a in expected_of(*case()[:2], case()[-1]))
    leaves = [a.clone().requires_grad_() for a in (x, t)]
    found = torch.autograd.grad(binary_cross_entropy(*leaves, mask=mask).sum(), leaves, create_graph=True)
    for a, b in zip(found, (d_x, d_t), strict=True):
        torch.testing.assert_close(a, b)
    # d2x = sigmoid(x) sigmoid(-x)
    (second,) = torch.autograd.grad(found[0].sum(), leaves[:1])
    p = torch.sigmoid(torch.where(mask.unsqueeze(-1), x, 0.0))
    torch.testing.assert_close(second, torch.where(mask.unsqueeze(-1), p * (1 - p), 0.0))

    def summed(x, t, m):
        return binary_cross_entropy(x, t, mask=m).sum()

    torch.testing.assert_close(torch.func.vmap(torch.func.grad(summed))(x, t, mask), d_x)
    compiled = torch.compile(torch.func.grad(summed), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, mask), d_x)
    leaves = [a.clone().requires_grad_() for a in (h, k, t)]
    loss = linear_binary_cross_entropy(*leaves, mask=mask, chunk_size=3).sum()
    whole = [a.clone().requires_grad_() for a in (torch.where(mask.unsqueeze(-1), h, 0.0), k, t)]
    plain = summed(whole[0] @ whole[1].T, whole[2], mask)
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, whole), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("jit", [False, True])
def test_jax_derivatives(backend, jit):
    of_library(backend, "jax")
    jax = importlib.import_module("jax")
    with settings(backend):
        x, t, h, k, mask = (jax.numpy.asarray(a) for a in case())
        of_entries = expected_of(*case()[:2], case()[-1])

        def of_logits(x, t):
            return binary_cross_entropy(x, t, mask=mask).sum()

        def of_hidden(h, k, t):
            return linear_binary_cross_entropy(h, k, t, mask=mask, chunk_size=3).sum()

        def plain(h, k, t):
            return of_logits(jax.numpy.where(mask[..., None], h, 0.0) @ k.T, t)

        transform = jax.jit if jit else lambda function: function
        found = transform(jax.grad(of_logits, (0, 1)))(x, t)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        for a, b in zip(found, of_entries[1:], strict=True):
            np.testing.assert_allclose(a, b, **tolerance)
        pairs = zip(*(transform(jax.grad(f, (0, 1, 2)))(h, k, t) for f in (of_hidden, plain)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(np.where(np.isnan(a), 0.0, a), b, **tolerance)
