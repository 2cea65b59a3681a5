"""Every `xp.NAME(...)` of the source exists, with its keywords, in each library's namespace.

CuPy imports without a GPU but computes nothing there, so that this is what can be said of it on such a machine: its own
signatures accept what the source calls. The other installed libraries are held to the same, which tests the checker.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import maskloss

SOURCE = Path(maskloss.__file__).parent
LIBRARIES = {"cupy": "cupy", "numpy": "numpy", "torch": "torch", "jax": "jax", "array_api_strict": "strict"}


def namespace(library):
    pytest.importorskip(library)
    return importlib.import_module(f"maskloss._arrays.{LIBRARIES[library]}").xp


def is_namespace(node):
    return "Namespace" in (node.name, *(base.id for base in node.bases if isinstance(base, ast.Name)))


def uses_of(tree):
    """(line, name, call) for each `xp.name` (call None: not called), but for names that hasattr asks for.

    Within a namespace of our own it is `self.name`.
    """
    names = {"xp", *("self" for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and is_namespace(node))}
    optional = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "hasattr"
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id == "xp"
        and isinstance(node.args[1], ast.Constant)
    }
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        on_xp = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        if on_xp and node.attr not in optional:
            yield node.lineno, node.attr, calls.get(id(node))


def documented_signatures(function, name):
    """Parameter names of each `name(...) ->` of the docstring: what a function compiled in C has for a signature."""
    for inside in re.findall(rf"\b{name}\(([^()]*)\)(?: ->|$)", inspect.getdoc(function) or "", flags=re.M):
        names = [part.split("=")[0].split(":")[0].strip(" *[]") for part in inside.split(",")]
        # torch documents its own names, and takes NumPy's for them.
        yield [{"dim": "axis", "keepdim": "keepdims"}.get(n, n) for n in names]


def refusal(function, name, call):
    """Why `function` would not accept `call`, or None."""
    keywords = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    if hasattr(function, "nin"):
        # A ufunc: nin inputs, then outputs; of its keywords only those that NumPy and CuPy share.
        if not starred and len(call.args) != function.nin:
            return f"takes {function.nin} arrays, not {len(call.args)}"
        unknown = set(keywords) - {"out", "dtype", "casting"}
        return f"has no keyword {sorted(unknown)}" if unknown else None
    try:
        signature = inspect.signature(function)
    except ValueError:
        listed = list(documented_signatures(function, name))
        if not any(set(keywords) <= set(names) and len(call.args) <= len(names) for names in listed):
            return f"is documented as {listed}, called with {len(call.args)} arrays and {keywords}"
        return None
    try:
        bind = signature.bind_partial if starred else signature.bind
        bind(*call.args, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"{error}: {signature}"
    return None


def complaints(source, xp, where=""):
    found = []
    for line, name, call in uses_of(ast.parse(source)):
        value = getattr(xp, name, None)
        if value is None:
            found.append(f"{where}:{line}: xp.{name} does not exist")
        elif call is not None and (why := refusal(value, name, call)):
            found.append(f"{where}:{line}: xp.{name} {why}")
    return found


def test_source_is_found():
    assert len({name for file in SOURCE.rglob("*.py") for _, name, _ in uses_of(ast.parse(file.read_text()))}) > 15


@pytest.mark.parametrize("library", LIBRARIES)
def test_source_calls_what_exists(library):
    xp = namespace(library)
    own = {Path(inspect.getfile(kind)).name for kind in type(xp).__mro__[:-1]}
    files = [file for file in SOURCE.rglob("*.py") if file.parent.name != "_arrays" or file.name in own]
    assert [c for file in files for c in complaints(file.read_text(), xp, file.name)] == []


DEFECTS = {
    "xp.nonsense(x)": "xp.nonsense does not exist",
    "xp.float7": "xp.float7 does not exist",
    "xp.expand_dims(x, axis=-1, axes=-1)": "axes",
    "xp.expand_dims(x, 0, 1, 2, 3)": "xp.expand_dims",
    "xp.exp(x, axis=-1)": "axis",
    "xp.astype(x)": "xp.astype",
    "xp.where(c, x, y, dim=1)": "dim",
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_check_can_fail(library, defect):
    (complaint,) = complaints(defect, namespace(library))
    assert DEFECTS[defect] in complaint


def test_optional_name_is_not_complained_of():
    assert complaints("y = xp.absent(x) if hasattr(xp, 'absent') else xp.sum(x, axis=0)", namespace("numpy")) == []
