"""Which backends a run covers, and the record of the worst errors.

`--backend NAME[,NAME]` (or MASKLOSS_BACKENDS) chooses. A chosen backend that is missing fails; one not chosen is one
visible skip per test function. Without a choice: every CPU backend whose package is installed.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.backends import BACKENDS, chosen, missing

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras' own default is TensorFlow, which nothing here needs

OBSERVED = defaultdict(lambda: {"cases": 0, "worst": None, "case": ""})


def pytest_addoption(parser):
    group = parser.getgroup("maskloss")
    group.addoption("--backend", help=f"comma-separated, from {', '.join(BACKENDS)}")
    group.addoption("--conformance-report", help="write the worst errors, in units in the last place, to this JSON")


def pytest_configure(config):
    config.addinivalue_line("markers", "missing(reason): a backend that was asked for is not here, which is a failure")
    config.addinivalue_line("markers", "of_backend(name): a test without a `backend` that says something of this one")
    names = config.getoption("--backend") or os.environ.get("MASKLOSS_BACKENDS") or ""
    try:
        config.maskloss_backends = chosen([name.strip() for name in names.split(",") if name.strip()])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def backend_params(config, of_backend):
    """of_backend(backend) lists the parameters for a backend that runs; one that is missing gets one that fails.

    One that skips is for all that were not asked for: one each were nine skips for each test.
    """
    others = [name for name in BACKENDS if name not in config.maskloss_backends]
    if others:
        reason = f"not asked for (--backend): {', '.join(others)}"
        yield pytest.param(None, id="others-not-asked", marks=pytest.mark.skip(reason=reason))
    for backend in [BACKENDS[name] for name in BACKENDS if name not in others]:
        if reason := missing(backend):
            yield pytest.param(None, id=f"{backend.name}-missing", marks=pytest.mark.missing(reason))
        else:
            yield from of_backend(backend)


def alone(backend):
    """A test's `backend`; the processes have nothing but the matrix to say that those of torch do not."""
    return [] if backend.name == "torch-processes" else [pytest.param(backend, id=backend.name)]


def pytest_generate_tests(metafunc):
    for name, of_backend in (("backend", alone), ("run", runs_of(metafunc))):
        if name in metafunc.fixturenames and of_backend:
            metafunc.parametrize(name, list(backend_params(metafunc.config, of_backend)))


def pytest_collection_modifyitems(items):
    """Values and gradients of one run come one after the other: they share what it gave."""
    places = [i for i, item in enumerate(items) if "run" in getattr(getattr(item, "callspec", None), "params", ())]
    rank = {}
    for i in places:
        rank.setdefault(items[i].callspec.id, len(rank))
    for i, item in zip(places, sorted((items[i] for i in places), key=lambda t: rank[t.callspec.id]), strict=True):
        items[i] = item


def runs_of(metafunc):
    """A module with a `run` argument says what it runs: runs(backend) lists (id, run)."""
    runs = getattr(metafunc.module, "runs", None)
    return runs and (lambda backend: [pytest.param(run, id=name) for name, run in runs(backend)])


def pytest_runtest_setup(item):
    for mark in item.iter_markers("of_backend"):
        if mark.args[0] not in item.config.maskloss_backends:
            pytest.skip(f"{mark.args[0]} was not asked for (--backend)")


def pytest_runtest_call(item):
    for mark in item.iter_markers("missing"):
        pytest.fail(f"a backend was asked for and is missing: {mark.args[0]}", pytrace=False)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """torch.compile allows a function eight compilations in a process: no test spends another's."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()


@pytest.fixture
def record(request):
    """record(function, backend, dtype, mode, case, ulps or None): travels with the report, xdist or not."""

    def add(*row):
        request.node.user_properties.append(("ulps", row))

    return add


def pytest_runtest_logreport(report):
    if report.when == "call":
        for name, row in report.user_properties:
            if name == "ulps":
                *key, case, ulps = row
                seen = OBSERVED[tuple(key)]
                seen["cases"] += 1
                if ulps is not None and (seen["worst"] is None or ulps > seen["worst"]):
                    seen["worst"], seen["case"] = ulps, case


def pytest_sessionfinish(session):
    path = session.config.getoption("--conformance-report")
    if path and not hasattr(session.config, "workerinput"):
        rows = [
            dict(zip(("function", "backend", "dtype", "mode"), key, strict=True)) | seen
            for key, seen in sorted(OBSERVED.items())
        ]
        Path(path).write_text(json.dumps(rows, indent=1) + "\n")
