"""The losses on one GPU, beside what runs there: `python -m benchmarks.gpu`, from the project's root.

    python -m benchmarks.gpu            # docs/_generated/gpu.json and gpu.md
    python -m benchmarks.gpu --trial    # the machinery alone: on the CPU, tiny shapes, into build/bench

A process for each library. Times are those of the device's own events for PyTorch, of a call that is waited for in JAX
and CuPy. PyTorch's have floors, of the same process: bytes over the rate of a large copy, operations over the rate of
one large product. Each provider's answer is compared before; one that fails is told, and does not stop the others.
"""

import argparse
import json
import subprocess
from pathlib import Path

from .cases import BOTH, DIRECTIONS, ITEMSIZE, Case
from .harness import ROOT, Result, child
from .providers import SETTINGS, TITLES
from .tables import beside, shape_text, short_name, table, times_table

GROUPS = tuple(SETTINGS["gpu"])
NOT_RUN = (
    "Not yet run: no GPU was at hand. On a machine that has one, with PyTorch, JAX and CuPy for it, optax, and any of"
    " liger-kernel, cut-cross-entropy and quack-kernels, `python -m benchmarks.gpu` puts its figures here.\n"
)
CHOSEN, BANDWIDTH = (4096, 8), 3.0e12  # of kernels.sizes_of; of a large copy, both ways counted, on an H100
SHAPES = ((8192, 32000), (4096, 128256), (32768, 1024), (256, 1024))
PROJECTION = Case(8192, 128256, "bfloat16", features=4096)
CASES = {
    "torch": (
        *(Case(*shape, "bfloat16", kept) for shape in SHAPES for kept in (None, 15)),
        Case(*SHAPES[0], "bfloat16", 50),
        Case(*SHAPES[0]),
        Case(*SHAPES[0], "bfloat16", logits="peaked"),
        Case(*SHAPES[3], "bfloat16", cold=True),
        *(PROJECTION._replace(kept=kept) for kept in (None, 15)),
    ),
    "jax": (
        *(Case(*shape, "bfloat16", kept) for shape in SHAPES[:2] for kept in (None, 15)),
        *(PROJECTION._replace(kept=kept) for kept in (None, 15)),
    ),
    "cupy": tuple(Case(*SHAPES[0], kept=kept) for kept in (None, 15)),
}
TINY = Case(16, 32000, "bfloat16", 50)
TRIAL = {"torch": (TINY, TINY._replace(features=8)), "jax": (TINY, TINY._replace(features=8))}
TRIAL["cupy"] = (TINY._replace(dtype="float32"),)


def device_name(device):
    if device == "cpu":
        return "CPU, a trial"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cell(row, name):
    extra = row.get("extra", {}).get(name)
    failed = "failed" if name in row.get("failed", ()) else ""
    return (beside(row, name) or failed) + ("" if extra is None else f", {extra / 2**30:.2f} GiB")


def of_kernels(rows):
    """Device milliseconds of the kernels in the chosen size, and in the best."""
    lines = []
    for shape, dtype in dict.fromkeys((tuple(row["shape"]), row["dtype"]) for row in rows):
        times = {}
        for row in rows:
            if (tuple(row["shape"]), row["dtype"]) == (shape, dtype):
                times.setdefault(tuple(row["size"]), {})[row["direction"]] = row["ms"]
        whole = {size: ms for size, ms in times.items() if len(ms) == len(DIRECTIONS)}
        if CHOSEN in whole:
            best = min(whole, key=lambda size: whole[size][BOTH])
            least = 1e3 * ((1 + 2) * shape[0] * shape[1] * ITEMSIZE[dtype]) / BANDWIDTH
            name, ours = f"{shape_text(shape)}, {dtype}", [f"{whole[CHOSEN][d]:.3f}" for d in DIRECTIONS]
            lines.append([name, *ours, f"{whole[best][BOTH]:.3f} at {best[0]} × {best[1]}", f"{least:.3f}"])
    return lines


def names_of(shape):
    """Rows, features if it has any, and classes."""
    rows, classes, *features = shape
    return " × ".join(map(str, (rows, *features, classes)))


def by_size(rows, name_of, size_text):
    """A line for each name: milliseconds and GiB at each size."""
    lines = {}
    for row in rows:
        lines.setdefault(name_of(row), {})[row["size"]] = f"{row['ms']:.1f}, {row['GiB']:.2f}"
    sizes = sorted({row["size"] for row in rows})
    return table(["", *map(size_text, sizes)], [[name, *(cells[n] for n in sizes)] for name, cells in lines.items()])


def sizes_page(sizes):
    """What the sizes of the code are chosen by."""
    rows = {what: [row for row in sizes["rows"] if row["what"] == what] for what in ("kernels", "chunks", "blocks")}
    out = ["\n**The kernels alone**: ms of the device, as a CUDA graph replays them, in programs of"]
    out.append(f" {CHOSEN[0]} classes and {CHOSEN[1]} warps\n\n")
    header = ["", "forward", "loss and gradient", "the best size", "one read, then a read and a write, at 3.0 TB/s"]
    out.append(table(header, of_kernels(rows["kernels"])))
    out.append(
        "\n**Rows of a chunk of `linear_cross_entropy`**, bfloat16, loss and gradients: ms, and GiB at the peak\n\n"
    )
    out.append(by_size(rows["chunks"], lambda r: f"{names_of(r['shape'])}, {r['way']}", str))
    out.append("\n**Bytes of a block of the engine**, bfloat16, loss and gradient: ms, and GiB at the peak\n\n")
    kept = {False: "all", True: "15 %"}
    out.append(
        by_size(rows["blocks"], lambda r: f"{names_of(r['shape'])}, {kept[r['masked']]}", lambda n: f"{n >> 20} MiB")
    )
    return "".join(out)


def page(result, sizes=None):
    """The page's tables, in Markdown."""
    if result is None:
        return NOT_RUN
    out = []
    for group in GROUPS:
        rows = [(Case(*row["case"]), row) for row in result["rows"] if row["group"] == group]
        out.append(f"**{TITLES[group]}**, loss and gradient: ms, and theirs / ours\n\n")
        out.append(times_table("", rows, cell, lambda c: f"{short_name(c)}, {c.dtype}") + "\n")
    out += [f"- failed: {failure}\n" for failure in result["failures"]]
    out += [f"\n{result['note']}\n"] if "note" in result else []
    out += [sizes_page(sizes)] if sizes else []
    found = ", ".join(f"{name} {v}" for name, v in result["versions"].items() if v != "not installed")
    return "".join(out) + f"\nMeasured on {result['date']}: {result['device']}; {found}.\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="on the CPU, tiny shapes")
    parser.add_argument("--only", choices=GROUPS, help="one library")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of a case (2)")
    parser.add_argument("--output", type=Path, help="where gpu.json and gpu.md go")
    args = parser.parse_args()
    device, limit, cases = ("cpu", 0.01, TRIAL) if args.trial else ("cuda", args.limit, CASES)
    folder = args.output or ROOT / ("build/bench" if args.trial else "docs/_generated")
    result = Result(folder / "gpu.json", "gpu", GROUPS, device=device_name(device), rows=[])
    options = {"setting": "gpu", "device": device, "directions": [BOTH], "limit": limit, "fewest": 5}
    for group in [args.only] if args.only else GROUPS:
        result.add("rows", child("cases", group, {**options, "cases": cases[group]}))
    result.finish(strict=False)
    sizes = folder / "gpu_sizes.json"
    text = page(result.found, json.loads(sizes.read_text()) if sizes.exists() else None)
    (folder / "gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
