"""Each recipe runs, checks itself, prints what its page shows, and is short enough to be read.

A recipe runs once: with JAX if it imports JAX, with NumPy if it needs nothing else, and else with torch, where every
package is installed.
"""

import ast
import os
import runpy
import subprocess
import sys

import pytest

from docs.scripts import recipes

JAX = {"jax", "flax", "equinox", "optax"}
LINES, WIDTH = 60, 88
RECIPES = recipes.recipes()


def imported(source):
    """The packages that a program imports, anywhere."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"maskloss"}


def backend_of(source):
    packages = imported(source)
    if packages & JAX:
        return "jax"
    return "numpy" if packages == {"numpy"} else "torch"


def unreadable(source):
    """What the page could not show, or could not say."""
    lines = source.splitlines()
    title, _, prose = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    checks = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))
    wrong = {
        f"{len(lines)} lines": len(lines) > LINES,
        f"a line of {max(map(len, lines))} characters": max(map(len, lines)) > WIDTH,
        "no title": not title or title.endswith("."),
        "no sentence": not prose.strip().endswith("."),
        "no assert": not checks,
    }
    return [what for what, so in wrong.items() if so]


def wrong(path, page, folder):
    """Why a recipe, run in the folder, is not what its page says; empty where it is."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=env, cwd=folder)
    if done.returncode:
        return done.stderr or f"exit {done.returncode}"
    if done.stdout.rstrip() != recipes.shown(page).rstrip():
        return f"printed\n{done.stdout}\nand the page shows\n{recipes.shown(page)}"
    return ""


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=pytest.mark.of_backend(backend_of(p.read_text()))) for p in RECIPES]
)
def test_recipe(path, tmp_path):
    page = (recipes.PAGES / f"{path.stem}.md").read_text()
    assert not (why := wrong(path, page, tmp_path)), why


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_says_what_it_shows(path):
    assert unreadable(path.read_text()) == []
    assert len(recipes.groups_of(path.stem)) == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_missing_package_is_told(path, monkeypatch):
    """The first that it imports is missing."""
    tree = ast.parse(path.read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.Try)).body[0]
    name = guarded.module if isinstance(guarded, ast.ImportFrom) else guarded.names[0].name
    for part in {name, name.partition(".")[0]}:
        monkeypatch.setitem(sys.modules, part, None)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # Keras' backend is said there
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"{name.partition('.')[0]}.* is missing: pip install ") as told:
        runpy.run_path(str(path), run_name="__main__")
    assert recipes.needed(path) in str(told.value)


GOOD = '"""Title\n\nA sentence.\n"""\n\nimport numpy\n\nassert numpy.e < 3\nprint(1)\n'
PAGE = "# Title\n\n```text\n1\n```\n"


def test_a_recipe_that_fails_or_prints_something_else_is_told(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(GOOD)
    assert wrong(path, PAGE, tmp_path) == ""
    assert "the page shows\n2" in wrong(path, PAGE.replace("1", "2"), tmp_path)
    path.write_text(GOOD.replace("< 3", "> 3"))
    assert "AssertionError" in wrong(path, PAGE, tmp_path)
    path.write_text("raise SystemExit(3)")
    assert wrong(path, PAGE, tmp_path) == "exit 3"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("print(1)", "print(1)\n" * LINES), [f"{LINES + 9} lines"]),
        (("print(1)", "print(1)  # " + "a" * WIDTH), [f"a line of {WIDTH + 12} characters"]),
        (('"""Title\n\nA sentence.\n"""\n', ""), ["no title", "no sentence"]),
        (("Title", "Title."), ["no title"]),
        (("A sentence.", ""), ["no sentence"]),
        (("assert numpy.e < 3", ""), ["no assert"]),
    ],
)
def test_what_a_page_could_not_show_is_told(change, what):
    assert unreadable(GOOD) == []
    assert unreadable(GOOD.replace(*change)) == what


@pytest.mark.parametrize(
    ("imports", "first"),
    [
        ("import numpy as np\nimport os", "numpy"),
        ("import scipy.optimize\nimport numpy", "torch"),
        ("from torch import nn\nimport numpy", "torch"),
        ("def f():\n    from flax import nnx\nimport numpy", "jax"),
    ],
)
def test_the_backend_of_a_recipe(imports, first):
    assert backend_of(imports) == first


def test_a_stale_page_is_told(tmp_path):
    path = RECIPES[0]
    files = recipes.pages({path: "1\n"}, tmp_path)
    assert recipes.stale(files, tmp_path) == sorted(files)
    for written, text in files.items():
        written.write_text(text)
    assert recipes.stale(files, tmp_path) == []
    assert recipes.shown((tmp_path / f"{path.stem}.md").read_text()) == "1\n"
    (tmp_path / "of_no_recipe.md").write_text("")
    (tmp_path / "index.md").write_text("")
    assert [page.name for page in recipes.stale(files, tmp_path)] == ["index.md", "of_no_recipe.md"]
