from importlib import metadata

project = "maskloss"
author = "The maskloss developers"
copyright = "2026, The maskloss developers"
version = release = metadata.version("maskloss")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated", "scripts"]

html_theme = "furo"
html_title = f"maskloss {release}"

nitpicky = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
