"""linear_cross_entropy beyond the matrix: the gradients of kernel and bias, chunks, what each framework does with it.

What it is compared with is cross_entropy of the logits, whose gradient the matrix proves, and the chain rule:
with X = dL/dlogits, d hidden = X kernel, d kernel = X^T hidden and d bias = the sum of X over the entries.
"""

import contextlib
import functools
import importlib
import types
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import maskloss as ml
from maskloss._engine import projection
from tests import backends
from tests.backends import asarray, named, settings, to_numpy
from tests.derivatives import CALLS, arrays

NAMED = ("numpy", "strict", "torch", "jax", "torch-cuda", "jax-gpu", "cupy")
FEATURES = 3


def runs(backend):
    return [(f"{backend.name}-{name}", (backend, name)) for name in CALLS] if backend.name in NAMED else []


def problem(name, seed=11):
    """hidden, kernel, bias and labels in NumPy, and the options of the call `name`."""
    rng, labels, (given_arrays, options) = np.random.default_rng(seed), CALLS[name][0], CALLS[name][1:]
    values = arrays()
    count, classes = values["logits"].shape
    hidden, kernel = rng.normal(size=(count, FEATURES)), rng.normal(size=(classes, FEATURES))
    return hidden, kernel, rng.normal(size=classes), values[labels], {n: values[n] for n in given_arrays}, options


def on(backend, *xs):
    return [asarray(backend, x) for x in xs]


def through_logits(backend, hidden, kernel, bias, labels, **options):
    """The loss, and the gradients of hidden, kernel and bias."""
    logits = hidden @ kernel.T + bias
    loss, d = ml.value_and_grad(ml.cross_entropy)(asarray(backend, logits), asarray(backend, labels), **options)
    d, flat = to_numpy(backend, d), hidden.reshape(-1, hidden.shape[-1])
    return to_numpy(backend, loss), d @ kernel, d.reshape(-1, d.shape[-1]).T @ flat, d.reshape(-1, d.shape[-1]).sum(0)


def through_chunks(backend, hidden, kernel, bias, labels, **options):
    function = functools.partial(ml.linear_cross_entropy, **options)
    loss, gradients = ml.value_and_grad(function, (0, 1, "bias"))(
        *on(backend, hidden, kernel, labels), bias=asarray(backend, bias)
    )
    return [to_numpy(backend, x) for x in (loss, *gradients)]


