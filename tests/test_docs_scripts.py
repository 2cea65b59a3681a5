"""The scripts that write tables of the documentation: what is stale, or wrong, they say."""

import json
import math

import numpy as np
import pytest

import maskloss as ml
from docs.scripts import drop_ins, errors, outdated, which_mean
from docs.scripts import frameworks_today as today
from maskloss.drop_in._differences import Difference
from tests import bad_calls


def test_stale_tables_are_found(tmp_path):
    path = tmp_path / "support.md"
    assert outdated({path: "new"}) == [path]
    path.write_text("old")
    assert outdated({path: "new"}) == [path]
    path.write_text("new")
    assert outdated({path: "new"}) == []


def test_a_stale_table_of_errors_is_told(tmp_path):
    written, calls = tmp_path / "errors.md", bad_calls.CALLS[:3]
    assert errors.main(["--check"], written, calls) == 1
    assert errors.main(["--write"], written, calls) == 0
    assert errors.main(["--check"], written, calls) == 0
    assert written.read_text().count("\n| ") == 2 + 3  # the header has two lines
    written.write_text(written.read_text().replace("ValueError", "TypeError", 1))
    assert errors.main(["--check"], written, calls) == 1


def test_a_call_that_is_not_refused_makes_no_table():
    accepted = bad_calls.CALLS[0]._replace(call=lambda backend, *args: 0.0)
    with pytest.raises(AssertionError, match="is not refused"):
        errors.render([accepted])


def test_a_stale_table_of_differences_is_told(tmp_path):
    row = Difference("empty", "f", "Nothing", "NaN", "0", "No step")
    files = drop_ins.outputs({"torch": (row,), "optax": (row, row._replace(where="g")), "keras": ()}, tmp_path)
    one, two = files  # none of Keras
    assert "| Nothing | NaN | 0 | No step |" in files[one]
    assert "| f: Nothing |" in files[two]
    assert "| g: Nothing |" in files[two]
    assert drop_ins.main(["--check"], files) == 1
    assert drop_ins.main(["--write"], files) == 0
    assert drop_ins.main(["--check"], files) == 0
    one.write_text("old")
    assert drop_ins.main(["--check"], files) == 1


def test_stale_answers_of_frameworks_are_told():
    record = json.loads(today.RECORD.read_text())
    markdown, readme = (today.MARKDOWN.read_text(), f"a\n{today.BEGIN}\nold\n{today.END}\nb\n")
    rows = record["rows"]
    assert today.stale(rows, record, markdown, None) == []
    assert today.stale(rows, record, markdown, "no markers") == []
    assert today.stale(rows, record, markdown, today.in_readme(readme, markdown)) == []
    assert len(today.stale(rows, record, markdown, readme)) == 1
    assert len(today.stale(rows, record, markdown + "x", None)) == 1
    changed = {**rows, today.NOTHING: {**rows[today.NOTHING], "maskloss": "NaN"}}
    assert len(today.stale(changed, record, markdown, None)) == 1
    assert len(today.stale({today.NOTHING: rows[today.NOTHING]}, record, markdown, None)) == len(rows) - 1


def test_the_readme_outside_the_markers_is_kept():
    assert today.in_readme(f"a\n{today.BEGIN}\nold\n{today.END}\nb\n", "new\n") == (
        f"a\n{today.BEGIN}\nnew\n{today.END}\nb\n"
    )
    assert today.in_readme("a\n", "new\n") is None


ZERO, ONE = np.zeros(2), np.ones(2)


@pytest.mark.parametrize(
    ("outcome", "expected", "text"),
    [
        ((1.5, ONE), (1.5, ONE), "1.5"),
        ((1.5, ONE), (1.25, ONE), "wrong: 1.5 (right 1.25)"),
        ((9.5, None), (9.525, None), "rounded: 9.5 (right 9.525)"),  # bfloat16 has 9.5, then 9.5625
        ((9.5625, None), (9.525, None), "wrong: 9.562 (right 9.525)"),
        ((1.5, 2 * ONE), (1.5, ONE), "1.5, gradient wrong"),
        ((1.5, math.nan * ONE), (1.5, ONE), "1.5, gradient NaN"),
        ((math.nan, ONE), (1.5, ONE), "NaN"),
        ((0.0, ZERO), (0.0, ZERO), "0, gradient 0"),
        ((0.0, ONE), (0.0, ZERO), "0, gradient not 0"),
        ((math.inf, ONE), (math.inf, ONE), "inf"),
        ((1.5, None), (1.25, None), "wrong: 1.5 (right 1.25)"),
        ((1.5, ONE), None, "1.5, no error"),
        ((math.nan, ONE), None, "NaN"),
        (IndexError("out of range"), None, "IndexError"),
        ("not offered", None, "not offered"),
    ],
)
def test_the_text_of_a_cell(outcome, expected, text):
    assert today.describe(outcome, expected) == text


def test_ways_that_disagree_are_told_apart():
    ways = {"one": lambda: (1.5, None), "two": lambda: (1.5, None), "three": lambda: 1 / 0}
    assert today.cell(ways, (1.5, None)) == "`one`, `two`: 1.5; `three`: ZeroDivisionError"


def test_the_picture_of_the_means_shows_what_the_library_computes():
    losses = np.array([[np.nan if x is None else x for x in row] for row in which_mean.LOSSES])
    weights = np.array(which_mean.WEIGHTS, float)[:, None]
    assert len(which_mean.shares()) == 4
    for name, share in which_mean.shares().items():
        found = ml.reduce(losses, mask=~np.isnan(losses), weights=weights, reduction=name)
        assert float(found) == pytest.approx(float(which_mean.value(share)), rel=1e-14)
        assert f"{float(found):.3f}" in which_mean.picture()


def test_formulas_are_drawn_or_told(monkeypatch):
    pytest.importorskip("sphinx")
    from docutils import nodes

    from docs import mathml

    told = []
    monkeypatch.setattr(mathml.logger, "warning", lambda *args, **kwargs: told.append(args))
    half = mathml.mathml(nodes.math("", r"\tfrac12"), as_block=False)
    assert "<mn>1</mn><mn>2</mn></mfrac>" in "".join(half.split())
    lines = mathml.mathml(nodes.math_block("", r"a &= b \\ c &= d"), as_block=True)
    assert lines.count("<mtr") == 2
    assert not told
    assert mathml.mathml(nodes.math("", r"\nocommand x"), as_block=False).startswith("<code>")
    assert len(told) == 1
