"""The house stands as drawn: imports point downwards, and a library is named in its own rooms alone."""

import ast
from pathlib import Path

import pytest

import maskloss
from maskloss._capabilities import LIBRARIES

SOURCE = Path(maskloss.__file__).parent
# Rooms by floor, the lowest first: a file imports from lower floors alone.
FLOORS = (
    ("_capabilities", "_arrays.standard"),
    ("_arrays.torch_functions",),
    ("_arrays.numpy", "_arrays.torch", "_arrays.jax", "_arrays.strict"),
    ("_arrays.cupy",),
    ("_arrays",),
    ("_math", "_engine", "_math.rows", "_arguments"),
    ("_shards",),
    ("_inputs", "_math.softmax", "_math.reduce", "_math.exact", "_engine.threads"),
    ("_math.entropy", "_math.parts", "_math.reproducible", "stats", "_engine.walk"),
    ("_engine.lanes", "_bindings.kernels"),
    ("_engine.unshifted", "_engine.projection"),
    ("_engine.integers",),
    ("_call", "_bindings.torch_small", "_bindings.jax_partition", "_bindings.launches"),
    ("_bindings.jax_planes",),
    ("_math.terms", "_values", "_bindings.jax_sums", "_bindings.torch_operators", "_bindings.reproducible_kernels"),
    ("_bindings.jax_loop", "_bindings.torch_kernels", "_bindings.torch_shared", "_bindings.reproducible"),
    ("_bindings.torch_part_operators", "_bindings.torch_dtensor", "_bindings.reproducible_reductions"),
    ("_bindings.torch_parts", "_bindings.torch_reproducible", "_bindings.jax_calls"),
    ("_bindings.eager", "_bindings.torch", "_bindings.jax"),
    ("_bindings.numpy",),
    ("_bindings",),
    ("losses", "linear", "reductions", "exponentials"),
    ("drop_in._torch_rows", "drop_in._optax_rows", "drop_in._keras_rows", "drop_in._quirks"),
    ("differentiation", "drop_in._differences", "drop_in._torch_arguments", "drop_in._keras_entries"),
    ("drop_in._torch_quirks",),
    ("drop_in", "drop_in.torch", "drop_in.optax", "drop_in.keras", "torch"),
    ("",),  # the package
)
# What is a library's own, and the data that says what it can do.
OWN_ROOMS = (
    "_arrays",
    "numpy.py",
    "torch.py",
    "torch_small.py",
    "torch_kernels.py",
    "torch_shared.py",
    "torch_parts.py",
    "torch_part_operators.py",
    "torch_dtensor.py",
    "torch_operators.py",
    "torch_reproducible.py",
    "kernels.py",
    "launches.py",
    "reproducible_kernels.py",
    "jax.py",
    "jax_calls.py",
    "jax_sums.py",
    "jax_planes.py",
    "jax_partition.py",
    "jax_loop.py",
    "drop_in",
    "_capabilities.py",
)


def rooms():
    for file in SOURCE.rglob("*.py"):
        parts = list(file.relative_to(SOURCE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), file


def imports_of(name, source, names):
    """Rooms that a room imports from, also within a function."""
    here = name.split(".")[:-1] if name not in {n.rpartition(".")[0] for n in names} else name.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [part for part in here[: len(here) - node.level + 1] if part]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in names else ".".join(base)


def upward(sources):
    """(room, import) for each import that does not point downwards."""
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    names = set(sources)
    return [
        (name, target)
        for name, source in sources.items()
        for target in imports_of(name, source, names)
        if floor[target] >= floor[name]
    ]


def branches_on_a_library(source):
    """Lines that compare with a library's name, look one up among the modules, or import one."""
    for node in ast.walk(ast.parse(source)):
        named = set()
        if isinstance(node, ast.Compare):
            named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        elif isinstance(node, ast.Subscript | ast.Call) and "sys.modules" in ast.unparse(node):
            named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
        elif isinstance(node, ast.Import):
            named = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            named = {node.module.partition(".")[0]}
        if named & set(LIBRARIES):
            yield node.lineno


def test_every_room_has_a_floor():
    assert sorted(name for name, _ in rooms()) == sorted(room for rooms in FLOORS for room in rooms)


def test_imports_point_downwards():
    assert upward({name: file.read_text(encoding="utf-8") for name, file in rooms()}) == []


def test_an_upward_import_is_found():
    sources = {name: file.read_text(encoding="utf-8") for name, file in rooms()}
    for line in (
        "from .._engine import walk",
        "from .._engine.walk import spans",
        "def f():\n    from .rows import Rows",
    ):
        assert upward(sources | {"_math.rows": line}) != []
    found = upward(sources | {"_arrays.torch": "from .._math.rows import Rows"})
    assert found == [("_arrays.torch", "_math.rows")]


def test_a_library_is_named_in_its_own_rooms():
    found = {
        file.name: lines
        for _, file in rooms()
        if not set(file.relative_to(SOURCE).parts) & set(OWN_ROOMS)
        and (lines := list(branches_on_a_library(file.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "branch",
    [
        'if library == "torch":\n    pass',
        'x = 1 if name in ("numpy", "jax") else 2',
        'np = sys.modules["numpy"]',
        'torch = sys.modules.get("torch")',
        "import jax.numpy as jnp",
        "from torch.nn import functional",
    ],
)
def test_a_branch_on_a_library_is_found(branch):
    assert list(branches_on_a_library(branch)) == [1]
