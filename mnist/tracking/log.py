"""Runs of the store as a training needs them: found, begun, given points and names, ended."""

import json
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType

from mnist.core import paths
from mnist.data.store import SplitName
from mnist.lineage import fingerprint
from mnist.tracking.client import EXPERIMENTS, WEIGHTS, Store
from mnist.tracking.events import Point, Start

COMMITS = "git.commits"  # tag: of the code that led to a run
LOGGED_BY = "logged_by"  # tag: host and id of the process that logs a run while its training runs
DESCRIPTION = "mlflow.note.content"
MAX_BATCH = 1000  # metrics that MLflow takes in one request


def find(
    store: Store,
    dataset_sha256: str,
    params: Mapping[str, Any],
    weights_sha256: str,
    view: int = ViewType.ACTIVE_ONLY,
) -> Run | None:
    """Return the run of a result: the finished and first one, where a machine broke off in the middle."""
    wanted = f"tags.`{WEIGHTS}` = '{weights_sha256}' and tags.dataset_sha256 = '{dataset_sha256}'"
    runs = store.client.search_runs([store.experiment_id], wanted, run_view_type=view)
    found = [run for run in runs if _has(run, params)]
    found.sort(key=lambda run: (run.info.status != "FINISHED", run.info.start_time))
    return found[0] if found else None


def started(store: Store, start: Start) -> list[Run]:
    """Return the runs that were begun at this time with these data and params."""
    data = start.tags["dataset_sha256"]
    wanted = f"attributes.start_time = {start.time_ms} and tags.dataset_sha256 = '{data}'"
    runs = store.client.search_runs([store.experiment_id], wanted)
    return [run for run in runs if _has(run, start.params)]


def _has(run: Run, params: Mapping[str, Any]) -> bool:
    """Return whether a run has these params; one that was begun a moment ago has none of them yet."""
    return all(run.data.params.get(key, str(value)) == str(value) for key, value in params.items())


def begin(store: Store, start: Start, tags: Mapping[str, str]) -> str:
    """Return the id of the run that begins so, with these tags, too; it is made where it is not there."""
    all_tags = {**start.tags, **tags}
    for run in started(store, start):  # the answer to an earlier try may have been lost
        if all_tags.items() <= run.data.tags.items():
            return str(run.info.run_id)
    run = store.client.create_run(store.experiment_id, start.time_ms, all_tags, start.name)
    return str(run.info.run_id)


def describe(store: Store, run_id: str, start: Start) -> None:
    """Log the params of a run, and the description of its page."""
    text = f"```sh\n{start.tags['rerun']}  # run it again\n"
    text += f"mnist reproduce {run_id}  # prove that it gives the same weights\n```\n"
    params = [Param(key, str(value)) for key, value in start.params.items()]
    store.client.log_batch(run_id, params=params, tags=[RunTag(DESCRIPTION, text)])


def points(store: Store, run_id: str, some: Iterable[Point]) -> None:
    """Add points to the curves of a run; MLflow keeps equal ones once."""
    metrics = [
        Metric(key, value, point.time_ms, point.step) for point in some for key, value in point.values.items()
    ]
    for first in range(0, len(metrics), MAX_BATCH):
        store.client.log_batch(run_id, metrics=metrics[first : first + MAX_BATCH])


def note(store: Store, run: Run, tags: Mapping[str, str]) -> None:
    """Add the experiment and the commit of a start's tags to those that led to this run."""
    now = run.data.tags
    for name, added in (
        (EXPERIMENTS, tags.get(EXPERIMENTS)),
        (COMMITS, tags.get("mlflow.source.git.commit")),
    ):
        known = now.get(name, "").split()
        if added and added not in known:
            store.client.set_tag(run.info.run_id, name, " ".join([*known, added]))


def close_abandoned(store: Store) -> None:
    """End the runs of this machine as KILLED whose logging process is gone."""
    host = f"{socket.gethostname()}:"
    wanted = f"attributes.status = 'RUNNING' and tags.{LOGGED_BY} LIKE '{host}%'"
    for run in store.client.search_runs([store.experiment_id], wanted):
        if not is_logged(run):
            store.client.set_terminated(run.info.run_id, "KILLED")


def is_logged(run: Run) -> bool:
    """Return whether a process of this machine still logs this run."""
    host, _, number = run.data.tags.get(LOGGED_BY, "").rpartition(":")
    if run.info.status != "RUNNING" or host != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def inputs(store: Store, run_id: str, start: Start, *splits: SplitName) -> None:
    """Log splits of the data set as inputs of a run."""
    name, data = fingerprint.dataset_of(start.params), start.tags["dataset_sha256"]
    where = json.dumps({"uri": str(paths.DATASET)})
    datasets = []
    for split in splits:
        context = {"train": "training", "test": "testing"}[split]
        # MLflow shows a digest of at most 36 characters, and one context for one name and digest.
        dataset = Dataset(name=f"{name}-{split}", digest=data[:36], source_type="local", source=where)
        datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    store.client.log_inputs(run_id, datasets)
