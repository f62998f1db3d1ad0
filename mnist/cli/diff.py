"""Compare two revisions: what changed, whether it is better, and how sure that is.

    python -m mnist.cli.diff [BASE] [--head REV] [--json] [--output FILE]
                                [--fail-if {worse,not-comparable,stale} ...] [--max-drop X]

BASE (default: main) and REV (default: the workspace) are branches, tags, commits or DVC
experiments; what is not known here is fetched from `origin`, so it works in a shallow clone. It
prints Markdown for the terminal and for GitHub.

It exits with 1 where a gate says no, once the report is out, and with 2 where there is nothing to
report or something is wrong.
"""

import argparse
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mnist.core import files, paths, process
from mnist.core.errors import InputError

if TYPE_CHECKING:
    from mnist.comparison.changes import Changes, ClassChange, Images
    from mnist.comparison.revision import Snapshot
    from mnist.tracking.client import Store

WORKSPACE = "workspace"  # `snapshots.WORKSPACE`, without its import of DVC
PATIENCE_SECONDS = 5  # with MLflow, once the revisions are read
WORSE, NOT_COMPARABLE, STALE = "worse", "not-comparable", "stale"

Evaluations: TypeAlias = Sequence[str | None]  # digests of results
Timings: TypeAlias = list[tuple[float, str] | None]  # seconds, device


def compare(base: str, head: str) -> "Changes":
    """Compare two revisions of this checkout, with the training times that MLflow knows.

    Raises:
        InputError: a revision is unknown, or there is no metric on either side.
    """
    with _clerk() as timings_of:
        from mnist.comparison import changes, diff, revision

        before, after = revision.read([base, head], paths.checkout())
        _check(before, after)
        base_timing, head_timing = timings_of([_evaluation_sha256(side) for side in (before, after)])
    return diff.between(
        before,
        after,
        base_timing=changes.Timing(*base_timing) if base_timing else None,
        head_timing=changes.Timing(*head_timing) if head_timing else None,
    )


@contextmanager
def _clerk() -> Iterator[Callable[[Evaluations], Timings]]:
    """A function that asks MLflow for training times; opening its store begins at once, in another process.

    It takes as long as reading the revisions. Where MLflow does not answer in time the report does
    without, and a line says so.
    """
    if not _has_store():
        yield lambda evaluations: [None for _ in evaluations]
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()

    def ask(evaluations: Evaluations) -> Timings:
        with suppress(BrokenPipeError):  # it has said why, and ended
            ours.send(evaluations)
        try:
            answer = ours.recv() if ours.poll(PATIENCE_SECONDS) else f"no answer in {PATIENCE_SECONDS} s"
        except EOFError:
            answer = "the process that asks MLflow has ended"
        if isinstance(answer, str):
            print(f"no training seconds: {answer}", file=sys.stderr)
            return [None for _ in evaluations]
        timings: Timings = answer
        return timings

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _has_store() -> bool:
    """Whether there is one to ask: none is made for it."""
    uri = paths.store_uri()
    file = uri.removeprefix("sqlite:///")
    return file == uri or Path(file).is_file()


def _check(before: "Snapshot", after: "Snapshot") -> None:
    """Let pass only what has a metric: an empty table would look like no change.

    Raises:
        InputError: neither side has any.
    """
    if before.metrics or after.metrics:
        return
    reasons = [
        f"{path} at {side.name}: {reason}"
        for side in (before, after)
        for path, reason in side.problems.items()
    ]
    raise InputError(
        f"metrics at {before.name} and {after.name}",
        found="; ".join(["none", *reasons[:3]]),
        expected="files that `metrics:` in dvc.yaml lists, and that can be read",
    )


def _evaluation_sha256(snapshot: "Snapshot") -> str | None:
    """By which MLflow knows its result."""
    from mnist.evaluation import results

    if snapshot.evaluation is None:
        return None
    return results.evaluation_sha256(
        *(hashlib.sha256(content).hexdigest() for content in snapshot.evaluation)
    )


