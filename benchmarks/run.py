"""Measures maskloss beside its peers; writes performance.json, which docs/scripts/performance.py makes the page of.

python benchmarks/run.py               # all of it, into docs/_generated
python benchmarks/run.py --shows       # the cases of the page's first table, into build/bench
python benchmarks/run.py --quick       # a trial of the machinery: small shapes, no torch.compile
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import tables
from provider import COMPILED
from workloads import BERT, DIRECTIONS, Case, cases_of, is_shown, name_of, shown

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("torch", "jax", "numpy")
# A cache of compiled programs would make a first call look like a second one.
NO_CACHES = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def machine():
    info, memory = Path("/proc/cpuinfo"), None
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor(), "cores": cores, "GiB": memory}


def versions(groups):
    return installed(p for group in groups for p in import_module(f"group_{group}").PACKAGES)


def installed(packages):
    found = {"python": platform.python_version()}
    for package in ("maskloss", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def child(task, group, options, *, caches=True):
    """The rows of one child process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {} if caches else {**NO_CACHES, "TORCHINDUCTOR_CACHE_DIR": folder}
        output = Path(folder) / "rows"
        given = json.dumps({"task": task, "group": group, "output": str(output), **options})
        command = [sys.executable, str(Path(__file__).parent / "measure.py")]
        code = subprocess.run(command, input=given, text=True, env={**os.environ, **environment}).returncode
        rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    if code:
        rows.append({"failure": f"{group}, {task}: the process ended with status {code}: {options.get('case', '')}"})
    return [{"group": group, **row} if "failure" not in row else row for row in rows]


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


def memory_tasks(group):
    bert = Case(*BERT)
    half = [bert._replace(dtype="bfloat16")] if group == "torch" else []
    return single_tasks(group, [bert, bert._replace(kept=15), *half])


def first_call_tasks(group):
    return [task for task in single_tasks(group, [Case(*BERT, kept=15)]) if task[1].kind == COMPILED]


def single_tasks(group, chosen):
    """(case, provider, direction): each runs in a process of its own."""
    providers = import_module(f"group_{group}").PROVIDERS
    return [(c, p, d) for c in chosen for p in providers for d in DIRECTIONS if p.applies(c, d)]


def wanted(only, *words):
    return re.search(only, ", ".join(words)) is not None


def singles(task, tasks, group, options, args, *, caches=True):
    """Memory two at a time, times one at a time; a quick run does one, to see that it works."""
    chosen = [
        {**options, "case": case, "direction": direction, "provider": provider.name}
        for case, provider, direction in tasks
        if wanted(args.only, task, group, name_of(case), direction, provider.name)
        and (options["compile"] or "torch.compile" not in provider.name)
    ]
    with ThreadPoolExecutor(2 if task == "memory" else 1) as pool:
        found = pool.map(lambda given: child(task, group, given, caches=caches), chosen[: 1 if args.quick else None])
        return [row for rows in found for row in rows]


def measured(args, save):
    """Fills the result in the order of what matters most; save(result) after each part."""
    options = {"limit": args.limit, "fewest": 2 if args.quick else args.rounds, "quick": args.quick}
    # torch.compile takes seconds: a quick run has it only where it is asked for.
    options["compile"] = not args.quick or "compile" in args.only
    result = {"machine": machine(), "versions": versions(args.group), "date": time.strftime("%Y-%m-%d")}
    result |= {"quick": args.quick, "failures": [], "rows": [], "memory": [], "first call": [], "overhead": []}

    def add(key, rows):
        result["failures"] += [row["failure"] for row in rows if "failure" in row]
        result[key] += [row for row in rows if "failure" not in row]
        save(result)

    def timed(group, chosen, share=1, fewest=options["fewest"]):
        chosen = [c for c in chosen if wanted(args.only, group, name_of(c))]
        if chosen:
            add(
                "rows",
                child("cases", group, {**options, "limit": args.limit / share, "fewest": fewest, "cases": chosen}),
            )

    some = args.quick and not args.only
    for group in args.group:
        timed(group, shown()[1::3] if some else shown())
    if args.shows:
        return result
    if wanted(args.only, "import"):
        result["import"] = import_times(3 if args.quick else 11)
    for group in args.group:
        if wanted(args.only, "overhead", group):
            add("overhead", child("overhead", group, options))
        add("memory", singles("memory", memory_tasks(group), group, options, args))
        add("first call", singles("first call", first_call_tasks(group), group, options, args, caches=False))
    for group in args.group:
        rest = [c for c in cases_of(group) if not is_shown(c)]
        timed(group, rest[::8] if some else rest, share=6, fewest=min(3, options["fewest"]))
    return result


def write(result, path):
    """One line a row, so that a difference between two runs can be read."""
    parts = []
    for key, value in result.items():
        one_a_line = isinstance(value, list) and value
        text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]" if one_a_line else json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this library; may be repeated")
    parser.add_argument("--only", default="", metavar="REGEX", help="only what it matches in `torch, 2048x30522, ...`")
    parser.add_argument("--shows", action="store_true", help="only the cases of the page's first table")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: a trial of the machinery")
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="of a case of the grid and a direction (2), a sixth of it elsewhere; but see --rounds",
    )
    parser.add_argument("--rounds", type=int, default=5, help="at least so many, however slow (5)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="docs/_generated for a full run, else build/bench"
    )
    args = parser.parse_args()
    partial = bool(args.group or args.only or args.shows or args.quick)
    args.group = args.group or list(GROUPS)
    args.limit = args.limit or (0.02 if args.quick else 2.0)
    folder = args.output or ROOT / ("build/bench" if partial else "docs/_generated")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "performance.json"

    start = time.perf_counter()
    result = measured(args, lambda so_far: write(so_far, path.with_suffix(".partial")))
    result["seconds"] = round(time.perf_counter() - start)
    path.with_suffix(".partial").unlink(missing_ok=True)
    if result["failures"]:
        path = path.with_suffix(".failed")
    write(result, path)
    print(f"{tables.shown(result)}\n{path}, {result['seconds']} s")
    sys.exit("\n".join(["failed:", *result["failures"]]) if result["failures"] else 0)


if __name__ == "__main__":
    main()
