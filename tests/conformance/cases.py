"""All cases, by name."""

from tests.conformance import cases_functions, cases_labels, cases_numbers, cases_options

ALL = [*cases_options.CASES, *cases_labels.CASES, *cases_numbers.CASES, *cases_functions.CASES]
CASES = {case.name: case for case in ALL}
assert len(CASES) == len(ALL), "two cases share a name"
