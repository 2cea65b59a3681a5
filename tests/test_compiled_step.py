"""The example of a compiled training step runs, and its two losses agree; it says so itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import named

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "compiled_step" / "run.py"


def test_the_losses_agree(backend):
    named(backend, "torch")
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc")
    done = subprocess.run([sys.executable, EXAMPLE, "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ml.linear_cross_entropy") == 1
