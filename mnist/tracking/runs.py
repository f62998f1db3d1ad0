"""MLflow runs: one for each result, found by its data, params and weights, and completed from its files."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion

from mnist.core import files, paths
from mnist.core.errors import ServiceUnavailableError
from mnist.evaluation.pages import Pages
from mnist.lineage.result import Result, training_info
from mnist.tracking import client, events, log
from mnist.tracking.client import EVALUATED, WEIGHTS, Store
from mnist.tracking.events import Point, Start
from mnist.training import history
from mnist.training.history import Epoch, Window

PATCH, CARD = "dirty.patch", "model-card.md"  # among the files of a run
LIVE_SECONDS = 120  # that the process which logs a training may still need after the evaluation


@dataclass(frozen=True, kw_only=True)
class Logged:
    """The run and the model version of a result.

    Attributes:
        run: its run.
        version: of its model; None below the floor.
        is_new: whether the version was made just now.
    """

    run: Run
    version: ModelVersion | None
    is_new: bool


def ensure(
    store: Store,
    result: Result,
    pages: Pages,
    *,
    artifacts: Sequence[Path] = paths.ARTIFACTS,
    folder: Path = Path(),
    checked: bool = True,
) -> Logged:
    """Find the run of a result or make it, and log whatever is missing, its model too; may be repeated.

    Args:
        store: where runs and models are.
        result: whose files lie in `folder`.
        pages: that describe it.
        artifacts: the files that its run keeps.
        folder: the root of a checkout.
        checked: whether the weights are known to be of this code's network; otherwise they are scored.

    Raises:
        ServiceUnavailableError: MLflow does not answer.
        InputError: it refuses; or the weights are those of other code.
    """
    with client.answering(store.uri):
        _await_live(store, result)
        with client.lock("runs"):
            run = _of_result(store, result)
            _complete(store, run, result, folder)
            _log_files(store, run, result, pages, artifacts=artifacts, folder=folder)
            _finish(store, run, result)
            log.close_abandoned(store)
        version, is_new = None, False
        if result.is_good:
            from mnist.tracking import registry  # torch: 2 s
            from mnist.training import model

            classifier = model.load(folder / paths.WEIGHTS)
            if not checked:
                registry.check_code(result, classifier, folder)
            version, is_new = registry.ensure(
                store,
                run,
                classifier,
                name=result.registration.model_name,
                weights_sha256=result.weights_sha256,
                accuracy=result.accuracy,
                card=pages.card,
            )
            if result.challenger:
                registry.set_challenger(store, version, time_ms=result.time_ms)
    return Logged(run=run, version=version, is_new=is_new)


def is_complete(store: Store, result: Result) -> bool:
    """Return whether the store has all that `ensure` would log."""
    with client.answering(store.uri):
        run = _found(store, result)
        if run is None or run.info.status != "FINISHED":
            return False
        if run.data.tags.get(EVALUATED) != result.evaluation_sha256 or not _has_report(store, run):
            return False
        log.note(store, run, _start(result).tags)
        if not result.is_good:
            return True
        from mnist.tracking import registry

        version = registry.find(store, result.registration.model_name, result.weights_sha256)
        return version is not None and registry.is_whole(store, version)


def _found(store: Store, result: Result, view: int = ViewType.ACTIVE_ONLY) -> Run | None:
    origin = result.origin
    return log.find(store, origin.dataset_sha256, origin.params, result.weights_sha256, view)


def _of_result(store: Store, result: Result) -> Run:
    """Find the run of a result, or bring it back from MLflow's bin, or take its training's, or make it."""
    run = _found(store, result) or _live(store, result)
    if run is None and (run := _found(store, result, ViewType.DELETED_ONLY)):
        store.client.restore_run(run.info.run_id)
    run_id = run.info.run_id if run else log.begin(store, _start(result), {WEIGHTS: result.weights_sha256})
    return store.client.get_run(run_id)


def _start(result: Result) -> Start:
    """Return the start of a run that is made from the files of a result."""
    info = training_info(result.weights_sha256)
    facts = info.facts if info else {"rebuilt": "from files"}
    return events.start(result.origin, facts, info.time_ms if info else result.time_ms)


def note_origin(store: Store, result: Result) -> None:
    """Add the experiment and the commit of a result to those of its run, where there is one."""
    with client.answering(store.uri):
        if run := _found(store, result):
            log.note(store, run, _start(result).tags)


def _live(store: Store, result: Result) -> Run | None:
    """Return the run that was begun while these weights were trained on this machine, and never finished."""
    if training_info(result.weights_sha256):
        for run in log.started(store, _start(result)):
            if run.info.status != "FINISHED" and WEIGHTS not in run.data.tags:
                return run
    return None


def _await_live(store: Store, result: Result) -> None:
    """Wait until the process that logged this training has ended its run, or is gone."""
    deadline = time.monotonic() + LIVE_SECONDS
    while (run := _live(store, result)) and log.is_logged(run):
        if time.monotonic() > deadline:
            where = f"MLflow at {paths.shown(store.uri)}"
            raise ServiceUnavailableError(where, f"run {run.info.run_name} is still being logged")
        time.sleep(0.2)


def _complete(store: Store, run: Run, result: Result, folder: Path) -> None:
    """Log the tags, params, points and data sets that a run does not have."""
    start, run_id = _start(result), run.info.run_id
    if log.DESCRIPTION not in run.data.tags:
        log.describe(store, run_id, start)
    log.inputs(store, run_id, start, "train", "test")
    log.note(store, run, start.tags)
    tags = {**start.tags, WEIGHTS: result.weights_sha256, "test_sha256": result.test_sha256}
    missing = [RunTag(key, value) for key, value in tags.items() if key not in run.data.tags]
    store.client.log_batch(run_id, tags=missing)
    log.points(store, run_id, _missing_points(store, run, result, folder))


def _missing_points(store: Store, run: Run, result: Result, folder: Path) -> list[Point]:
    """Return the points of the files that a run does not have: of curves, by their steps."""
    info, time_ms = training_info(result.weights_sha256), result.time_ms
    rows: list[Window | Epoch] = [
        *history.read(folder / paths.STEPS, Window),
        *history.read(folder / paths.HISTORY, Epoch),
    ]
    points = [events.point(row, time_ms) for row in rows]
    if info:
        points.append(Point(time_ms=time_ms, step=0, values={"training_seconds": info.seconds}))
    known = {
        (key, metric.step)
        for key in {key for point in points for key in point.values} & run.data.metrics.keys()
        for metric in store.client.get_metric_history(run.info.run_id, key)
    }
    scores = {name: value for name, value in result.metrics.items() if run.data.metrics.get(name) != value}
    missing = [
        Point(
            time_ms=time_ms,
            step=point.step,
            values={key: value for key, value in point.values.items() if (key, point.step) not in known},
        )
        for point in points
    ]
    return [*missing, Point(time_ms=time_ms, step=0, values=scores)]


def _log_files(
    store: Store, run: Run, result: Result, pages: Pages, *, artifacts: Sequence[Path], folder: Path
) -> None:
    """Log the files of a result, its pages, and what was not committed.

    One result may come from several commits and experiments: a run that has the files of this evaluation
    keeps them, so that its report is about the commit and the patch of its tags.
    """
    if run.data.tags.get(EVALUATED) == result.evaluation_sha256 and _has_report(store, run):
        return
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(temporary)
        for name in artifacts:
            if not (folder / name).is_file():
                raise files.missing(name)
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (kept / name).symlink_to((folder / name).resolve())
        files.write_text(kept / paths.REPORT, pages.report)
        files.write_text(kept / CARD, pages.card)
        patch = result.origin.source.patch
        if patch and run.data.tags.get("fingerprint") == result.origin.fingerprint:
            (kept / PATCH).write_bytes(patch.encode(errors="surrogateescape"))
        store.client.log_artifacts(run.info.run_id, str(kept))


def _finish(store: Store, run: Run, result: Result) -> None:
    """End a run that is not finished; its tag `EVALUATED` comes last: a run with it has all the rest."""
    if run.info.status != "FINISHED":
        end_time = max(result.time_ms, run.info.start_time)
        store.client.set_terminated(run.info.run_id, "FINISHED", end_time=end_time)
    store.client.set_tag(run.info.run_id, EVALUATED, result.evaluation_sha256)


def _has_report(store: Store, run: Run) -> bool:
    """Return whether the files of a run are there: the folder of artifacts may be lost, and the store not."""
    folder = str(paths.REPORT.parent)
    return str(paths.REPORT) in {file.path for file in store.client.list_artifacts(run.info.run_id, folder)}
