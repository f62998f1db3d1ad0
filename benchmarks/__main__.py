"""Measure, print, and keep what was measured in metrics/bench.json.

    python -m benchmarks [--only loop pipeline ...] [--rounds 3] [--show]

What is committed is measured, in fresh clones under a temporary folder; the checkout stays as it
is. Within a part, what is compared takes turns; the first round warms up and does not count (presets
have none: five seeds are their rounds). A part replaces what the file has of it, with its commit,
machine and time, and leaves the others.
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
from benchmarks.harness import FailedError, tell
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
    """Measure these parts, and put each one's result into the file as soon as it is there.

    Raises:
        InputError: there is no data set to be had, or the file is one of something else.
        FailedError: something that was to be measured failed.
    """
    # Told now, and not after minutes of measuring.
    if not os.access(results.parent, os.W_OK):
        raise InputError(str(results), found="no folder to write to", expected="one that is there")
    kept = read(results) if results.exists() else {}
    with harness.prepared() as bench:
        for name in names:
            tell(f"{PARTS[name].TITLE}:")
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
    """What was measured before, by part.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    expected = "what `make bench` writes: a result for each part"
    if not path.exists():
        raise InputError(str(path), found="no such file", expected="a bench before: make bench")
    results = files.read_json(path)
    if not isinstance(results, dict):
        raise InputError(str(path), found=type(results).__name__, expected=expected)
    for name, result in results.items():
        if name not in PARTS or not isinstance(result, dict) or "machine" not in result:
            raise InputError(str(path), found=f"{name!r}", expected=expected)
    return results


def tables(results: Mapping[str, Any]) -> str:
    """The Markdown of all parts that were measured."""
    sections = []
    for name, part in PARTS.items():
        if name in results:
            sections += [f"### {part.TITLE}", _provenance(results[name]), part.tables(results[name])]
    return "\n\n".join(sections)


def _provenance(result: Mapping[str, Any]) -> str:
    """On what, when, and how often it was measured."""
    facts = result["machine"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *harness.LIBRARIES))
    num_rounds = f"{result['num_rounds']} round{'s' if result['num_rounds'] > 1 else ''}"
    return (
        f"{facts['cpu']}, {facts['num_cores']} cores, {facts['memory_gib']:g} GiB; {versions};"
        f" commit {result['commit']}, {result['date']}; {num_rounds}"
    )


def headline(results: Mapping[str, Any]) -> str:
    """The few lines of it all that README.md shows."""
    loop_, figures = results["loop"]["images_a_second"], results["pipeline"]["figures"]
    rows = [
        (
            "training, images a second, default params",
            f"{loop_['threads_1']['median']:,.0f}",
            f"{loop_['tutorial']['median']:,.0f}",
            loop_["threads_1"]["ratio"],
        ),
        *(
            (
                label,
                f"{figures[key]['median']:.1f} s",
                f"{figures['tutorial']['median']:.1f} s",
                figures[key]["ratio"],
            )
            for key, label in (
                ("repro", "`dvc repro`, nothing cached"),
                ("experiment", "`dvc exp run -S lr=0.05`"),
                ("idle", "`dvc repro`, nothing to do"),
            )
        ),
    ]
    return "\n".join(
        [
            "| medians | here | the tutorial's script | ratio |",
            "| --- | ---: | ---: | ---: |",
            *(f"| {label} | {ours} | {theirs} | {ratio:.2f} |" for label, ours, theirs, ratio in rows),
            "",
            f"{_provenance(results['pipeline'])}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write.

    Exits with 1 and a message where something that was to be measured fails, with 130 for an
    interrupt. A figure that does not hold is told in the table and is no error: it may be
    the machine that was busy.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, side by side.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="that count (default: 3; presets: 5 seeds)")
    parser.add_argument("--show", action="store_true", help="print what was measured before")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"(default: {RESULTS})")
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
