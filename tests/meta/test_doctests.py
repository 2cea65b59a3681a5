"""The examples of the docstrings, of the README and of the pages run, and print what they show.

A block fenced as `python` runs: as a doctest where it has prompts, else as a program, in one namespace for each page.
What a program prints is what the `text` block right below it says, where there is one.
A block that is a part of a program of many processes is fenced as `py`, and runs in a group of one.
"""

import contextlib
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
from pathlib import Path

import pytest

import maskloss
from maskloss import drop_in

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = [public for name in maskloss.__all__ if callable(public := getattr(maskloss, name))]
# Those of a framework, imported by name.
MODULES = ["maskloss.torch", *(f"maskloss.drop_in.{m.name}" for m in pkgutil.iter_modules(drop_in.__path__))]
MODULES = [name for name in MODULES if "._" not in name]

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(library) is None for library in ("numpy", "torch", "jax")),
    reason="the examples use NumPy, torch and JAX: all three must be installed",
)


def failures(test):
    for example in test.examples:
        if example.exc_msg:  # a message may be shown on several lines
            example.options[doctest.NORMALIZE_WHITESPACE] = True
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=printed.append, clear_globs=False)
    return "".join(printed)


PROCESSES = re.compile(r"^```py\n(.*?)^```", flags=re.M | re.S)
BLOCK = re.compile(r"^( *)```python *\n(.*?)^\1```\n(?:\1```text\n(.*?)^\1```)?", flags=re.M | re.S)


def run_page(text, name):
    """Runs every python block of a Markdown page; returns what went wrong."""
    names = {"__name__": "__main__"}
    wrong = []
    for block in BLOCK.finditer(text):
        line = text[: block.start(2)].count("\n")
        code = re.sub(f"^{block[1]}", "", block[2], flags=re.M)
        if ">>> " in code:
            test = doctest.DocTestParser().get_doctest(code, names, name, name, line)
            wrong.append(failures(test))
            names.update(test.globs)
        else:
            printed, shown = io.StringIO(), block[3] and re.sub(f"^{block[1]}", "", block[3], flags=re.M)
            try:
                with contextlib.redirect_stdout(printed):
                    exec(compile("\n" * line + code, name, "exec"), names)
            except Exception as error:
                wrong.append(f"{name}, block at line {line + 1}: {type(error).__name__}: {error}")
            else:
                if shown is not None and printed.getvalue() != shown:
                    wrong.append(f"{name}, block at line {line + 1} prints\n{printed.getvalue()}and not\n{shown}")
    return "".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = run_page(page.read_text(encoding="utf-8"), page.name)
    assert not wrong, wrong


WIDEST = 88  # what a page shows without cutting it off


def too_wide(text):
    """The lines of a page's blocks, and of a docstring's examples, that do not fit."""
    fence, wide = "", []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip()
        shown = line.strip() if line.lstrip().startswith((">>> ", "... ")) else line
        if ((fence and not fence.startswith("```{")) or shown is not line) and len(shown) > WIDEST:
            wide.append(line)
    return wide


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_fits(page):
    assert not too_wide(page.read_text(encoding="utf-8"))


def test_the_examples_of_docstrings_fit():
    assert not [line for public in PUBLIC for line in too_wide(public.__doc__)]


def test_what_does_not_fit_is_found():
    long = f"x = {'1' * WIDEST}"
    assert too_wide(f"```{{include}}\n{long}\n```\n{long}\n```python\n{long}\n```\n{long}\n    >>> {long}\n") == [
        long,
        f"    >>> {long}",
    ]
    assert not too_wide(f"    >>> {'1' * (WIDEST - 4)}\n")


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_of_a_module(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        test_docstring(getattr(module, public))
        assert not too_wide(getattr(module, public).__doc__)


@pytest.mark.parametrize("name", ["maskloss", *MODULES])
def test_the_page_of_the_api_has_every_public_name(name):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    sections = re.findall(rf"currentmodule:: {re.escape(name)}\n(.*?)```", page, flags=re.S)
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)$", "".join(sections), flags=re.M))
    assert shown == {public for public in importlib.import_module(name).__all__ if not public.startswith("__")}


def test_the_blocks_of_many_processes_run_in_one():
    """All `py` blocks there are, one after the other, in a group of one process, of which each is the whole."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    blocks = [(page.name, code) for page in PAGES for code in PROCESSES.findall(page.read_text(encoding="utf-8"))]
    assert {name for name, _ in blocks} == {"gradients.md"}
    generator = torch.Generator().manual_seed(0)
    hidden, kernel = (torch.randn(size, generator=generator, requires_grad=True) for size in ((4, 3), (5, 3)))
    logits = (hidden @ kernel.T).detach().requires_grad_()
    labels, mask = torch.tensor([0, 4, 1, 2]), torch.tensor([True, False, True, True])
    whole, stats = maskloss.cross_entropy(logits, labels, mask=mask, with_stats=True)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tensor",))
        names = {"torch": torch, "ml": maskloss, "mesh": mesh, "hidden": hidden, "kernel_of_this_rank": kernel}
        names |= {"logits": logits, "labels": labels, "mask": mask, "stats": stats}
        for _, code in blocks:
            exec(code, names)
            assert torch.allclose(names["loss"], whole)
    finally:
        torch.distributed.destroy_process_group()
    assert all(x == y for x, y in zip(names["everywhere"], stats, strict=True))
    assert torch.allclose(logits.grad, torch.autograd.grad(whole, logits)[0])


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_docstring(public):
    (test,) = doctest.DocTestFinder(recurse=False).find(public, globs={})
    assert test.examples, f"{public.__name__} has no example"
    assert not (wrong := failures(test)), wrong


@pytest.mark.parametrize(
    "page",
    [
        "```python\n>>> 1 + 1\n3\n```\n",
        "text\n\n```python\nassert 1 + 1 == 3\n```\n",
        "```python\nprint(1 + 1)\n```\n```text\n3\n```\n",
        "- item\n\n  ```python\n  print(1 + 1)\n  ```\n  ```text\n  3\n  ```\n",
        "```python\nx = 1\n```\n\n- item\n\n  ```python\n  >>> x\n  2\n  ```\n",
    ],
)
def test_page_check_can_fail(page):
    assert run_page(page, "page.md")


def test_page_blocks_share_names_and_py_blocks_do_not_run():
    page = (
        "```python\nx = 1\nprint(x)\n```\n```text\n1\n```\n"
        + "```py\nraise SystemError\n```\n```python\n>>> x + 1\n2\n```\n"
    )
    assert run_page(page, "page.md") == ""


def test_docstring_check_can_fail():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    (test,) = doctest.DocTestFinder().find(wrong, "wrong", globs={})
    assert failures(test)
