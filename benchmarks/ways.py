"""What each way of running the linear loss costs: forward + backward, eager, compiled, and on eight devices.

    python -m benchmarks.ways     # docs/_generated/ways.json

A process for each way and round, the ways in turn. The eight devices are XLA's on one host: they share its cores, so
that their memory says more than their time.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median

from .cases import BERT, Case, arrays_of
from .harness import ROOT, Result
from .library import peak_beyond
from .tables import provenance, table

MODEL = Case(*BERT, features=384)
KEPT = (100, 50, 15)
ROUNDS, STEPS, DEVICES = 2, 3, 8
TORCH = {"PyTorch, eager": "eager", "PyTorch, torch.compile": "compile"}
JAX = {
    "JAX, jit, one device": "one",
    "JAX, jit, on one of eight devices": "among",
    "JAX, jit, rows split over eight": "split",
    "JAX, shard_map over eight": "shard_map",
}
WAYS = TORCH | JAX


def numbers(kept):
    given = arrays_of(MODEL._replace(kept=kept))
    return *given.inputs, given.labels, given.mask


def seconds_of(call):
    found = []
    for _ in range(STEPS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


def with_torch(way):
    import torch

    import maskloss as ml

    def loss(hidden, kernel, labels, mask):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask)

    run = torch.compile(loss, fullgraph=True) if way == "compile" else loss
    for kept in KEPT:
        hidden, kernel, labels, mask = map(torch.from_numpy, numbers(kept))
        leaves = hidden.requires_grad_(), kernel.requires_grad_()

        def step(leaves=leaves, given=(hidden, kernel, labels, mask)):
            return torch.autograd.grad(run(*given), leaves)

        start = time.perf_counter()
        step()
        first = time.perf_counter() - start
        yield {"kept": kept, "first": first, "seconds": seconds_of(step), "MB": peak_beyond(step) / 1e6, "moved": None}


def with_jax(way):
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    import maskloss as ml

    def loss(hidden, kernel, labels, mask, **options):
        return ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, **options)

    rows, everywhere = PartitionSpec("rows"), PartitionSpec()
    if way in ("split", "shard_map"):
        mesh = jax.make_mesh((DEVICES,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    for kept in KEPT:
        arrays, function = [jax.numpy.asarray(x) for x in numbers(kept)], loss
        if way in ("split", "shard_map"):
            specs = (rows, everywhere, rows, rows)
            arrays = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
        if way == "shard_map":

            def of_shard(*arrays):
                total = loss(*arrays, reduction="sum")
                return jax.lax.psum(total, "rows") / jax.lax.psum(arrays[3].sum(), "rows")

            function = jax.shard_map(of_shard, mesh=mesh, in_specs=specs, out_specs=everywhere)
        start = time.perf_counter()
        program = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*arrays).compile()

        def step(program=program, arrays=arrays):
            jax.block_until_ready(program(*arrays))

        step()
        first, plan = time.perf_counter() - start, program.memory_analysis()
        text = program.as_text()
        moved = [f"{text.count(f' {name}(')} {name}" for name in ("all-reduce", "all-gather", "all-to-all")]
        size = (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 1e6
        yield {"kept": kept, "first": first, "seconds": seconds_of(step), "MB": size, "moved": ", ".join(moved)}


def measured(way):
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={1 if WAYS[way] == 'one' else DEVICES}"}
    command = [sys.executable, "-m", "benchmarks.ways", WAYS[way]]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | devices, check=True, stdout=subprocess.PIPE, text=True)
    group = "torch" if way in TORCH else "jax"
    return [{"group": group, "way": way, **json.loads(line)} for line in done.stdout.splitlines()]


def page(result):
    """The page's table, in Markdown: medians over the rounds."""
    rows = []
    for way in WAYS:
        found = [row for row in result["rows"] if row["way"] == way]
        of = {kept: [row for row in found if row["kept"] == kept] for kept in KEPT}
        times = [f"{1e3 * median(row['seconds'] for row in of[kept]):.0f} ms" for kept in KEPT]
        memory = f"{max(row['MB'] for row in found):.0f} MB"
        first = f"{median(row['first'] for row in of[KEPT[0]]):.1f} s"
        rows.append([way, *times, memory, first, of[KEPT[-1]][0]["moved"] or ""])
    header = ["", *(f"{kept} % kept" for kept in KEPT), "memory a device", "first call", "between devices"]
    numbers = MODEL.rows * MODEL.classes, (MODEL.rows + MODEL.classes) * MODEL.features
    logits, gradients = (f"{4 * count / 1e6:.0f} MB" for count in numbers)
    shape = f"{MODEL.rows} × {MODEL.features} × {MODEL.classes} in float32"
    beside = f"logits would be {logits}, the gradients, {gradients}, are counted in"
    return f"{table(header, rows)}\n{shape}: {beside}. Measured on {provenance(result)}.\n"


def main():
    if len(sys.argv) > 1:
        for row in (with_torch if sys.argv[1] in TORCH.values() else with_jax)(sys.argv[1]):
            print(json.dumps(row), flush=True)
        return
    result = Result(ROOT / "docs/_generated/ways.json", "linear", ("torch", "jax"), rows=[])
    for _ in range(ROUNDS):
        for way in WAYS:
            result.add("rows", measured(way))
    result.finish()
    print(page(result.found))


if __name__ == "__main__":
    main()
