"""The runner finds what it should and refuses what it should, on a package of one line."""

import pytest

from tests.mutants import run_mutants as run
from tests.mutants.mutants import MUTANTS, Mutant

SOURCES = [file.read_text(encoding="utf-8") for file in run.PACKAGE.rglob("*.py")]
ONE_TEST = "import maskloss\n\ndef test_value():\n    assert maskloss.value() == 4\n"


@pytest.fixture
def project(tmp_path):
    package = tmp_path / "src" / "maskloss"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def value():\n    return 2 + 2\n")
    (tmp_path / "test_value.py").write_text(ONE_TEST)
    return package, tmp_path


def mutant(text="2 + 2", replacement="2 + 3", tests=("test_value.py::test_value",)):
    return Mutant("planted", text, replacement, "the value", tests)


def test_defect_is_found(project):
    assert run.survival(mutant(), *project) is None


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        (mutant(replacement="2 * 2"), "pass"),
        (mutant(text="3 + 3"), "0 times"),
        (mutant(text="2"), "2 times"),
        (mutant(replacement="2 +"), "no program"),
        (mutant(tests=("test_value.py::test_absent",)), "did not run"),
        (mutant(text="def value", replacement="1 / 0\ndef value"), "not what is imported"),
    ],
)
def test_what_does_not_count_as_found(project, planted, reason):
    assert reason in run.survival(planted, *project)


def test_source_is_left_as_it_was(project):
    run.survival(mutant(), *project)
    assert (project[0] / "__init__.py").read_text() == "def value():\n    return 2 + 2\n"


def test_red_tests_are_told_from_mutants(project):
    assert run.red_without([mutant()], *project) is None
    (project[0] / "__init__.py").write_text("def value():\n    return 5\n")
    assert "without a mutant" in run.red_without([mutant()], *project)


def test_list_is_sound():
    names = [m.name for m in MUTANTS]
    assert len(names) == len(set(names)) >= 30
    assert all(m.breaks and m.tests and m.text != m.replacement for m in MUTANTS)


@pytest.mark.parametrize("planted", MUTANTS, ids=lambda m: m.name)
def test_text_is_in_the_source_once(planted):
    count = sum(source.count(planted.text) for source in SOURCES)
    assert count == 1, f"{planted.name}: its text is in the source {count} times; see CONTRIBUTING.md"
