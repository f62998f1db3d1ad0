"""MLflow runs: one for each result, found by its data, params and weights, and completed from its files."""

import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from mlflow.entities import Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion

from mnist.core import paths
from mnist.core.errors import ServiceUnavailableError, printable
from mnist.evaluation.pages import Pages
from mnist.lineage.result import Result, training_info
from mnist.tracking import client, events, metrics, run_files
from mnist.tracking.client import Store
from mnist.tracking.events import COMMIT, COMMITS, DATASET, EXPERIMENTS, WEIGHTS, Point, Start
from mnist.training import history
from mnist.training.history import Epoch, Window

LOGGED_BY = "logged_by"  # tag: host, id and start of the process that logs a run while its training runs
DESCRIPTION = "mlflow.note.content"  # tag
LIVE_SECONDS = 120  # that the process which logs a training may still need after the evaluation
CLOCK_SECONDS = 5  # by which the start of one process may seem to move when the clock is set


@dataclass(frozen=True, kw_only=True)
class Logged:
    """The run of a result, its version (None below the floor), and why `challenger` stays, if it does."""

    run: Run
    version: ModelVersion | None
    is_new: bool
    stays: str


def ensure(
    store: Store, result: Result, pages: Pages, *, artifacts: Sequence[Path], folder: Path = Path()
) -> Logged:
    """Find the run of a result or make it, and log whatever is missing, its model too; may be repeated.

    The files of the result lie in `folder`; its run keeps `artifacts` of them.

    Raises:
        ServiceUnavailableError: MLflow does not answer.
        InputError: it refuses; or the ONNX file is not of these weights.
    """
    with client.answering(store.uri):
        _await_live(store, result)
        with client.lock("runs"):
            start, weights = _start(result), result.weights_sha256
            run = (
                find(store, start, weights) or _live(store, result) or begin(store, start, {WEIGHTS: weights})
            )
            _complete(store, run, result, folder)
            run_files.log(store, run, result, pages, names=artifacts, folder=folder)
            close_abandoned(store)
        version, is_new, stays = None, False, ""
        if result.is_good:
            from mnist.tracking import registry  # onnxruntime: 0.3 s

            version, is_new = registry.ensure(
                store,
                run,
                folder,
                name=result.registration.model_name,
                weights_sha256=result.weights_sha256,
                accuracy=result.accuracy,
                card=pages.card,
            )
            if result.challenger:
                stays = registry.set_challenger(store, version, time_ms=result.time_ms)
    return Logged(run=run, version=version, is_new=is_new, stays=stays)


def note_origin(store: Store, result: Result, folder: Path = Path()) -> Logged | None:
    """Add the origin of a result to its run; return it if the store has all that `ensure` would log."""
    with client.answering(store.uri):
        start = _start(result)
        run = find(store, start, result.weights_sha256)
        if run is None:
            return None
        add_origin(store, run, start.tags)
        if run.info.status != "FINISHED" or not run_files.are_whole(store, run, result):
            return None
        version = None
        if result.is_good:
            from mnist.tracking import registry

            name, weights = result.registration.model_name, result.weights_sha256
            version, is_usable = registry.find(store, folder, name=name, weights_sha256=weights)
            if not (version and is_usable and version.description):
                return None
        return Logged(run=run, version=version, is_new=False, stays="")


def find(store: Store, start: Start, weights_sha256: str) -> Run | None:
    """Return the run of a result: the finished and first one, where a machine broke off in the middle."""
    wanted = f"tags.`{WEIGHTS}` = '{weights_sha256}' and tags.{DATASET} = '{start.tags[DATASET]}'"
    runs = store.client.search_runs([store.experiment_id], wanted)
    found = [run for run in runs if _has(run, start.params)]
    return min(found, key=lambda run: (run.info.status != "FINISHED", run.info.start_time), default=None)


def started(store: Store, start: Start) -> list[Run]:
    """Return the runs that were begun at this time with these data and params."""
    wanted = f"attributes.start_time = {start.time_ms} and tags.{DATASET} = '{start.tags[DATASET]}'"
    runs = store.client.search_runs([store.experiment_id], wanted)
    return [run for run in runs if _has(run, start.params)]


def _has(run: Run, params: Mapping[str, Any]) -> bool:
    """Return whether a run has these params; one that was begun a moment ago has none of them yet."""
    return all(run.data.params.get(key, str(value)) == str(value) for key, value in params.items())


def begin(store: Store, start: Start, tags: Mapping[str, str]) -> Run:
    """Return the run that begins so, with these tags, too; it is made where it is not there."""
    all_tags = {**start.tags, **tags}
    for run in started(store, start):  # the answer to an earlier try may have been lost
        if all_tags.items() <= run.data.tags.items():
            return run
    return store.client.create_run(store.experiment_id, start.time_ms, all_tags, start.name)


