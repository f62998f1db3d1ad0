"""The fault harness: it does harm to copies of a trained clone, and looks whether the project survives.

    python -m tests.faults [--seed 0] [--only kills ...] [--number N] [--case NAME ...] [--jobs 2] [--write]

Progress goes to stderr, the table to stdout. The exit status is 1 unless all survived.
"""

import argparse
import multiprocessing
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from tabulate import tabulate

from benchmarks import harness
from tests import checkout
from tests.checkout import ROOT, Clone
from tests.conftest import SmallData, small_images, write_archives
from tests.e2e.conftest import make_trained
from tests.faults import disks, inputs, kills, outages, places
from tests.faults.case import Case, Outcome, attempt

KINDS = {"kills": kills, "inputs": inputs, "disks": disks, "outages": outages, "places": places}
PAGE = ROOT / "docs/faults.md"
BEGIN, END = "<!-- faults -->\n", "<!-- /faults -->"

_given: tuple[Sequence[Case], Clone]  # to the processes that try the cases


def trained(folder: Path) -> Clone:
    """Make the trained clone that each case gets a copy of."""
    train, test = small_images()
    write_archives(folder / "mirror", train, test)
    make_trained(folder, SmallData(train=train, test=test, mirror=folder / "mirror"))
    return Clone(folder=folder / "clone", environment=checkout.environment(folder))


def tried(cases: Sequence[Case], template: Clone, num_jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of all cases, as they come."""
    fork = multiprocessing.get_context("fork")  # what a case holds need not be pickled
    pool = ProcessPoolExecutor(num_jobs, fork, initializer=_give, initargs=(cases, template))
    try:
        for done in as_completed([pool.submit(_attempt, number) for number in range(len(cases))]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt: only those that run come to their end


def _give(cases: Sequence[Case], template: Clone) -> None:
    global _given  # noqa: PLW0603 -- of this process
    _given = cases, template


def _attempt(number: int) -> Outcome:
    cases, template = _given
    return attempt(cases[number], template)


def table(outcomes: Sequence[Outcome], seed: int) -> str:
    """Return the numbers by kind, and a line for each case that did not survive, as Markdown."""
    rows = []
    for kind in KINDS:
        problems = [outcome.problem for outcome in outcomes if outcome.kind == kind]
        if problems:
            rows.append([kind, len(problems), problems.count("")])
    lines = [
        f"- `--seed {seed} --only {outcome.kind} --case {outcome.name}`: {outcome.problem[:300]}"
        for outcome in outcomes
        if outcome.problem
    ]
    return "\n".join(
        [tabulate(rows, ["kind", "tried", "survived"], "pipe"), *([""] if lines else []), *lines]
    )


def write(text: str, seed: int) -> None:
    """Put the table with its date, commit and machine into the page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    date, facts = datetime.now(tz=UTC).date().isoformat(), harness.machine()
    where = f"{platform.system()}, {facts['cpu']}, {facts['num_cores']} cores"
    head = f"{date}, commit {commit}, seed {seed}; {where}."
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{head}\n\n{text}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    """Try the chosen cases, print the table, and exit with 1 unless all survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Try what may go wrong.")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="kinds (default: all)")
    parser.add_argument("--number", type=int, help="cases of each kind (default: all)")
    parser.add_argument("--case", nargs="+", help="cases by name (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (default: 2)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/faults.md")
    options = parser.parse_args()
    cases = [
        case
        for kind in options.only
        for case in islice(KINDS[kind].cases(options.seed), options.number or KINDS[kind].NUMBER)
        if not options.case or case.name in options.case
    ]
    if not cases:
        parser.error("no such case")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="mnist-faults-", ignore_cleanup_errors=True) as folder:
        for outcome in tried(cases, trained(Path(folder).resolve()), options.jobs):
            outcomes.append(outcome)
            head = f"{len(outcomes)}/{len(cases)} {outcome.kind} {outcome.name}, {outcome.seconds:.0f} s"
            print(f"{head}: {outcome.problem or 'survived'}", file=sys.stderr, flush=True)
    text = table(outcomes, options.seed)
    print(text)
    if options.write:
        write(text, options.seed)
    sys.exit(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    main()
