"""Eight JAX devices, one loss: entries, time steps, parameters or classes split, in jit and in shard_map.

    python examples/sharded_jax/run.py    # the devices are made of one CPU

Each way trains a small model for three steps, with entries masked unevenly, and is compared with one device: how far
its parameters are, relative to how far these have moved. Under jit arrays that are split are one array, and the loss is
as it is; in shard_map a device has its own part, sums what a mean divides by, and names the axis of its classes.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import maskloss as ml

STEPS, RATE, LIMIT = 3, 0.5, 1e-12
ROWS, TIME, FEATURES, HIDDEN, CLASSES = 8, 16, 5, 8, 24


def parameters():
    rng = np.random.default_rng(0)
    return {"trunk": rng.normal(size=(FEATURES, HIDDEN)) / 2, "kernel": rng.normal(size=(CLASSES, HIDDEN)) / 3}


def batch_of(step):
    rng = np.random.default_rng(step + 1)
    features, labels = rng.normal(size=(ROWS, TIME, FEATURES)), rng.integers(0, CLASSES, (ROWS, TIME))
    return features, labels, rng.random((ROWS, TIME)) < np.linspace(0.1, 0.9, TIME)


def loss(model, features, labels, mask, **options):
    return ml.linear_cross_entropy(jnp.tanh(features @ model["trunk"]), model["kernel"], labels, mask=mask, **options)


def trained(of_batch, of_model=None, of_entries=None):
    """The parameters after three steps; where they lie, and where a batch does: shardings, or None for one device."""
    step = jax.jit(
        lambda model, *batch: jax.tree.map(lambda p, d: p - RATE * d, model, jax.grad(of_batch)(model, *batch))
    )
    model = parameters()
    model = jax.tree.map(jnp.asarray, model) if of_model is None else jax.device_put(model, of_model)
    for number in range(STEPS):
        batch = batch_of(number)
        model = step(model, *(jnp.asarray(x) if of_entries is None else jax.device_put(x, of_entries) for x in batch))
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(model))])


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))


def in_jit(axes, of_entries, **of_model):
    """The loss of one device, of arrays that are split."""
    mesh = mesh_of(**axes)
    placed = {name: NamedSharding(mesh, of_model.get(name, P())) for name in parameters()}
    return trained(loss, placed, NamedSharding(mesh, of_entries))


def in_shard_map(axes, of_entries, of_kernel=None, *, exact=True):
    """A device's own part of the loss; the parts add up."""
    mesh = mesh_of(**axes)
    split = tuple(name for spec in of_entries if spec for name in (spec if isinstance(spec, tuple) else (spec,)))
    options = {} if of_kernel is None else {"class_shard": ml.ClassShard(of_kernel[0])}

    def of_device(model, features, labels, mask):
        if not exact:  # a mean of means
            return jax.lax.pmean(loss(model, features, labels, mask, **options), split)
        everywhere = ml.denominator(labels, mask=mask)
        everywhere = jax.lax.psum(everywhere, split) if split else everywhere
        own = loss(model, features, labels, mask, denominator=everywhere, **options)
        return jax.lax.psum(own, split) if split else own

    specs = {"trunk": P(), "kernel": of_kernel or P()}, of_entries, of_entries, of_entries
    placed = {name: NamedSharding(mesh, spec) for name, spec in specs[0].items()}
    of_batch = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=P())
    return trained(of_batch, placed, NamedSharding(mesh, of_entries))


WAYS = {
    "entries, jit": functools.partial(in_jit, {"rows": 8}, P("rows")),
    "time, jit": functools.partial(in_jit, {"time": 8}, P(None, "time")),
    "entries and parameters, jit": functools.partial(
        in_jit, {"rows": 8}, P("rows"), trunk=P(None, "rows"), kernel=P(None, "rows")
    ),
    "entries, shard_map": functools.partial(in_shard_map, {"rows": 8}, P("rows")),
    "time, shard_map": functools.partial(in_shard_map, {"time": 8}, P(None, "time")),
    "classes, shard_map": functools.partial(in_shard_map, {"classes": 8}, P(), P("classes")),
    "entries and classes, shard_map": functools.partial(
        in_shard_map, {"rows": 2, "classes": 4}, P("rows"), P("classes")
    ),
}


def main():
    jax.config.update("jax_enable_x64", True)
    one = trained(loss)
    moved = np.abs(one - np.concatenate([np.ravel(x) for x in jax.tree.leaves(parameters())])).max()
    errors = {name: float(np.abs(way() - one).max() / moved) for name, way in WAYS.items()}
    errors["(entries, a mean of means)"] = float(np.abs(WAYS["entries, shard_map"](exact=False) - one).max() / moved)
    for name, error in errors.items():
        print(f"{name:40}{error:.1e}")
    return int(max(errors[name] for name in WAYS) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
