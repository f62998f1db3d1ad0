"""The command that runs the benchmarks, prints their tables and writes metrics/bench.json.

    python -m benchmarks [--only loop pipeline ...] [--rounds 3] [--show]

It measures the committed code, in fresh clones under a temporary folder; the checkout does not change.
A part replaces its own result in the file and leaves those of the other parts. Progress goes to stderr, the
tables go to stdout as Markdown. A figure beyond its limit is marked in the table and is not an error: the
machine may have been busy.
"""

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import harness, loop, pipeline
from mnist.core import files, process
from mnist.core.errors import InputError

PARTS = {
    "loop": ("The training loop at batch 64", loop.measure),
    "pipeline": ("The pipeline beside the tutorial's script, whole processes", pipeline.measure),
    "presets": ("Presets", loop.measure_presets),
    "gpu": ("A GPU", loop.measure_gpu),
}
RESULTS = Path("metrics/bench.json")


def measure(names: Sequence[str], num_rounds: int) -> None:
    """Measure these parts, and write the result of each when it is done.

    Raises:
        InputError: a measured command failed, no mirror has the data set, or the file is not JSON.
    """
    results = files.read_json(RESULTS) if RESULTS.exists() else {}  # first: the measurements take minutes
    with harness.prepared() as bench:
        for name in names:
            title, measure_part = PARTS[name]
            harness.log(f"{title}:")
            if rows := measure_part(bench, num_rounds):
                date, machine = datetime.now(tz=UTC).date().isoformat(), harness.machine()
                results[name] = {"commit": bench.commit, "date": date, "machine": machine, "rows": rows}
                files.write_json(RESULTS, results)


def section(title: str, result: Mapping[str, Any]) -> str:
    """Return the machine, the versions and the table of a part as Markdown."""
    facts, rows = result["machine"], result["rows"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *harness.LIBRARIES))
    head = (
        f"{facts['cpu']}, {facts['num_cores']} cores, {facts['memory_gib']:g} GiB; {versions};"
        f" commit {result['commit']}, {result['date']}; rounds: {rows[0]['num_rounds']}"
    )
    headers = ["measured", "unit", "median or mean", "spread", "x the tutorial's", "limit", "holds"]
    cells = []
    for row in rows:
        middle, *ends = (_number(row[name], row["unit"]) for name in ("middle", "min", "max") if name in row)
        spread = " to ".join(ends) or f"± {row['sd']:.2f}"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        holds = {True: "yes", False: "NO", None: ""}[row.get("holds")]
        cells.append([row["label"], row["unit"], middle, spread, ratio, row.get("limit", ""), holds])
    table = tabulate(cells, headers, "pipe", disable_numparse=True, colalign=["left"] * 2 + ["right"] * 5)
    return f"### {title}\n\n{head}\n\n{table}\n"


def _number(value: float, unit: str) -> str:
    return f"{value:,.0f}" if unit == "images/s" else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print; end as `mnist.core.process.reported` does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the pipeline beside the tutorial's script."
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds (default: 3; presets: 5 seeds)"
    )
    parser.add_argument("--show", action="store_true", help="print the results of earlier measurements")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")

    with process.reported():
        if not options.show:
            measure(options.only, options.rounds)
        if not RESULTS.exists():
            raise InputError(str(RESULTS), found="no such file", expected="results: run `make bench`")
        results = files.read_json(RESULTS)
        for name, (title, _) in PARTS.items():
            if name in options.only and name in results:
                print(section(title, results[name]))


if __name__ == "__main__":
    main()
