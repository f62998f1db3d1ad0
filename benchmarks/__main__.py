"""The command that runs the benchmarks, prints their tables and writes metrics/bench.json.

    python -m benchmarks [--only loop pipeline ...] [--rounds 3] [--show]

It measures the committed code, in fresh clones under a temporary folder; the checkout does not change.
Within a part, the contestants run in turns. The first round warms up and does not count; the part
`presets` has five seeds instead of rounds. A part replaces its own result in the file, with commit,
machine and date, and leaves the results of the other parts.
Progress goes to stderr, the tables go to stdout as Markdown.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import gpu, harness, loop, pipeline, presets
from benchmarks.harness import FailedError, log
from mnist.core import files, process
from mnist.core.errors import InputError

PARTS: Mapping[str, ModuleType] = {
    "loop": loop,
    "pipeline": pipeline,
    "presets": presets,
    "gpu": gpu,
}
RESULTS = Path("metrics/bench.json")


def measure(names: Sequence[str], num_rounds: int, results: Path) -> None:
    """Measure these parts, and write the result of each to the file when it is done.

    Raises:
        InputError: no mirror has the data set, the file is not one of benchmarks, or cannot be written.
        FailedError: a measured command failed.
    """
    # Checked first: the measurements take minutes.
    if not os.access(results.parent, os.W_OK):
        raise InputError(str(results), found="no folder to write to", expected="one that is there")
    kept = read(results) if results.exists() else {}
    with harness.prepared() as bench:
        for name in names:
            log(f"{PARTS[name].TITLE}:")
            result = {
                "commit": bench.commit,
                "date": datetime.now(tz=UTC).date().isoformat(),
                "machine": harness.machine(),
                "num_rounds": num_rounds,
                **PARTS[name].measure_all(bench, num_rounds=num_rounds),
            }
            kept[name] = result
            files.write_json(results, kept)


def read(path: Path) -> dict[str, Any]:
    """Return the results of earlier measurements, by part.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    expected = "what `make bench` writes: a result for each part"
    if not path.exists():
        raise InputError(str(path), found="no such file", expected="results: run `make bench`")
    results = files.read_json(path)
    if not isinstance(results, dict):
        raise InputError(str(path), found=type(results).__name__, expected=expected)
    for name, result in results.items():
        if name not in PARTS or not isinstance(result, dict) or "machine" not in result:
            raise InputError(str(path), found=f"{name!r}", expected=expected)
    return results


def tables(results: Mapping[str, Any]) -> str:
    """Return the tables of all measured parts as Markdown."""
    sections = []
    for name, part in PARTS.items():
        if name in results:
            sections += [f"### {part.TITLE}", _provenance(results[name]), part.tables(results[name])]
    return "\n\n".join(sections)


def _provenance(result: Mapping[str, Any]) -> str:
    """Return the machine, versions, commit, date and number of rounds of a result, in one line."""
    facts = result["machine"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *harness.LIBRARIES))
    num_rounds = f"{result['num_rounds']} round{'s' if result['num_rounds'] > 1 else ''}"
    return (
        f"{facts['cpu']}, {facts['num_cores']} cores, {facts['memory_gib']:g} GiB; {versions};"
        f" commit {result['commit']}, {result['date']}; {num_rounds}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write.

    The exit status is 1, with a message, if a measured command fails, and 130 after an interrupt. A
    figure beyond its limit is marked in the table and is not an error: the machine may have been busy.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the pipeline beside the tutorial's script."
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds (default: 3; presets: 5 seeds)"
    )
    parser.add_argument("--show", action="store_true", help="print the results of earlier measurements")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help=f"file of the results (default: {RESULTS})"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")

    with process.reported():
        if not options.show:
            try:
                measure(list(dict.fromkeys(options.only)), options.rounds, options.output)
            except FailedError as error:
                sys.exit(f"ERROR: {error}")
        results = read(options.output)
        print(tables({name: results[name] for name in options.only if name in results}))


if __name__ == "__main__":
    main()
