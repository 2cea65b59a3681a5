"""What the engine and the small lane of torch must not do, beyond the matrix: each was once seen."""

import functools

import numpy as np
import pytest
from backends import asarray, settings, to_numpy

import maskloss as ml
from maskloss import _compat


def of_library(backend, *names):
    if backend.library not in names or backend.shapes_only:
        pytest.skip(f"for {', '.join(names)}")


@pytest.mark.parametrize("offset", [0, 20, 34, 45, 61, -45, -60])
def test_a_common_offset_in_the_gradient(backend, offset):
    """softmax - one-hot does not change with an offset; with as many logits as JAX's unshifted sums need.

    Logits are multiples of 2**-6 and offsets integers, so that logits + offset is exact: p, a product of three
    roundings, is off by a few 2**-24 of itself, and p - 1 by as much of 1.
    """
    of_library(backend, "numpy", "torch", "jax")
    rng = np.random.default_rng(0)
    plain = np.round(rng.normal(size=(64, 1024)) * 64) / 64
    labels = rng.integers(0, 1024, 64)
    p = np.exp(plain) / np.exp(plain).sum(-1, keepdims=True)
    p[np.arange(64), labels] -= 1
    with settings(backend):
        logits = asarray(backend, (plain + offset).astype(np.float32))
        function = functools.partial(ml.cross_entropy, reduction="sum")
        _, gradient = ml.value_and_grad(function)(logits, asarray(backend, labels))
        assert np.abs(to_numpy(backend, gradient) - p).max() < 2.0**-20


def test_a_label_far_below(backend):
    """lse - x_y = 60 + log(1 + exp(-110)) + 50, which is 110 to the last place."""
    of_library(backend, "numpy", "torch", "jax")
    with settings(backend):
        logits = asarray(backend, np.asarray([[-50.0, 60.0]], np.float32))
        assert float(ml.cross_entropy(logits, asarray(backend, np.asarray([0])))) == 110.0


def test_a_tiny_upstream_gradient(backend):
    """d/dx of 1e-12 * loss at two equal logits is 1e-12 * (1/2 - 1, 1/2), whatever their size."""
    of_library(backend, "torch")
    import torch

    for size in (0.0, 30.0, 67.0, 1000.0):
        x = torch.full((1, 2), size, requires_grad=True)
        (1e-12 * ml.cross_entropy(x, torch.tensor([0]))).backward()
        torch.testing.assert_close(x.grad, torch.tensor([[-5e-13, 5e-13]]), rtol=1e-6, atol=0)


def test_label_is_subtracted_in_place(backend):
    """What the gradient's blocks rely on, for every library that has no scatter of its own too."""
    of_library(backend, "numpy", "torch", "array_api_strict")
    x = asarray(backend, np.zeros((2, 3), np.float32).copy())
    if backend.readonly:
        pytest.skip("cannot be written to")
    xp = _compat.namespace_of(x)
    arguments = asarray(backend, np.asarray([2, 0])), asarray(backend, np.asarray([1.0, 3.0], np.float32))
    with settings(backend):
        _compat.subtract_at_label(x, *arguments, in_place=True, xp=xp)
        assert to_numpy(backend, x).tolist() == [[0, 0, -1], [-3, 0, 0]]


def test_a_loss_is_divided_in_place(backend):
    of_library(backend, "torch")
    import torch

    x = torch.zeros(1, 2, requires_grad=True)
    loss = ml.cross_entropy(x, torch.tensor([0]))
    loss /= 4
    loss.backward()
    assert x.grad.tolist() == [[-0.125, 0.125]]  # (1/2 - 1, 1/2) / 4


def test_a_trace_chooses_nothing(backend):
    """torch.jit.trace records one way through; run on other logits it must be right there too."""
    of_library(backend, "torch")
    import torch

    labels = torch.tensor([0, 1])
    traced = torch.jit.trace(lambda x: ml.cross_entropy(x, labels), torch.zeros(2, 3), check_trace=False)
    assert abs(float(traced(torch.full((2, 3), 200.0))) - np.log(3)) < 1e-6


def test_transformed_beside_plain_logits(backend):
    """vmap over the mask alone: each row of masks keeps another entry. Equal logits: every loss is log 3."""
    of_library(backend, "torch")
    import torch

    x, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    masks = torch.tensor([[True, False], [False, True], [False, False]])
    for logits in (x, x.clone().requires_grad_()):
        losses = torch.vmap(lambda mask, logits=logits: ml.cross_entropy(logits, labels, mask=mask))(masks)
        torch.testing.assert_close(losses.detach(), torch.tensor([np.log(3), np.log(3), 0.0], dtype=torch.float32))
        entropies = torch.vmap(lambda mask, logits=logits: ml.entropy(logits, mask=mask))(masks)
        assert entropies.shape == (3, 2)
    weights = torch.ones(2)
    gradient = torch.func.grad(lambda w: ml.cross_entropy(x, labels, weights=w, reduction="sum"))(weights)
    torch.testing.assert_close(gradient, torch.full((2,), float(np.log(3))))


