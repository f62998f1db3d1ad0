"""A few cases of each kind, always the same ones; `make faults` tries all of them."""

from itertools import islice

import pytest

from tests.checkout import Clone
from tests.faults.__main__ import KINDS
from tests.faults.case import Case, attempt

SAMPLE = {"kills": 1, "outages": 1}  # the other kinds: `make faults`
CASES = [case for kind, number in SAMPLE.items() for case in islice(KINDS[kind].cases(0), number)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.name}")
def test_the_project_survives(case: Case, trained_template: Clone) -> None:
    assert attempt(case, trained_template).problem == ""
