"""JAX on eight devices: each computes its own rows or classes, kept rows alone, and only sums go from one to another.

Each test is a program of its own, as the number of devices is settled before JAX is imported; what is asked of one kind
of axes is one program. Explicit axes are part of what JAX traces: the last of two meshes, of two axes, asks for both.
"""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.backends import named

BEGIN = """
    import functools
    import re

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P

    import maskloss as ml
    from maskloss._bindings import jax_sums

    # Loops and choices at run time for as few logits as these.
    jax_sums.LEAST_SKIPPED = jax_sums.LEAST_UNSHIFTED = 0
    jax_sums.BLOCK_BYTES = 200

    rng = np.random.default_rng(0)
    entries, features, classes = (8, 4), 5, 16
    hidden, kernel, bias = (rng.normal(size=shape) for shape in ((*entries, features), (classes, features), classes))
    logits, labels = hidden @ kernel.T, rng.integers(0, classes, entries)
    # Uneven: of one device nothing is kept, of another all.
    mask = rng.random(entries) < 0.4
    mask[0], mask[1] = False, True
    hidden[~mask], labels[~mask] = np.nan, -1
    axis_type = jax.sharding.AxisType.{axis_type}
    asked = slice(None) if axis_type == jax.sharding.AxisType.Auto else slice(1, None)  # of two meshes


    def mesh_of(**axes):
        return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes))


    def placed(mesh, x, *axes):
        return jax.device_put(x, NamedSharding(mesh, P(*axes)))


    def moved(program):
        return re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?[(]", program.as_text())


    def reduced(program):
        return len(re.findall(r" all-reduce(?:-start)?[(]", program.as_text()))


    def close(found, wanted):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


    def linear(h, k, y, m, **options):
        return ml.linear_cross_entropy(h, k, y, mask=m, chunk_size=3, **options)


    def plain(x, y, m, **options):
        return ml.cross_entropy(x, y, mask=m, **options)


    wanted = ml.value_and_grad(functools.partial(ml.linear_cross_entropy, chunk_size=3), (0, 1))(
        hidden, kernel, labels, mask=mask
    )
    wanted_of_logits = ml.value_and_grad(ml.cross_entropy)(logits, labels, mask=mask)


    def compiled(function, argnums, *arrays):
        return jax.jit(jax.value_and_grad(function, argnums)).lower(*arrays).compile()
"""

ROWS = """
    for mesh, axes in ((mesh_of(rows=8), ("rows",)), (mesh_of(batch=4, time=2), ("batch", "time")))[asked]:
        h, y, m = (placed(mesh, x, *axes) for x in (hidden, labels, mask))
        arrays = h, placed(mesh, kernel), y, m
        step = compiled(linear, (0, 1), *arrays)
        close(step(*arrays), wanted)
        assert not moved(step), moved(step)
        # The sums of the losses and of the weights, along each axis that is split, and the kernel's gradient.
        assert reduced(step) <= 2 * len(axes) + 1, reduced(step)
        assert "while(" in step.as_text()
        assert step(*arrays)[1][0].sharding.is_equivalent_to(h.sharding, 3)
        each = jax.jit(lambda h, k, y, m: linear(h, k, y, m, reduction="none"))(*arrays)
        close(each, ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, reduction="none"))
        _, stats = jax.jit(functools.partial(linear, with_stats=True))(*arrays)
        close(stats, ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, with_stats=True)[1])
        x = placed(mesh, logits, *axes)
        step = compiled(plain, 0, x, y, m)
        close(step(x, y, m), wanted_of_logits)
        assert not moved(step), moved(step)
        assert "while(" in step.as_text()
        close(jax.jit(ml.linear_entropy)(placed(mesh, np.nan_to_num(hidden), *axes), placed(mesh, kernel)),
              ml.linear_entropy(np.nan_to_num(hidden), kernel))
"""

CLASSES = """
    columns = (mesh_of(classes=8), (None, None, "classes"))
    for mesh, axes in (columns, (mesh_of(rows=2, classes=4), ("rows", None, "classes")))[asked]:
        x = placed(mesh, logits, *axes)
        y, m = (placed(mesh, a, *axes[:2]) for a in (labels, mask))
        step = compiled(plain, 0, x, y, m)
        close(step(x, y, m), wanted_of_logits)
        assert not moved(step), moved(step)
        assert step(x, y, m)[1].sharding.is_equivalent_to(x.sharding, 3)
        # Without a mask float64 keeps its terms, of which each device's have a shift of their own.
        far, known = 400 * logits, np.maximum(labels, 0)
        arrays = placed(mesh, far, *axes), placed(mesh, known, *axes[:2])
        close(jax.jit(jax.value_and_grad(ml.cross_entropy))(*arrays), ml.value_and_grad(ml.cross_entropy)(far, known))
        # What is small is not walked: float32 adds at the labels, of which each device has some.
        sizes = jax_sums.LEAST_SKIPPED, jax_sums.LEAST_KEPT
        jax_sums.LEAST_SKIPPED, jax_sums.LEAST_KEPT = 1 << 22, 1
        jax.clear_caches()
        narrow = placed(mesh, logits.astype("float32"), *axes)
        step = compiled(plain, 0, narrow, y, m)
        np.testing.assert_allclose(step(narrow, y, m)[1], wanted_of_logits[1], rtol=1e-5, atol=1e-7)
        assert not moved(step), moved(step)
        jax_sums.LEAST_SKIPPED, jax_sums.LEAST_KEPT = sizes
        jax.clear_caches()
"""

