"""What the engine and the small lane of torch must not do, beyond the matrix: each was once seen."""

import functools
import importlib
import warnings

import numpy as np
import pytest

import maskloss as ml
from maskloss import _arrays
from maskloss._engine import unshifted
from tests.backends import asarray, of_library, settings, to_numpy


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
    xp = _arrays.namespace_of(x)
    arguments = asarray(backend, np.asarray([2, 0])), asarray(backend, np.asarray([1.0, 3.0], np.float32))
    with settings(backend):
        xp.subtract_at_label(x, *arguments, in_place=True)
        assert to_numpy(backend, x).tolist() == [[0, 0, -1], [-3, 0, 0]]


def test_a_loss_is_divided_in_place(backend):
    of_library(backend, "torch")
    import torch

    x = torch.zeros(1, 2, requires_grad=True)
    loss = ml.cross_entropy(x, torch.tensor([0]))
    loss /= 4
    loss.backward()
    assert x.grad.tolist() == [[-0.125, 0.125]]  # (1/2 - 1, 1/2) / 4


def test_a_traced_entropy_can_be_saved(backend, tmp_path):
    """An autograd.Function could not: what is traced is the expression."""
    of_library(backend, "torch")
    torch = importlib.import_module("torch")
    x = torch.randn(2, 3)
    torch.jit.save(torch.jit.trace(ml.entropy, x), str(tmp_path / "entropy.pt"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "entropy.pt"))(x), ml.entropy(x))
    torch.testing.assert_close(torch.func.functionalize(ml.entropy)(x), ml.entropy(x))


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

    It is a sum of equal terms, at most 128 of them one to the next (256 where it is compiled, for any number of them),
    and then levels of 16: 128 + 3 * 16 roundings of half a last place.
    """
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    count, expected = 2**18, [2**18 * np.log(2), 0.0]
    with settings(backend):
        given = np.zeros((count, 2), np.float32), np.zeros(count, np.int64), np.ones(2, np.float32)
        logits, labels, class_weights = (asarray(backend, x) for x in given)

        def loss(w):
            return ml.cross_entropy(logits, labels, class_weights=w, reduction="sum")

        gradient = ml.value_and_grad(ml.cross_entropy, "class_weights")(
            logits, labels, class_weights=class_weights, reduction="sum"
        )[1]
        np.testing.assert_allclose(to_numpy(backend, gradient), expected, rtol=176 * 2.0**-24)
        if backend.name == "torch":
            import torch

            weights = class_weights.clone().requires_grad_()
            torch.compile(loss, fullgraph=True, backend="aot_eager")(weights).backward()
            np.testing.assert_allclose(weights.grad, expected, rtol=304 * 2.0**-24)


def test_sums_of_what_was_broadcast(backend):
    """NumPy walks the repeated axis first, and the long one then in a running sum, though its numbers lie side by side.

    Levels of 16 blocks, each a running sum of equal terms: 16 * 5 roundings of half a last place.
    """
    of_library(backend, "numpy")
    x = np.broadcast_to(np.full((2**20, 1), 0.1, np.float32), (2**20, 3))
    expected = np.full(3, 2**20 * float(np.float32(0.1)))
    np.testing.assert_allclose(ml.masked_sum(x, axis=0), expected, rtol=80 * 2.0**-24)


def test_a_gradient_of_0_above_keeps_one_walk(backend, monkeypatch):
    """An entry that weighs nothing, of a class without weight say, does not cost all others the second exponential."""
    of_library(backend, "numpy")
    walks = []
    walk_of = unshifted.walk_of
    monkeypatch.setattr(unshifted, "walk_of", lambda rows, **how: walks.append(rows) or walk_of(rows, **how))
    ml.value_and_grad(ml.cross_entropy)(np.zeros((4, 3)), np.arange(4) % 3, class_weights=np.asarray([1.0, 0.0, 2.0]))
    assert len(walks) == 1


def test_jax_merges_no_sums(backend):
    """40 x 50 equal terms under jit: sums of at most 50, each in 8 running sums at least, and not one of 2000."""
    of_library(backend, "jax")
    import jax

    each = np.float32(0.3) * np.float32(0.7)
    with settings(backend):
        values, weights = (asarray(backend, np.full((40, 50), x, np.float32)) for x in (0.3, 0.7))
        for function in (functools.partial(ml.reduce, reduction="sum"), ml.masked_sum):
            found = float(jax.jit(lambda v, w, f=function: f(v, weights=w))(values, weights))
            assert abs(found / (2000 * float(each)) - 1) < 2 * (50 / 8 + 3) * 2.0**-24


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


@pytest.mark.parametrize("size", [-51.3, -46.0, -45.9, -44.5, 34.0, 0.0])
@pytest.mark.parametrize("g", [1e-30, 1e-16, 1.0, 1e19, 1e30])
def test_the_size_of_an_upstream_gradient(backend, size, g):
    """Of equal logits, whose lse lies at the ends of what is summed without a shift: g (1/C - [c = y]), to rounding.

    exp(x_c) * (g / total) is three roundings, and exp(x_c) another of each library's exp.
    """
    of_library(backend, "numpy", "torch", "jax")
    x, y, weights = np.full((64, 1024), size, np.float32), np.zeros(64, np.int64), np.full(64, g, np.float32)
    with settings(backend):
        for options in ({}, {"z_loss": 1e-6}):
            function = functools.partial(ml.cross_entropy, reduction="sum", **options)
            arrays = (asarray(backend, a) for a in (x, y))
            gradient = ml.value_and_grad(function)(*arrays, weights=asarray(backend, weights))[1]
            found = to_numpy(backend, gradient).astype(np.float64) / g
            slope = 1 + 2 * options.get("z_loss", 0.0) * (size + np.log(1024))
            expected = np.full((64, 1024), slope / 1024)
            expected[:, 0] -= 1
            np.testing.assert_allclose(found, expected, rtol=16 * 2.0**-24)


@pytest.mark.parametrize("size", [-51.3, -45.9, -44.5, 34.0, 0.0])
def test_second_derivatives_at_the_ends_of_the_range(backend, size):
    """The Hessian of a row of equal logits is diag(1/C) - 1/C^2; times v = (0, 1, 1, ..), (v_c - (C - 1) / C) / C."""
    of_library(backend, "torch", "jax")
    x, y, v = np.full((64, 1024), size, np.float32), np.zeros(64, np.int64), np.ones((64, 1024), np.float32)
    v[:, 0] = 0
    with settings(backend):
        logits, labels, direction = (asarray(backend, a) for a in (x, y, v))
        if backend.library == "torch":
            import torch

            logits.requires_grad_()
            loss = ml.cross_entropy(logits, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
            products = [torch.autograd.grad(gradient, logits, direction)[0]]
            plain = logits.detach()
            of_logits = functools.partial(ml.cross_entropy, labels=labels, reduction="sum")
            products.append(torch.func.jvp(torch.func.grad(of_logits), (plain,), (direction,))[1])
        else:
            import jax

            of_logits = functools.partial(ml.cross_entropy, labels=labels, reduction="sum")
            products = [jax.jvp(jax.grad(of_logits), (logits,), (direction,))[1]]
            products.append(jax.vjp(jax.grad(of_logits), logits)[1](direction)[0])
        for product in products:
            # v_1 - u is 1/1024, a difference of two numbers near 1: off by a few of its own 2**-14.
            expected = (v[0] - 1023 / 1024) / 1024
            np.testing.assert_allclose(to_numpy(backend, product), np.broadcast_to(expected, x.shape), rtol=2.0**-11)


@pytest.mark.parametrize("validate", ["auto", True])  # True: the engine, for what is small as well
def test_a_row_beside_another(backend, validate):
    """log(1 + exp(-13.5) + exp(-14.5)) is 1.875e-6, to a last place of 1, beside a row of loss 31 as alone."""
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    alone = np.array([[33.5, 20.0, 19.0]], np.float32)
    both = np.concatenate([alone, np.array([[0.0, 31.0, 0.0]], np.float32)])
    with settings(backend):
        losses = [
            to_numpy(
                backend,
                ml.cross_entropy(
                    asarray(backend, x), asarray(backend, np.zeros(len(x), int)), reduction="none", validate=validate
                ),
            )
            for x in (alone, both)
        ]
        assert losses[0][0] == losses[1][0]
        assert abs(losses[1][0] - np.log1p(np.exp(-13.5) + np.exp(-14.5))) <= 2.0**-23


@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_a_loss_within_a_loss(backend, monkeypatch, kept):
    """A signal's handler that computes a loss while the engine computes one: each has a workspace of its own."""
    of_library(backend, "numpy", "torch")
    rows, rng, handled = importlib.import_module("maskloss._math.softmax"), np.random.default_rng(0), []
    exponentials = rows.exponentials
    with settings(backend):
        x, other = (asarray(backend, rng.normal(size=(9, 300)).astype(np.float32)) for _ in range(2))
        y, mask = asarray(backend, rng.integers(0, 300, 9)), asarray(backend, rng.random(9) < kept)
        of_logits = ml.value_and_grad(functools.partial(ml.cross_entropy, weights=1.0, reduction="sum"))

        def interrupted(*args, **kwargs):
            result = exponentials(*args, **kwargs)
            if not handled:
                handled.append(True)
                of_logits(other, y, mask=mask)
                handled.pop()
            return result

        expected = of_logits(x, y, mask=mask)
        monkeypatch.setattr(rows, "exponentials", interrupted)
        found = of_logits(x, y, mask=mask)
        assert all(
            np.array_equal(to_numpy(backend, a), to_numpy(backend, b)) for a, b in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("name", ["reduce", "masked_sum", "masked_mean", "masked_max", "masked_log_softmax"])
def test_a_result_is_not_the_argument(backend, name):
    """Where there is nothing to reduce, a result that is then written to leaves the argument as it was."""
    of_library(backend, "numpy", "torch")
    if backend.readonly:
        pytest.skip("cannot be written to")
    options = {"reduce": {"reduction": "none"}, "masked_log_softmax": {}}.get(name, {"axis": ()})
    shapes = {"masked_log_softmax": ((2, 0),)}.get(name, ((2, 3), ()))
    for shape in shapes:
        for more in ({}, {"mask": True}):
            x = asarray(backend, np.ones(shape, np.float32))
            result = getattr(ml, name)(x, **options, **more)
            result *= 0
            assert (to_numpy(backend, x) == 1).all()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "mean_over_all"}, {"weights": 0.5}])
