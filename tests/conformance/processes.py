"""A case in processes of torch.distributed, each of which holds a part of the classes; put together again.

The processes are started once and wait for cases: `python -m tests.conformance.processes ADDRESS RANK RENDEZVOUS`.
"""

import atexit
import datetime
import functools
import os
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Client, Listener
from pathlib import Path

import numpy as np
import pytest

import maskloss as ml
from tests.backends import BACKENDS, to_numpy
from tests.conformance.cases import CASES
from tests.conformance.runs import LINEAR, call, class_axis, placed, reduction_of

PROCESSES = 4


def held_by(classes, processes):
    """How many classes each holds: as even as can be; of four the second holds none."""
    parts = [len(part) for part in np.array_split(np.arange(classes), processes - (processes == PROCESSES))]
    return [parts[0], 0, *parts[1:]] if processes == PROCESSES else parts


def split_axis(case, name, shape, linear=False):
    """The axis of an input along which its classes lie; None where it has none, or broadcasts along them."""
    logits = case.inputs["logits"].shape
    at, classes = class_axis(case), logits[class_axis(case)]
    if name in ("class_weights", "kernel"):
        return 0
    if name == "class_mask":
        axis = at - (len(logits) - len(shape))
        return axis if axis >= 0 and shape[axis] == classes != 1 else None
    return at if name in (("labels",) if linear else ("logits", "labels")) and shape == logits else None


def part_of(case, name, array, start, stop, linear):
    axis = split_axis(case, name, tuple(array.shape), linear) if hasattr(array, "shape") else None
    return array if axis is None else array.narrow(axis, start, stop - start)


def one_part(name, dtype, processes, linear, rank, groups):
    """What a process finds of its part; as a linear loss, of its rows of a kernel that is the identity."""
    from tests.conformance.modes import CHUNKS, identity_like, torch_leaves

    case = CASES[name]
    classes = case.inputs["logits"].shape[class_axis(case)]
    held = held_by(classes, processes)
    start = sum(held[:rank])
    shard = ml.ClassShard(groups[processes], start, classes)
    if len(set(held)) == 1:
        shard = ml.ClassShard(groups[processes])
    arrays = placed(BACKENDS["torch"], case, dtype)
    stop = start + held[rank]
    arrays = torch_leaves(case, {n: part_of(case, n, a, start, stop, linear) for n, a in arrays.items()})
    if linear:
        with pytest.MonkeyPatch.context() as patch:
            function = getattr(ml, LINEAR[case.function])
            patch.setattr(
                ml,
                case.function,
                lambda x, *labels, **options: function(x, identity_like(x)[start:stop], *labels, **CHUNKS, **options),
            )
            return outputs(case, arrays, shard)
    return outputs(case, arrays, shard)


def outputs(case, arrays, shard):
    import torch

    from tests.conformance.modes import torch_gradients

    reduction = reduction_of(case)
    out = {"value": call(case, arrays, reduction, class_shard=shard)}
    with torch.no_grad():
        out["without a graph"] = call(case, arrays, reduction, class_shard=shard)
    if case.function == "cross_entropy":
        out["entries"] = call(case, arrays, "none", class_shard=shard)
        out["again"], stats = call(case, arrays, reduction, with_stats=True, class_shard=shard)
        out |= {f"stats {field}": x for field, x in stats._asdict().items()}
    gradients = torch_gradients(case, out["value"], arrays)
    if isinstance(gradients, Exception):
        raise gradients
    out |= {f"d {name}": x for name, x in gradients.items()}
    return {key: to_numpy(BACKENDS["torch"], x) for key, x in out.items()}


def answer(*asked):
    try:
        return one_part(*asked)
    except Exception:
        return traceback.format_exc()


def serve(address, rank, rendezvous):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store, timeout = dist.FileStore(rendezvous, PROCESSES), datetime.timedelta(seconds=10)
    dist.init_process_group("gloo", store=store, timeout=timeout, world_size=PROCESSES, rank=rank)
    groups = {PROCESSES: dist.group.WORLD, 2: dist.new_group([0, 1])}
    with Client(address, "AF_UNIX") as connection:
        connection.send(rank)
        try:
            while True:
                connection.send(answer(*connection.recv(), rank, groups))
        except EOFError:
            pass
    os._exit(0)


@functools.cache
def pool():
    """A connection to each process."""
    folder = tempfile.mkdtemp()
    address, rendezvous = str(Path(folder) / "socket"), str(Path(folder) / "rendezvous")
    command = [sys.executable, "-m", "tests.conformance.processes", address]
    with Listener(address, "AF_UNIX") as listener:
        for rank in range(PROCESSES):
            process = subprocess.Popen([*command, str(rank), rendezvous], cwd=Path(__file__).parents[2])
            atexit.register(process.kill)
        connections = [listener.accept() for _ in range(PROCESSES)]
    return [connection for _, connection in sorted((connection.recv(), connection) for connection in connections)]


def in_processes(case, arrays, processes=PROCESSES, linear=False):
    """The mode: what one process would give."""
    import torch

    connections = pool()[:processes]
    for connection in connections:
        connection.send((case.name, str(arrays["logits"].dtype).partition(".")[2], processes, linear))
    parts = [connection.recv() for connection in connections]
    errors = [part for part in parts if isinstance(part, str)]
    if errors:  # after which the groups are of no use
        for connection in pool():
            connection.close()
        pool.cache_clear()
        raise AssertionError("\n".join(errors))
    out, stats, gradients = {}, {}, {}
    for key, first in parts[0].items():
        kind, _, name = key.rpartition(" ")
        axis = split_axis(case, name, np.shape(case.inputs.get(name, ())), linear) if kind == "d" else None
        found = [part[key] for part in parts]
        if axis is None:  # the same bits in each
            assert all(x.tobytes() == first.tobytes() for x in found), key
        whole = torch.from_numpy(np.array(first if axis is None else np.concatenate(found, axis)))
        if kind == "d":
            gradients[name] = whole.to(arrays[name].dtype)
        elif kind == "stats":
            stats[name] = whole
        else:
            out[key] = whole
    return out | {"gradients": gradients} | ({"stats": ml.LossStats(**stats)} if stats else {})


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
