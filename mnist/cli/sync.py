"""Log to MLflow every result that git and DVC's cache know."""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mnist.core import config, custody, files, paths
from mnist.core.config import Registration
from mnist.core.errors import InputError, ServiceUnavailableError, printable
from mnist.evaluation import pages, results
from mnist.lineage import experiments, lock
from mnist.lineage.experiments import Revision
from mnist.lineage.result import Result

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from mnist.tracking.client import Store

    Seen = dict[str, ModelVersion | None]  # the registered model by the identity of a result


@click.command()
def sync() -> None:
    """Log to MLflow every result that git and DVC's cache know.

    These are the results of the workspace, of the local branches, and of the DVC experiments. What MLflow
    has already is left alone, so the command may be repeated. A store without a champion gets the recorded
    one again. Exit status 1 if anything was left out.

    \b
    Examples:
      mnist sync                                        # MLflow did not answer
      MLFLOW_TRACKING_URI=http://host:5000 mnist sync   # fill a new server
    """
    from mnist.tracking import champion, client, runs

    store = client.connect()
    past = experiments.every(paths.checkout())
    # The newest first: where the same weights were evaluated twice, by other code, that one counts.
    seen: dict[str, ModelVersion | None] = {}
    num_left = int(not _sync_workspace(store, past, seen))
    with files.temporary("sync") as kept:
        for revision in past:
            num_left += not _sync_revision(store, revision, seen, kept)
    with client.answering(store.uri):
        runs.close_abandoned(store)
        champion.restore(store, [version for version in seen.values() if version])
    kinds = Counter(revision.kind for revision in past)
    looked = f"looked at {kinds['experiment']} experiments, {kinds['branch']} branches and the workspace"
    outcome = f"{num_left} of these left out" if num_left else "MLflow has all results that are here"
    print(f"sync: {looked}; {outcome}")
    sys.exit(1 if num_left else 0)


def _sync_workspace(store: "Store", past: Sequence[Revision], seen: "Seen") -> bool:
    """Log the result that lies in the workspace, where it is what `dvc.lock` states; False if it is left out.

    Where an experiment was applied, and not committed since, the run gets its name: `mnist best` prints it.
    """
    try:
        lock.check(Path())
        custody.check("register")
        here = paths.LOCK.read_bytes()
        locks = experiments.contents(paths.checkout(), past, paths.LOCK)
        same = [revision for revision, text in zip(past, locks, strict=True) if text == here]
        is_applied = bool(same) and all(revision.kind == "experiment" for revision in same)
        made_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
        source = same[0].source if is_applied else None
        result = results.load(_registration(Path()), challenger=True, source=source, time_ms=made_ms)
    except InputError as error:
        # Edited since, or never run: `dvc repro` makes a result of it, and logs it.
        print(f"sync: the workspace left out: {error}")
        return False
    return _sync(store, "workspace", result, Path(), seen)


def _sync_revision(store: "Store", revision: Revision, seen: "Seen", kept: Path) -> bool:
    """Log the result of an experiment or a branch; False if it is left out.

    `seen` are the results of newer revisions, `kept` is a folder for files that revisions share.
    """
    name, time_ms = f"{revision.kind} {revision.name}", revision.time_ms
    with tempfile.TemporaryDirectory(dir=kept) as temporary:
        folder = Path(temporary)
        try:
            experiments.restore(paths.checkout(), revision, folder, kept=kept)
            lock.check(folder)
            custody.check("register", folder)
            where, source = _registration(folder), revision.source
            result = results.load(where, challenger=False, folder=folder, source=source, time_ms=time_ms)
        except InputError as error:
            print(f"sync: {name} left out: {error}")
            return False
        return _sync(store, name, result, folder, seen)


def _registration(folder: Path) -> Registration:
    """Read the only section of `params.yaml` that is checked: a revision may have other keys beside it."""
    registry = config.read_keys(folder, paths.PARAMS).get("registry")
    return config.check(config.Registry, registry, f"{paths.PARAMS}: registry")


def _sync(store: "Store", name: str, result: Result, folder: Path, seen: "Seen") -> bool:
    """Log a result whose files lie in `folder`, unless it is `seen` or MLflow has it; False if that fails."""
    from mnist.tracking import runs

    origin = result.origin
    identity = json.dumps([origin.dataset_sha256, origin.params, result.weights_sha256], sort_keys=True)
    is_seen = identity in seen
    seen.setdefault(identity, None)
    try:
        logged = runs.note_origin(store, result, folder)
        if not logged and not is_seen:
            rendered = pages.render(result, folder=folder)
            # Another revision may have other files; those that the pages are made of are checked.
            artifacts = [path for path in paths.ARTIFACTS if (folder / path).is_file()]
            logged = runs.ensure(store, result, rendered, artifacts=artifacts, folder=folder)
            print(f"sync: {name} is logged, as run {printable(logged.run.info.run_name)}")
    except ServiceUnavailableError:
        raise
    except InputError as error:
        print(f"sync: {name} left out: {error}")
        return False
    if logged:
        seen[identity] = logged.version
    return True
