"""Two processes, one loss: a head split by classes, parameters split by FSDP, sequences split by time.

    python examples/model_parallel/run.py

Each way trains a small model for three steps over gloo, with entries masked unevenly, and is compared with one process:
how far its parameters are, relative to how far these have moved. What a mean divides by is all-reduced where entries
are split (ml.denominator); where classes are split, plain tensors have a class_shard, and DTensors say it themselves.
"""

import datetime
import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import maskloss as ml

PROCESSES, STEPS = 2, 3
ROWS, TIME, FEATURES, HIDDEN, CLASSES = 6, 8, 5, 7, 23
LIMIT = 1e-12


class Model(nn.Module):
    """Hidden states and a head, with the loss inside: FSDP has the head's whole kernel there, and there only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh())
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, features, labels, mask, denominator=None):
        hidden, head = self.trunk(features), self.head
        return ml.linear_cross_entropy(
            hidden, head.weight, labels, bias=head.bias, mask=mask, denominator=denominator, chunk_size=4
        )


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(ROWS, TIME, FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ROWS, TIME), generator=generator)
    return features, labels, torch.rand(ROWS, TIME, generator=generator) < torch.linspace(0.1, 0.9, TIME)


def trained(model, loss_of):
    """The parameters after three steps, whole."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(*batch_of(step)).backward()
        optimizer.step()
    return flat(model)


def flat(model):
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in whole])


def one_process():
    model = Model().double()
    return trained(model, model)


def split_entries(model, axis, *, exact):
    """This process' entries of each batch; the average over the processes that follows is undone."""

    def loss_of(*batch):
        features, labels, mask = (x.chunk(PROCESSES, axis)[dist.get_rank()].contiguous() for x in batch)
        if not exact:  # a mean of means
            return model(features, labels, mask)
        everywhere = ml.denominator(labels, mask=mask)
        dist.all_reduce(everywhere)
        return model(features, labels, mask, everywhere) * PROCESSES

    return loss_of


def data_parallel(mesh, *, exact=True):
    model = DistributedDataParallel(Model().double())
    return trained(model, split_entries(model, 0, exact=exact))


def context_parallel(mesh, *, exact=True):
    model = DistributedDataParallel(Model().double())
    return trained(model, split_entries(model, 1, exact=exact))


def fully_sharded(mesh, *, exact=True):
    model = Model().double()
    fully_shard(model, mesh=mesh)
    return trained(model, split_entries(model, 0, exact=exact))


def vocabulary_parallel(mesh):
    model = Model().double()
    parallelize_module(model.head, mesh, ColwiseParallel(use_local_output=False))

    def loss_of(features, labels, mask):
        logits = model.head(model.trunk(features))  # a DTensor, each process' classes
        labels, mask = (distribute_tensor(x, mesh, [Replicate()]) for x in (labels, mask))
        return ml.cross_entropy(logits, labels, mask=mask).full_tensor()

    return trained(model, loss_of)


def of_parts(mesh):
    """Plain tensors: the head's rows of this process' classes, of which one process has more."""
    model = Model().double()
    own = torch.arange(CLASSES).chunk(PROCESSES)[dist.get_rank()]
    shard = ml.ClassShard(mesh, int(own[0]), CLASSES)
    for name, whole in list(model.head.named_parameters()):
        setattr(model.head, name, nn.Parameter(whole.detach()[own]))

    def loss_of(features, labels, mask):
        hidden, head = model.trunk(features), model.head
        return ml.linear_cross_entropy(hidden, head.weight, labels, bias=head.bias, mask=mask, class_shard=shard)

    trained(model, loss_of)
    parts = [None] * PROCESSES
    dist.all_gather_object(parts, dict(model.head.named_parameters()))
    for name in parts[0]:
        setattr(model.head, name, nn.Parameter(torch.cat([part[name].detach() for part in parts])))
    return flat(model)


WAYS = {
    "entries: DistributedDataParallel": data_parallel,
    "time: DistributedDataParallel": context_parallel,
    "entries and parameters: fully_shard": fully_sharded,
    "classes: ColwiseParallel head": vocabulary_parallel,
    "classes: class_shard": of_parts,
}


def process(rank, rendezvous, results):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{rendezvous}", timeout, world_size=PROCESSES, rank=rank)
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    one = one_process()
    moved = one - torch.cat([p.detach().reshape(-1) for p in Model().double().parameters()])

    def error(way, **options):
        return float((way(mesh, **options) - one).abs().max() / moved.abs().max())

    errors = {name: error(way) for name, way in WAYS.items()}
    errors["(entries, a mean of means)"] = error(data_parallel, exact=False)
    errors["(time, a mean of means)"] = error(context_parallel, exact=False)
    errors["(fully_shard, a mean of means)"] = error(fully_sharded, exact=False)
    if rank == 0:
        Path(results).write_text(json.dumps(errors))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # at a usual exit one process in some dozens aborts: a thread of torch's is not joined (torch 2.13)


def main():
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "errors.json"
        torch.multiprocessing.spawn(process, (f"{folder}/rendezvous", str(results)), nprocs=PROCESSES)
        errors = json.loads(results.read_text())
    for name, error in errors.items():
        print(f"{name:40}{error:.1e}")
    return int(max(errors[name] for name in WAYS) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
