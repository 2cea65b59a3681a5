"""DTensor on one process: what maskloss makes itself is one beside it, and a plain tensor beside it is a TypeError."""

import numpy as np
import pytest

import maskloss as ml
from tests.backends import with_processes

OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"weights": 0.5, "mask": True, "class_mask": True},
    {"denominator": 6.0, "z_loss": 0.1, "softcap": 3.0},
    {"reduction": "mean_over_all", "with_stats": True},
)


@pytest.fixture
def mesh(backend):
    """A mesh of this process alone."""
    distributed = with_processes(backend).distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def problem():
    import torch

    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(6, 5))), torch.from_numpy(rng.integers(0, 5, 6))


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("placement", ["rows", "classes", "everywhere"])
def test_beside_logits_of_any_placement(mesh, placement, options):
    import torch
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    x, y = problem()
    of_logits, of_labels = {
        "rows": (Shard(0), Shard(0)),
        "classes": (Shard(1), Replicate()),
        "everywhere": (Replicate(), Replicate()),
    }[placement]
    results = []
    for logits, labels in (
        (x.clone().requires_grad_(), y),
        (distribute_tensor(x, mesh, [of_logits]).requires_grad_(), distribute_tensor(y, mesh, [of_labels])),
    ):
        loss = ml.cross_entropy(logits, labels, **options)
        loss = loss[0] if options.get("with_stats") else loss
        results.append((whole(loss).detach(), whole(torch.autograd.grad(loss, logits)[0])))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_class_weights_of_many_entries(mesh):
    """More than are added one to the next: where tensors are plain, their gradient is made in copies."""
    import torch
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    x, y = (a.repeat((50,) + (1,) * (a.ndim - 1)) for a in problem())
    w = torch.arange(1.0, 6.0, dtype=x.dtype)
    results = []
    for place in (lambda a, _: a.clone(), lambda a, placement: distribute_tensor(a, mesh, [placement])):
        weights = place(w, Replicate()).requires_grad_()
        loss = ml.cross_entropy(place(x, Shard(0)), place(y, Shard(0)), class_weights=weights)
        results.append((whole(loss).detach(), whole(torch.autograd.grad(loss, weights)[0])))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_a_plain_tensor_beside_one(mesh):
    import torch
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    x, y = problem()
    dx, dy = (distribute_tensor(a, mesh, [Shard(0)]) for a in (x, y))
    hidden, kernel = x[:, :3].clone(), x[:4, :3].clone()
    for call, words in (
        (lambda: ml.cross_entropy(dx, y), "labels is a plain tensor beside logits that are a DTensor"),
        (lambda: ml.cross_entropy(x, dy), "labels is a DTensor beside logits that are a plain tensor"),
        (lambda: ml.cross_entropy(dx, dy, mask=y > 0), "mask is a plain tensor beside"),
        (
            lambda: ml.linear_cross_entropy(hidden, distribute_tensor(kernel, mesh, [Shard(0)]), y % 4),
            "kernel is a DTensor beside hidden that are a plain tensor",
        ),
        (lambda: ml.masked_mean(dx, x > 0), "mask is a plain tensor beside x"),
        (
            lambda: ml.cross_entropy(x, y, denominator=distribute_tensor(torch.tensor(6.0), mesh, [Replicate()])),
            "denominator is a DTensor beside logits that are a plain tensor",
        ),
    ):
        with pytest.raises(TypeError, match=rf"{words}.*\.full_tensor\(\)"):
            call()


def test_a_0d_tensor_is_a_number(mesh):
    import torch
    from torch.distributed.tensor import Shard, distribute_tensor

    x, y = problem()
    dx, dy = (distribute_tensor(a, mesh, [Shard(0)]) for a in (x, y))
    denominator = torch.tensor(6.0, dtype=x.dtype)
    found = whole(ml.cross_entropy(dx, dy, denominator=denominator))
    torch.testing.assert_close(found, ml.cross_entropy(x, y, denominator=denominator))
