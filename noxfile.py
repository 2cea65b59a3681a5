"""Every check of the project. `nox` runs those of a change, `nox -s NAME` one of them, `nox --list` names them all.

Two kinds of environment: small ones that hold only what their session needs (which proves that nothing else is needed),
and one, `environment`, that holds every framework and tool, shared by the sessions that name it in `requires`.
All are kept between runs; `nox --reuse-venv no` makes them afresh.
"""

import hashlib
import os
from pathlib import Path

import nox

nox.needs_version = ">=2026.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint",
    "tests-numpy",
    "tests-cupy",
    "environment",
    "types",
    "generated",
    "docs",
    "doctest",
    "tests-strict",
    "tests-torch",
    "tests-triton",
    "tests-jax",
    "tests-devices",
]

ROOT = Path(__file__).parent
SOURCE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted((ROOT / "src").rglob("*.py"))))
CONSTRAINTS = ("-c", "constraints.txt")
SHARED = {"venv_backend": "none", "requires": ["environment"]}
# pytest-xdist fills the cores; the thread pools of torch and BLAS would fight it for them. Tests of one file stay in
# one process, which compiled what they share, until the other has nothing left and takes half of the rest.
PARALLEL = ("-n", "auto", "--dist", "worksteal")
# What says nothing of torch or JAX runs once, with NumPy.
ONCE = ("--ignore=tests/mutants", "--ignore=tests/meta/test_doctests.py", "--ignore=tests/meta/test_cupy_static.py")
# And what says nothing of one library, but is asked where all of them are, with torch.
WITH_TORCH = (*ONCE, "--ignore=tests/meta", "--ignore=tests/test_benchmarks.py", "--ignore=tests/test_docs_scripts.py")
ENV = {
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    # Most of JAX's time is compiling the same small programs in each process and in each run. The key of a program that
    # is split over devices says nothing of what each of them runs (jax 0.10.2): each source has programs of its own.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".nox" / "jax" / SOURCE.hexdigest()[:12]),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}


def shared_python(session: nox.Session) -> str:
    folder = session.env_dir.parent / "environment"
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run(session: nox.Session, *command: str) -> None:
    """Runs `python command...` in the shared environment."""
    session.run(shared_python(session), *command, env=ENV)


@nox.session
def environment(session: nox.Session) -> None:
    """Every framework and tool, with the project installed editable."""
    session.install("-e", ".[dev,demo,bench,recipes]", *CONSTRAINTS)


@nox.session
def lint(session: nox.Session) -> None:
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(name="tests-numpy")
def tests_numpy(session: nox.Session) -> None:
    """NumPy, from the built wheel, where neither torch nor JAX is installed."""
    session.install(".[test]", *CONSTRAINTS)
    session.run("pytest", "--backend", "numpy,numpy-readonly", *PARALLEL, *session.posargs, env=ENV)


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest NumPy and array-api-compat that pyproject.toml admits."""
    session.install(".[test]", "array-api-compat==1.13.0", "numpy==2.0.0")
    session.run("pytest", "--backend", "numpy,numpy-readonly", *PARALLEL, *session.posargs, env=ENV)


@nox.session(name="tests-strict", **SHARED)
def tests_strict(session: nox.Session) -> None:
    command = ("-m", "pytest", "--backend", "strict,strict-limited,strict-device", *WITH_TORCH, *PARALLEL)
    run(session, *command, *session.posargs)


@nox.session(name="tests-torch", **SHARED)
def tests_torch(session: nox.Session) -> None:
    run(session, "-m", "pytest", "--backend", "torch,torch-meta,torch-processes", *ONCE, *PARALLEL, *session.posargs)


@nox.session(name="tests-triton", **SHARED)
def tests_triton(session: nox.Session) -> None:
    """The Triton kernels on a CPU, in Triton's interpreter."""
    tests = ("tests/test_kernels.py", "tests/test_capabilities.py", "tests/conformance")
    command = ("-m", "pytest", "--backend", "torch-triton", *tests, *PARALLEL, *session.posargs)
    session.run(shared_python(session), *command, env=ENV | {"TRITON_INTERPRET": "1"})


@nox.session(name="tests-jax", **SHARED)
def tests_jax(session: nox.Session) -> None:
    run(session, "-m", "pytest", "--backend", "jax,jax-x32", *WITH_TORCH, *PARALLEL, *session.posargs)


@nox.session(name="tests-devices", **SHARED)
def tests_devices(session: nox.Session) -> None:
    """JAX on eight devices, made of the CPU."""
    command = ("-m", "pytest", "--backend", "jax-devices", "tests/conformance", *PARALLEL, *session.posargs)
    session.run(shared_python(session), *command, env=ENV | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})


