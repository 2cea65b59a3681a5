"""python -m benchmarks.parts: what a linear loss and its gradients hold, of all classes and in each of four parts.

The peak of resident memory beyond what was there before, in processes of gloo on this machine.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .library import peak_beyond

PARTS, CLASSES, ENTRIES, FEATURES = 4, 256000, 512, 64


def measured(rank, processes, rendezvous):
    import torch
    import torch.distributed as dist

    import maskloss as ml

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(rendezvous, processes), world_size=processes, rank=rank)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ENTRIES, FEATURES, generator=generator).requires_grad_()
    kernel = torch.randn(CLASSES // processes, FEATURES, generator=generator).requires_grad_()
    labels = torch.randint(CLASSES, (ENTRIES,), generator=generator)

    def step(count):
        shard = ml.ClassShard(dist.group.WORLD) if processes > 1 else None
        loss = ml.linear_cross_entropy(hidden[:count], kernel, labels[:count], class_shard=shard)
        return torch.autograd.grad(loss, (hidden, kernel))

    step(4)  # what a first call loads and keeps
    dist.barrier()
    print(peak_beyond(lambda: step(ENTRIES)), flush=True)
    dist.barrier()
    os._exit(0)


def peaks(processes):
    rendezvous = str(Path(tempfile.mkdtemp()) / "rendezvous")
    command = [sys.executable, "-m", "benchmarks.parts"]
    running = [
        subprocess.Popen([*command, str(rank), str(processes), rendezvous], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    return [int(process.communicate()[0]) for process in running]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measured(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    (whole,) = peaks(1)
    print(f"{CLASSES} classes, {ENTRIES} entries of {FEATURES} features: {whole / 2**20:.1f} MiB in one process")
    for rank, part in enumerate(peaks(PARTS)):
        print(f"part {rank}: {part / 2**20:.1f} MiB, {part / whole:.1%}")
