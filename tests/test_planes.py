"""Logits whose classes do not lie side by side, as those of images: (N, C, H, W), walked where they lie."""

import functools
import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maskloss as ml
from maskloss._arrays import namespace_of
from maskloss._engine import walk
from tests.backends import asarray, named, of_library, to_numpy


def in_blocks(backend, patch, size):
    """The engine, with several blocks in a plane, however small."""
    patch.setattr(walk, "LEAST_PLANE", 1)
    patch.setattr(walk, "LEAST_ROWS", 1)
    patch.setattr(walk, "BLOCK_BYTES", size)
    if backend.library == "torch":
        patch.setattr(importlib.import_module("maskloss._bindings.torch_small"), "SMALL_BYTES", 0)
    if backend.library == "numpy":
        patch.setattr(importlib.import_module("maskloss._arrays.numpy"), "PIECE", 5)


@pytest.fixture
def small(backend, monkeypatch):
    in_blocks(backend, monkeypatch, 400)


@pytest.fixture(params=["engine", "whole"])
def lane(request, backend, monkeypatch):
    """PyTorch's own functions take what is small whole."""
    if request.param == "engine":
        in_blocks(backend, monkeypatch, 400)
    elif backend.library != "torch":
        pytest.skip("for torch")


def walked(backend):
    of_library(backend, "numpy", "torch")


def looked_at(backend):
    """Where numbers are checked: on a device nothing waits for them."""
    walked(backend)
    if backend.accelerator:
        pytest.skip("for numbers in the CPU's memory")


def expected(logits, labels, kept):
    """The mean loss of the kept, and its gradient, in float64: -log p_y and (p - [c = y]) / count."""
    x = np.moveaxis(np.where(kept[:, None], logits, 0.0).astype(np.float64), 1, -1)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    at_label = np.arange(x.shape[-1]) == np.where(kept, labels, 0)[..., None]
    loss = np.where(kept, -np.log(p[at_label].reshape(labels.shape)), 0.0).sum() / max(kept.sum(), 1)
    return loss, np.moveaxis(np.where(kept[..., None], p - at_label, 0.0) / max(kept.sum(), 1), -1, 1)


def found(backend, logits, labels, **options):
    function = functools.partial(ml.cross_entropy, axis=1, **options)
    x, y = asarray(backend, logits), asarray(backend, labels)
    if backend.library != "torch":
        value, gradient = ml.value_and_grad(function)(x, y)
        return float(value), gradient
    value = function(x.requires_grad_(), y)
    (gradient,) = importlib.import_module("torch").autograd.grad(3 * value, x)
    assert value.item() == function(x.detach(), y).item()
    return value.item(), gradient / 3


def checked(backend, logits, labels, kept, **options):
    want, want_gradient = expected(logits, labels, kept)
    value, gradient = found(backend, logits, labels, **options)
    # p is off by some roundings, each 2^-24 of it, and p - 1 by as much of 1.
    assert abs(value - want) <= 2.0**-20 * max(1.0, want)
    atol = 2.0**-21 / max(kept.sum(), 1)
    np.testing.assert_allclose(to_numpy(backend, gradient), want_gradient, rtol=2.0**-19, atol=atol)
    return gradient


def drawn(seed, shape, share):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=shape)).astype(np.float32)
    entries = (shape[0], *shape[2:])
    return logits, rng.integers(0, shape[1], entries), rng.random(entries) < share


@pytest.mark.parametrize("share", [1.0, 0.9, 0.4, 0.05, 0.0])
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, 200.0])
@pytest.mark.parametrize("shape", [(3, 7, 8, 9), (1, 2, 500), (2, 40, 3, 5, 4)])
def test_what_is_not_kept_may_be_anything(backend, lane, shape, garbage, share):
    """Its gradient is 0, and the others' is theirs: beside NaN, and what overflows."""
    walked(backend)
    logits, labels, kept = drawn(0, shape, share)
    logits = np.where(kept[:, None], logits, np.float32(garbage))
    labels = np.where(kept, labels, 255)
    checked(backend, logits, labels, kept, ignore_index=255)