def _serve(pipe: Connection) -> None:
    """In the other process: open the store, then tell the times or why there are none, in plain values."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks ends this one
    from mnist.tracking import client

    try:
        store = client.connect()
        pipe.send([_timing(store, evaluation) if evaluation else None for evaluation in pipe.recv()])
    except InputError as error:
        pipe.send(str(error))


def _timing(store: "Store", evaluation: str) -> tuple[float, str] | None:
    """Seconds that the training of a result took, and on what device; None where nobody knows."""
    from mnist.tracking import client

    with client.answering(store.uri):
        run = client.evaluated(store, evaluation)
    seconds = run.data.metrics.get("training_seconds") if run else None
    return None if run is None or seconds is None else (seconds, run.data.tags.get("device", ""))


def plain(changes: "Changes") -> dict[str, Any]:
    """All of it as what JSON can hold; numbers that are none (NaN, infinity) as text."""
    found = asdict(changes)
    for shown, metric in zip(found["metrics"], changes.metrics, strict=True):
        shown["change"] = metric.change
    if changes.images:
        images = found["images"]
        images["drop"] = changes.images.drop
        images["confusion"] = changes.images.confusion.tolist()
        compared: list[Images | ClassChange] = [changes.images, *changes.images.classes]
        for shown, one in zip([images, *images["classes"]], compared, strict=True):
            low, high = one.paired.interval_pp
            shown["paired"] |= {
                "change_pp": one.paired.change_pp,
                "interval_pp": [low, high],
                "p_two_sided": one.paired.p_two_sided,
            }
        for shown, one_class in zip(images["classes"], changes.images.classes, strict=True):
            shown["is_beyond_noise"] = one_class.is_beyond_noise
    cleaned: dict[str, Any] = _finite(found)
    return cleaned


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def objection(changes: "Changes", *, fail_if: Sequence[str], max_drop: float | None) -> str:
    """Why the gates that were asked for do not let head pass; empty where they do."""
    if WORSE in fail_if and changes.outcome == "worse":
        return "head is worse beyond noise"
    if STALE in fail_if and changes.is_doubtful:
        return "results are old or altered, see the warnings"
    if NOT_COMPARABLE in fail_if and changes.images is None:
        return f"not comparable: {changes.reason}"
    if max_drop is not None and changes.images and changes.images.drop > max_drop:
        return f"the accuracy dropped by {changes.images.drop:.6g}, more than {max_drop:g}"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write the report, then let the gates decide."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.diff", description="Compare two revisions, with a verdict."
    )
    revision = "branch, tag, commit or DVC experiment"
    parser.add_argument("base", nargs="?", default="main", help=f"{revision} (default: main)")
    parser.add_argument("--head", default=WORKSPACE, help=f"{revision} (default: {WORKSPACE}, what is here)")
    parser.add_argument("--json", action="store_true", help="all of it as JSON, instead of Markdown")
    parser.add_argument("--output", metavar="FILE", help="write it there, and print the verdict")
    parser.add_argument(
        "--fail-if",
        nargs="+",
        action="extend",
        default=[],
        choices=(WORSE, NOT_COMPARABLE, STALE),
        help="exit with 1 where head is worse beyond noise, cannot be compared, or is old or altered",
    )
    parser.add_argument(
        "--max-drop",
        type=_drop,
        metavar="X",
        help="exit with 1 where the accuracy dropped by more than this, 0 to 1",
    )
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every encoding has arrows
    with process.reported(failure=2):
        changes = compare(options.base, options.head)
        if options.json:
            text = json.dumps(plain(changes), indent=2, allow_nan=False) + "\n"
        else:
            from mnist.comparison import markdown

            text = markdown.render(changes)
        if options.output in (None, "-"):
            print(text, end="")
        else:
            _write(options.output, text)
            print(f"{options.output}: {changes.outcome}")
        if reason := objection(changes, fail_if=options.fail_if, max_drop=options.max_drop):
            print(f"gate: {reason}", file=sys.stderr)
            sys.exit(1)


def _write(name: str, text: str) -> None:
    """Write a file whole or not at all; what is none (a pipe, a terminal) cannot be replaced.

    Raises:
        InputError: it has no name.
    """
    if not name:
        raise InputError("--output", found="nothing", expected="the name of a file")
    path = Path(os.path.realpath(name))  # a link stays one
    if path.exists() and not path.is_file():
        Path(name).write_text(text, encoding="utf-8")
    else:
        files.write_text(path, text)


def _drop(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1")


if __name__ == "__main__":
    main()
