"""Bring MLflow's store up to date: what waits in the spool, and the results that it has never seen.

    python -m mnist.cli.sync

A result is one of a DVC experiment, of a local branch, or of the workspace. One that has its run
is left alone, so a second call changes nothing. `train` uses `--follow`.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist.core import config, paths, process
from mnist.core.config import Registration
from mnist.core.errors import AwayError, InputError
from mnist.evaluation import results
from mnist.evaluation.results import Result
from mnist.tracking import journal

if TYPE_CHECKING:
    from mnist.lineage.experiments import Revision
    from mnist.tracking.client import Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell MLflow what it has not been told; exits with 1 where something could not be told."""
    parser = argparse.ArgumentParser(prog="python -m mnist.cli.sync", description="Bring MLflow up to date.")
    parser.add_argument("--follow", type=Path, metavar="ENTRY", help="send one journal while it is written")
    options = parser.parse_args(arguments)
    with process.reported():
        if options.follow:
            from mnist.tracking import courier

            courier.follow(options.follow)
            process.leave()  # `train` waits for it
        else:
            sys.exit(1 if reconcile() else 0)


def reconcile() -> int:
    """Tell MLflow all of it, print what was told, and return how much could not be.

    Raises:
        InputError: the store does not answer, or this is no checkout.
    """
    from mnist.lineage import experiments
    from mnist.tracking import client, delivery

    store = client.connect()
    num_left = delivery.deliver_waiting(store, say=lambda line: print(f"reconcile: {line}"))
    past = experiments.every(paths.checkout())
    # The newest first: where the same weights were evaluated twice, by other code, that one counts.
    seen = set()
    if here := _workspace():
        seen.add(_key(here))
        num_left += not _tell(store, "workspace", here, Path())
    with tempfile.TemporaryDirectory() as kept:
        for revision in past:
            num_left += not _tell_revision(store, revision, seen, Path(kept))
    kinds = Counter(revision.kind for revision in past)
    looked = f"looked at {kinds['experiment']} experiments, {kinds['branch']} branches and the workspace"
    outcome = f"{num_left} left out" if num_left else "MLflow knows all results that are here"
    print(f"reconcile: {looked}; {outcome}")
    return num_left


def _workspace() -> Result | None:
    """The result that lies in the workspace, where it is what `dvc.lock` says."""
    from mnist.lineage import lock

    try:
        lock.check(Path())
        made_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
        return results.gather(_registration(Path()), challenger=True, time_ms=made_ms)
    except InputError:
        return None  # edited since, or never run: `dvc repro` makes a result of it, and tells it


def _key(result: Result) -> tuple[str, str]:
    return result.origin.fingerprint, result.weights_sha256


def _tell_revision(store: "Store", revision: "Revision", seen: set[tuple[str, str]], kept: Path) -> bool:
    """Tell the result of a revision; False where an experiment has one that cannot be told.

    Args:
        store: that is told.
        revision: an experiment or a branch.
        seen: results that were looked at before, of newer revisions.
        kept: a folder for files that revisions share.
    """
    from mnist.lineage import experiments, lock
    from mnist.tracking import client

    name = f"{revision.kind} {revision.name}"
    with tempfile.TemporaryDirectory(dir=kept) as temporary:
        folder = Path(temporary)
        try:
            experiments.restore(paths.checkout(), revision, folder, kept=kept)
            lock.check(folder)
            result = results.gather(
                _registration(folder),
                challenger=False,
                folder=folder,
                where=revision.source,
                time_ms=revision.time_ms,
            )
        except InputError as error:
            # A branch need not hold a result of its own code: people commit before they run.
            print(f"reconcile: {name} left out: {error}")
            return revision.kind == "branch"
        if _key(result) in seen:
            with client.answering(store.uri):
                if run := client.find(store, *_key(result)):
                    client.note(store, run, result.origin.source.experiment)
            return True
        seen.add(_key(result))
        return _tell(store, name, result, folder)


def _registration(folder: Path) -> Registration:
    """The only section of `params.yaml` that is checked: an old revision may have other keys beside it."""
    registry = config.read_keys(folder, paths.PARAMS).get("registry")
    return config.check(config.Registry, registry, f"{paths.PARAMS}: registry")


def _tell(store: "Store", name: str, result: Result, folder: Path) -> bool:
    """Tell a result whose files lie in `folder`, unless the store has it; False where that fails."""
    from mnist.lineage import lock
    from mnist.tracking import delivery

    if delivery.is_complete(store, result):
        return True
    with journal.new_entry("result", journal.SENDER_LOCK) as entry:
        try:
            results.write(entry, result, artifacts=lock.kept(folder), folder=folder)
            run = delivery.tell(store, entry, dataset=folder / paths.DATASET).run
        except AwayError:
            raise
        except InputError as error:
            journal.remove_entry(entry)  # it is in git and in the cache
            print(f"reconcile: {name} left out: {error}")
            return False
    print(f"reconcile: {name} is told, as run {run.info.run_name}")
    return True


if __name__ == "__main__":
    main()