def test_forward_over_reverse(backend):
    """The Hessian times v at two equal logits: (diag(p) - p p^T) v = (v_1 - v_2) / 4 * (1, -1)."""
    of_library(backend, "torch")
    import torch
    import torch.autograd.forward_ad as forward

    for shape in ((1, 2), (1, 1, 2)):
        x, v = torch.zeros(shape, requires_grad=True), torch.tensor([3.0, 1.0]).reshape(shape)
        labels = torch.zeros(shape[:-1], dtype=torch.int64)
        with forward.dual_level():
            loss = ml.cross_entropy(forward.make_dual(x, v), labels, label_smoothing=0.0, z_loss=0.0)
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            product = forward.unpack_dual(gradient).tangent
        assert product.flatten().tolist() == [0.5, -0.5]


def test_strided_rows_of_numpy(backend):
    """Rows of a view are gathered one by one; the numbers are those of a contiguous copy."""
    of_library(backend, "numpy")
    rng = np.random.default_rng(1)
    x, labels, mask = rng.normal(size=(50, 31)), rng.integers(0, 30, 50), rng.random(50) < 0.4
    view = x[:, :-1]
    assert ml.cross_entropy(view, labels, mask=mask) == ml.cross_entropy(view.copy(), labels, mask=mask)


def test_second_derivative_of_a_small_loss(backend):
    of_library(backend, "torch")
    import torch

    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).requires_grad_()
    mask = torch.tensor([True, False])
    for given in ({}, {"mask": mask}):
        assert torch.autograd.gradgradcheck(lambda x, g=given: ml.cross_entropy(x, torch.tensor([0, 1]), **g), x)


def test_a_wrong_label_that_was_not_checked_is_nan_in_every_gradient(backend):
    """Of the weights of the classes too. For "sum", dL/dw_1 is the other entry's loss, log 3; class 2 has no label."""
    of_library(backend, "numpy", "array_api_strict", "torch", "jax", "cupy")
    with settings(backend):
        logits, labels, class_weights = (asarray(backend, x) for x in (np.zeros((2, 3)), np.array([1, 9]), np.ones(3)))
        gradient = ml.value_and_grad(ml.cross_entropy, "class_weights")(
            logits, labels, class_weights=class_weights, reduction="sum", validate=False
        )[1]
        gradient = to_numpy(backend, gradient)
        np.testing.assert_allclose(gradient, [np.nan, np.log(3), 0.0], rtol=4 * np.finfo(gradient.dtype).eps)


def test_sums_over_many_entries(backend):
    """dL/dw_0 of a sum over 2**18 entries of label 0 and two equal logits is 2**18 log 2; a running sum is far from it.

    It is a sum of equal terms in five levels of 16, with at most 16 roundings of half a last place in each.
    """
    of_library(backend, "numpy", "array_api_strict")
    with settings(backend):
        given = np.zeros((2**18, 2), np.float32), np.zeros(2**18, np.int64), np.ones(2, np.float32)
        logits, labels, class_weights = (asarray(backend, x) for x in given)
        gradient = ml.value_and_grad(ml.cross_entropy, "class_weights")(
            logits, labels, class_weights=class_weights, reduction="sum"
        )[1]
    np.testing.assert_allclose(to_numpy(backend, gradient), [2**18 * np.log(2), 0.0], rtol=80 * 2.0**-24)


def test_a_long_row_of_hidden_states(backend):
    """The long rows of the matrix as a projection of one feature, which is 1: logits are the kernel.

    lse - x_y = log(1 + t) with t = (V - 1) exp(-12), and dL/dkernel_y = 1 / (1 + t) - 1. See the matrix' bound.
    """
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    kernel = np.zeros((2**17, 1), np.float32)
    kernel[7] = 12.0
    t = (2**17 - 1) * np.exp(-12.0)
    for options in ({}, {"label_smoothing": 2.0**-30}):
        with settings(backend):
            arrays = (asarray(backend, x) for x in (np.ones((1, 1), np.float32), kernel, np.array([7])))
            function = functools.partial(ml.linear_cross_entropy, **options)
            loss, gradient = ml.value_and_grad(function, 1)(*arrays)
        assert abs(float(loss) - np.log1p(t)) < 32 * 2.0**-24
        assert abs(to_numpy(backend, gradient)[7, 0] + t / (1 + t)) < 32 * 2.0**-24
