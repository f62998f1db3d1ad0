"""Compare two revisions: what changed, whether it is better, and how sure that is.

    python -m tools.metric_diff [BASE] [--head REV] [--json] [--output FILE]
                                [--fail-if {worse,not-comparable} ...] [--max-drop X]

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
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist import files, paths, stage
from mnist.errors import InputError

if TYPE_CHECKING:
    from mnist.changes import Changes, ClassChange, Images
    from mnist.snapshots import Snapshot
    from mnist.tracking import Store

WORKSPACE = "workspace"  # `snapshots.WORKSPACE`, without its import of DVC
WORSE, NOT_COMPARABLE = "worse", "not-comparable"


def compare(base: str, head: str) -> "Changes":
    """Compare two revisions of this checkout, with the training times that MLflow knows.

    Raises:
        InputError: a revision is unknown, or there is no metric on either side.
    """
    # Opening MLflow's store takes as long as reading the revisions: another process does it meanwhile.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) if _has_store() else nullcontext() as clerk:
        if clerk:
            clerk.submit(_open)
        with stage.heavy_imports():
            from mnist import changes, snapshots
        before, after = snapshots.read([base, head], paths.checkout())
        _check(before, after)
        wanted = [_evaluation_sha256(side) for side in (before, after)]
        base_timing, head_timing = clerk.submit(_timings, wanted).result() if clerk else (None, None)
    return changes.between(
        before,
        after,
        base_timing=changes.Timing(*base_timing) if base_timing else None,
        head_timing=changes.Timing(*head_timing) if head_timing else None,
    )


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
    from mnist import results

    if snapshot.evaluation is None:
        return None
    return results.evaluation_sha256(
        *(hashlib.sha256(content).hexdigest() for content in snapshot.evaluation)
    )


# What follows runs in the other process. It returns plain values: both sides import the class of
# what is sent between them.


@cache
def _store() -> "Store | InputError":
    """MLflow's store, or why there is none: a server that hangs is waited for once."""
    with stage.heavy_imports():
        from mnist import tracking
    try:
        return tracking.connect()
    except InputError as error:
        return error


def _open() -> None:
    _store()  # for later; what it returns does not fit through the pipe


def _timings(evaluations: Sequence[str | None]) -> list[tuple[float, str] | None]:
    """Seconds that the trainings of these results took, and on what device; None where nobody knows.

    Where MLflow does not answer the report does without, and a line says so.
    """
    store = _store()
    try:
        if isinstance(store, InputError):
            raise store
        return [_timing(store, evaluation) if evaluation else None for evaluation in evaluations]
    except InputError as error:
        print(f"no training seconds: {error}", file=sys.stderr)
        return [None for _ in evaluations]


def _timing(store: "Store", evaluation: str) -> tuple[float, str] | None:
    from mnist import tracking

    with tracking.answering(store.uri):
        run = tracking.evaluated(store, evaluation)
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
    if NOT_COMPARABLE in fail_if and changes.images is None:
        return f"not comparable: {changes.reason}"
    if max_drop is not None and changes.images and changes.images.drop > max_drop:
        return f"the accuracy dropped by {changes.images.drop:.6g}, more than {max_drop:g}"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or write the report, then let the gates decide."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.metric_diff", description="Compare two revisions, with a verdict."
    )
    revision = "branch, tag, commit or DVC experiment"
    parser.add_argument("base", nargs="?", default="main", help=f"{revision} (default: main)")
    parser.add_argument("--head", default=WORKSPACE, help=f"{revision} (default: the workspace)")
    parser.add_argument("--json", action="store_true", help="all of it as JSON, instead of Markdown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there, and print the verdict")
    parser.add_argument(
        "--fail-if",
        nargs="+",
        action="extend",
        default=[],
        choices=(WORSE, NOT_COMPARABLE),
        help="exit with 1 where head is worse beyond noise, or cannot be compared",
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
    with stage.reported(failure=2):
        changes = compare(options.base, options.head)
        if options.json:
            text = json.dumps(plain(changes), indent=2, allow_nan=False) + "\n"
        else:
            from mnist import markdown

            text = markdown.render(changes)
        if options.output:
            files.write_text(options.output, text)
            print(f"{options.output}: {changes.outcome}")
        else:
            print(text, end="")
        if reason := objection(changes, fail_if=options.fail_if, max_drop=options.max_drop):
            print(f"gate: {reason}", file=sys.stderr)
            sys.exit(1)


def _drop(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1")


if __name__ == "__main__":
    main()
