"""The tests that show a difference from a framework, by the name of its row."""

from maskloss.drop_in._differences import DIFFERENCES


def shown_in(module):
    """The differences that a module of tests shows: its test_difference_NAME."""
    prefix = "test_difference_"
    return {name.removeprefix(prefix) for name in vars(module) if name.startswith(prefix)}


def rows(framework):
    return {row.name for row in DIFFERENCES[framework]}
