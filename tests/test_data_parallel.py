"""The example of three processes runs, and its parameters are those of one; it says so itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import named

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "data_parallel" / "run.py"


def test_three_processes_are_one(backend, tmp_path):
    named(backend, "torch")
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    # A mean of means is another number: the comparison can fail.
    errors = [float(line.split()[-1]) for line in done.stdout.splitlines() if " mean" in line and "with" not in line]
    assert len(errors) == 8
    assert min(errors) > 0.1
