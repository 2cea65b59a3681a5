"""PyTorch: every kind of differentiation, against finite differences, and each implementation against the other."""

import numpy as np
import pytest

import maskloss as ml
from tests.backends import asarray, of_library, settings
from tests.derivatives import CALLS, arrays, call

torch = pytest.importorskip("torch")
IMPLEMENTATIONS = ("analytic", "autodiff")


def runs(backend):
    if backend.library != "torch" or backend.shapes_only:
        return []
    return [(f"{backend.name}-{name}", (backend, name)) for name in CALLS]


def at(run, implementation):
    backend, name = run
    with settings(backend):
        return call(name, lambda a: asarray(backend, a), ml.cross_entropy, implementation=implementation)


def leaves(xs):
    return [x.clone().requires_grad_() for x in xs]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(run, implementation):
    """Reverse, forward and batched derivatives against finite differences."""
    function, xs = at(run, implementation)
    torch.autograd.gradcheck(
        function, leaves(xs), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradgradcheck(run, implementation):
    function, xs = at(run, implementation)
    torch.autograd.gradgradcheck(function, leaves(xs), check_fwd_over_rev=True)


def test_implementations_agree(run):
    """Value, gradient, jvp and Hessian of the pair against the expression's, with an upstream gradient other than 1."""
    results = []
    for implementation in IMPLEMENTATIONS:
        function, xs = at(run, implementation)
        variables = leaves(xs)
        value = function(*variables)
        gradients = torch.autograd.grad(3.0 * value, variables)
        tangents = tuple(torch.cos(x) for x in xs)
        jvp = torch.func.jvp(function, tuple(xs), tangents)[1]
        hessian = torch.func.hessian(function)(*xs)
        # d/dh f(x + h cos x) is the inner product of gradient and tangent: one derivative checks the other.
        inner = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)) / 3.0
        torch.testing.assert_close(jvp, inner, rtol=1e-12, atol=1e-13)
        results.append((value.detach(), *gradients, jvp, hessian))
    for pair, expression in zip(*results, strict=True):
        torch.testing.assert_close(pair, expression, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_of_grad(run, implementation):
    """vmap(grad) over a batch is the loop over it, as are vmap and grad(vmap); in_dims None for what is shared."""
    function, xs = at(run, implementation)
    batches = [torch.stack([x, x + 0.5, x - 0.25]) for x in xs]
    argnums = tuple(range(len(xs)))
    gradients = torch.func.vmap(torch.func.grad(function, argnums))(*batches)
    shared = torch.func.vmap(function, in_dims=(0, *[None] * (len(xs) - 1)))(batches[0], *(b[0] for b in batches[1:]))
    for i in range(3):
        one = torch.func.grad(function, argnums)(*(b[i] for b in batches))
        torch.testing.assert_close(tuple(g[i] for g in gradients), one, rtol=1e-12, atol=1e-13)
        value = function(batches[0][i], *(b[0] for b in batches[1:]))
        torch.testing.assert_close(shared[i], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reach_of_garbage(backend, implementation):
    """NaN and infinities in what is not kept: gradients and second derivatives are finite, and exactly 0 there."""
    of_library(backend, "torch")
    given = arrays()
    given["logits"][1] = [np.nan, np.inf, -np.inf, 1e300, np.nan]
    given["labels"][1] = 10**6
    logits, labels, mask = (asarray(backend, given[key]) for key in ("logits", "labels", "mask"))
    logits.requires_grad_()
    loss = ml.cross_entropy(logits, labels, mask=mask, softcap=3.0, z_loss=0.1, implementation=implementation)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    for derivative in (gradient, second):
        assert torch.isfinite(derivative).all()
        assert (derivative[1] == 0).all()
        assert (derivative[[0, 2, 3]] != 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences"])
def test_nothing_kept_stays_connected(backend, implementation, reduction):
    of_library(backend, "torch")
    logits = asarray(backend, np.full((2, 3, 4), np.nan)).requires_grad_()
    labels, mask = asarray(backend, np.full((2, 3), -100)), asarray(backend, np.zeros((2, 3), bool))
    loss = ml.cross_entropy(logits, labels, mask=mask, reduction=reduction, implementation=implementation)
    assert loss.item() == 0
    loss.backward()
    assert (logits.grad == 0).all()


def test_caller_keeps_the_graph(backend):
    """Two losses of the same logits in one graph, an upstream gradient, a second backward through the same graph."""
    of_library(backend, "torch")
    given = arrays()
    labels = asarray(backend, given["labels"])
    x = asarray(backend, given["logits"]).requires_grad_()
    once = torch.autograd.grad(ml.cross_entropy(x, labels), x)[0]
    loss = 2.0 * ml.cross_entropy(x, labels) + ml.cross_entropy(x, labels) * 0.5
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, x, retain_graph=True)[0], 2.5 * once, rtol=1e-12, atol=0)


def test_compile_count(backend):
    """fullgraph, and at most two compilations over five batch sizes; value and gradient those of eager."""
    of_library(backend, "torch")
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    given = arrays()
    class_weights = asarray(backend, given["class_weights"])

    def loss(logits, labels, mask):
        return ml.cross_entropy(
            logits, labels, mask=mask, class_weights=class_weights, label_smoothing=0.1, z_loss=0.1, ignore_index=-100
        )

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    generator = np.random.default_rng(0)
    for n in (3, 4, 7, 9, 12):
        logits = asarray(backend, generator.normal(size=(n, 5))).requires_grad_()
        labels = asarray(backend, np.where(np.arange(n) == 1, -100, generator.integers(0, 5, n)))
        mask = asarray(backend, generator.random(n) > 0.3)
        value = compiled(logits, labels, mask)
        torch.testing.assert_close(value, loss(logits, labels, mask), rtol=1e-13, atol=0)
        gradients = [torch.autograd.grad(f(logits, labels, mask), logits)[0] for f in (compiled, loss)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    assert counter.frame_count <= 2


def test_inductor(backend):
    """The default compiler, whose kernels are generated; float32, so the tolerance is a few roundings of the loss."""
    of_library(backend, "torch")
    rng = np.random.default_rng(0)
    logits = asarray(backend, rng.normal(size=(6, 33)).astype(np.float32)).requires_grad_()
    labels, mask = asarray(backend, rng.integers(0, 33, 6)), asarray(backend, np.arange(6) != 2)
    compiled = torch.compile(ml.cross_entropy, fullgraph=True)
    results = [torch.autograd.grad(f(logits, labels, mask=mask), logits)[0] for f in (compiled, ml.cross_entropy)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_export(backend):
    of_library(backend, "torch")
    given = arrays()
    args = tuple(asarray(backend, given[key]) for key in ("logits", "labels", "mask"))

    class Loss(torch.nn.Module):
        def forward(self, logits, labels, mask):
            return ml.cross_entropy(logits, labels, mask=mask)

    program = torch.export.export(Loss(), args)
    torch.testing.assert_close(program.module()(*args), Loss()(*args), rtol=0, atol=0)


def test_checkpoint_and_autocast(backend):
    of_library(backend, "torch")
    from torch.utils.checkpoint import checkpoint

    given = arrays()
    labels = asarray(backend, given["labels"])
    x = asarray(backend, given["logits"]).requires_grad_()
    plain = torch.autograd.grad(ml.cross_entropy(x, labels), x)[0]
    again = torch.autograd.grad(checkpoint(ml.cross_entropy, x, labels, use_reentrant=False), x)[0]
    torch.testing.assert_close(plain, again, rtol=0, atol=0)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        inside = ml.cross_entropy(x, labels)
    torch.testing.assert_close(inside, ml.cross_entropy(x, labels), rtol=0, atol=0)


def test_checker_can_fail():
    """gradcheck finds a lost upstream gradient."""

    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x * x).sum()

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0]

    from torch.autograd.gradcheck import GradcheckError

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(Lost.apply, torch.ones(3, dtype=torch.float64, requires_grad=True))
