"""`import maskloss` imports no array library, and each backend runs where the other libraries cannot be imported."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("numpy", "torch", "jax", "jaxlib", "cupy", "array_api_strict", "ml_dtypes", "scipy")


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def modules_of(statement: str) -> set[str]:
    """What `statement` adds to sys.modules of a fresh interpreter, by its first name."""
    told = "print(json.dumps(sorted(set(sys.modules) - before)))"
    program = f"import json, sys\nbefore = set(sys.modules)\n{statement}\n{told}"
    return {name.partition(".")[0] for name in json.loads(run(program))}


def imported_by(statement: str) -> set[str]:
    """The array libraries among them."""
    return modules_of(statement) & set(LIBRARIES)


def test_imports_no_library():
    assert imported_by("import maskloss") == set()


def test_the_first_lines_of_the_readme_need_numpy_alone():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", readme.partition("\n## ")[0], flags=re.S)
    others = dict.fromkeys(set(LIBRARIES) - {"numpy"})
    program = f"import sys\nsys.modules.update({others})\n" + "".join(code for code, _ in blocks)
    assert blocks
    assert run(program) == "".join(printed for _, printed in blocks)


def test_check_can_fail():
    assert "numpy" in imported_by("import numpy")


def test_naming_what_is_public_imports_no_library():
    # A library's binding is loaded when its arrays arrive; naming the public functions must not load it.
    assert imported_by("import maskloss\nfor name in maskloss.__all__: getattr(maskloss, name)") == set()


# Of the standard library, what takes milliseconds, or brings much with it.
SLOW = (
    "asyncio",
    "concurrent",
    "email",
    "http",
    "logging",
    "multiprocessing",
    "pickle",
    "socket",
    "subprocess",
    "unittest",
)


def test_import_is_quick():
    """By what is imported, which no busy machine changes: two packages, and nothing slow of the standard library."""
    imported = modules_of("import maskloss")
    assert imported - sys.stdlib_module_names == {"maskloss", "array_api_compat"}
    assert not imported & set(SLOW)


def test_a_slow_import_is_seen():
    assert "asyncio" in modules_of("import maskloss, asyncio") & set(SLOW)


BACKENDS = {
    "numpy": "import numpy as np; logits = np.zeros((2, 4), np.float32); labels = np.array([1, 3])",
    "torch": "import torch; logits = torch.zeros(2, 4); labels = torch.tensor([1, 3])",
    "jax": "import jax.numpy as jnp; logits = jnp.zeros((2, 4)); labels = jnp.array([1, 3])",
}
# JAX itself needs NumPy and ml_dtypes; torch needs neither.
NEEDED = {"numpy": {"numpy"}, "torch": {"torch"}, "jax": {"jax", "jaxlib", "numpy", "ml_dtypes", "scipy"}}

ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
{setup}
import maskloss as ml
loss, gradient = ml.value_and_grad(ml.cross_entropy)(logits, labels)
# Four equal logits: log 4, and p = 1/4 for each class, averaged over two entries.
assert abs(float(loss) - 1.3862943611198906) < 1e-6
assert abs(float(gradient[0, 1]) - (0.25 - 1) / 2) < 1e-6
"""


@pytest.mark.parametrize("library", BACKENDS)
def test_runs_without_the_other_libraries(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run(ALONE.format(absent=set(LIBRARIES) - NEEDED[library], setup=BACKENDS[library]))


def test_absence_can_fail():
    with pytest.raises(subprocess.CalledProcessError):
        run(ALONE.format(absent={"numpy"}, setup=BACKENDS["numpy"]))


def test_a_dtype_of_jax_decides_on_no_other_array():
    """array-api-compat takes a NumPy array of float0, JAX's gradient of integers, for one of JAX."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    program = """
import jax, numpy as np, maskloss as ml
try:
    ml.entropy(np.zeros(3, jax.dtypes.float0))
except TypeError:
    print(ml.cross_entropy(np.zeros((3, 2)), np.array([0, 1, 1])).round(6))  # log 2
"""
    assert run(program) == "0.693147\n"
