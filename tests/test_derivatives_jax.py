"""JAX: every kind of differentiation, against finite differences, against PyTorch's, and against the analytic pair."""

import importlib

import numpy as np
import pytest

import maskloss as ml
from tests.backends import BACKENDS, asarray, named, settings, to_numpy
from tests.derivatives import CALLS, DIFFERENTIABLE, arrays, call

jax = pytest.importorskip("jax")
jnp = jax.numpy


def runs(backend):
    if backend.library != "jax" or not backend.x64:
        return []
    return [(f"{backend.name}-{name}", (backend, name)) for name in CALLS]


@pytest.fixture
def with_settings(request):
    backend = request.getfixturevalue("run")[0] if "run" in request.fixturenames else request.getfixturevalue("backend")
    if backend.library != "jax" or not backend.x64:
        pytest.skip("a test of JAX alone, with x64")
    with settings(backend):
        yield backend


pytestmark = pytest.mark.usefixtures("with_settings")


def at(run):
    backend, name = run
    return call(name, lambda a: asarray(backend, a), ml.cross_entropy)


def test_finite_differences(run):
    """First and second derivatives, reverse and forward, plain and under jit."""
    from jax.test_util import check_grads

    function, xs = at(run)

    def of_arrays(*xs):
        return function(*map(jnp.asarray, xs))  # check_grads calls with NumPy arrays

    check_grads(of_arrays, xs, order=2)
    check_grads(jax.jit(of_arrays), xs, order=1)


IN_LOOPS = {"BLOCK_BYTES": 40, "LEAST_SKIPPED": 0, "LEAST_UNSHIFTED": 0}
BY_TERMS = {"LEAST_UNSHIFTED": 0, "LEAST_KEPT": 1}


def set_sizes(patch, sizes):
    for name, value in sizes.items():
        patch.setattr(importlib.import_module("maskloss._bindings.jax_sums"), name, value)
    for name in ("FEWEST_PLANES", "LEAST_PLANE"):
        patch.setattr(importlib.import_module("maskloss._bindings.jax_planes"), name, 1)
    jax.clear_caches()  # what was traced with other sizes


@pytest.mark.parametrize("sizes", [IN_LOOPS, BY_TERMS], ids=["loops", "terms"])
def test_finite_differences_of_other_sizes(run, sizes, monkeypatch):
    """In loops over blocks of kept rows, without a mask beside the terms that float64 keeps; and beside all terms."""
    from jax.test_util import check_grads

    if run[1] not in ("plain", "mask", "z_loss"):
        pytest.skip("each trace takes seconds, and the loops see no other option")
    set_sizes(monkeypatch, sizes)
    function, xs = at(run)
    # One row beyond what a shift of 0 serves.
    xs[0] = xs[0].at[3].add(800.0)
    check_grads(jax.jit(lambda *xs: function(*map(jnp.asarray, xs))), xs, order=2)
    jax.clear_caches()


def test_jvp_is_the_inner_product(run):
    function, xs = at(run)
    tangents = [jnp.cos(x) for x in xs]
    gradients = jax.grad(function, tuple(range(len(xs))))(*xs)
    inner = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    np.testing.assert_allclose(jax.jvp(function, xs, tangents)[1], inner, rtol=1e-12, atol=1e-13)


def test_transformations_agree(run):
    """vmap(grad) is the loop, forward over reverse is reverse over reverse, checkpoint changes nothing."""
    function, xs = at(run)
    argnums = tuple(range(len(xs)))
    batches = [jnp.stack([x, x + 0.5, x - 0.25]) for x in xs]
    gradients = jax.jit(jax.vmap(jax.grad(function, argnums)))(*batches)
    again = jax.vmap(jax.grad(jax.checkpoint(function), argnums))(*batches)
    for i in range(3):
        one = jax.grad(function, argnums)(*(b[i] for b in batches))
        for batched in (gradients, again):
            for g, single in zip(batched, one, strict=True):
                np.testing.assert_allclose(g[i], single, rtol=1e-12, atol=1e-14)
    reverse = jax.jacrev(jax.grad(function))(*xs)
    np.testing.assert_allclose(jax.hessian(function)(*xs), reverse, rtol=1e-10, atol=1e-13)


def test_equals_the_analytic_pair(run):
    """JAX's own differentiation of forward against backward, which NumPy's value_and_grad calls."""
    backend, name = run
    labels, given, options = CALLS[name]
    function, xs = at(run)
    expected = jax.grad(function, tuple(range(len(xs))))(*xs)
    values = arrays()
    names = [key for key in ("logits", labels, *given) if key in DIFFERENTIABLE]
    order = [key for key in values if key in names]
    argnums = tuple({"logits": 0, "distributions": 1}.get(key, key) for key in order)
    _, gradients = ml.value_and_grad(ml.cross_entropy, argnums)(
        values["logits"], values[labels], **{key: values[key] for key in given}, **options
    )
    for gradient, of_jax in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, to_numpy(backend, of_jax), rtol=1e-12, atol=1e-14)