def assert_close(found, expected, tolerance=1e-12):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, abs(y).max(initial=0)))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_gradients_of_the_projection(run, chunk_size):
    backend, name = run
    with settings(backend):
        hidden, kernel, bias, labels, given_arrays, options = problem(name)
        options = options | {n: asarray(backend, x) for n, x in given_arrays.items()}
        expected = through_logits(backend, hidden, kernel, bias, labels, **options)
        found = through_chunks(backend, hidden, kernel, bias, labels, chunk_size=chunk_size, **options)
        assert_close(found, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_narrow_dtypes(backend, dtype, tolerance):
    """Against float64 of the same numbers, relative to the largest entry, with logits from 0 to 1e4 apart."""
    named(backend, *NAMED)
    if backend.library in ("array_api_strict", "cupy") and dtype == "bfloat16":
        pytest.skip("the library has no bfloat16")
    importlib.import_module("ml_dtypes")
    rng = np.random.default_rng(3)
    hidden, kernel = rng.normal(size=(40, 16)), rng.normal(size=(333, 16)) * 0.3
    bias, labels = rng.normal(size=333), rng.integers(0, 333, 40)
    narrow = [x.astype(dtype) for x in (hidden, kernel, bias)]
    wide = [x.astype(np.float64) for x in narrow]
    with settings(backend):
        found = through_chunks(backend, *narrow, labels, chunk_size=16)
    expected = through_logits(backends.BACKENDS["numpy"], *wide, labels)
    for x, y in zip(found, expected, strict=True):
        assert abs(x.astype(np.float64) - y).max() <= tolerance * abs(y).max()


@pytest.mark.parametrize(
    ("count", "classes", "kept"),
    [(0, 5, ()), (1, 1, (0,)), (5, 1, (1, 3)), (7, 11, (4,)), (7, 11, ()), (6, 7, range(6))],
)
def test_few(backend, count, classes, kept):
    named(backend, *NAMED)
    rng = np.random.default_rng(5)
    hidden, kernel, bias = rng.normal(size=(count, 4)), rng.normal(size=(classes, 4)), rng.normal(size=classes)
    labels, mask = rng.integers(0, classes, count), np.isin(np.arange(count), kept)
    garbage, bad_labels = np.where(mask[:, None], hidden, np.nan), np.where(mask, labels, 10**6)
    with settings(backend):
        options = {"mask": asarray(backend, mask)}
        expected = through_logits(backend, hidden, kernel, bias, labels, **options)
        assert_close(through_chunks(backend, garbage, kernel, bias, bad_labels, chunk_size=2, **options), expected)


def test_a_common_offset(backend):
    """Logits of 1e4 and of -1e4, a last place apart from shifted ones: the loss is that of the logits less 1e4."""
    named(backend, *NAMED)
    rng = np.random.default_rng(9)
    hidden, kernel, labels = np.round(rng.normal(size=(9, 4)) * 8) / 8, np.eye(4), rng.integers(0, 4, 9)
    plain = through_logits(backends.BACKENDS["numpy"], hidden, kernel, np.zeros(4), labels)
    for offset in (1e4, -1e4):
        with settings(backend):
            cast = [x.astype(np.float32) for x in (hidden, kernel, np.full(4, offset))]
            # 1/8 is 128 last places of 1e4 in float32: the logits are exact.
            assert_close(through_chunks(backend, *cast, labels, chunk_size=4), plain, 2e-6)


def test_invariance(backend):
    """Any size of the chunks, any order of the rows and any padding: the same to rounding."""
    named(backend, *NAMED)
    rng = np.random.default_rng(13)
    hidden, kernel, bias = rng.normal(size=(7, 4)), rng.normal(size=(9, 4)), rng.normal(size=9)
    labels, mask, uneven = rng.integers(0, 9, 7), np.array([1, 1, 0, 1, 0, 1, 1], bool), rng.normal(size=7)

    def holds(chunk_size, order, padding, weighted):
        weights = uneven if weighted else np.ones(7)
        with settings(backend):
            whole = {"mask": asarray(backend, mask), "weights": asarray(backend, weights)}
            expected = through_logits(backend, hidden, kernel, bias, labels, **whole)
            extra = np.full((padding, 4), np.inf)
            hidden_too = np.concatenate([hidden[order], extra])
            labels_too = np.concatenate([labels[order], np.full(padding, -1)])
            rest = {
                "mask": np.concatenate([mask[order], np.zeros(padding, bool)]),
                "weights": np.concatenate([weights[order], extra[:, 0]]),
            }
            options = {n: asarray(backend, x) for n, x in rest.items()} | {"chunk_size": chunk_size}
            found = through_chunks(backend, hidden_too, kernel, bias, labels_too, **options)
        back = np.empty_like(hidden)
        back[order] = found[1][:7]
        assert (found[1][7:] == 0).all()
        assert_close([found[0], back, *found[2:]], expected)

    many = 8 if backend.library == "jax" else 25  # JAX compiles for each size of the chunks and each padding
    drawn = st.integers(1, 9), st.permutations(range(7)), st.integers(0, 3), st.booleans()
    quiet = hypothesis_settings(max_examples=many, deadline=None, suppress_health_check=list(HealthCheck))
    quiet(given(*drawn)(holds))()


def test_label_log_probs(backend):
    named(backend, *NAMED)
    hidden, kernel, bias, labels, _, _ = problem("plain")
    mask = np.array([True, False, True, True])
    with settings(backend):
        h, k, b, y, m = on(backend, hidden, kernel, bias, labels, mask)
        found = ml.linear_label_log_probs(h, k, y, bias=b, mask=m, softcap=2.0, chunk_size=2)
        expected = ml.label_log_probs(asarray(backend, hidden @ kernel.T + bias), y, mask=m, softcap=2.0)
        assert_close([to_numpy(backend, found)], [to_numpy(backend, expected)])


def test_entropy(backend):
    """Value, and where there is one the gradient, with an upstream gradient of each entry."""
    named(backend, *NAMED)
    rng, (hidden, kernel, bias, _, _, _) = np.random.default_rng(23), problem("plain")
    mask, up, class_mask = np.array([True, False, True, True]), rng.normal(size=4), rng.random((4, 5)) < 0.8
    garbage = np.where(mask[:, None], hidden, np.nan)
    with settings(backend):
        g, m, c = on(backend, up, mask, class_mask)

        def loss(h, k, b):
            values = ml.linear_entropy(h, k, bias=b, mask=m, class_mask=c, softcap=2.0, chunk_size=2)
            return (values * g).sum()

        def plain(h, k, b):
            return (ml.entropy(h @ k.T + b, mask=m, class_mask=c, softcap=2.0) * g).sum()

        h, k, b = on(backend, garbage, kernel, bias)
        if backend.gradient == "value_and_grad":
            found = ml.linear_entropy(h, k, bias=b, mask=m, class_mask=c, softcap=2.0, chunk_size=2)
            logits = asarray(backend, hidden @ kernel.T + bias)
            expected = ml.entropy(logits, mask=m, class_mask=c, softcap=2.0)
            assert_close([to_numpy(backend, found)], [to_numpy(backend, expected)])
            return
        found = ml.value_and_grad(loss, (0, 1, 2))(h, k, b)
        expected = ml.value_and_grad(plain, (0, 1, 2))(asarray(backend, hidden), k, b)
        assert_close(
            [to_numpy(backend, x) for x in (found[0], *found[1])],
            [to_numpy(backend, x) for x in (expected[0], *expected[1])],
        )


def test_torch_entropy_derivatives(backend):
    named(backend, "torch", "torch-cuda")
    torch, *leaves, _, mask = torch_case()

    def entropy(hidden, kernel, bias):
        return ml.linear_entropy(hidden, kernel, bias=bias, mask=mask, chunk_size=4)

    torch.autograd.gradcheck(entropy, leaves, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(entropy, leaves)


def test_kernel_layout(backend):
    """Square, so that no shape tells: "dv" is the transpose, and its gradient comes back transposed."""
    named(backend, *NAMED)
    rng = np.random.default_rng(29)
    hidden, kernel, labels = rng.normal(size=(5, 4)), rng.normal(size=(4, 4)), rng.integers(0, 4, 5)
    with settings(backend):
        h, k, turned, y = on(backend, hidden, kernel, kernel.T, labels)
        expected = ml.value_and_grad(ml.linear_cross_entropy, (0, 1))(h, k, y)
        function = functools.partial(ml.linear_cross_entropy, kernel_layout="dv", chunk_size=2)
        found = ml.value_and_grad(function, (0, 1))(h, turned, y)
        wanted = [to_numpy(backend, x) for x in (expected[0], *expected[1])]
        assert_close([to_numpy(backend, x) for x in (found[0], *found[1])], [*wanted[:2], wanted[2].T])
        for function, more in ((ml.linear_label_log_probs, (y,)), (ml.linear_entropy, ())):
            pair = function(h, turned, *more, kernel_layout="dv"), function(h, k, *more)
            assert_close(*([to_numpy(backend, x)] for x in pair))


def test_mixed_dtypes(backend):
    """Computed in the widest; each gradient in its argument's dtype."""
    named(backend, *NAMED)
    rng = np.random.default_rng(17)
    with settings(backend):
        h, k, y = on(backend, rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(5, 3)), rng.integers(0, 5, 4))
        loss, (d_hidden, d_kernel) = ml.value_and_grad(ml.linear_cross_entropy, (0, 1))(h, k, y)
        assert [backends.dtype_name(x) for x in (loss, d_hidden, d_kernel)] == ["float64", "float32", "float64"]


# PyTorch alone


def torch_case(requires=(True, True, True), seed=19):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    hidden, kernel, bias = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), rng.normal(size=5)
    leaves = [torch.from_numpy(x).requires_grad_(r) for x, r in zip((hidden, kernel, bias), requires, strict=True)]
    return torch, *leaves, torch.from_numpy(rng.integers(0, 5, 6)), torch.from_numpy(rng.random(6) < 0.7)


