"""Log to MLflow every result that git and DVC's cache know."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mnist.core import config, paths
from mnist.core.config import Registration
from mnist.core.errors import InputError, ServiceUnavailableError
from mnist.evaluation import pages, results
from mnist.lineage.result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mnist.lineage.experiments import Revision
    from mnist.tracking.client import Store


@click.command()
def sync() -> None:
    """Log to MLflow every result that git and DVC's cache know.

    These are the results of the workspace, of the local branches, and of the DVC experiments. What MLflow
    has already is left alone, so the command may be repeated. Exit status 1 if a result was left out.

    \b
    Examples:
      mnist sync                                        # MLflow did not answer
      MLFLOW_TRACKING_URI=http://host:5000 mnist sync   # fill a new server
    """
    from mnist.lineage import experiments
    from mnist.tracking import client, log

    store = client.connect()
    past = experiments.every(paths.checkout())
    # The newest first: where the same weights were evaluated twice, by other code, that one counts.
    seen, num_left = set(), 0
    if here := _workspace(past):
        seen.add(_identity(here))
        num_left += not _ensure(store, "workspace", here, Path())
    with tempfile.TemporaryDirectory() as kept:
        for revision in past:
            num_left += not _ensure_revision(store, revision, seen, Path(kept))
    with client.answering(store.uri):
        log.close_abandoned(store)
    kinds = Counter(revision.kind for revision in past)
    looked = f"looked at {kinds['experiment']} experiments, {kinds['branch']} branches and the workspace"
    outcome = f"{num_left} left out" if num_left else "MLflow has all results that are here"
    print(f"sync: {looked}; {outcome}")
    sys.exit(1 if num_left else 0)


def _workspace(past: "Sequence[Revision]") -> Result | None:
    """Return the result that lies in the workspace, where it is what `dvc.lock` states.

    Where an experiment was applied, and not committed since, the run gets its name: `mnist best` prints it.
    """
    from mnist.lineage import experiments, lock

    try:
        lock.check(Path())
        here = paths.LOCK.read_bytes()
        locks = experiments.contents(paths.checkout(), past, paths.LOCK)
        same = [revision for revision, text in zip(past, locks, strict=True) if text == here]
        is_applied = bool(same) and all(revision.kind == "experiment" for revision in same)
        made_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
        source = same[0].source if is_applied else None
        return results.load(_registration(Path()), challenger=True, source=source, time_ms=made_ms)
    except InputError as error:
        # Edited since, or never run: `dvc repro` makes a result of it, and logs it.
        print(f"sync: the workspace left out: {error}")
        return None


def _identity(result: Result) -> tuple[str, str, str]:
    origin = result.origin
    return origin.dataset_sha256, json.dumps(origin.params, sort_keys=True), result.weights_sha256


def _ensure_revision(
    store: "Store", revision: "Revision", seen: set[tuple[str, str, str]], kept: Path
) -> bool:
    """Log the result of a revision; False where an experiment has one that cannot be logged.

    Args:
        store: that it is logged to.
        revision: an experiment or a branch.
        seen: results of newer revisions.
        kept: a folder for files that revisions share.
    """
    from mnist.lineage import experiments, lock
    from mnist.tracking import runs

    name = f"{revision.kind} {revision.name}"
    with tempfile.TemporaryDirectory(dir=kept) as temporary:
        folder = Path(temporary)
        try:
            experiments.restore(paths.checkout(), revision, folder, kept=kept)
            lock.check(folder)
            result = results.load(
                _registration(folder),
                challenger=False,
                folder=folder,
                source=revision.source,
                time_ms=revision.time_ms,
            )
        except InputError as error:
            # A branch need not hold a result of its own code: people commit before they run.
            print(f"sync: {name} left out: {error}")
            return revision.kind == "branch"
        if _identity(result) in seen:
            runs.note_origin(store, result)
            return True
        seen.add(_identity(result))
        return _ensure(store, name, result, folder)


def _registration(folder: Path) -> Registration:
    """Read the only section of `params.yaml` that is checked: a revision may have other keys beside it."""
    registry = config.read_keys(folder, paths.PARAMS).get("registry")
    return config.check(config.Registry, registry, f"{paths.PARAMS}: registry")


def _ensure(store: "Store", name: str, result: Result, folder: Path) -> bool:
    """Log a result whose files lie in `folder`, unless MLflow has it; False where that fails."""
    from mnist.tracking import runs

    if runs.is_complete(store, result):
        return True
    try:
        rendered = pages.render(result, folder=folder)
        # Another revision may have other files; those that the pages are made of are checked.
        artifacts = [path for path in paths.ARTIFACTS if (folder / path).is_file()]
        run = runs.ensure(store, result, rendered, artifacts=artifacts, folder=folder, checked=False).run
    except ServiceUnavailableError:
        raise
    except InputError as error:
        print(f"sync: {name} left out: {error}")
        return False
    print(f"sync: {name} is logged, as run {run.info.run_name}")
    return True