def test_equals_torch(run):
    """Gradient and Hessian, library against library."""
    torch = pytest.importorskip("torch")
    function, xs = at(run)
    other, ys = call(run[1], lambda a: asarray(BACKENDS["torch"], a), ml.cross_entropy)
    argnums = tuple(range(len(xs)))
    for gradient, theirs in zip(jax.grad(function, argnums)(*xs), torch.func.grad(other, argnums)(*ys), strict=True):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(jax.hessian(function)(*xs), torch.func.hessian(other)(*ys), rtol=1e-10, atol=1e-13)


def test_reach_of_garbage(backend):
    """NaN and infinities in what is not kept: derivatives of first and second order are finite, and exactly 0 there."""
    given = arrays()
    given["logits"][1] = [np.nan, np.inf, -np.inf, 1e300, np.nan]
    given["labels"][1] = 10**6
    logits, labels, mask = (asarray(backend, given[key]) for key in ("logits", "labels", "mask"))

    def loss(x):
        return ml.cross_entropy(x, labels, mask=mask, softcap=3.0, z_loss=0.1)

    gradient = jax.grad(loss)(logits)
    second = jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(logits)
    tangent = jax.jvp(loss, (logits,), (jnp.ones_like(logits).at[1].set(jnp.nan),))[1]
    assert np.isfinite(tangent)
    for derivative in map(np.asarray, (gradient, second)):
        assert np.isfinite(derivative).all()
        assert (derivative[1] == 0).all()
        assert (derivative[[0, 2, 3]] != 0).all()


def test_scan_over_batches(backend):
    """Gradient accumulation in a scan: stats are a pytree that adds, and their mean is that of the whole."""
    given = arrays()
    logits, labels, mask = (asarray(backend, given[key]) for key in ("logits", "labels", "mask"))

    def mean(x):
        def step(total, batch):
            one = ml.cross_entropy(batch[0], batch[1], mask=batch[2], with_stats=True)[1]
            return total + one, None

        zero = jax.tree.map(jnp.zeros_like, ml.cross_entropy(x[:2], labels[:2], mask=mask[:2], with_stats=True)[1])
        batches = (x.reshape(2, 2, -1), labels.reshape(2, 2), mask.reshape(2, 2))
        return jax.lax.scan(step, zero, batches)[0].mean

    value, gradient = jax.value_and_grad(mean)(logits)
    whole, expected = jax.value_and_grad(lambda x: ml.cross_entropy(x, labels, mask=mask))(logits)
    np.testing.assert_allclose(value, whole, rtol=1e-14)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_finite_differences_of_planes(backend, monkeypatch):
    """Along the classes' own axis: one row beyond what a shift of 0 serves, and one that is NaN, and not kept."""
    from jax.test_util import check_grads

    set_sizes(monkeypatch, {"LEAST_UNSHIFTED": 0})
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4))).at[0, :, 1].add(800.0)
    y, garbage = jnp.asarray([[0, 1, 2, 0], [2, 2, 1, 0]]), jnp.zeros((2, 3, 4)).at[1, :, 3].set(jnp.nan)

    def loss(x):
        return ml.cross_entropy(x + garbage, y, mask=~jnp.isnan(garbage[:, 0]), z_loss=0.1, axis=1)

    check_grads(jax.jit(loss), (x,), order=2)
    jax.clear_caches()


WAYS = ("terms", "large", "blocks", "planes")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("way", "dtype"), [*(("terms", dtype) for dtype in ("bfloat16", "float64")), *((way, "float32") for way in WAYS)]
)
def test_a_gradient_of_many_classes(backend, way, dtype, masked, monkeypatch):
    """softmax - one-hot over 4 entries, of rows that no shift of 0 serves; 0 where not kept, and NaN where one is."""
    named(backend, "jax")
    sizes = {"LEAST_UNSHIFTED": 0, "LEAST_SKIPPED": 0 if way in ("large", "blocks") else 1 << 22}
    set_sizes(monkeypatch, sizes | {"GREATEST_SHARE": 2.0 if way == "blocks" else 0.45, "BLOCK_BYTES": 2400})
    x = np.random.default_rng(0).normal(size=(5, 300)) * 3 + np.asarray([0.0, 1e4, -1e4, 0.0, 0.0])[:, None]
    x[0, 7], y, keep = -np.inf, np.asarray([299, 0, 5, 7, 1]), np.asarray([True, True, True, True, not masked])
    with settings(backend):
        x = jnp.asarray(x, dtype)
        exact = np.asarray(x, "float64")
        e = np.exp(exact - exact.max(-1, keepdims=True))
        wanted = (e / e.sum(-1, keepdims=True) - np.eye(300)[y]) / keep.sum()
        wanted[~keep] = 0.0
        x = x.at[4].set(jnp.nan) if masked else x
        mask, axis = jnp.asarray(keep) if masked else None, 0 if way == "planes" else -1
        x = x.T if way == "planes" else x
        found = jax.jit(jax.grad(lambda x: ml.cross_entropy(x, jnp.asarray(y), mask=mask, axis=axis)))(x)
        found = found.T if way == "planes" else found
        jax.clear_caches()
    assert found.dtype == x.dtype
    rtol = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.asarray(found, "float64"), wanted, rtol=rtol, atol=rtol * 1e-3)