@contextlib.contextmanager
def counted(monkeypatch, *names):
    calls = dict.fromkeys(names, 0)

    def counting(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        xp = importlib.import_module("maskloss._arrays.torch").xp
        for name in names:
            owner = projection if hasattr(projection, name) else xp
            patch.setattr(owner, name, counting(name, getattr(owner, name)))
        yield calls


OPTIONS = (
    {},
    {"reduction": "none"},
    {"reduction": "sum", "z_loss": 0.1, "softcap": 3.0},
    {"label_smoothing": 0.1, "reduction": "mean_over_kept"},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_torch_derivatives(backend, options):
    named(backend, "torch", "torch-cuda")
    torch, *leaves, labels, mask = torch_case()

    def loss(hidden, kernel, bias):
        return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask, chunk_size=4, **options)

    torch.autograd.gradcheck(loss, leaves, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(loss, leaves, check_fwd_over_rev=True)


def test_torch_products(backend, monkeypatch):
    """A scalar loss makes its logits once, a loss per entry again; what is frozen costs no product."""
    named(backend, "torch", "torch-cuda")
    for requires, reduction, walks, kernels in (
        ((True, True, True), "mean", 1, 2),
        ((True, True, True), "none", 2, 2),
        ((True, False, False), "mean", 1, 0),
        ((False, False, False), "mean", 1, 0),
    ):
        _, hidden, kernel, bias, labels, _ = torch_case(requires)
        with counted(monkeypatch, "plan_of", "add_product") as calls:
            loss = ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, reduction=reduction, chunk_size=3)
            if any(requires):
                loss.sum().backward()
        assert (calls["plan_of"], calls["add_product"]) == (walks, kernels)


def test_torch_upstream_gradients(backend, monkeypatch):
    """Other than 1, twice through one graph, and of another form than the loss' own."""
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case()
    leaves = (hidden, kernel, bias)

    def loss(**options):
        return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask, **options)

    def plain(**options):
        return ml.cross_entropy(hidden @ kernel.T + bias, labels, mask=mask, **options)

    with counted(monkeypatch, "plan_of") as calls:
        value = loss()
        scaled = torch.autograd.grad(-3.0 * value, leaves, retain_graph=True)
        assert calls["plan_of"] == 1
    torch.testing.assert_close(scaled, torch.autograd.grad(-3.0 * plain(), leaves), rtol=1e-12, atol=1e-13)
    again = torch.autograd.grad(value, leaves)
    torch.testing.assert_close(again, torch.autograd.grad(plain(), leaves), rtol=1e-12, atol=1e-13)
    both = []
    for function in (loss, plain):
        value, stats = function(with_stats=True, z_loss=0.1)
        both.append(torch.autograd.grad(value + 0.5 * stats.z_loss + stats.total.square(), leaves))
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-13)


