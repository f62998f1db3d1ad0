"""Bring MLflow's store up to date: what waits in the spool, and the results that it has never seen.

    python -m tools.reconcile

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

from filelock import FileLock

from mnist import files, identity, journal, params, paths, results, stage
from mnist.errors import AwayError, InputError
from mnist.identity import Training

if TYPE_CHECKING:
    from mnist.revisions import Revision
    from mnist.tracking import Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell MLflow what it has not been told; exits with 1 where something could not be told."""
    parser = argparse.ArgumentParser(prog="python -m tools.reconcile", description="Bring MLflow up to date.")
    parser.add_argument("--follow", type=Path, metavar="ENTRY", help="send one journal while it is written")
    options = parser.parse_args(arguments)
    with stage.reported():
        if options.follow:
            with stage.heavy_imports():
                from mnist import courier
            courier.follow(options.follow)
        else:
            sys.exit(1 if reconcile() else 0)


def reconcile() -> int:
    """Tell MLflow all of it, print what was told, and return how much could not be.

    Raises:
        InputError: the store does not answer, or this is no checkout.
    """
    with stage.heavy_imports():
        from mnist import delivery, revisions, tracking

    store = tracking.connect()
    num_left = delivery.deliver_waiting(store, say=lambda line: print(f"reconcile: {line}"))
    with tracking.answering(store.uri):
        told = tracking.told_experiments(store)
    here = _workspace()
    past = revisions.every(paths.checkout())
    for revision in past:
        if revision.name not in told or revision.kind == "branch":
            num_left += not _tell_revision(store, revision, here)
    if here:
        made_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
        _tell(store, "workspace", Path(), here, time_ms=made_ms, challenger=True)
    kinds = Counter(revision.kind for revision in past)
    looked = f"looked at {kinds['experiment']} experiments, {kinds['branch']} branches and the workspace"
    print(f"reconcile: {looked}; {f'{num_left} left out' if num_left else 'MLflow knows all their results'}")
    return num_left


def _workspace() -> Training | None:
    """The training whose result lies in the workspace, where it is what `dvc.lock` says."""
    from mnist import revisions

    try:
        revisions.check(Path())
        return identity.of_training()
    except InputError:
        return None  # edited since, or never run: `dvc repro` makes a result of it, and tells it


def _tell_revision(store: "Store", revision: "Revision", here: Training | None) -> bool:
    """Tell the result of a revision; False where an experiment has one that cannot be had."""
    from mnist import revisions

    name = f"{revision.kind} {revision.name}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            revisions.restore(paths.checkout(), revision, folder)
            revisions.check(folder)
            training = identity.of_training(folder, where=revision.source)
            is_here = here is not None and here.fingerprint == training.fingerprint
            _tell(store, name, folder, training, time_ms=revision.time_ms, challenger=is_here)
        except AwayError:
            raise
        except InputError as error:
            # A branch need not hold a result of its own code: people commit before they run.
            print(f"reconcile: {name} left out: {error}")
            return revision.kind == "branch"
    return True


def _tell(
    store: "Store", name: str, folder: Path, training: Training, *, time_ms: int, challenger: bool
) -> None:
    from mnist import delivery, tracking

    with tracking.answering(store.uri):
        known = tracking.find(store, training.fingerprint, files.sha256(folder / paths.WEIGHTS))
        if known and "test_accuracy" in known.data.metrics:
            tracking.note(store, known, training.source.experiment)
            return
    registry = identity.read_yaml(folder / paths.PARAMS).get("registry")
    entry = journal.new_entry("result")
    with FileLock(entry / journal.SENDER_LOCK):
        results.write(
            entry,
            training,
            params.check(params.Registry, registry, f"{paths.PARAMS}: registry"),
            artifacts=paths.ARTIFACTS,
            challenger=challenger,
            folder=folder,
            time_ms=time_ms,
        )
        run = delivery.tell(store, entry).run
    print(f"reconcile: {name} is told, as run {run.info.run_name}")


if __name__ == "__main__":
    main()