@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0])
def test_logits_out_of_the_range_of_exp(backend, lane, offset):
    """Rows, of which each plane has one, that take the shift of the maximum."""
    walked(backend)
    logits, labels, kept = drawn(1, (3, 6, 11, 5), 0.8)
    logits[:, :, 4, 2] += np.float32(offset)
    checked(backend, logits, labels, kept, mask=asarray(backend, kept))


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 99),
    share=st.sampled_from([1.0, 0.7, 0.1]),
)
def test_any_shape(backend, shape, seed, share):
    walked(backend)
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(backend, patch, 100)
        logits, labels, kept = drawn(seed, shape, share)
        checked(backend, logits, labels, kept, mask=asarray(backend, kept))


@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
def test_the_gradient_lies_as_the_logits_do(backend, lane, share):
    """In order: what made the logits would make a copy of any other."""
    walked(backend)
    logits, labels, kept = drawn(2, (2, 19, 40, 30), share)
    gradient = checked(backend, logits, labels, kept, mask=asarray(backend, kept))
    assert gradient.is_contiguous() if backend.library == "torch" else gradient.flags.c_contiguous


@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_over_all"])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_s_own_functions_agree_with_the_engine(backend, reduction, masked):
    """Values, gradients, and gradients of these, of what is small and computed whole."""
    named(backend, "torch")
    torch = importlib.import_module("torch")
    logits, labels, kept = drawn(5, (2, 5, 6, 7), 0.7)
    mask = {"mask": asarray(backend, kept)} if masked else {}
    numbers = []
    for implementation in (None, "autodiff"):
        x = asarray(backend, logits).requires_grad_()
        options = {"axis": 1, "reduction": reduction, "ignore_index": 3, "implementation": implementation, **mask}
        value = ml.cross_entropy(x, asarray(backend, labels), **options)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        numbers.append((value, gradient, torch.autograd.grad((gradient**2).sum(), x)[0]))
    # Of a sum p - 1 is off by two roundings of p, each up to 2^-24 of 1, on either side.
    for a, b in zip(*numbers, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2.0**-22)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("upstream", [float("nan"), float("inf")])
def test_no_upstream_gradient_reaches_what_is_not_kept(backend, axis, upstream):
    """Where nearly all is kept, and computed beside the rest."""
    named(backend, "torch")
    torch = importlib.import_module("torch")
    logits, labels, kept = drawn(7, (3, 80, 9, 10), 0.9)
    x = torch.from_numpy(logits).movedim(1, axis).contiguous().requires_grad_()
    mask = torch.from_numpy(kept)
    losses = ml.cross_entropy(x, torch.from_numpy(labels), mask=mask, axis=axis, reduction="none")
    (one,) = torch.autograd.grad(losses, x, torch.where(mask, 1.0, upstream), retain_graph=True)
    assert one.isfinite().all()
    (all_,) = torch.autograd.grad(losses.sum() * upstream, x)
    for gradient in (one, all_):
        assert not gradient[~mask.unsqueeze(axis).expand_as(gradient)].any()


@pytest.mark.parametrize("wrong", [7, -1])
def test_a_label_that_is_no_class(backend, wrong):
    looked_at(backend)
    logits, labels, _ = drawn(6, (2, 7, 3, 4), 1.0)
    labels[1, 2, 3] = wrong
    another = np.ones_like(labels, bool)
    another[0, 0, 0] = False
    for options in ({}, {"mask": asarray(backend, another)}):
        with pytest.raises(ValueError, match=rf"labels\[1, 2, 3\] is {wrong}, outside the classes"):
            ml.cross_entropy(asarray(backend, logits), asarray(backend, labels), axis=1, **options)
    kept = np.ones_like(labels, bool)
    kept[1, 2, 3] = False
    checked(backend, logits, labels, kept, ignore_index=wrong)
    checked(backend, logits, labels, kept, mask=asarray(backend, kept))


def test_reproducible_has_the_bits_of_rows(backend, small):
    """Of the value and the gradient."""
    walked(backend)
    logits, labels, kept = drawn(3, (3, 7, 8, 9), 0.7)
    rows = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    found = []
    for x, axis in ((logits, 1), (rows, -1)):
        function = functools.partial(ml.cross_entropy, mask=asarray(backend, kept), axis=axis, reproducible=True)
        value, gradient = ml.value_and_grad(function)(asarray(backend, x), asarray(backend, labels))
        found.append((to_numpy(backend, value), np.moveaxis(to_numpy(backend, gradient), axis, -1)))
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()