def test_torch_accumulation_and_checkpoint(backend):
    """Two losses of one kernel add up, in one graph, in two, and where the forward is run again."""
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case()
    checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint

    def loss(x, reduction="mean"):
        return ml.linear_cross_entropy(x, kernel, labels, bias=bias, mask=mask, reduction=reduction, chunk_size=2)

    (loss(hidden) + loss(2.0 * hidden, "sum")).backward()
    together = kernel.grad
    kernel.grad = None
    loss(hidden).backward()
    loss(2.0 * hidden, "sum").backward()
    torch.testing.assert_close(kernel.grad, together)
    kernel.grad = None
    for use_reentrant in (False, True):
        kernel.grad = None
        checkpoint(loss, hidden, use_reentrant=use_reentrant).backward()
        checkpoint(lambda x: loss(2.0 * x, "sum"), hidden, use_reentrant=use_reentrant).backward()
        torch.testing.assert_close(kernel.grad, together)


def test_torch_autocast(backend):
    """Computed in float32 whatever autocast says; hidden states that it made bfloat16 meet a float32 kernel."""
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case()
    half, kernel, bias = hidden.detach().bfloat16(), kernel.detach().float(), bias.detach().float()
    leaves = [x.requires_grad_() for x in (half, kernel, bias)]

    def loss():
        return ml.linear_cross_entropy(half, kernel, labels, bias=bias, mask=mask)

    expected = loss()
    gradients = torch.autograd.grad(expected, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss()
    assert found.dtype is torch.float32
    assert found.item() == expected.item()
    assert all(map(torch.equal, torch.autograd.grad(found, leaves), gradients))


def test_torch_compile(backend):
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case()

    def loss(hidden, kernel, bias):
        return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(hidden, kernel, bias), (hidden, kernel, bias)) for f in (compiled, loss)]
    torch.testing.assert_close(*results)


def test_torch_func(backend):
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case((False, False, False))

    def loss(function):
        return lambda x, w: function(x, w, labels, bias=bias, mask=mask)

    def plain(x, w, labels, bias, mask):
        return ml.cross_entropy(x @ w.mT + bias, labels, mask=mask)

    for transform in (
        lambda f: torch.func.grad(f, (0, 1))(hidden, kernel),
        lambda f: torch.func.jvp(f, (hidden, kernel), (torch.cos(hidden), torch.sin(kernel))),
        lambda f: torch.func.hessian(f, (0, 1))(hidden, kernel),
        lambda f: torch.func.vmap(torch.func.grad(f), in_dims=(0, None))(torch.stack([hidden, 2 * hidden]), kernel),
    ):
        torch.testing.assert_close(transform(loss(ml.linear_cross_entropy)), transform(loss(plain)))