def test_what_torch_traces_meets_other_sizes(backend, options):
    """torch.jit.trace and make_fx: four rows where two were traced, and no warning of what decides on errors alone."""
    of_library(backend, "torch")
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    def loss(x, y):
        return ml.cross_entropy(x, y, **options)

    few, many = ((torch.randn(n, 3) * 100, torch.arange(n) % 3) for n in (2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(loss, few, check_trace=False)
    symbolic, real = (make_fx(loss, tracing_mode=mode)(*few) for mode in ("symbolic", "real"))
    for function, arguments in ((traced, many), (symbolic, many), (real, (few[0] / 100, few[1]))):
        torch.testing.assert_close(function(*arguments), loss(*arguments))


AUTODIFF = {"implementation": "autodiff"}


def test_dynamo_leaves_the_backwards_alone(backend):
    """A compiled step of a loss that is not compiled has as many graphs as with F.cross_entropy."""
    of_library(backend, "torch")
    import torch

    layer, kernel = torch.nn.Linear(8, 100), torch.randn(7, 100, requires_grad=True)

    def graphs_of(loss):
        graphs, eager = [], torch.compiler.disable(loss)
        torch.compiler.reset()

        def count(graph, _):
            graphs.append(graph)
            return graph.forward

        @functools.partial(torch.compile, backend=count)
        def step(x, y):
            eager(layer(x), y).backward()

        for _ in range(2):
            step(torch.randn(4, 8), torch.randint(0, 7, (4,)))
        return len(graphs)

    expected = graphs_of(torch.nn.functional.cross_entropy)
    for loss in (
        ml.cross_entropy,
        functools.partial(ml.cross_entropy, weights=0.5),
        lambda h, y: ml.linear_cross_entropy(h, kernel, y),
        lambda h, y: ml.linear_cross_entropy(h, kernel, y, reduction="none").sum(),
        lambda h, y: ml.linear_entropy(h, kernel).sum(),
        torch.autocast("cpu", torch.bfloat16)(lambda h, y: ml.linear_cross_entropy(h, kernel, y, **AUTODIFF)),
    ):
        assert graphs_of(loss) == expected


def test_out_of_memory_is_told_by_torch(backend, monkeypatch):
    """The kernel refuses an anonymous mapping: zeros are then torch's own, and so is the error without memory."""
    of_library(backend, "torch")
    import torch

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    x, y = torch.zeros(8, 2**18, requires_grad=True), torch.zeros(8, dtype=torch.int64)
    monkeypatch.setattr("mmap.mmap", refuse)
    ml.cross_entropy(x, y, mask=torch.arange(8) < 2, weights=1.0, reduction="sum").backward()
    assert (x.grad[2:] == 0).all()
    torch.testing.assert_close(x.grad[:2, 0], torch.full((2,), 2.0**-18 - 1))


def test_a_jax_parameter_is_an_array(backend):
    """What has __jax_array__, as a parameter of Flax, in the place of any array."""
    of_library(backend, "jax")
    import jax
    import jax.numpy as jnp

    class Parameter:
        def __init__(self, value):
            self.value = jnp.asarray(value)

        def __jax_array__(self):
            return self.value

    rng = np.random.default_rng(0)
    with settings(backend):
        x, k, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.integers(0, 3, 4)
        per_entry = {"mask": y > 0, "weights": rng.random(4), "denominator": np.float32(3.0)}
        calls = (
            (ml.cross_entropy, (x, y), {**per_entry, "class_weights": rng.random(3), "class_mask": np.ones(3, bool)}),
            (ml.linear_cross_entropy, (x, k, y), {**per_entry, "bias": rng.random(5)}),
            (ml.masked_mean, (x, x > 0), {"weights": rng.random(3)}),
            (ml.value_and_grad(ml.cross_entropy), (x, y), {}),
        )
        for function, args, options in calls:
            found, expected = (
                function(*map(of, args), **{n: of(a) for n, a in options.items()}) for of in (Parameter, jnp.asarray)
            )
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert np.array_equal(a, b)
