"""docs/_generated/data_parallel.md: how far three processes are from one, with ml.denominator and by a mean of means.

python docs/scripts/data_parallel.py --write    # runs examples/data_parallel/run.py
python docs/scripts/data_parallel.py --check    # exit 1 where the page is not made from the committed results
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import GENERATED, ROOT, arguments, outdated, table

RECORD = GENERATED / "data_parallel.json"
WRITTEN = RECORD.with_suffix(".md")


def markdown(record):
    run, dtypes = record["run"], sorted({row["dtype"] for row in record["rows"]})
    cells = {}
    for row in record["rows"]:
        cells.setdefault(row["reduction"], {})[row["dtype"]] = row
    header = ["", *(f"`denominator=`, {dtype}" for dtype in dtypes), f"mean of means, {dtypes[0]}"]
    rows = []
    for reduction, of in cells.items():
        exact, usual = [f"{of[dtype]['denominator']:.1e}" for dtype in dtypes], of[dtypes[0]]["mean of means"]
        # A sum has no mean of means: it is added up as it is.
        rows.append([f'`"{reduction}"`', *exact, "" if reduction == "sum" else f"{usual:.2f}"])
    where = f"Run on {run['date']} ({run['machine']}, torch {run['torch']}, gloo)."
    return table(header, rows) + "\n" + where + "\n"


def main():
    parser, _ = arguments(__doc__)
    if parser.parse_args().write:
        example = ROOT / "examples" / "data_parallel" / "run.py"
        subprocess.run([sys.executable, example, "--write", RECORD], check=True)
        WRITTEN.write_text(markdown(json.loads(RECORD.read_text())))
        return 0
    if outdated({WRITTEN: markdown(json.loads(RECORD.read_text()))}):
        print(f"{WRITTEN.name} is stale: run docs/scripts/data_parallel.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
