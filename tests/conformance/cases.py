"""All cases, by name."""

import cases_functions
import cases_labels
import cases_numbers
import cases_options

ALL = [*cases_options.CASES, *cases_labels.CASES, *cases_numbers.CASES, *cases_functions.CASES]
CASES = {case.name: case for case in ALL}
assert len(CASES) == len(ALL), "two cases share a name"
