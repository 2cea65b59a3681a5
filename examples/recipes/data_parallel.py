"""PyTorch: DistributedDataParallel with the mean over all processes

Each process counts what its labels keep with `ml.denominator`, and one all-reduce makes
the count of all. DistributedDataParallel averages gradients over the processes, so the
divisor is the count per process; and an average of the losses, as logs take it, is the
loss of all. The mean of the processes' own means weighs a token of a short batch more
than one of a long batch. Printed: the average of the losses, both ways, and
F.cross_entropy of one process that holds all; its gradient is every process' own.
"""

import gc
import tempfile

try:
    import torch
    import torch.distributed as dist
except ImportError as missing:
    raise SystemExit(f"{missing.name} is missing: pip install torch") from None

import maskloss as ml


def loss_of(model, features, labels):
    count = ml.denominator(labels, ignore_index=-100)
    dist.all_reduce(count)
    options = {"ignore_index": -100, "denominator": count / dist.get_world_size()}
    return ml.cross_entropy(model(features), labels, **options)


def own_mean(model, features, labels):
    return ml.cross_entropy(model(features), labels, ignore_index=-100)


def process(rank, file):
    dist.init_process_group("gloo", f"file://{file}", world_size=2, rank=rank)
    torch.manual_seed(0)
    model, features = torch.nn.Linear(8, 20), torch.randn(8, 9, 8)
    labels = torch.randint(20, (8, 9))
    labels[::2, 2:] = -100  # the rows of process 0 have fewer labels
    right = torch.nn.functional.cross_entropy(model(features).mT, labels)
    (gradient,) = torch.autograd.grad(right, model.weight)
    for function in loss_of, own_mean:
        model.zero_grad()
        shared = torch.nn.parallel.DistributedDataParallel(model)
        loss = function(shared, features[rank::2], labels[rank::2])
        loss.backward()
        exact = torch.allclose(model.weight.grad, gradient, atol=1e-6)
        assert exact == (function is loss_of)
        dist.all_reduce(loss := loss.detach())
        if rank == 0:
            print(f"{function.__name__}: {loss / 2:.4f}, one process: {right:.4f}")
    del shared  # DistributedDataParallel, left over, aborts one exit in twenty
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (f"{folder}/rendezvous",), nprocs=2)