def test_torch_says_that_chunks_are_ignored(backend):
    """Where all logits are made: in a transformation, for a second derivative, and if asked for; no compiler."""
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, _ = torch_case()

    def loss(h, **options):
        return ml.linear_cross_entropy(h, kernel, labels, bias=bias, **options)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(hidden, chunk_size=2)
    with pytest.warns(ml.ChunkSizeWarning, match="since 'autodiff' is one expression"):
        compiled(hidden, chunk_size=2, implementation="autodiff")
    for call in (
        lambda **o: torch.func.grad(functools.partial(loss, **o))(hidden),
        lambda **o: torch.autograd.grad(loss(hidden, **o), hidden, create_graph=True),
        lambda **o: loss(hidden, implementation="autodiff", **o),
        lambda **o: torch.func.vmap(functools.partial(ml.linear_entropy, **o), (0, None))(hidden[:, None], kernel),
    ):
        with pytest.warns(ml.ChunkSizeWarning, match="chunk_size is ignored: all logits"):
            call(chunk_size=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
            loss(hidden, chunk_size=3)


def test_torch_autocast_rounds_no_logits(backend):
    """Nothing is rounded to half precision inside, wherever all logits are made either: bit for bit as without."""
    named(backend, "torch", "torch-cuda")
    torch, hidden, kernel, bias, labels, mask = torch_case()
    arrays = [x.detach().float().requires_grad_() for x in (hidden, kernel, bias)]

    def loss(hidden, kernel, bias, **options):
        return ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask, **options)

    def log_probs(hidden):
        return ml.linear_label_log_probs(hidden, arrays[1].detach(), labels, bias=arrays[2].detach())

    def twice(h, k, b):
        (first,) = torch.autograd.grad(loss(h, k, b), h, create_graph=True)
        return torch.autograd.grad(first.square().sum(), k)

    detached = [x.detach() for x in arrays]
    tangents = [torch.cos(x) for x in detached]
    calls = {
        "chunks": lambda: torch.autograd.grad(loss(*arrays), arrays),
        "autodiff": lambda: torch.autograd.grad(loss(*arrays, implementation="autodiff"), arrays),
        "torch.func": lambda: torch.func.grad(loss, (0, 1, 2))(*detached),
        "forward mode": lambda: torch.func.jvp(loss, tuple(detached), tuple(tangents)),
        "second": lambda: twice(*arrays),
        "vmap": lambda: torch.func.vmap(log_probs)(torch.stack([detached[0], 2 * detached[0]])),
        "entropy": lambda: torch.func.grad(lambda h: ml.linear_entropy(h, detached[1]).sum())(detached[0]),
        "compile": lambda: torch.autograd.grad(
            torch.compile(loss, fullgraph=True, backend="aot_eager")(*arrays), arrays
        ),
    }
    for name, call in calls.items():
        expected = call()
        torch._dynamo.reset()
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            torch.testing.assert_close(call(), expected, rtol=0, atol=0, msg=name)
    # As it is mostly done: the forward inside, the backward outside.
    expected = torch.autograd.grad(loss(*arrays), arrays)
    torch._dynamo.reset()
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        value = torch.compile(loss, fullgraph=True, backend="aot_eager")(*arrays)
    torch.testing.assert_close(torch.autograd.grad(value, arrays), expected, rtol=0, atol=0)


def test_torch_results_can_be_modified_in_place(backend):
    named(backend, "torch", "torch-cuda")
    torch = importlib.import_module("torch")
    x = torch.zeros(2, 3, 2, device=backend.device, requires_grad=True)
    kernel, labels = torch.eye(2, device=backend.device, requires_grad=True), torch.zeros(2, 3, dtype=torch.int64)
    labels = labels.to(backend.device)
    for loss in (
        ml.cross_entropy(x, labels, reduction="none"),
        ml.cross_entropy(x, labels, reduction="none", label_smoothing=0.1, mask=labels == 0),
        ml.linear_cross_entropy(x, kernel, labels, reduction="none"),
        ml.linear_cross_entropy(x, kernel, labels, reduction="none", mask=labels == 0),
        ml.linear_entropy(x, kernel),
        ml.label_log_probs(x, labels),
        ml.linear_label_log_probs(x, kernel, labels),
        ml.entropy(x),
    ):
        assert torch.allclose(loss.detach().abs(), torch.full((2, 3), np.log(2), dtype=x.dtype, device=x.device))
        loss.mul_(2).sum().backward()


# JAX alone


def jax_case(backend):
    named(backend, "jax", "jax-gpu")
    jax = importlib.import_module("jax")
    hidden, kernel, bias, labels, _, _ = problem("plain")
    h, k, b, y = on(backend, hidden, kernel, bias, labels)

    def loss(hidden, kernel, **options):
        return ml.linear_cross_entropy(hidden, kernel, y, bias=b, chunk_size=3, **options)

    def plain(hidden, kernel, **options):
        return ml.cross_entropy(hidden @ kernel.T + b, y, **options)

    return jax, h, k, loss, plain


def with_another_upstream(function):
    def call(hidden, kernel):
        value, stats = function(hidden, kernel, z_loss=0.1, with_stats=True)
        return value + 0.5 * stats.z_loss + stats.total**2

    return call


