"""JAX's arrays on two devices, under jit: rows on each, and none of the logits or hidden states gathered."""

import subprocess
import sys
import textwrap

import pytest

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


def on_two_devices(backend, axis_type, call):
    if backend.name != "jax":
        pytest.skip("for jax")
    flags = "--xla_force_host_platform_device_count=2"
    environment = {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    program = textwrap.dedent(PROGRAM).replace("{axis_type}", axis_type).replace("{call}", call)
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
