"""A case in processes of torch.distributed, each of which holds a part of the entries, of the classes, or of both.

What they find is put together again. The processes are started once and wait for cases:
`python -m tests.conformance.processes ADDRESS RANK RENDEZVOUS`.
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
from typing import NamedTuple

import numpy as np
import pytest

import maskloss as ml
from tests.backends import BACKENDS, to_numpy
from tests.conformance.cases import CASES
from tests.conformance.runs import LINEAR, call, class_axis, denominator, is_array, placed, reduction_of

PROCESSES = 4


class Way(NamedTuple):
    entries: int  # in how many parts
    classes: int
    linear: bool = False
    reproducible: bool = False


WAYS = {
    "shards": Way(1, 4),
    "shards-2": Way(1, 2),
    "shards-reproducible": Way(1, 4, reproducible=True),
    "shards-2-reproducible": Way(1, 2, reproducible=True),
    "shards-linear": Way(1, 4, linear=True),
    "entries": Way(4, 1),
    "entries-linear": Way(4, 1, linear=True),
    "entries-and-shards": Way(2, 2),
    "entries-and-shards-linear": Way(2, 2, linear=True),
}


class Part(NamedTuple):
    """Of an axis of the logits, from `start` to `stop`."""

    axis: int | None  # None: of none
    start: int
    stop: int


def held_by(length, parts):
    """How many each holds: as even as can be; of four the second holds none."""
    held = [len(part) for part in np.array_split(np.arange(length), parts - (parts == PROCESSES))]
    return [held[0], 0, *held[1:]] if parts == PROCESSES else held


def parts_of(length, axis, count):
    held = held_by(length, count)
    return [Part(axis, sum(held[:i]), sum(held[: i + 1])) for i in range(count)]


def entry_parts(case, way):
    """Along the entries' first axis; a sequence stays whole, and so does what has no entries' axis."""
    shape, at = case.inputs["logits"].shape, class_axis(case)
    axes = [i for i in range(len(shape)) if i != at]
    if way.entries == 1 or not axes:
        return [Part(None, 0, 1)]
    parts = parts_of(shape[axes[0]], axes[0], way.entries)
    if len(axes) == 1 and reduction_of(case) == "mean_over_sequences":
        parts = [Part(axes[0], 0, shape[axes[0]]), *[Part(axes[0], 0, 0)] * (way.entries - 1)]
    return parts


def class_parts(case, way):
    return parts_of(case.inputs["logits"].shape[class_axis(case)], class_axis(case), way.classes)


def splits_entries(case):
    """Whether they can be split, and counted without their logits; long rows are no other in parts of the entries."""
    logits, labels = case.inputs["logits"], case.inputs.get("labels")
    return logits.ndim > 1 and logits.size < 1 << 15 and (labels is None or is_array(labels))


def split_axis(case, name, shape, axis, linear=False):
    """The axis of an input that goes along one of the logits; None where it has none, or broadcasts along it."""
    whole, at = case.inputs["logits"].shape, class_axis(case)
    if axis is None or len(shape) > len(whole):
        return None
    if name in ("class_weights", "kernel"):
        return 0 if axis == at else None
    own = list(range(len(whole)))
    if name in ("mask", "weights") or (name == "labels" and case.inputs["labels"].dtype.kind != "f"):
        own.remove(at)
    elif name not in ("logits", "class_mask", "labels") or (linear and name == "logits" and axis == at):
        return None
    own = own[len(own) - len(shape) :]
    return own.index(axis) if axis in own and shape[own.index(axis)] == whole[axis] else None


def part_of(case, name, array, part, linear):
    axis = split_axis(case, name, tuple(array.shape), part.axis, linear) if hasattr(array, "shape") else None
    return array if axis is None else array.narrow(axis, part.start, part.stop - part.start)


def one_part(name, dtype, mode, rank, groups):
    """What a process finds of its part; as a linear loss, of its rows of a kernel that is the identity."""
    from tests.conformance.identity import reproducible
    from tests.conformance.modes import CHUNKS, identity_like, torch_leaves

    case, way = CASES[name], WAYS[mode]
    i, j = divmod(rank, way.classes)
    entries, own = entry_parts(case, way)[i], class_parts(case, way)[j]
    shard = None
    if way.classes > 1:
        group, total = groups["classes", way], case.inputs["logits"].shape[class_axis(case)]
        equal = len({part.stop - part.start for part in class_parts(case, way)}) == 1
        shard = ml.ClassShard(group) if equal else ml.ClassShard(group, own.start, total)
    arrays = placed(BACKENDS["torch"], case, dtype)
    for part in (entries, own):
        arrays = {n: part_of(case, n, a, part, way.linear) for n, a in arrays.items()}
    arrays = torch_leaves(case, arrays)
    of_entries = groups["entries", way] if way.entries > 1 else None
    if way.reproducible:
        return reproducible(outputs)(case, arrays, shard, of_entries, entries)
    if way.linear:
        kernel = slice(own.start, own.stop)
        with pytest.MonkeyPatch.context() as patch:
            function = getattr(ml, LINEAR[case.function])
            patch.setattr(
                ml,
                case.function,
                lambda x, *labels, **options: function(x, identity_like(x)[kernel], *labels, **CHUNKS, **options),
            )
            return outputs(case, arrays, shard, of_entries, entries)
    return outputs(case, arrays, shard, of_entries, entries)


def with_divisor(case, arrays, reduction, shard, group):
    """The arrays with the divisor of all entries, as a user of data parallelism makes it."""
    from torch.distributed.nn.functional import all_reduce

    own = "denominator" in {**arrays, **case.options} or reduction in ("none", "sum")
    if group is None or case.function != "cross_entropy" or own:
        return arrays
    if shard is None:
        divisor = denominator(case, arrays)["denominator"]
    else:
        divisor = call(case, arrays, reduction, with_stats=True, class_shard=shard)[1].denominator
    return arrays | {"denominator": all_reduce(divisor, group=group)}


def outputs(case, arrays, shard, group, entries):
    """Of scalars, what this part adds to them."""
    import torch

    from tests.conformance.modes import torch_gradients

    reduction = reduction_of(case)
    given = with_divisor(case, arrays, reduction, shard, group)
    out = {"value": call(case, given, reduction, class_shard=shard)}
    with torch.no_grad():
        out["without a graph"] = call(case, given, reduction, class_shard=shard)
    if case.function == "cross_entropy":
        out["entries"] = call(case, arrays, "none", class_shard=shard)
        out["again"], stats = call(case, given, reduction, with_stats=True, class_shard=shard)
        out |= {f"stats {field}": x for field, x in stats._asdict().items()}
    gradients = torch_gradients(case, out["value"], arrays, upstream_of_part(case, out["value"], entries))
    if isinstance(gradients, Exception):
        raise gradients
    out |= {f"d {name}": x for name, x in gradients.items()}
    return {key: to_numpy(BACKENDS["torch"], x) for key, x in out.items()}


def upstream_of_part(case, value, entries):
    """That of the whole value, of which this process has the entries."""
    from tests.conformance.modes import upstream

    shape, at = case.inputs["logits"].shape, class_axis(case)
    whole = upstream(case, tuple(n for i, n in enumerate(shape) if i != at) if value.ndim else ())
    if entries.axis is None or not whole.ndim:
        return whole
    return whole.take(range(entries.start, entries.stop), entries.axis - (entries.axis > at))


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
    groups = {}
    for way in sorted({way._replace(linear=False, reproducible=False) for way in WAYS.values()}):
        table = np.arange(way.entries * way.classes).reshape(way.entries, way.classes)
        for kind, rows in (("classes", table), ("entries", table.T)):
            for row in rows.tolist():
                group = dist.new_group(row)
                if rank in row:
                    groups |= {
                        (kind, way._replace(linear=linear, reproducible=bits)): group
                        for linear, bits in ((False, False), (True, False), (False, True))
                    }
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


def in_processes(case, arrays, mode):
    """The mode: what one process would give."""
    import torch

    way = WAYS[mode]
    connections = pool()[: way.entries * way.classes]
    for connection in connections:
        connection.send((case.name, str(arrays["logits"].dtype).partition(".")[2], mode))
    parts = [connection.recv() for connection in connections]
    errors = [part for part in parts if isinstance(part, str)]
    if errors:  # after which the groups are of no use
        for connection in pool():
            connection.close()
        pool.cache_clear()
        raise AssertionError("\n".join(errors))
    out, stats, gradients = {}, {}, {}
    for key in parts[0]:
        kind, _, name = key.rpartition(" ")
        table = np.empty((way.entries, way.classes), dtype=object)
        for place, part in zip(np.ndindex(*table.shape), parts, strict=True):
            table[place] = part[key]
        whole = torch.from_numpy(np.array(put_together(case, way, kind, name, table)))
        if kind == "d":
            gradients[name] = whole.to(arrays[name].dtype)
        elif kind == "stats":
            stats[name] = whole
        else:
            out[key] = whole
    return out | {"gradients": gradients} | ({"stats": ml.LossStats(**stats)} if stats else {})


def put_together(case, way, kind, name, table):
    """Of what each process found: along the classes first, and then along the entries, where what has no axis adds."""
    shape = np.shape(case.inputs.get(name, ()))
    of_classes = of_entries = None
    if kind == "d":
        of_classes = split_axis(case, name, shape, class_parts(case, way)[0].axis, way.linear)
        of_entries = split_axis(case, name, shape, entry_parts(case, way)[0].axis, way.linear)
    elif table[0, 0].ndim:  # numbers of each entry, whose first axis is the one that is split
        of_entries = 0
    rows = []
    for found in table:
        if of_classes is None:  # the same bits in each
            assert all(x.tobytes() == found[0].tobytes() for x in found), (kind, name)
        rows.append(found[0] if of_classes is None else np.concatenate(list(found), of_classes))
    if way.entries == 1:
        return rows[0]
    return sum(rows[1:], rows[0]) if of_entries is None else np.concatenate(rows, of_entries)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