def test_jax_transformations(backend):
    with settings(backend):
        jax, h, k, loss, plain = jax_case(backend)
        for transform in (
            lambda f: jax.jit(jax.value_and_grad(lambda h, k: -3.0 * f(h, k), (0, 1)))(h, k),
            lambda f: jax.vjp(functools.partial(f, reduction="none"), h, k)[1](jax.numpy.arange(4.0)),
            lambda f: jax.vmap(jax.grad(f, (0, 1)), (0, None))(jax.numpy.stack([h, 2 * h]), k),
            lambda f: jax.grad(lambda h: jax.checkpoint(f)(h, k) ** 2)(h),
            lambda f: jax.lax.scan(lambda c, x: (c + f(x, k), f(x, k)), 0.0, jax.numpy.stack([h, 2 * h])),
            lambda f: jax.jacfwd(jax.grad(f))(h, k),
            lambda f: jax.grad(with_another_upstream(f), (0, 1))(h, k),
        ):
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), transform(loss), transform(plain)
            )


def test_jax_refuses_what_it_cannot(backend):
    with settings(backend):
        jax, h, k, loss, _ = jax_case(backend)
        y = jax.numpy.zeros(4, int)
        for function in (
            loss,
            lambda h, k: ml.linear_label_log_probs(h, k, y).sum(),
            lambda h, k: ml.linear_entropy(h, k).sum(),
        ):
            for transform in (lambda f: f, jax.jit, lambda f: lambda *xs: jax.vmap(f, (0, None))(xs[0][None], xs[1])):
                forward, reverse = transform(function), transform(jax.grad(function))
                with pytest.raises(TypeError, match=r"no forward derivative.*implementation='autodiff'"):
                    jax.jvp(lambda h, f=forward: f(h, k), (h,), (h,))
                with pytest.raises(TypeError, match=r"no reverse derivative of its.*implementation='autodiff'"):
                    jax.jacrev(reverse)(h, k)
        autodiff = functools.partial(loss, implementation="autodiff")
        assert jax.jacrev(jax.grad(autodiff))(h, k).shape == (4, 3, 4, 3)
        assert jax.jvp(lambda h: autodiff(h, k), (h,), (h,))[1].shape == ()


def test_jax_mixed_derivatives(backend):
    """The gradient by the weights depends on the losses: differentiated further by hidden states it is no constant."""
    with settings(backend):
        jax, h, k, _, _ = jax_case(backend)
        y, w = jax.numpy.asarray([0, 2, 4, 1]), jax.numpy.asarray([0.5, 2.0, 1.5, 1.0])

        def in_one(h, w):
            return ml.linear_cross_entropy(h, k, y, weights=w, chunk_size=2, z_loss=0.1)

        def plain(h, w):
            return ml.cross_entropy(h @ k.T, y, weights=w, z_loss=0.1)

        for transform in (
            lambda f: jax.jacrev(jax.grad(f, 1), 0),
            lambda f: jax.jacfwd(jax.grad(f), 1),
            lambda f: jax.jit(jax.jacrev(jax.grad(f, 1), 0)),
        ):
            np.testing.assert_allclose(transform(in_one)(h, w), transform(plain)(h, w), rtol=1e-4, atol=1e-6)
        with pytest.raises(TypeError, match=r"no reverse derivative of its.*implementation='autodiff'"):
            jax.jacrev(lambda h: jax.grad(in_one, (0, 1))(h, w)[1])(h)


def test_jax_what_is_frozen_costs_no_product(backend):
    """That of the logits, and one for each gradient asked for."""
    with settings(backend):
        jax, h, k, loss, _ = jax_case(backend)
        for argnums, products in ((0, 2), (1, 2), ((0, 1), 3)):
            program = jax.jit(jax.value_and_grad(loss, argnums)).lower(h, k).as_text()
            assert program.count("stablehlo.dot_general") == products