ONE = """
    arrays = [jnp.asarray(x) for x in (hidden, kernel, labels, mask)]
    assert len(jax.devices()) == 8
    step = compiled(linear, (0, 1), *arrays)
    close(step(*arrays), wanted)
    assert "while(" in step.as_text()
    assert not moved(step) and not reduced(step)
    close(jax.value_and_grad(plain)(jnp.asarray(logits), *arrays[2:]), wanted_of_logits)
    exported = jax.export.export(jax.jit(jax.value_and_grad(linear, (0, 1))))(*arrays)
    close(exported.call(*arrays), wanted)
"""

MAPPED = """
    mesh = mesh_of(rows=8)
    by_row, everywhere = P("rows"), P()
    arrays = [jnp.asarray(x) for x in (hidden, kernel, labels, mask)]


    def of_shard(*arrays):
        # The mean of all, of devices that keep different numbers of entries.
        everywhere = jax.lax.psum(ml.denominator(arrays[-2], mask=arrays[-1]), "rows")
        return jax.lax.psum(linear(*arrays, denominator=everywhere), "rows")


    specs = (by_row, everywhere, by_row, by_row)
    mapped = jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=everywhere)
    step = compiled(mapped, (0, 1), *(placed(mesh, x, *spec) for x, spec in zip(arrays, specs)))
    close(step(*(placed(mesh, x, *spec) for x, spec in zip(arrays, specs))), wanted)
    assert not moved(step), moved(step)
    assert "while(" in step.as_text()


    def of_logits(*arrays):
        return jax.lax.psum(plain(*arrays, with_stats=True)[1], "rows").mean


    mapped = jax.shard_map(of_logits, mesh=mesh, in_specs=(by_row,) * 3, out_specs=everywhere)
    x, y, m = (placed(mesh, a, "rows") for a in (logits, labels, mask))
    close(jax.jit(jax.value_and_grad(mapped))(x, y, m), wanted_of_logits)
    total = jax.pmap(functools.partial(linear, reduction="sum"), in_axes=(0, None, 0, 0))(*arrays)
    close(total.sum() / mask.sum(), wanted[0])
"""

TRANSFORMED = """
    mesh = mesh_of(rows=8)
    h, y, m = (placed(mesh, x, "rows") for x in (hidden, labels, mask))
    k = placed(mesh, kernel)
    total = ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, reduction="sum")


    summed = functools.partial(linear, reduction="sum")
    close(jax.jit(jax.vmap(summed, (0, None, 0, 0)))(h, k, y, m).sum(), total)
    close(jax.jit(jax.vmap(summed, (1, None, 1, 1)))(h, k, y, m).sum(), total)


    def scanned(h, k, y, m):
        columns = [jnp.moveaxis(x, 1, 0) for x in (h, y, m)]
        return jax.lax.scan(lambda s, x: (s + summed(x[0], k, *x[1:]), None), 0.0, columns)[0] / mask.sum()


    close(jax.jit(jax.value_and_grad(scanned, (0, 1)))(h, k, y, m), wanted)
    close(jax.jit(jax.value_and_grad(jax.checkpoint(linear), (0, 1)))(h, k, y, m), wanted)
    x = placed(mesh, logits, "rows")
    close(jax.jit(jax.value_and_grad(jax.checkpoint(plain)))(x, y, m), wanted_of_logits)
    tangent = jnp.cos(x)
    along = jax.jit(lambda x, t: jax.jvp(lambda x: plain(x, y, m), (x,), (t,)))(x, tangent)
    close(along, (wanted_of_logits[0], (wanted_of_logits[1] * np.asarray(tangent)).sum()))
"""


def on_eight_devices(backend, axis_type, *program):
    named(backend, "jax")
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    text = "".join(map(textwrap.dedent, (BEGIN.replace("{axis_type}", axis_type), *program)))
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_split(backend, axis_type):
    done = on_eight_devices(backend, axis_type, ROWS, MAPPED, TRANSFORMED, CLASSES)
    assert done.returncode == 0, done.stderr


def test_on_one_among_them(backend):
    done = on_eight_devices(backend, "Auto", ONE)
    assert done.returncode == 0, done.stderr


def test_a_program_that_gathers_fails(backend):
    """The tests above can fail: to reverse the rows moves each to another device, and changes no number here."""
    begin = "step = compiled(linear"
    assert begin in ROWS
    program = ROWS.replace(begin, "step = compiled(lambda h, *rest: linear(h + 0 * jnp.nan_to_num(h[::-1]), *rest)")
    done = on_eight_devices(backend, "Auto", program)
    assert done.returncode == 1
    assert "AssertionError: ['collective-permute" in done.stderr, done.stderr
