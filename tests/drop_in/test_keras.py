"""The drop-in for Keras on each backend: keras_cases.py in a process of its own, as Keras has one backend in each."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drop_in.differences import rows

pytest.importorskip("numpy")
if importlib.util.find_spec("keras") is None:  # importing it would choose its backend
    pytest.skip("needs keras", allow_module_level=True)

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "jax", "numpy")
CASES = (
    "one_answer_for_many_options",
    "one_answer_for_many_shapes",
    "what_keras_refuses_is_refused",
    "a_model_learns_the_same",
    "configurations_return",
    "the_comparison_can_fail",
)
# Which of Keras' own tests the drop-in does not pass on JAX, unless quirks="theirs": they ask for a refusal.
OTHERWISE = {
    f"SparseCategoricalCrossentropyTest.test_{kind}_segmentation_different_axis": "class_axis"
    for kind in ("binary", "multi_class")
}


def report(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.drop_in.keras_cases"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("on", [pytest.param(name, marks=pytest.mark.of_backend(name)) for name in BACKENDS])
def test_keras(on):
    """One test a backend: a process of Keras takes seconds to start, and JAX compiles in each anew."""
    if importlib.util.find_spec(on) is None:
        pytest.skip(f"needs {on}")
    found = report(on)
    assert {name: wrong for name, wrong in found["cases"].items() if wrong} == {}
    # Each row of the table has a test of its name, and each test a row.
    expected = {f"case_{case}" for case in CASES} | {f"difference_{name}" for name in rows("keras")}
    assert set(found["cases"]) == expected
    for quirks, errors in found["own"].items():
        # Counted in Keras 3.15.1: 11 and 12, of which one asks for torch.
        assert len(errors) >= (23 if on == "torch" else 22)
        failed = {name for name, error in errors.items() if error}
        otherwise = set(OTHERWISE) if on == "jax" and quirks == "None" else set()
        assert failed == otherwise, "\n".join(errors.values())
        assert all("did not raise" in errors[name].lower() for name in failed)
    assert set(found["own"]) == {"None", "theirs"}
    assert set(OTHERWISE.values()) <= rows("keras")