def test_jax_promotes_nothing(backend):
    """With every option, of bfloat16 as well: the gradient is the one without the settings, which compile once."""
    named(backend, "jax-x32")
    with settings(backend):
        jax = importlib.import_module("jax")
        rng = np.random.default_rng(31)
        narrow = (rng.normal(size=shape) for shape in ((4, 3), (5, 3), (5,)))
        h, k, b = (jax.numpy.asarray(x, jax.numpy.bfloat16) for x in narrow)
        y, mask, allowed = on(backend, np.array([0, 3, 1, 0]), np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1, 1], bool))
        w = jax.numpy.asarray(rng.random(5), jax.numpy.float32)
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "reduction": "mean_over_kept", "weights": 0.5}

        def loss(h, k, b, w, labels, **more):
            given = {"class_weights": w, "class_mask": allowed, "mask": mask, "denominator": 3, **options, **more}
            return ml.linear_cross_entropy(h, k, labels, bias=b, with_stats=True, **given)[0]

        def plain(h, w, **more):
            return ml.cross_entropy(h, y % 3, class_weights=w[:3], mask=mask, ignore_index=7, **options, **more)

        def of_rows(h, k, b, w, labels):
            return ml.linear_cross_entropy(h, k, labels, bias=b, mask=mask)

        def one_expression(h, k, b, w, labels):
            return loss(h[None], k, b, w, labels[None], mask=mask[None], implementation="autodiff")

        def all_of_them():
            soft = jax.numpy.full((4, 5), 0.2, jax.numpy.float32)
            gradients = [
                jax.grad(f, (0, 1, 2))(h, k, b, w, q) for f in (loss, of_rows, one_expression) for q in (y, soft)
            ]
            functions = (ml.masked_mean, ml.masked_std, ml.masked_max, ml.masked_logsumexp, ml.masked_softmax)
            values = [f(h, mask[:, None], axis=0) for f in functions]
            rest = (
                ml.linear_entropy(h, k, bias=b),
                ml.reduce(h, mask=mask[:, None], weights=0.1, denominator=np.int64(5)),
            )
            return gradients, jax.grad(plain, (0, 1))(h, w), values, rest

        expected = all_of_them()
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            found = all_of_them()
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_jax_kept_rows_are_known_at_run_time(backend, monkeypatch):
    """One program for any mask: a row that is not kept is not read, whatever it holds."""
    with settings(backend):
        jax, h, k, loss, plain = jax_case(backend)
        monkeypatch.setattr(importlib.import_module("maskloss._bindings.jax_loop"), "TILE", 2)
        jax.clear_caches()
        jitted = jax.jit(jax.value_and_grad(lambda h, k, m: loss(h, k, mask=m), (0, 1)))
        for kept in ([0, 1, 2, 3], [2], [], [0, 3]):
            mask = jax.numpy.asarray(np.isin(np.arange(4), kept))
            expected = jax.value_and_grad(lambda h, k, mask=mask: plain(h, k, mask=mask), (0, 1))(h, k)
            found = jitted(jax.numpy.where(mask[:, None], h, np.nan), k, mask)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), found, expected)
        assert jitted._cache_size() == 1
        jax.clear_caches()


