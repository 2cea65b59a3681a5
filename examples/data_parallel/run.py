"""Three processes, seven uneven micro-batches, one loss: the parameters of one process that holds everything.

    python examples/data_parallel/run.py [--write FILE]

Each step accumulates the gradients of seven micro-batches on each of three processes (DistributedDataParallel over
gloo). They keep different numbers of entries, and one process keeps nothing at all. What a mean divides by is known
before any logits: it is added over the micro-batches, then over the processes, and every micro-batch is given the sum.
Beside it the usual way, a mean of means. Printed: how far the parameters are from those of one process after three
steps, relative to how far these have moved.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import maskloss as ml

PROCESSES, MICRO_BATCHES, STEPS = 3, 7, 3
FEATURES, TIME, CLASSES = 6, 5, 11
REDUCTIONS = ("sum", "mean", "mean_over_kept", "mean_over_all", "mean_over_sequences")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def batches(dtype, step):
    """{(process, micro-batch): arrays}, the same on every process. Process 2 keeps nothing."""
    generator = torch.Generator().manual_seed(step)
    made = {}
    for process in range(PROCESSES):
        for i in range(MICRO_BATCHES):
            rows = 1 + (process + i) % 4
            share = 0.0 if process == 2 else (i + 1) / (MICRO_BATCHES + 1)
            made[process, i] = {
                "features": torch.randn(rows, TIME, FEATURES, generator=generator, dtype=torch.float64).to(dtype),
                "labels": torch.randint(CLASSES, (rows, TIME), generator=generator),
                "mask": torch.rand(rows, TIME, generator=generator) < share,
                "weights": (0.5 + torch.rand(rows, TIME, generator=generator, dtype=torch.float64)).to(dtype),
            }
    return made


def model_of(dtype):
    torch.manual_seed(0)
    layers = torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
    return torch.nn.Sequential(*layers).to(dtype)


def optimizer_of(model, reduction):
    return torch.optim.SGD(model.parameters(), lr=0.02 if reduction == "sum" else 1.0)


def parameters_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


def loss_of(model, batch, **options):
    entries = {name: batch[name] for name in ("mask", "weights")}
    return ml.cross_entropy(model(batch["features"]), batch["labels"], **entries, **options)


def of_one_process(dtype, reduction):
    model = model_of(dtype)
    optimizer = optimizer_of(model, reduction)
    for step in range(STEPS):
        made = batches(dtype, step).values()
        whole = {name: torch.cat([batch[name] for batch in made]) for name in next(iter(made))}
        optimizer.zero_grad()
        loss_of(model, whole, reduction=reduction).backward()
        optimizer.step()
    return parameters_of(model)


def of_this_process(dtype, reduction, *, exact):
    """With DistributedDataParallel, which averages gradients: a factor PROCESSES undoes that."""
    model = DistributedDataParallel(model_of(dtype))
    optimizer = optimizer_of(model, reduction)
    for step in range(STEPS):
        made = batches(dtype, step)
        mine = [made[dist.get_rank(), i] for i in range(MICRO_BATCHES)]
        optimizer.zero_grad()
        options, scale = {"reduction": reduction}, 1 / MICRO_BATCHES
        if exact or reduction == "sum":
            scale = PROCESSES
        if exact and reduction != "sum":
            entries = [(b["labels"], {name: b[name] for name in ("mask", "weights")}) for b in mine]
            options["denominator"] = sum(ml.denominator(y, reduction=reduction, **given) for y, given in entries)
            dist.all_reduce(options["denominator"])
        for i, batch in enumerate(mine):
            model.require_backward_grad_sync = i == MICRO_BATCHES - 1  # gradients are exchanged once a step
            (loss_of(model, batch, **options) * scale).backward()
        optimizer.step()
    return parameters_of(model)


def process(rank, rendezvous, results):
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{rendezvous}", timeout, world_size=PROCESSES, rank=rank)
    rows = []
    for name, dtype in DTYPES.items():
        start = parameters_of(model_of(dtype))
        for reduction in REDUCTIONS:
            one = of_one_process(dtype, reduction)
            row = {"dtype": name, "reduction": reduction}
            for key, exact in (("denominator", True), ("mean of means", False)):
                many = of_this_process(dtype, reduction, exact=exact)
                row[key] = float((many - one).abs().max() / (one - start).abs().max())
            rows.append(row)
    if rank == 0:
        Path(results).write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # at a usual exit one process in some dozens aborts: a thread of torch's is not joined (torch 2.13)


def measured():
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "rows.json"
        torch.multiprocessing.spawn(process, (f"{folder}/rendezvous", str(results)), nprocs=PROCESSES)
        return json.loads(results.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the rows, as JSON, with date and versions")
    options = parser.parse_args()
    rows = measured()
    print(f"{'':28}{'with denominator':>18}{'mean of means':>18}")
    for row in rows:
        print(f"{row['dtype']:8} {row['reduction']:19}{row['denominator']:18.1e}{row['mean of means']:18.1e}")
    if options.write:
        run = {"date": str(datetime.date.today()), "torch": torch.__version__, "machine": platform.machine()}
        options.write.write_text(json.dumps({"run": run, "rows": rows}, indent=1) + "\n")
    limits = {"float32": 1e-6, "float64": 1e-12}
    return int(any(row["denominator"] > limits[row["dtype"]] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
