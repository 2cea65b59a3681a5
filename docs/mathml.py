"""Formulas as MathML, which browsers draw themselves: no script, no font and no network. docutils makes it of LaTeX."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node, *, as_block):
    """The formula of a node; one that docutils cannot read is a warning, with its place."""
    code = node.astext()
    code = re.sub(r"(\\t?frac)(\d)(\d)", r"\1{\2}{\3}", code)  # docutils wants braces
    code = re.sub(r"(\\(?:log|exp|tanh)) (?=[\w\\])", r"\1\\, ", code)  # and has no space after a function's name
    if "\\\\" in code and "\\begin" not in code:
        code = f"\\begin{{aligned}}{code}\\end{{aligned}}"
    try:
        return tex2mathml(code, as_block=as_block)
    except MathError as error:
        logger.warning("formula not understood: %s", error, location=node)
        return f"<code>{node.astext()}</code>"


def visit_math(translator, node):
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_displaymath(translator, node):
    translator.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