def test_matrices_of_bfloat16_are_multiplied_as_they_are(backend, monkeypatch):
    """As on a GPU, whose products of bfloat16 into float32 stand here as products of the same numbers in float32.

    Logits and loss are those of float32, gradients within the rounding of dL/dlogits to bfloat16, 2^-9 of each.
    """
    named(backend, "torch")
    torch, hidden, kernel, bias, labels, mask = torch_case()
    arrays = importlib.import_module("maskloss._arrays.torch")
    library = torch.library.Library("aten", "IMPL")
    counted = []

    def mm(a, b, out_dtype, *, out):
        assert (a.dtype, b.dtype, out_dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        counted.append("mm")
        return out.copy_(a.float() @ b.float())

    def addmm(total, a, b, out_dtype, *, beta=1, alpha=1, out):
        assert (total.dtype, a.dtype, b.dtype, out_dtype) == (
            torch.float32,
            torch.bfloat16,
            torch.bfloat16,
            torch.float32,
        )
        counted.append("addmm")
        return out.copy_(total + a.float() @ b.float())

    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(library._destroy)
        library.impl("mm.dtype_out", mm, "CPU")
        library.impl("addmm.dtype_out", addmm, "CPU")
        given = [x.detach().to(torch.bfloat16).requires_grad_() for x in (hidden, kernel, bias)]

        def loss():
            value = ml.linear_cross_entropy(*given[:2], labels, bias=given[2], mask=mask, chunk_size=2)
            return value, *torch.autograd.grad(value, given)

        expected = [x.float() for x in loss()]
        assert not counted
        monkeypatch.setattr(arrays.xp, "multiplies_halves", lambda x: True, raising=False)
        found = [x.float() for x in loss()]
        assert {"mm", "addmm"} == set(counted)
        counted.clear()
        assert ml.linear_cross_entropy(*given[:2], labels, bias=bias).dtype == torch.float64
        assert not counted  # into float32 alone
    assert found[0] == expected[0]
    for x, y in zip(found[1:], expected[1:], strict=True):
        assert float((x - y).norm() / y.norm()) < 2**-8


def test_products_of_halves_are_asked_for_once(backend, monkeypatch):
    """torch 2.7 to 2.9 have no mm and addmm with an out_dtype: bfloat16 is then converted, as on a CPU."""
    named(backend, "torch", "torch-cuda")
    torch, arrays = importlib.import_module("torch"), importlib.import_module("maskloss._arrays.torch")
    on_cuda = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert arrays.xp.multiplies_halves(on_cuda)
    for lacking in ("mm", "addmm"):
        operators = {
            n: types.SimpleNamespace(overloads=lambda: ["default", "out", "dtype_out"]) for n in ("mm", "addmm")
        }
        operators[lacking] = types.SimpleNamespace(overloads=lambda: ["default", "out"])
        older = types.SimpleNamespace(ops=types.SimpleNamespace(aten=types.SimpleNamespace(**operators)))
        monkeypatch.setattr(arrays, "torch", older)
        arrays.has_wide_products.cache_clear()
        assert not arrays.has_wide_products()
        monkeypatch.undo()
    arrays.has_wide_products.cache_clear()


def test_torch_makes_numbers_where_they_are_used(backend):
    """Python's numbers by a fill, which waits for no device: no tensor is made of the host's memory (lift_fresh)."""
    named(backend, "torch", "torch-cuda")
    torch = importlib.import_module("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function._schema.name)
            return function(*args, **(kwargs or {}))

    x, y = torch.zeros(2, 3, device=backend.device), torch.tensor([0, 1], device=backend.device)
    for options in ({"weights": 0.5, "denominator": 3}, {"mask": True, "class_mask": True, "label_smoothing": 0.1}):
        names = set()
        with Called():
            ml.cross_entropy(x, y, **options)
            ml.linear_cross_entropy(x, x, y, **{n: o for n, o in options.items() if n != "class_mask"})
        assert names
        assert "aten::lift_fresh" not in names


def test_jax_any_number_of_rows_in_long_and_short_chunks(backend):
    """19 rows in chunks of 7, and the last of those kept in chunks of 2."""
    with settings(backend):
        jax = jax_case(backend)[0]
        rng = np.random.default_rng(3)
        h, k, y = on(backend, rng.normal(size=(19, 3)), rng.normal(size=(5, 3)), rng.integers(0, 5, 19))

        def gradients(loss):
            return jax.jit(jax.value_and_grad(lambda h, k, m: loss(h, k, m), (0, 1)))

        chunked = gradients(lambda h, k, m: ml.linear_cross_entropy(h, k, y, mask=m, chunk_size=8))
        plain = gradients(lambda h, k, m: ml.cross_entropy(h @ k.T, y, mask=m))
        order = rng.permutation(19)
        for kept in range(20):
            mask = jax.numpy.asarray(order < kept)
            for x, wanted in zip(jax.tree.leaves(chunked(h, k, mask)), jax.tree.leaves(plain(h, k, mask)), strict=True):
                np.testing.assert_allclose(x, wanted, rtol=1e-11, atol=1e-12)


def test_a_graph_that_is_captured_is_not_waited_for(backend, monkeypatch):
    """The backward then makes the logits again, and what is not kept is multiplied as 0: the same gradients."""
    named(backend, "torch")
    torch, hidden, kernel, bias, labels, mask = torch_case()

    def gradients():
        loss = ml.linear_cross_entropy(hidden, kernel, labels, bias=bias, mask=mask, validate=False)
        return torch.autograd.grad(loss, (hidden, kernel, bias))

    expected = gradients()
    binding = importlib.import_module("maskloss._bindings.torch")
    for question in ("may_wait", "reads_without_sync"):
        monkeypatch.setattr(binding.xp, question, lambda x: False)
    monkeypatch.setattr(binding, "_factor", None)
    for x, y in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15)


def test_jax_whatever_was_differentiated_before(backend):
    """The same call by other arguments, within other transformations: JAX keeps what it traced of each."""
    if backend.name not in ("jax", "jax-x32"):
        pytest.skip("for JAX")
    jax = importlib.import_module("jax")
    with settings(backend):
        rng = np.random.default_rng(0)
        h, k = (jax.numpy.asarray(rng.normal(size=shape).astype(np.float32)) for shape in ((3, 4, 2), (5, 2)))
        y = jax.numpy.asarray(rng.integers(0, 5, (3, 4)))

        def loss(h, k, y, chunk_size=2):
            return ml.linear_cross_entropy(h, k, y, chunk_size=chunk_size)

        def scanned(h, k):
            return jax.lax.scan(lambda total, x: (total + loss(x[0], k, x[1]), None), 0.0, (h, y))[0]

        def plain(h, k):
            return ml.cross_entropy(h @ k.T, y, reduction="sum") / 4

        jax.clear_caches()
        expected = jax.grad(plain, (0, 1))(h, k)
        of_hidden = jax.vmap(jax.grad(loss), (0, None, 0))
        of_both = jax.grad(lambda h, k: jax.vmap(loss, (0, None, 0))(h, k, y).sum(), (0, 1))
        for found in (jax.grad(scanned, (0, 1))(h, k), (of_hidden(h, k, y),), of_both(h, k)):
            for a, b in zip(found, expected, strict=False):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
