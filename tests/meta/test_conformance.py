"""The conformance matrix can fail: a missing backend, a wrong digit, a wrong dtype, a changed input, a wrong loss."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import maskloss
from docs.scripts import ROOT, conformance
from tests import backends
from tests.conformance import closeness, observed, runs, test_gradients, test_values
from tests.conformance.cases import CASES
from tests.reference import mp

NUMPY = backends.BACKENDS["numpy"]


def pytest_on(tmp_path, *arguments, absent=False):
    """pytest of a one-test file under the real conftest; with absent, a plugin says that every backend is missing."""
    (tmp_path / "absent.py").write_text(
        "from tests import backends\nbackends.missing = lambda backend: 'taken away for a test'\n"
    )
    (tmp_path / "test_one.py").write_text("def test_one(backend):\n    assert backend.name\n")
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MASKLOSS"))}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *arguments]
    return subprocess.run(
        [*command, *(["-p", "absent"] if absent else []), str(tmp_path / "test_one.py")],
        text=True,
        capture_output=True,
        check=False,
        env=environment | {"PYTHONPATH": path},
        cwd=tmp_path,
    )


def test_a_backend_asked_for_and_missing_fails(tmp_path):
    out = pytest_on(tmp_path, "--backend", "numpy,torch", absent=True)
    assert out.returncode == 1
    assert "a backend was asked for and is missing: taken away for a test" in out.stdout
    assert "2 failed" in out.stdout


def test_a_backend_that_was_not_asked_for_is_skipped_visibly(tmp_path):
    out = pytest_on(tmp_path, "--backend", "numpy")
    assert out.returncode == 0
    others = [name for name in backends.BACKENDS if name != "numpy"]
    assert f"not asked for (--backend): {', '.join(others)}" in " ".join(out.stdout.split())
    assert "1 passed, 1 skipped" in out.stdout


def test_an_unknown_backend_is_an_error(tmp_path):
    out = pytest_on(tmp_path, "--backend", "numpi")
    assert out.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no backend numpi" in out.stderr


def test_without_a_choice_only_what_is_here_runs():
    names = backends.chosen(())
    assert all(backends.missing(backends.BACKENDS[name]) is None for name in names)
    assert not any(backends.BACKENDS[name].accelerator for name in names)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ulp_is_spacing(dtype):
    sizes = np.array([1.0, 1.5, 2.0, 1e-3, 1e4, 3e30], dtype=dtype)
    assert np.array_equal(closeness.ulp(sizes.astype(np.float64), dtype), np.spacing(sizes).astype(np.float64))


def test_errors_are_counted():
    third = closeness.expected(np.array([mp.mpf(1) / 3]), np.array([mp.mpf(1) / 3]))
    assert closeness.errors(np.array([1 / 3]), third, "float64")[0] < 0.5
    assert 2.5 < closeness.errors(np.array([1 / 3 + 3 * 2.0**-54]), third, "float64")[0] < 3.5
    for wrong in (np.nan, np.inf, -np.inf):
        assert closeness.errors(np.array([wrong]), third, "float64")[0] == np.inf
    zero = closeness.expected(mp.mpf(0), mp.mpf(0))
    assert closeness.errors(np.array(1e-300), zero, "float64") == np.inf
    infinite = closeness.expected(np.array([mp.inf, mp.nan]), np.array([mp.inf, mp.nan]))
    assert closeness.errors(np.array([np.inf, np.nan]), infinite, "float32").tolist() == [0, 0]
    assert closeness.errors(np.array([-np.inf, 1.0]), infinite, "float32").tolist() == [np.inf, np.inf]


def test_a_wrong_digit_dtype_or_library_fails():
    run = observed.Run(NUMPY, "eager", "float64", CASES["plain-none"])
    wanted = observed.want(run, "none").value
    good = observed.seen(NUMPY, wanted.hi)
    assert observed.compare(run, good, wanted, 4, "float64", "value") < 1
    wrong = good._replace(numbers=wanted.hi * (1 + 2.0**-48))
    with pytest.raises(AssertionError, match="ulps"):
        observed.compare(run, wrong, wanted, 4, "float64", "value")
    with pytest.raises(AssertionError, match="float32"):
        observed.belongs(run, good._replace(dtype="float32"), good, "float64", "value")
    with pytest.raises(AssertionError, match="torch"):
        observed.belongs(run, good._replace(library="torch"), good, "float64", "value")


def planted(monkeypatch, **functions):
    """maskloss with functions replaced, for `runs` alone, and nothing remembered of the real one."""
    everything = {n: getattr(maskloss, n) for n in maskloss.__all__} | functions
    monkeypatch.setattr(runs, "ml", SimpleNamespace(**everything))
    monkeypatch.setattr(
        test_values,
        "observe",
        lambda run: observed._observe.__wrapped__(run.backend.name, run.mode, run.dtype, run.case.name),
    )


def test_a_wrong_loss_fails(monkeypatch):
    run = observed.Run(NUMPY, "eager", "float64", CASES["mask-mean"])
    planted(monkeypatch)
    test_values.test_values(run, lambda *row: None)

    def off(*args, **options):
        out = maskloss.cross_entropy(*args, **options)
        return out if options.get("with_stats") else out * (1 + 1e-12)

    planted(monkeypatch, cross_entropy=off)
    with pytest.raises(AssertionError, match="ulps"):
        test_values.test_values(run, lambda *row: None)


def test_an_input_written_to_fails(monkeypatch):
    run = observed.Run(NUMPY, "eager", "float64", CASES["plain-mean"])

    def writes(logits, *args, **options):
        out = maskloss.cross_entropy(logits, *args, **options)
        logits[0, 0, 0] += 1
        return out

    planted(monkeypatch, cross_entropy=writes)
    with pytest.raises(AssertionError):
        test_values.test_values(run, lambda *row: None)


def test_a_wrong_gradient_fails(monkeypatch):
    run = observed.Run(NUMPY, "eager", "float64", CASES["mask-mean"])
    out = observed.observe(run)
    gradient = out.gradients["logits"]
    leak = gradient._replace(numbers=np.where(gradient.numbers == 0, 1e-300, gradient.numbers))
    monkeypatch.setattr(test_gradients, "observe", lambda run: out._replace(gradients={"logits": leak}))
    with pytest.raises(AssertionError, match="d logits"):
        test_gradients.test_gradients(run, lambda *row: None)


def test_the_committed_table_can_be_stale():
    stale = conformance.stale
    row = {
        "function": "cross_entropy",
        "backend": "numpy",
        "dtype": "float32",
        "mode": "eager",
        "cases": 7,
        "worst": 1.2,
        "case": "a",
    }
    assert stale([row], [row]) == []
    assert stale([row], [row | {"worst": 0.3}]) == []
    assert "8 cases, 7 in the table" in stale([row], [row | {"cases": 8}])[0]
    assert "worst" in stale([row], [row | {"worst": 3.4}])[0]
    assert "not in the table" in stale([], [row])[0]
    assert "gone" in stale([row, row | {"mode": "autodiff"}], [row])[0]
    assert stale([row, row | {"backend": "cupy"}], [row]) == []
