"""Say whether the committed results are what the committed code makes.

    python -m mnist.cli.verify

It exits with 0 where they are, with 1 where they are not, and with 2 where that could not be found out.

First, without a run, `dvc.lock` is compared with the code, params and outputs in git. Then the
pipeline runs from start to end in a temporary checkout of HEAD (see `mnist.lineage.sandbox`), and what it
makes is compared with what is committed. DVC's own word for what is up to date, and what its caches
hold of earlier runs, count for nothing, since `dvc commit` writes into both whatever lies in the
workspace. The cache is filled: a `dvc repro` afterwards takes from it what was made here.

Outputs of stages that compute on a device may differ by the machine, and are then held to the
tolerances of `mnist.lineage.compare`. The weights tell which it is: where they are equal byte for byte, the
machine is one that makes equal bytes, and everything must be equal. Other weights are another
machine's only where the training curves differ, too.

The last line begins with `holds: ` where everything is equal byte for byte. It begins with `holds
within the tolerances: ` where numbers differ as on another machine, and that is weaker: who edits
weights, curves, scores and predictions by hand, all of them and each within its tolerance, cannot be
told from another machine. So CI takes committed numbers for what the code makes, as in a comparison,
only after the first.

The report goes to stdout; what the stages print, to stderr.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist.core import config, files, paths, process
from mnist.core.config import Machine
from mnist.core.errors import InputError
from mnist.evaluation import scores, statistics
from mnist.lineage import compare, experiments, git, guarantee, lock, sandbox
from mnist.lineage.compare import Row, Side
from mnist.lineage.lock import Stage
from mnist.lineage.sandbox import Replica

NUM_LISTED = 8  # files in a message
REMEDY = "run `dvc repro --force`, and commit dvc.lock and metrics"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.verify",
        description="Are the committed results what the committed code makes?",
    )
    parser.parse_args(arguments)
    with process.reported(failure=2):
        sys.exit(not verify())


def verify() -> bool:
    """Print how the committed results compare with those made again; whether they hold.

    Raises:
        InputError: the checkout is no clean one, or its pipeline fails.
    """
    home = paths.checkout()
    _check_clean(home)
    commit = git.text("rev-parse", "HEAD", folder=home)
    with sandbox.temporary("verify") as aside:
        sandbox.lay_out(commit, aside.checkout)
        committed, stages = lock.read(aside.checkout), lock.pipeline(aside.checkout)
        doubts = [*lock.stale_reasons(stages, committed), *_contradictions(aside.checkout)]
        kept = [one for one in stages if any(out.kept_in for out in one.outs.values())]
        _say(f"commit {commit[:12]}")
        _say(*(f"  NO  {doubt}" for doubt in doubts))
        if not kept:
            found = "no stage whose outs are in git or DVC's cache"
            raise InputError(str(paths.PIPELINE), found=found, expected="one")
        others = ", ".join(one.name for one in stages if one not in kept)
        left_out = f", but not {others}: nothing of it is kept in git or DVC's cache" if others else ""
        _say(f"  running {', '.join(one.name for one in kept)} in {aside.checkout}{left_out}")
        _keep(aside, kept)
        sandbox.run(aside, [one.name for one in kept], cache=experiments.cache(home), output=sys.stderr)
        rows = _rows(aside, kept, committed, lock.read(aside.checkout))
    cells = [(row.what, row.committed, row.made, row.text) for row in rows]
    _say("", *guarantee.aligned([("what", "committed", "made again", "equal?"), *cells]), "")
    _say(_verdict(doubts, rows))
    return not doubts and all(row.answer != "NO" for row in rows)


def _say(*lines: str) -> None:
    if lines:
        print(*lines, sep="\n", flush=True)  # at once: the stages print in between


def _check_clean(home: Path) -> None:
    listed = git.text("status", "--porcelain", "--untracked-files=no", folder=home).splitlines()
    names = [line.strip().partition(" ")[2].strip() for line in listed]
    if names:
        more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
        found = f"changes that are not committed: {', '.join(names[:NUM_LISTED])}{more}"
        raise InputError("the checkout", found=found, expected="none: commit them, or `git stash`")


def _contradictions(checkout: Path) -> Iterator[str]:
    """Where the scores are not those of the predictions: that holds on every machine."""
    if not (checkout / paths.TEST_METRICS).is_file() or not (checkout / paths.PREDICTIONS).is_file():
        return
    try:
        said = config.flat(files.read_json(checkout / paths.TEST_METRICS))
        predictions = statistics.read(checkout / paths.PREDICTIONS)
    except (InputError, AttributeError):
        return  # the comparison with what is made says what they are
    names = predictions.classes
    labels_N, predicted_N = (
        np.array([names.index(name) for name in column.tolist()], np.uint8)
        for column in (predictions.labels_N, predictions.predicted_N)
    )
    certain_NK = np.eye(len(names), dtype=np.float32)[predicted_N]
    counted = config.flat(scores.score(certain_NK, labels_N).model_dump())
    for key, value in counted.items():
        # The rest depends on the probabilities.
        if key not in ("loss", "expected_calibration_error") and key in said and said[key] != value:
            yield f"{paths.TEST_METRICS}: {key} is {said[key]}, but {paths.PREDICTIONS} gives {value}"


def _keep(aside: Replica, stages: Sequence[Stage]) -> None:
    """Lay aside what git has of the outs, before the stages write theirs."""
    for path in (path for one in stages for path in one.outs):
        if (aside.checkout / path).is_file():
            copy = _copy(aside, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(aside.checkout / path, copy)


def _copy(aside: Replica, path: str) -> Path:
    return aside.folder / "committed" / path


def _rows(
    aside: Replica, stages: Sequence[Stage], committed: Mapping[str, Any], made: Mapping[str, Any]
) -> list[Row]:
    """What is committed beside what was made of the same, in the order of `dvc.yaml`."""
    sides: dict[str, tuple[Side, Side]] = {}
    for one in stages:
        was, now = (lock.digests(locked.get(one.name, {}), "outs") for locked in (committed, made))
        for path, out in one.outs.items():
            ours = out.digest if out.kept_in == "git" else was.get(path)
            sides[path] = (
                Side(digest=ours, file=_copy(aside, path)),
                Side(digest=now.get(path), file=aside.checkout / path),
            )
    moved = [one for one in stages if one.name in _by_machine(stages)]
    weights = [path for one in moved for path, out in one.outs.items() if out.kept_in == "cache"]
    is_same_machine = bool(weights) and all(
        ours.digest == theirs.digest for ours, theirs in map(sides.__getitem__, weights)
    )
    rows = []
    for one in stages:
        exact = one not in moved or is_same_machine
        compared = [compare.compare(path, *sides[path], exact=exact) for path in one.outs]
        rows += compare.settle([row for of_out in compared for row in of_out])
    return rows


def _by_machine(stages: Sequence[Stage]) -> set[str]:
    """The stages whose bytes differ by the machine: those that compute on a device, and all after them."""
    names: set[str] = set()
    reached: set[str] = set()
    while True:
        for one in stages:
            keys = {key for params in one.params.values() for key in params}
            if keys & set(Machine.model_fields) or reached & set(one.deps):
                names.add(one.name)
        made = {path for one in stages if one.name in names for path in one.outs}
        if made == reached:
            return names
        reached = made


def _verdict(doubts: Sequence[str], rows: Sequence[Row]) -> str:
    different = dict.fromkeys(row.what.partition(": ")[0] for row in rows if row.answer == "NO")
    if different:
        return f"does not hold: the committed code makes other {', '.join(different)}; {REMEDY}"
    if doubts:
        return f"does not hold: the outputs are the same, but see the lines with NO above; {REMEDY}"
    close = sum(row.answer == "close" for row in rows)
    if close:
        return (
            f"holds within the tolerances: {close} numbers differ, as on another kind of machine;"
            f" equal bytes can be had on the one that made them"
        )
    return "holds: the committed code makes every committed output, byte for byte"


if __name__ == "__main__":
    main()
