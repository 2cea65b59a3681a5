"""The side of the parent: a child process for each task, and the result that their rows become."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .cases import DIRECTIONS
from .providers import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
# A cache of compiled programs would make a first call look like a second one.
NO_CACHES = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
DEFAULTS = {"setting": "page", "device": "cpu", "directions": DIRECTIONS, "quick": False, "compile": True, "warm": None}


def machine():
    info, memory = Path("/proc/cpuinfo"), None
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.processor(), "cores": cores, "GiB": memory}


def versions(setting, groups):
    found = {"python": platform.python_version()}
    for package in ("maskloss", *(p for group in groups for p in SETTINGS[setting][group].packages)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def child(task, group, options, *, caches=True):
    """The rows of one child process, and a row for each failure; options: what differs from DEFAULTS."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {} if caches else {**NO_CACHES, "TORCHINDUCTOR_CACHE_DIR": folder}
        output = Path(folder) / "rows"
        given = json.dumps({**DEFAULTS, **options, "task": task, "group": group, "output": str(output)})
        command = [sys.executable, "-m", f"{__package__}.child"]
        code = subprocess.run(command, input=given, text=True, cwd=ROOT, env={**os.environ, **environment}).returncode
        rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    if code:
        rows.append({"failure": f"{task}: the process ended with status {code}: {options.get('case', '')}"})
    return [{"group": group, **row} for row in rows]


class Result:
    """What a run found so far, as it is written."""

    def __init__(self, path, setting, groups, **more):
        self.path, self.start = path, time.perf_counter()
        self.found = {"machine": machine(), "versions": versions(setting, groups), "date": time.strftime("%Y-%m-%d")}
        self.found |= {**more, "failures": []}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, key, rows):
        failures = self.found["failures"]
        for row in rows:
            failures += [f"{row['group']}, {row['failure']}"] if "failure" in row else []
            failures += [f"{row['group']}, {row['case']}: {name}: {why}" for name, why in row.get("failed", {}).items()]
        self.found["failures"] = list(dict.fromkeys(failures))
        self.found[key] = self.found.get(key, []) + [row for row in rows if "failure" not in row]
        write(self.found, self.path.with_suffix(".partial"))

    def finish(self, *, strict=True):
        """Where the result is; strict: beside its place, where anything failed."""
        self.found["seconds"] = round(time.perf_counter() - self.start)
        self.path.with_suffix(".partial").unlink(missing_ok=True)
        path = self.path.with_suffix(".failed") if strict and self.found["failures"] else self.path
        write(self.found, path)
        return path


def end(result, path):
    """The end of a run that tolerates no failure."""
    failures = result["failures"]
    print(f"{path}, {result['seconds']} s")
    sys.exit("\n".join(["failed:", *failures]) if failures else 0)


def write(result, path):
    """One line a row, so that a difference between two runs can be read."""
    parts = []
    for key, value in result.items():
        one_a_line = isinstance(value, list) and value
        text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]" if one_a_line else json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
