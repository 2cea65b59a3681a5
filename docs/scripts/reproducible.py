"""docs/_generated/{identity,reproducible,reproducible_gpu}.md: who gives the golden bits, and what they cost.

--write makes them of the committed results; with --reports, of what `nox -s identity` saw, or tests/conformance on
another machine with MASKLOSS_IDENTITY=all. `python -m benchmarks.reproducible` measures. --check fails where a page is
not made of its results.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.reproducible import GPU_CASE, page
from docs.scripts import GENERATED, arguments, outdated, table
from tests.backends import BACKENDS

DTYPES = ("float32", "bfloat16", "float16")
RECORD, COSTS = GENERATED / "identity.json", GENERATED / "reproducible.json"
GPU_COSTS = GENERATED / "reproducible_gpu.json"


def reported(paths):
    """The rows of the golden bits: how many cases, and the most parts of one that differ."""
    rows = [row for path in paths for row in json.loads(path.read_text()) if row["function"] == "reproducible"]
    return [{key: row[key] for key in ("backend", "mode", "dtype", "cases", "worst", "case")} for row in rows]


def cell(row):
    if row is None:
        return ""
    return f"{row['cases']} equal" if row["worst"] == 0 else f"differ, of {row['cases']}: {row['case']}"


def markdown(rows):
    found = {(row["backend"], row["mode"], row["dtype"]): row for row in rows}
    names = list(BACKENDS)
    modes = sorted(
        dict.fromkeys((row["backend"], row["mode"]) for row in rows), key=lambda m: (names.index(m[0]), m[1])
    )
    lines = [[*mode, *(cell(found.get((*mode, dtype))) for dtype in DTYPES)] for mode in modes]
    return table(["backend", "mode", *DTYPES], lines)


def main():
    parser, _ = arguments(__doc__)
    parser.add_argument("--reports", type=Path, nargs="+", help="what runs of pytest reported")
    options = parser.parse_args()
    if options.reports:
        ran = reported(options.reports)
        kept = json.loads(RECORD.read_text()) if RECORD.exists() else []
        backends = {row["backend"] for row in ran}
        ran += [row for row in kept if row["backend"] not in backends]
        ran.sort(key=lambda row: (list(BACKENDS).index(row["backend"]), row["mode"], row["dtype"]))
        RECORD.write_text("[\n" + ",\n".join(json.dumps(row) for row in ran) + "\n]\n")
    files = {RECORD.with_suffix(".md"): markdown(json.loads(RECORD.read_text()))}
    files[COSTS.with_suffix(".md")] = page(json.loads(COSTS.read_text()))
    files[GPU_COSTS.with_suffix(".md")] = page(json.loads(GPU_COSTS.read_text()), GPU_CASE)
    if options.write:
        for path, text in files.items():
            path.write_text(text)
    elif stale := outdated(files):
        sys.exit(f"{', '.join(path.name for path in stale)}: run docs/scripts/reproducible.py --write")


if __name__ == "__main__":
    main()
