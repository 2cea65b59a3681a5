"""Measures maskloss beside its peers; writes performance.json, which docs/scripts/performance.py makes the page of.

python -m benchmarks.run               # all of it, into docs/_generated
python -m benchmarks.run --shows       # the cases of the page's first table, into build/bench
python -m benchmarks.run --quick       # a trial of the machinery: small shapes, no torch.compile
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from . import tables
from .cases import BERT, DIRECTIONS, ITEMSIZE, Case, cases_of, is_shown, name_of, quick, shown
from .harness import ROOT, Result, child, end
from .providers import GROUPS, SETTINGS


def import_times(runs):
    """Milliseconds of `import maskloss`, of it without array_api_compat, and of its own modules alone.

    From bytecode, as pip installs it: the first, uncounted import writes it, also where the environment forbids that.
    """
    command = [sys.executable, "-X", "importtime", "-c", "import maskloss"]
    with tempfile.TemporaryDirectory() as bytecode:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        texts = [subprocess.run(command, env=env, capture_output=True, text=True, check=True) for _ in range(runs + 1)]
    found = [import_time(text.stderr) for text in texts[1:]]
    return {key: round(median(one[key] for one in found), 2) for key in found[0]}


def import_time(text):
    """From what -X importtime prints: microseconds itself | with what it imports | name, indented by depth."""
    lines = re.findall(r"import time: +(\d+) \| +(\d+) \| +(\S+)", text)
    cumulative = {name: int(microseconds) / 1e3 for _, microseconds, name in lines}
    own = sum(int(itself) for itself, _, name in lines if name.split(".")[0] == "maskloss") / 1e3
    compat = cumulative.get("array_api_compat", 0)
    return {"all": cumulative["maskloss"], "without array_api_compat": cumulative["maskloss"] - compat, "own": own}


def wanted(only, *words):
    return re.search(only, ", ".join(words)) is not None


def single_tasks(task, group):
    """(case, provider, direction), each for a process of its own: all for memory, for first calls what is compiled."""
    bert = Case(*BERT)
    chosen = {
        "memory": [bert, bert._replace(kept=15), *([bert._replace(dtype="bfloat16")] if group == "torch" else [])],
        "first call": [bert._replace(kept=15)],
    }[task]
    providers = [p for p in SETTINGS["page"][group].providers if p.compiled or task == "memory"]
    return [(c, p, d) for c in chosen for p in providers for d in DIRECTIONS if p.where.applies(c, d)]


def singles(task, group, options, args):
    """Memory two at a time, times one at a time; a quick run does one, to see that it works."""
    chosen = [
        {**options, "case": case, "direction": direction, "provider": provider.name}
        for case, provider, direction in single_tasks(task, group)
        if wanted(args.only, task, group, name_of(case), direction, provider.name)
        and (options["compile"] or "torch.compile" not in provider.name)
    ]
    with ThreadPoolExecutor(2 if task == "memory" else 1) as pool:
        found = pool.map(
            lambda given: child(task, group, given, caches=task == "memory"), chosen[: 1 if args.quick else None]
        )
        return [in_logits(row, options) for rows in found for row in rows]


def in_logits(row, options):
    """The bytes of a row on memory as `extra`, in sizes of the logits."""
    if "bytes" not in row:
        return row
    case = quick(Case(*row["case"])) if options["quick"] else Case(*row["case"])
    extra = row.pop("bytes")
    return row | {"extra": extra and round(extra / (case.rows * case.classes * ITEMSIZE[case.dtype]), 4)}


def measure(args, result):
    """Fills the result in the order of what matters most."""
    options = {"limit": args.limit, "fewest": 2 if args.quick else args.rounds, "quick": args.quick}
    # torch.compile takes seconds: a quick run has it only where it is asked for.
    options["compile"] = not args.quick or "compile" in args.only
    some = args.quick and not args.only

    def timed(group, cases, **changes):
        cases = [c for c in cases if wanted(args.only, group, name_of(c))]
        if cases:
            result.add("rows", child("cases", group, {**options, "cases": cases, **changes}))

    for group in args.group:
        timed(group, shown()[1::3] if some else shown())
    if args.shows:
        return
    if wanted(args.only, "import"):
        result.found["import"] = import_times(3 if args.quick else 11)
    for group in args.group:
        if wanted(args.only, "overhead", group):
            result.add("overhead", child("overhead", group, options))
        for task in ("memory", "first call"):
            result.add(task, singles(task, group, options, args))
    for group in args.group:
        rest = [c for c in cases_of(group) if not is_shown(c)]
        timed(group, rest[::8] if some else rest, limit=args.limit / 6, fewest=min(3, options["fewest"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this library; may be repeated")
    parser.add_argument("--only", default="", metavar="REGEX", help="only what it matches in `torch, 2048x30522, ...`")
    parser.add_argument("--shows", action="store_true", help="only the cases of the page's first table")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: a trial of the machinery")
    limit = "of a case of the grid and a direction (2), a sixth of it elsewhere; but see --rounds"
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=limit)
    parser.add_argument("--rounds", type=int, default=5, help="at least so many, however slow (5)")
    output = "docs/_generated for a full run, else build/bench"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=output)
    args = parser.parse_args()
    partial = bool(args.group or args.only or args.shows or args.quick)
    args.group = args.group or list(GROUPS)
    args.limit = args.limit or (0.02 if args.quick else 2.0)
    folder = args.output or ROOT / ("build/bench" if partial else "docs/_generated")

    parts = {"rows": [], "memory": [], "first call": [], "overhead": []}
    result = Result(folder / "performance.json", "page", args.group, quick=args.quick, **parts)
    measure(args, result)
    path = result.finish()
    print(tables.shown(result.found))
    end(result.found, path)


if __name__ == "__main__":
    main()