MASKS = {
    "of integers": lambda kept: kept.astype(np.int64),
    "of bytes": lambda kept: kept.astype(np.uint8),
    "of a row": lambda kept: kept[:1],
    "of an axis": lambda kept: kept[:, :1, :1],
    "of less axes": lambda kept: kept[0],
    "0-d": lambda kept: kept[0, 0, 0],
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask(backend, lane, kind):
    """As the plain expression takes it."""
    walked(backend)
    logits, labels, kept = drawn(7, (2, 5, 4, 4), 0.6)
    kept[0, 0, 0] = True
    mask = MASKS[kind](kept)
    given = asarray(backend, np.asarray(mask))
    checked(backend, logits, labels, np.broadcast_to(mask.astype(bool), labels.shape), mask=given)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (np.full((2, 4, 4), 2), ValueError),
        (np.ones((2, 4, 4), np.float32), TypeError),
        (np.ones((8, 4), bool), ValueError),
        (np.ones((1, 2, 4, 4), bool), ValueError),
        ([[True]], TypeError),
    ],
    ids=["numbers", "floating", "shape", "axes", "list"],
)
def test_a_mask_that_is_none_is_refused(backend, lane, mask, error):
    looked_at(backend)
    logits, labels, _ = drawn(8, (2, 5, 4, 4), 1.0)
    mask = asarray(backend, mask) if isinstance(mask, np.ndarray) else mask
    with pytest.raises(error, match="mask"):
        ml.cross_entropy(asarray(backend, logits), asarray(backend, labels), mask=mask, axis=1)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("ignored", [2**64 - 1, 2**70, -(2**63) - 1])
def test_an_index_that_no_label_can_be(backend, ignored, axis):
    """Nothing is ignored: a label of -1, which it might wrap to, is as wrong as ever."""
    looked_at(backend)
    logits, labels, kept = drawn(9, (2, 5, 4, 4), 1.0)
    x = np.ascontiguousarray(np.moveaxis(logits, 1, -1)) if axis == -1 else logits
    want, _ = expected(logits, labels, kept)
    value = ml.cross_entropy(asarray(backend, x), asarray(backend, labels), axis=axis, ignore_index=ignored)
    assert abs(float(value) - want) <= 2.0**-20 * want
    labels[0, 0, 0] = -1
    with pytest.raises(ValueError, match=r"labels.* is -1"):
        ml.cross_entropy(asarray(backend, x), asarray(backend, labels), axis=axis, ignore_index=ignored)


@pytest.mark.parametrize("function", ["entropy", "label_log_probs"])
def test_the_other_functions(backend, small, function):
    """Each entry's value is that of its row alone."""
    walked(backend)
    logits, labels, kept = drawn(4, (3, 7, 8, 9), 0.7)
    more = {} if function == "entropy" else {"labels": asarray(backend, labels)}
    planes = getattr(ml, function)(asarray(backend, logits), mask=asarray(backend, kept), axis=1, **more)
    rows = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    beside = getattr(ml, function)(asarray(backend, rows), mask=asarray(backend, kept), **more)
    np.testing.assert_allclose(to_numpy(backend, planes), to_numpy(backend, beside), rtol=2.0**-20, atol=2.0**-20)


@pytest.mark.parametrize(
    ("axes", "plane"),
    [
        ((0, 1, 2, 3), 20),  # (N, C, H, W)
        ((1, 0, 2, 3), 60),  # (C, N, H, W) in memory: all rows are one plane
        ((0, 1, 3, 2), None),  # rows that are not in the order of their memory
    ],
)
def test_what_is_a_plane(backend, axes, plane):
    """Of arrays whose memory is (2, 3, 4, 5), with the class axis 1 moved to the end."""
    walked(backend)
    x = asarray(backend, np.zeros((2, 3, 4, 5), np.float32))
    xp = namespace_of(x)
    assert xp.plane_of(xp.moved_axis(xp.permute_dims(x, axes), 1, -1)) == plane
