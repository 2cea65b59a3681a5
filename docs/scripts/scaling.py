"""docs/_generated/scaling.{json,md,svg}: what a linear loss sends and holds on many devices, by how it is split.

python docs/scripts/scaling.py --write    # compiles XLA's programs for as many devices, made of one CPU; runs none
python docs/scripts/scaling.py --check    # exit 1 where the page is not made from the committed results

A process for each number of devices, which is settled before JAX is imported: `scaling.py --devices N`.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import looks
from docs.scripts import GENERATED, arguments, outdated, table

RECORD = GENERATED / "scaling.json"
WRITTEN, PICTURE = RECORD.with_suffix(".md"), RECORD.with_suffix(".svg")
DEVICES = (8, 64, 512)
VOCABULARIES = (1 << 15, 1 << 17, 1 << 18, 1 << 20)
ROWS, FEATURES, HELD = 16384, 4096, 8  # entries of a step, in all; the most devices that share a vocabulary
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "pred": 1, "f64": 8, "s64": 8}
MOVES = r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def ways(devices):
    """Name -> over how many devices the entries are split, and the classes."""
    few = min(HELD, devices // 2)
    return {"entries": (devices, 1), "classes": (1, devices), "both": (devices // few, few)}


def moved_bytes(text):
    """Of what each collective of a program gives, on one device."""
    found = {}
    for shapes, kind in re.findall(MOVES, text):
        size = sum(
            BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
            for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        found[kind] = found.get(kind, 0) + size
    return found


def compiled(vocabulary, entries, parts):
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    import maskloss as ml

    mesh = jax.make_mesh((entries, parts), ("e", "c"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    of_rows, of_classes = (
        PartitionSpec(axis) if n > 1 else PartitionSpec() for axis, n in (("e", entries), ("c", parts))
    )
    specs = of_rows, of_classes, of_rows, of_rows
    part = {"class_shard": ml.ClassShard("c")} if parts > 1 else {}

    def of_device(hidden, kernel, labels, mask):
        everywhere = jax.lax.psum(ml.denominator(labels, mask=mask), "e")
        loss = ml.linear_cross_entropy(hidden, kernel, labels, mask=mask, denominator=everywhere, **part)
        return jax.lax.psum(loss, "e")

    loss = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=True)
    shapes = (
        ((ROWS, FEATURES), jnp.bfloat16),
        ((vocabulary, FEATURES), jnp.bfloat16),
        ((ROWS,), jnp.int32),
        ((ROWS,), bool),
    )
    given = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()


def measured(devices):
    for vocabulary in VOCABULARIES:
        for way, (entries, parts) in ways(devices).items():
            if ROWS % entries or vocabulary % parts:
                continue
            start = time.perf_counter()
            program = compiled(vocabulary, entries, parts)
            plan = program.memory_analysis()
            yield {
                "devices": devices,
                "vocabulary": vocabulary,
                "way": way,
                "split": [entries, parts],
                "moved": moved_bytes(program.as_text()),
                "held": plan.temp_size_in_bytes + plan.output_size_in_bytes,
                "given": plan.argument_size_in_bytes,
                "seconds": round(time.perf_counter() - start, 1),
            }


def record():
    rows = []
    for devices in DEVICES:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, "--devices", str(devices)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | flags)
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    from importlib.metadata import version

    return {"run": {"date": time.strftime("%Y-%m-%d"), "jax": version("jax")}, "rows": rows}


def mebibytes(size):
    return f"{size / 2**20:.0f}" if size >= 2**20 else f"{size / 2**20:.2f}"


def markdown(result):
    out = []
    for devices in DEVICES:
        rows = [row for row in result["rows"] if row["devices"] == devices]
        names = [f"{way}, {e} × {c}" for way, (e, c) in ways(devices).items()]
        lines = []
        for vocabulary in VOCABULARIES:
            here = {row["way"]: row for row in rows if row["vocabulary"] == vocabulary}
            cells = [
                f"{mebibytes(sum(here[w]['moved'].values()))}; {mebibytes(here[w]['held'])}" if w in here else ""
                for w in ways(devices)
            ]
            lines.append([f"{vocabulary}", *cells])
        out.append(
            f"**{devices} devices**: MiB of the collectives; MiB held beyond the arguments, each of one device\n\n"
        )
        out.append(table(["vocabulary", *names], lines) + "\n")
    run = result["run"]
    return (
        "".join(out)
        + f"XLA's programs for CPU devices, compiled and not run, on {run['date']} with jax {run['jax']}.\n"
    )


def picture(result, path):
    plt = looks.pyplot()
    titles = ("MiB sent by the collectives", "MiB held beyond the arguments")
    figure, axes = plt.subplots(
        len(DEVICES), 2, figsize=(looks.WIDTH, 7.5), sharex=True, sharey="col", layout="constrained"
    )
    for devices, (sent, held) in zip(DEVICES, axes, strict=True):
        for way, marker in zip(ways(devices), "osD", strict=True):
            rows = [r for r in result["rows"] if r["devices"] == devices and r["way"] == way]
            x = [r["vocabulary"] for r in rows]
            look = {"marker": marker, "markersize": 4, "label": f"split: {way}"}
            sent.loglog(x, [sum(r["moved"].values()) / 2**20 for r in rows], **look)
            held.loglog(x, [r["held"] / 2**20 for r in rows], **look)
        sent.set_ylabel(f"{devices} devices", fontweight="bold")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel("classes")
    looks.legend_above(figure, axes.flat, 3)
    looks.save(figure, path)
    plt.close(figure)


def main():
    if "--devices" in sys.argv:
        for row in measured(int(sys.argv[-1])):
            print(json.dumps(row), flush=True)
        return 0
    parser, _ = arguments(__doc__)
    if parser.parse_args().write:
        result = record()
        rows = ",\n".join(json.dumps(row) for row in result["rows"])
        RECORD.write_text(f'{{\n"run": {json.dumps(result["run"])},\n"rows": [\n{rows}\n]\n}}\n')
        WRITTEN.write_text(markdown(result))
        picture(result, PICTURE)
        return 0
    if outdated({WRITTEN: markdown(json.loads(RECORD.read_text()))}):
        print(f"{WRITTEN.name} is stale: run docs/scripts/scaling.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