def describe(store: Store, run_id: str, start: Start) -> None:
    """Log the params of a run, its data set, and then the description of its page."""
    metrics.log_datasets(store, run_id, start)
    text = f"```sh\n{start.tags['rerun']}  # run it again\n"
    text += f"mnist reproduce {run_id}  # prove that it gives the same weights\n```\n"
    params = [Param(key, str(value)) for key, value in start.params.items()]
    store.client.log_batch(run_id, params=params, tags=[RunTag(DESCRIPTION, text)])


def add_origin(store: Store, run: Run, tags: Mapping[str, str]) -> None:
    """Add the experiment and the commit of a start's tags to those that led to this run."""
    for name, added in ((EXPERIMENTS, tags.get(EXPERIMENTS)), (COMMITS, tags.get(COMMIT))):
        known = (run.data.tags.get(name) or "").split()
        if added and added not in known:
            store.client.set_tag(run.info.run_id, name, " ".join([*known, added]))


def _logged_by(run: Run) -> tuple[int, int] | None:
    """Return id and start of the process of this machine that its tag names; None without a valid tag."""
    host = re.escape(socket.gethostname())
    found = re.fullmatch(f"{host}:([0-9]{{1,10}}):([0-9]{{1,10}})", run.data.tags.get(LOGGED_BY) or "")
    return (int(found[1]), int(found[2])) if found else None


def is_logged(run: Run) -> bool:
    """Return whether a process of this machine still logs this run."""
    if run.info.status != "RUNNING" or not (process := _logged_by(run)):
        return False
    try:
        found = psutil.Process(process[0])  # perhaps a later process that got the same number
        is_same = abs(found.create_time() - process[1]) < CLOCK_SECONDS
        return bool(is_same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def close_abandoned(store: Store) -> None:
    """End the runs of this machine as KILLED whose logging process is gone."""
    wanted = f"attributes.status = 'RUNNING' and tags.{LOGGED_BY} LIKE '{socket.gethostname()}:%'"
    for run in store.client.search_runs([store.experiment_id], wanted):
        if _logged_by(run) and not is_logged(run):
            store.client.set_terminated(run.info.run_id, "KILLED")


def _live(store: Store, result: Result) -> Run | None:
    """Return the run that was begun while these weights were trained on this machine, and never finished."""
    return next(iter(unfinished(store, _start(result))), None)


def unfinished(store: Store, start: Start) -> list[Run]:
    """Return the runs that were begun so, and never finished."""
    return [
        run for run in started(store, start) if run.info.status != "FINISHED" and WEIGHTS not in run.data.tags
    ]


def _await_live(store: Store, result: Result) -> None:
    """Wait until the process that logged this training has ended its run, or is gone."""
    start, is_reported = time.monotonic(), False
    while (run := _live(store, result)) and is_logged(run):
        reason = f"run {printable(run.info.run_name)} is still being logged"
        if time.monotonic() - start > LIVE_SECONDS:
            raise ServiceUnavailableError(f"MLflow at {paths.shown(store.uri)}", reason)
        if time.monotonic() - start > client.NOTICE_SECONDS and not is_reported:
            is_reported = True
            print(f"waiting: {reason}", file=sys.stderr, flush=True)
        time.sleep(0.2)


def _start(result: Result) -> Start:
    """Return the start of a run that is made from the files of a result."""
    info = training_info(result.weights_sha256)
    return events.start(result.origin, info.facts if info else {}, info.time_ms if info else result.time_ms)


def _complete(store: Store, run: Run, result: Result, folder: Path) -> None:
    """Log the params, tags and metrics that a run does not have, and end it."""
    start, run_id = _start(result), run.info.run_id
    if DESCRIPTION not in run.data.tags:
        describe(store, run_id, start)
    add_origin(store, run, start.tags)
    tags = {**start.tags, WEIGHTS: result.weights_sha256, "test_sha256": result.test_sha256}
    missing = [RunTag(key, value) for key, value in tags.items() if key not in run.data.tags]
    store.client.log_batch(run_id, tags=missing)
    metrics.log_points(store, run_id, _points(result, folder), metrics.known_points(store, run))
    scores = events.scores(result)
    if not scores.values.items() <= run.data.metrics.items():
        metrics.log_points(store, run_id, [scores])
    if run.info.status != "FINISHED":
        store.client.set_terminated(run_id, "FINISHED", end_time=max(result.time_ms, run.info.start_time))


def _points(result: Result, folder: Path) -> list[Point]:
    """Return the curves of a result, from its files."""
    rows: list[Window | Epoch]
    rows = [*history.read(folder / paths.STEPS, Window), *history.read(folder / paths.HISTORY, Epoch)]
    points = [events.point(row, result.time_ms) for row in rows]
    if info := training_info(result.weights_sha256):
        points.append(Point(time_ms=result.time_ms, step=0, values={events.SECONDS: info.seconds}))
    return points
