"""LossStats: sums that add, from nothing on, and what is made of them."""

import math
import warnings

import ml_dtypes
import numpy as np
import pytest

import maskloss as ml
from tests.backends import asarray, of_library, settings


def test_statistics_add_and_nothing_else(backend):
    """0 is what sum() starts from, on either side; a tuple would repeat itself where it is multiplied."""
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    with settings(backend):
        x, y = asarray(backend, np.zeros((2, 3), np.float32)), asarray(backend, np.array([0, 1]))
        stats = ml.cross_entropy(x, y, with_stats=True)[1]
        for total in (stats + 0, 0 + stats, sum([stats])):
            assert isinstance(total, ml.LossStats)
            assert all(float(a) == float(b) for a, b in zip(total, stats, strict=True))
        assert float((stats + stats).count) == 4
        for scaled in (lambda: stats * 2, lambda: 2 * stats, lambda: stats + 1, lambda: 1.0 + stats):
            with pytest.raises(TypeError):
                scaled()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_statistics_of_nothing_are_what_a_sum_starts_from(backend, dtype):
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    if dtype not in backend.modes["eager"]:
        pytest.skip("not among the backend's dtypes")
    with settings(backend):
        x = asarray(backend, np.zeros((2, 3), getattr(ml_dtypes, dtype, dtype)))
        y = asarray(backend, np.array([0, 1]))
        of_batch = ml.cross_entropy(x, y, with_stats=True)[1]
        zeros = ml.LossStats.zeros(x)
        for a, b in zip(zeros, of_batch, strict=True):
            assert (a.dtype, a.shape, getattr(a, "device", None)) == (b.dtype, b.shape, getattr(b, "device", None))
            assert type(a) is type(b)
        assert [float(a) for a in zeros + of_batch] == [float(b) for b in of_batch]
        # Means of nothing are 0, and e^0 is 1.
        assert [float(a) for a in (zeros.mean, zeros.accuracy, zeros.perplexity)] == [0, 0, 1]


def test_accuracy_and_perplexity(backend):
    """Probabilities of the labels 1/2, 1/4, 1/8, and a third label that is not the arg-max: (8 * 4 * 2)^(1/3)."""
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    with settings(backend):
        p = np.asarray([[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [3 / 4, 1 / 8, 1 / 8]], dtype=np.float32)
        y = asarray(backend, np.array([0, 0, 1]))
        stats = ml.cross_entropy(asarray(backend, np.log(p)), y, with_stats=True)[1]
        assert float(stats.accuracy) == pytest.approx(1 / 3)
        assert float(stats.perplexity) == pytest.approx(4, rel=1e-6)


def test_statistics_are_arrays_and_warn_of_nothing(backend):
    """A loss of 2000: e^2000 is beyond float64, and so inf. Statistics that carry a gradient add as others do."""
    of_library(backend, "numpy", "array_api_strict", "torch", "jax")
    with settings(backend):
        x, y = asarray(backend, np.asarray([[0.0, 2000.0]], np.float32)), asarray(backend, np.array([0]))
        if backend.library == "torch":
            x.requires_grad_()
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            stats = ml.cross_entropy(x, y, with_stats=True)[1]
            both = stats + stats
            made = stats.mean, stats.accuracy, stats.perplexity
        assert [float(a) for a in made] == [2000, 0, math.inf]
        assert {type(a) for a in (*made, *both)} == {type(stats.total)}


def test_statistics_of_nothing_are_a_carry_inside_shard_map(backend):
    """Their type says over which axes of the mesh they vary, as that of the sums does. log 2 for each of 4 labels."""
    of_library(backend, "jax")
    import jax
    from jax.sharding import PartitionSpec

    def total(x, y):
        def step(sums, batch):
            return sums + ml.cross_entropy(*batch, with_stats=True)[1], None

        return jax.lax.psum(jax.lax.scan(step, ml.LossStats.zeros(x), (x, y))[0], "shard")

    by_shard = PartitionSpec(None, "shard")
    mesh = jax.make_mesh((1,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
    sums = jax.shard_map(total, mesh=mesh, in_specs=by_shard, out_specs=PartitionSpec())
    found = jax.jit(sums)(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2), int))
    assert int(found.count) == 4
    assert float(found.mean) == pytest.approx(math.log(2))


def test_detached_statistics_carry_no_gradient(backend):
    of_library(backend, "torch", "jax")
    x, y = asarray(backend, np.zeros((2, 3), np.float32)), asarray(backend, np.array([0, 1]))

    def mean(x, detach):
        stats = ml.cross_entropy(x, y, with_stats=True)[1]
        return (stats.detach() if detach else stats).mean

    if backend.library == "torch":
        x.requires_grad_()
        assert mean(x, False).requires_grad
        assert not mean(x, True).requires_grad
    else:
        import jax

        assert jax.grad(mean)(x, False).any()
        assert not jax.grad(mean)(x, True).any()
