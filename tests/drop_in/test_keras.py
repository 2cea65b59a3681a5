"""The drop-in for Keras on each backend: keras_cases.py in a process of its own, as Keras has one backend in each."""

import functools
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


@functools.cache
def report(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.drop_in.keras_cases"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.of_backend(name)) for name in BACKENDS])
def keras_backend(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_case(keras_backend, case):
    assert not (wrong := report(keras_backend)["cases"][f"case_{case}"]), wrong


@pytest.mark.parametrize("difference", sorted(rows("keras")))
def test_difference(keras_backend, difference):
    assert not (wrong := report(keras_backend)["cases"][f"difference_{difference}"]), wrong


def test_rows_and_tests_are_the_same(keras_backend):
    expected = {f"case_{case}" for case in CASES} | {f"difference_{name}" for name in rows("keras")}
    assert set(report(keras_backend)["cases"]) == expected


@pytest.mark.parametrize("quirks", ["None", "theirs"])
def test_keras_own_tests_pass(keras_backend, quirks):
    errors = report(keras_backend)["own"][quirks]
    # Counted in Keras 3.15.1: 11 and 12, of which one asks for torch.
    assert len(errors) >= (23 if keras_backend == "torch" else 22)
    failed = {name for name, error in errors.items() if error}
    otherwise = set(OTHERWISE) if keras_backend == "jax" and quirks == "None" else set()
    assert failed == otherwise, "\n".join(errors.values())
    assert all("did not raise" in errors[name].lower() for name in failed)
    assert set(OTHERWISE.values()) <= rows("keras")
