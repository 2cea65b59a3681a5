"""JAX's arrays on two devices: under jit none of the logits or hidden states gathered, on any mesh the same numbers."""

import functools
import importlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import maskloss as ml
from tests.backends import named, settings

PROGRAM = """
    import re

    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    import maskloss as ml

    rng = np.random.default_rng(0)
    rows, features, classes = 64, 8, 96
    hidden, kernel = rng.normal(size=(rows, features)), rng.normal(size=(classes, features))
    labels, mask = rng.integers(0, classes, rows), rng.random(rows) < 0.5
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.{axis_type},))
    by_row, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    assert jax.device_count() == 2


    def check(function, *first, before=lambda x: x):
        wanted = ml.value_and_grad(function, tuple(range(len(first))))(*first, labels, mask=mask)
        placed = [jax.device_put(x, by_row if len(x) == rows else everywhere) for x in (*first, labels, mask)]

        def loss(*arrays):
            return function(before(arrays[0]), *arrays[1:-1], mask=arrays[-1])

        step = jax.jit(jax.value_and_grad(loss, tuple(range(len(first))))).lower(*placed).compile()
        found = step(*placed)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        assert found[1][0].sharding.is_equivalent_to(by_row, 2)
        moved = re.findall("all-gather|all-to-all|collective-permute", step.as_text())
        assert not moved, moved


    {call}
"""


def on_two_devices(backend, axis_type, call, program=PROGRAM):
    named(backend, "jax")
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    program = textwrap.dedent(program).replace("{axis_type}", axis_type).replace("{call}", call)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
@pytest.mark.parametrize("call", ["ml.linear_cross_entropy, hidden, kernel", "ml.cross_entropy, hidden @ kernel.T"])
def test_rows_stay_where_they_are(backend, axis_type, call):
    done = on_two_devices(backend, axis_type, f"check({call})")
    assert done.returncode == 0, done.stderr


def test_a_gather_is_seen(backend):
    """The test above can fail: to reverse the rows moves each to the other device."""
    reversed_twice = "before=lambda x: jax.numpy.sin(x[::-1])[::-1] + x - jax.numpy.sin(x)"
    done = on_two_devices(backend, "Auto", f"check(ml.cross_entropy, hidden @ kernel.T, {reversed_twice})")
    assert done.returncode == 1
    assert "AssertionError: ['collective-permute" in done.stderr, done.stderr


# A mesh of Explicit axes asks of every operation where its result lies. Each call once eagerly and once under jit.
CALLS = """
    import functools

    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    import maskloss as ml

    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.{axis_type},))
    jax.set_mesh(mesh)
    logits, labels, mask = rng.normal(size=(6, 4)), rng.integers(0, 4, 6), rng.random(6) < 0.5
    long, long_labels = rng.normal(size=(3, 3072, 2)), rng.integers(0, 2, (3, 3072))
    long_mask = rng.random((3, 3072)) < 0.5
    class_weights, one_hot = np.array([0.5, 1.0, 2.0, 1.5]), np.eye(4)[labels]


    def split(x, axis=0):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


    def check(function, *arrays, closed=(), axis=0, **options):
        \"""The first array split over the devices, the others too or, in `closed`, closed over as they are.\"""
        wanted = function(*arrays, *closed, **options)
        given, closed = [split(x, axis) for x in arrays], [jax.numpy.asarray(x) for x in closed]
        for run in (lambda f: f, jax.jit):
            found = run(lambda *xs: function(*xs, *closed, **options))(*given)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


    def weighted(x, y, w):
        return ml.cross_entropy(x, y, class_weights=w, label_smoothing=0.1)


    def masked(x, y, m, **options):
        return ml.cross_entropy(x, y, mask=m, **options)


    check(masked, logits, closed=(labels, mask), with_stats=True)
    check(masked, logits, labels, closed=(mask,))
    check(weighted, logits, labels, closed=(class_weights,))
    check(weighted, logits, closed=(labels, class_weights))
    check(functools.partial(ml.cross_entropy, with_stats=True), logits, one_hot, axis=1)
    for reduction in ("mean", "sum", "mean_over_sequences"):
        check(masked, long, long_labels, long_mask, axis=1, reduction=reduction)
        check(lambda v, m: ml.reduce(v, mask=m, reduction=reduction), long[..., 0], long_mask, axis=1)
    for axis in (None, 0, 1):
        check(functools.partial(ml.masked_mean, axis=axis), long[..., 0], long_mask, axis=1)
        check(functools.partial(ml.masked_logsumexp, axis=axis), long[..., 0], long_mask, axis=1)
    {call}
"""


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_the_same_numbers_on_a_mesh(backend, axis_type):
    done = on_two_devices(backend, axis_type, "", CALLS)
    assert done.returncode == 0, done.stderr


def test_another_number_is_seen(backend):
    """The test above can fail."""
    done = on_two_devices(
        backend, "Auto", "check(lambda x: x.sum() if isinstance(x, np.ndarray) else x[0], logits)", CALLS
    )
    assert done.returncode == 1
    assert "AssertionError" in done.stderr, done.stderr


def shard_maps(backend):
    """jax and a mesh of one device; skips where JAX is not meant."""
    named(backend, "jax")
    jax = importlib.import_module("jax")
    return jax, jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("jit", [False, True])
def test_shard_map_on_one_device(backend, jit, monkeypatch):
    """A program for many devices runs on one as well, where rows that are not kept are skipped and chunks are made."""
    jax, mesh = shard_maps(backend)
    module = importlib.import_module("maskloss._bindings.jax_sums")
    for name in ("LEAST_SKIPPED", "LEAST_UNSHIFTED"):
        monkeypatch.setattr(module, name, 0)
    jax.clear_caches()
    by_row, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    rng, dtype = np.random.default_rng(0), np.float64 if backend.x64 else np.float32
    hidden, kernel, bias = (rng.normal(size=shape).astype(dtype) for shape in ((8, 3), (5, 3), (5,)))
    labels, mask = rng.integers(0, 5, 8), rng.random(8) < 0.5

    def linear(h, k, b, y, m):
        return ml.linear_cross_entropy(h, k, y, bias=b, mask=m, chunk_size=3, z_loss=0.1, reduction="sum")

    def plain(h, k, b, y, m):
        return ml.cross_entropy(h @ k.T + b, y, mask=m, z_loss=0.1, reduction="sum")

    def summed(function):
        return lambda *arrays: jax.lax.psum(function(*arrays), "data")

    with settings(backend):
        arrays = [jax.numpy.asarray(x) for x in (hidden, kernel, bias, labels, mask)]
        expected = jax.value_and_grad(plain, (0, 1, 2))(*arrays)
        for function in (linear, plain):
            specs = (by_row, everywhere, everywhere, by_row, by_row)
            mapped = jax.shard_map(summed(function), mesh=mesh, in_specs=specs, out_specs=everywhere)
            step = jax.value_and_grad(mapped, (0, 1, 2))
            found = (jax.jit(step) if jit else step)(*arrays)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=50 * np.finfo(dtype).eps, atol=50 * np.finfo(dtype).eps)
        for function, options in (("linear_label_log_probs", arrays[3:4]), ("linear_entropy", [])):
            each = functools.partial(getattr(ml, function), chunk_size=3)
            specs = (by_row, everywhere, *[by_row] * len(options))
            mapped = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=by_row)
            found = (jax.jit(mapped) if jit else mapped)(*arrays[:2], *options)
            np.testing.assert_allclose(found, each(*arrays[:2], *options), rtol=1e-5)
    jax.clear_caches()
