"""The examples of several processes run, and their parameters are those of one process; they say so themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import named, with_processes

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def distributed(backend):
    with_processes(backend)


def run(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_three_processes_are_one(distributed):
    code, out, errors = run(EXAMPLES / "data_parallel" / "run.py")
    assert code == 0, out + errors
    # A mean of means is another number: the comparison can fail.
    means = [float(line.split()[-1]) for line in out.splitlines() if " mean" in line and "with" not in line]
    assert len(means) == 8
    assert min(means) > 0.1


def test_each_way_of_splitting_is_one_process(distributed):
    code, out, errors = run(EXAMPLES / "model_parallel" / "run.py")
    assert code == 0, out + errors
    # A mean of means is another number: the comparison can fail.
    means = [float(line.split()[-1]) for line in out.splitlines() if "mean of means" in line]
    assert len(means) == 3
    assert min(means) > 0.01


def test_each_way_of_splitting_is_one_device(backend):
    named(backend, "jax")
    code, out, errors = run(EXAMPLES / "sharded_jax" / "run.py")
    assert code == 0, out + errors
    (mean,) = [float(line.split()[-1]) for line in out.splitlines() if "mean of means" in line]
    assert mean > 0.01