@nox.session(name="tests-cupy")
def tests_cupy(session: nox.Session) -> None:
    """With a GPU, the tests on CuPy; without one, CuPy's own signatures against what the source calls."""
    session.install(".[cupy,test]", *CONSTRAINTS)
    gpu = session.run("python", "-c", "import cupy; print(cupy.cuda.is_available())", silent=True)
    tests = ["--backend", "cupy"] if "True" in str(gpu) else ["tests/meta/test_cupy_static.py"]
    session.run("pytest", *tests, *session.posargs, env=ENV)


@nox.session(**SHARED)
def types(session: nox.Session) -> None:
    """Pyright, strict on the source."""
    run(session, "-m", "pyright", "--pythonpath", shared_python(session))


@nox.session(**SHARED)
def doctest(session: nox.Session) -> None:
    """Runs the examples of the docstrings, of the README and of the pages."""
    run(session, "-m", "pytest", "tests/meta/test_doctests.py", *session.posargs)


@nox.session(**SHARED)
def docs(session: nox.Session) -> None:
    run(session, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session(**SHARED)
def generated(session: nox.Session) -> None:
    """The tables in the documentation are what their scripts would write now (`nox -s generated -- --write` writes)."""
    for script in sorted(Path("docs/scripts").glob("[a-z]*.py")):
        if script.stem != "conformance":
            run(session, str(script), *(session.posargs or ["--check"]))


@nox.session(**SHARED)
def conformance(session: nox.Session) -> None:
    """The conformance matrix is what its script would write now (`-- --write` writes)."""
    run(session, "docs/scripts/conformance.py", *(session.posargs or ["--check"]))


@nox.session(**SHARED)
def identity(session: nox.Session) -> None:
    """Golden bits of every case, in every mode of every library that is here; writes the table of the pages."""
    groups = {
        "numpy,strict,torch,torch-processes": {},
        "torch-triton": {"TRITON_INTERPRET": "1"},
        "jax,jax-x32": {},
        "jax-devices": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    }
    tests, reports = ("tests/conformance/test_identity.py", "tests/test_reproducible.py"), []
    for names, variables in groups.items():
        reports.append(str(Path(session.create_tmp()) / f"{names}.json"))
        command = ("-m", "pytest", "--backend", names, *tests, *PARALLEL, "--conformance-report", reports[-1])
        session.run(shared_python(session), *command, env=ENV | variables | {"MASKLOSS_IDENTITY": "all"})
    run(session, "docs/scripts/reproducible.py", "--write", "--reports", *reports)


@nox.session(**SHARED)
def mutants(session: nox.Session) -> None:
    """Planted defects, each of which the tests must find."""
    run(session, "-m", "tests.mutants.run_mutants", *session.posargs)


@nox.session(**SHARED)
def demo(session: nox.Session) -> None:
    """Trains BERT on a small text with each library, and compares."""
    run(session, "examples/bert_pretraining/run.py", *session.posargs)


@nox.session(**SHARED)
def bench(session: nox.Session) -> None:
    """Measures maskloss beside its peers and writes the page's tables and plots (`-- --quick` tries the machinery)."""
    python, env = shared_python(session), {"JAX_PLATFORMS": ENV["JAX_PLATFORMS"]}  # threads and caches as shipped
    session.run(python, "-m", "benchmarks.run", *session.posargs, env=env)
    if not session.posargs:
        session.run(python, "-m", "benchmarks.linear", env=env)
        session.run(python, "-m", "benchmarks.ways", env=env)
        session.run(python, "-m", "benchmarks.planes", env=env)
        session.run(python, "docs/scripts/performance.py", "--write", env=env)
