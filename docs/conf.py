import os
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# maskloss.drop_in.keras is imported for its docstrings; the default backend, tensorflow, is not installed.
os.environ.setdefault("KERAS_BACKEND", "numpy")

project = "maskloss"
author = "The maskloss developers"
copyright = "2026, The maskloss developers"
version = release = metadata.version("maskloss")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "docs.mathml"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated", "scripts"]

html_theme = "furo"
html_title = f"maskloss {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False

# What the pages name of other projects, one name a line: nothing is asked of a network when the pages are built.
SITES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
}
intersphinx_mapping = {name: (site, f"inventories/{name}.inv") for name, site in SITES.items()}

# A name that is nowhere is a warning: add it to inventories/. The types of docstrings are words, and no names.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"[^.]*")]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
