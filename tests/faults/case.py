"""A fault, what must come out of it, and how one is tried."""

import contextlib
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests import checkout
from tests.checkout import Clone
from tests.e2e.conftest import copy

LIMIT_SECONDS = 600  # for one case: nothing may wait for ever


@dataclass(frozen=True)
class Case:
    """A fault with a name, which is all that is needed to try it again with the same seed.

    Attributes:
        kind: the module of `tests.faults` that it is from.
        name: without blanks.
        check: takes a copy of the trained clone that it may change, and returns None where the project
            survived, else one line.
    """

    kind: str
    name: str
    check: Callable[[Path], str | None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case; `problem` is empty where the project survived."""

    kind: str
    name: str
    problem: str
    seconds: float


def attempt(case: Case, template: Clone) -> Outcome:
    """Try a case on a copy of the trained clone; what it leaves running is ended."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="fault-", dir=template.folder.parent, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name).resolve()
        try:
            with limited():
                problem = case.check(copy(template, folder).folder) or ""
        except Exception as error:  # noqa: BLE001 -- the other cases go on
            frame = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {error}"
        for process in checkout.processes_in(folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
    line = " ".join(problem.split())
    return Outcome(kind=case.kind, name=case.name, problem=line, seconds=time.monotonic() - start)


def clone_at(folder: Path) -> Clone:
    """Return the clone that a check gets."""
    return Clone(folder=folder, environment=checkout.environment(folder.parent))


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in a block that takes too long."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line_error(output: str, status: int | None) -> str | None:
    """Return what is wrong with how a command refused: it exits with 1 or 2, after one line `ERROR: ...`."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    if "Traceback" in output:
        return f"a traceback: {output.splitlines()[-1]}"
    if status not in (1, 2) or len(errors) != 1:
        return f"status {status} and {len(errors)} errors: {output[-300:]}"
    return None
