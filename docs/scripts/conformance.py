"""docs/_generated/conformance.{json,md,svg}: the worst error per function, backend, dtype and mode.

--write runs tests/conformance and writes what it saw; rows of backends that did not run are kept. --reports takes the
files that `pytest --conformance-report` wrote, on another machine say, in the place of a run. --check runs it and
fails when the committed rows are stale: another number of cases, or an error larger by more than MACHINES.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks import looks
from docs.scripts import GENERATED, ROOT, arguments, outdated, table
from tests.backends import BACKENDS, chosen

KEY = ("function", "backend", "dtype", "mode")
# The same code errs differently on another processor: NumPy, XLA and torch choose their exp and log by instruction
# set, each within about one last place of the truth. What is allowed at all is asserted by the tests, not here.
MACHINES = 1.0


def measured(names, for_pytest):
    """The rows of a run of tests/conformance, which must pass.

    A process for JAX, whose time is compilation, one for Triton's interpreter and one for JAX's eight devices, which
    are there for a whole process or not at all, and one for the rest.
    """
    parts = defaultdict(list)
    for name in names:
        backend = BACKENDS[name]
        parts[backend.library == "jax", backend.environment].append(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:logging"]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for (_, variables), part in parts.items():
            report = Path(folder) / f"{part[0]}.json"
            asked = ["--backend", ",".join(part), "--conformance-report", str(report), *for_pytest]
            preset = {"TRITON_INTERPRET": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            environment = os.environ | preset | dict(variables)
            process = subprocess.Popen([*command, *asked, "tests/conformance"], cwd=ROOT, env=environment)
            running.append((process, report))
        codes = [process.wait() for process, _ in running]
        if any(codes):
            sys.exit(f"tests/conformance failed (exit codes {codes}): no table is made of that")
        return reported(report for _, report in running)


def reported(reports):
    """The rows of the files, the later ones in the place of earlier ones."""
    rows = by_key(row for report in reports for row in json.loads(report.read_text())).values()
    return [row | {"worst": row["worst"] and round(row["worst"], 1)} for row in rows]


def by_key(rows):
    return {tuple(row[k] for k in KEY): row for row in rows}


def stale(committed, fresh):
    """What the committed rows get wrong about the backends that ran."""
    ran = {row["backend"] for row in fresh}
    old, new = by_key(row for row in committed if row["backend"] in ran), by_key(fresh)
    found = []
    for key in sorted(old.keys() | new.keys()):
        what = ", ".join(key)
        if key not in old:
            found.append(f"{what}: not in the table")
        elif key not in new:
            found.append(f"{what}: gone")
        elif old[key]["cases"] != new[key]["cases"]:
            found.append(f"{what}: {new[key]['cases']} cases, {old[key]['cases']} in the table")
        elif new[key]["worst"] is not None and new[key]["worst"] > (old[key]["worst"] or 0) + MACHINES:
            worst, case = new[key]["worst"], new[key]["case"]
            found.append(f"{what}: worst {worst} ulps ({case}), {old[key]['worst']} in the table")
    return found


def columns_of(rows):
    """Backend and mode, in the order that tests/backends.py lists them."""
    present = {(row["backend"], row["mode"]) for row in rows}
    return [(b.name, mode) for b in BACKENDS.values() for mode in b.modes if (b.name, mode) in present]


def functions_of(rows):
    """cross_entropy first, then by name."""
    return sorted({row["function"] for row in rows}, key=lambda f: (not f.startswith("cross_entropy"), f))


def cell(row):
    if row is None:
        return ""
    return f"shapes ({row['cases']})" if row["worst"] is None else f"{row['worst']:.1f} ({row['cases']})"


def markdown(rows):
    """One table per dtype: functions by backend and mode, each cell the worst error and the number of cases."""
    out = []
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        here = [row for row in rows if row["dtype"] == dtype]
        columns, found = columns_of(here), by_key(here)
        lines = [[f, *(cell(found.get((f, b, dtype, m))) for b, m in columns)] for f in functions_of(here)]
        out.append(f"**{dtype}**\n\n" + table(["function", *(f"{b} {m}" for b, m in columns)], lines))
    return "\n".join(out)


def picture(rows, path):
    """The same numbers as a heat map, the worst over the dtypes that a cell has; without those that have none."""
    import numpy as np

    plt = looks.pyplot()
    rows = [row for row in rows if row["worst"] is not None]
    functions, columns = functions_of(rows), columns_of(rows)
    worst = defaultdict(list)
    for row in rows:
        worst[row["function"], row["backend"], row["mode"]].append(row["worst"])
    grid = np.array([[max(worst.get((f, *c), [np.nan])) for f in functions] for c in columns])
    size = (2 + 0.31 * len(functions), 1.4 + 0.2 * len(columns))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.pcolormesh(range(len(functions)), range(len(columns)), grid, cmap="Blues", vmin=0, shading="nearest")
    axes.invert_yaxis()
    axes.set_xticks(range(len(functions)), functions, rotation=90)
    axes.set_yticks(range(len(columns)), [f"{b} {m}" for b, m in columns])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    middle = np.nanmax(grid) / 2
    for i, j in np.argwhere(~np.isnan(grid)):
        colour = "white" if grid[i, j] > middle else "black"
        axes.text(j, i, f"{grid[i, j]:.1f}", ha="center", va="center", fontsize=7, color=colour)
    looks.save(figure, path)
    plt.close(figure)


def main():
    parser, _ = arguments(__doc__)
    parser.add_argument("--backend", default="", help="as for pytest; rows of other backends are left as they are")
    parser.add_argument("--reports", type=Path, nargs="+", help="what runs of pytest reported, instead of a run here")
    options, for_pytest = parser.parse_known_args()
    os.environ["TRITON_INTERPRET"] = "1"  # so that what it interprets counts as here
    names = chosen([name for name in options.backend.split(",") if name])
    record, page = GENERATED / "conformance.json", GENERATED / "conformance.md"
    committed = json.loads(record.read_text()) if record.exists() else []
    fresh = reported(options.reports) if options.reports else measured(names, for_pytest)
    if options.check:
        found = stale(committed, fresh)
        if outdated({page: markdown(committed)}):
            found.append("conformance.md is not made from conformance.json")
        sys.exit("\n".join(["the conformance table is stale: run this with --write", *found]) if found else 0)
    ran = {row["backend"] for row in fresh}
    rows = sorted([row for row in committed if row["backend"] not in ran] + fresh, key=lambda r: [r[k] for k in KEY])
    GENERATED.mkdir(exist_ok=True)
    record.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    page.write_text(markdown(rows))
    picture(rows, GENERATED / "conformance.svg")


if __name__ == "__main__":
    main()
