"""outages."""

from collections.abc import Iterator

from tests.faults.case import Case

NUMBER = 20  # of cases


def cases(seed: int) -> Iterator[Case]:  # noqa: ARG001
    """Yield the cases of this seed."""
    yield from ()
