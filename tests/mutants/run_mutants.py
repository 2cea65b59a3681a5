"""Plants each defect of mutants.py into a copy of the source and expects the tests named beside it to fail.

    python -m tests.mutants.run_mutants [NAME...]

A mutant whose text is not in the source exactly once, whose tests do not run, or which its tests do not find, fails the
run; so does a test that is red without any mutant.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.backends import BACKENDS
from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "maskloss"
TESTS_FAILED = 1  # pytest's exit code; 2 to 5 say that it could not run them


def plant(mutant: Mutant, package: Path) -> str | None:
    """Applies the mutant to the package in place; returns why it cannot."""
    sources = {file: file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    files = [file for file, source in sources.items() for _ in range(source.count(mutant.text))]
    if len(files) != 1:
        return f"its text is in the source {len(files)} times, not once"
    (file,) = files
    planted = sources[file].replace(mutant.text, mutant.replacement)
    try:
        compile(planted, str(file), "exec")
    except SyntaxError as error:
        return f"it leaves {file.name} no program: {error}"
    file.write_text(planted, encoding="utf-8")
    return None


def pytest(folder: Path, tests: tuple[str, ...], backend: str, root: Path = ROOT) -> tuple[int, str]:
    """Runs tests on the package in `folder`, from `root`; pytest's exit code and output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MASKLOSS_BACKENDS": backend,
        # The key of a program that is split over devices says nothing of what each of them runs (jax 0.10.2).
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **dict(BACKENDS[backend].environment),
    }
    where = "import maskloss; print(maskloss.__file__)"
    imported = subprocess.run([sys.executable, "-c", where], env=environment, cwd=root, capture_output=True, text=True)
    if not Path(imported.stdout.strip()).is_relative_to(folder):
        return -1, f"the copy is not what is imported: {imported.stdout}{imported.stderr}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", "-n0", *tests]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def survival(mutant: Mutant, package: Path = PACKAGE, root: Path = ROOT) -> str | None:
    """Why the mutant counts as not found; None where its tests find it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy = folder / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if (why := plant(mutant, copy)) is not None:
            return why
        code, output = pytest(folder, mutant.tests, mutant.backend, root)
    if code == 0:
        return "its tests pass"
    return None if code == TESTS_FAILED else f"its tests did not run (exit code {code}): {output[-600:]}"


def red_without(mutants: list[Mutant], package: Path = PACKAGE, root: Path = ROOT) -> str | None:
    """What fails on the source as it is, of all the tests that the mutants name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(package, folder / package.name)
        for backend in {mutant.backend for mutant in mutants}:
            tests = dict.fromkeys(test for mutant in mutants if mutant.backend == backend for test in mutant.tests)
            code, output = pytest(folder, tuple(tests), backend, root)
            if code:
                return f"red on {backend} without a mutant (exit code {code}): {output[-3000:]}"
    return None


def judged(mutant: Mutant, package: Path) -> tuple[str | None, float]:
    start = time.perf_counter()
    return survival(mutant, package), time.perf_counter() - start


def main(names: list[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"no mutant is named {sorted(unknown)}")
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    width = max(len(mutant.name) for mutant in chosen)
    survivors = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        # The source as it is now, so that an edit meanwhile does not count as a mutant.
        package = Path(name) / PACKAGE.name
        shutil.copytree(PACKAGE, package)
        if (why := red_without(chosen, package)) is not None:
            print(why)
            return 1
        verdicts = pool.map(functools.partial(judged, package=package), chosen)
        for mutant, (why, seconds) in zip(chosen, verdicts, strict=True):
            survivors += why is not None
            verdict = "found" if why is None else f"NOT FOUND: {why}; it breaks: {mutant.breaks}"
            print(f"{mutant.name:{width}}  {seconds:5.1f} s  {verdict}", flush=True)
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
