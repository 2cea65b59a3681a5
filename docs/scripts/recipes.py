"""docs/recipes/: a page for each file of examples/recipes, with what it prints, and their index.

python docs/scripts/recipes.py --write          # runs them all; with names, those alone
python docs/scripts/recipes.py --check          # exit 1 where a page is not made from its recipe; runs none
"""

import ast
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from docs.scripts import ROOT, arguments, outdated

RECIPES, PAGES = ROOT / "examples" / "recipes", ROOT / "docs" / "recipes"
# Heading -> names, in the order in which the index lists them.
GROUPS = {
    "Hugging Face": ("hugging_face_*",),
    "PyTorch": ("gradient_accumulation", "data_parallel", "pytorch_lightning", "segmentation"),
    "JAX": ("flax_nnx", "equinox_lm", "scan_accumulation"),
    "Keras": ("keras_*",),
    "NumPy": ("evaluation", "scikit_learn_*"),
    "Losses of your own": ("policy_losses", "dpo", "distillation"),
}
INTRODUCTION = """\
# Recipes

Whole programs, each of at most 60 lines. Each runs in seconds on a CPU, downloads nothing, and checks itself: the
number that maskloss gives is compared with the same number computed in another way, and the program fails where the two
differ. Take the one that is nearest to your training script, and put your model and your data in the place of its own.
"""


def recipes():
    return sorted(RECIPES.glob("*.py"))


def parts(path):
    """A recipe's title, its prose, and the line where its code begins."""
    tree = ast.parse(path.read_text())
    title, _, prose = ast.get_docstring(tree).partition("\n")
    return title, prose.strip(), tree.body[1].lineno


def needed(path):
    """What `pip install` is given where a package is missing."""
    return re.search(r"pip install ([\w -]+)", path.read_text())[1]


def ran(path):
    """What the recipe prints. It fails where the recipe does, or where it takes something from the network."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{path.name}\n{done.stdout}{done.stderr}"
    return done.stdout


def page(path, output):
    title, prose, first = parts(path)
    return f"""\
# {title}

{prose}

```{{literalinclude}} ../../{path.relative_to(ROOT).as_posix()}
:language: python
:lines: {first}-
```

`python {path.relative_to(ROOT).as_posix()}` (it needs `pip install {needed(path)}`) prints

```text
{output.rstrip()}
```
"""


def shown(text):
    """The output on a page."""
    return re.search(r"^```text\n(.*?\n)```$", text, flags=re.M | re.S)[1]


def groups_of(name):
    return [heading for heading, patterns in GROUPS.items() if any(fnmatch(name, p) for p in patterns)]


def index(names):
    out = [INTRODUCTION]
    for heading, patterns in GROUPS.items():
        here = [name for pattern in patterns for name in names if fnmatch(name, pattern)]
        if here:
            out.append("\n".join([f"## {heading}\n", "```{toctree}", ":maxdepth: 1\n", *here, "```\n"]))
    return "\n".join(out)


def pages(outputs, folder=PAGES):
    """Each page's path and text, of what the recipes printed."""
    made = {folder / f"{path.stem}.md": page(path, output) for path, output in outputs.items()}
    return {**made, folder / "index.md": index([path.stem for path in outputs])}


def stale(files, folder=PAGES):
    """The pages that are not what would be written, and those of no recipe."""
    return sorted({*outdated(files), *set(folder.glob("*.md")) - set(files)})


def main():
    parser, _ = arguments(__doc__)
    parser.add_argument("names", nargs="*", help="the recipes to run; the others' output stays as it is")
    given = parser.parse_args()
    if given.write:
        PAGES.mkdir(exist_ok=True)
    outputs = {}
    for path in recipes():
        written = PAGES / f"{path.stem}.md"
        if given.write and (not given.names or path.stem in given.names):
            outputs[path] = ran(path)
        elif written.exists():
            outputs[path] = shown(written.read_text())
        else:
            print(f"{path.name} has no page: run docs/scripts/recipes.py --write {path.stem}")
            return 1
    files = pages(outputs)
    if given.write:
        for path in stale(files):
            path.write_text(files[path]) if path in files else path.unlink()
        return 0
    if wrong := stale(files):
        print(f"stale, run docs/scripts/recipes.py --write: {', '.join(path.name for path in wrong)}")
        return 1
    print(f"{len(files)} pages of recipes as written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
