"""Runs in a real store: one for each result, found by what determined it, completed from its files."""

import dataclasses
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from mnist.core import paths
from mnist.core.config import Registration
from mnist.core.errors import InputError, ServiceUnavailableError
from mnist.evaluation.pages import Pages
from mnist.lineage.result import Result, TrainingInfo
from mnist.tracking import client, events, metrics, record, run_files, runs
from mnist.tracking.client import Store
from mnist.tracking.events import Point
from mnist.tracking.live import this_process
from tests.made_result import SOURCE, Made

ARTIFACTS = (paths.TEST_METRICS, paths.STEPS)
CURVE = [(50, 2.0), (100, 1.5)]


@pytest.fixture
def store(store_folder: Path) -> Store:
    assert store_folder
    return client.connect()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "checkout")


@pytest.fixture
def result(made: Made) -> Result:
    """A result below the floor: its model is not registered, which takes seconds."""
    return of(made)


def of(made: Made, **source: str) -> Result:
    """The same result from another source."""
    floor = Registration(model_name="mnist-simplecnn", min_accuracy=1)
    return dataclasses.replace(
        made.result(source=dataclasses.replace(SOURCE, **source)), registration=floor, challenger=False
    )


def ensure(store: Store, made: Made, result: Result, report: str = "a report") -> Run:
    pages = Pages(summary=made.summary(), report=report, card="a card")
    return runs.ensure(store, result, pages, artifacts=ARTIFACTS, folder=made.folder).run


def all_runs(store: Store) -> list[Run]:
    return list(store.client.search_runs([store.experiment_id]))


def curve(store: Store, run: Run, name: str) -> list[tuple[int, float]]:
    return sorted(
        (point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, name)
    )


def report(store: Store, run: Run) -> str:
    return Path(store.client.download_artifacts(run.info.run_id, str(paths.REPORT))).read_text()


def assert_complete(store: Store, result: Result) -> Run:
    (run,) = all_runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in result.origin.params.items()}
    assert curve(store, run, "train/loss") == CURVE
    assert curve(store, run, "val/accuracy") == [(100, 0.905)]
    assert curve(store, run, "test/accuracy") == [(0, result.accuracy)]
    for key, value in {**result.digests, "test_sha256": result.test_sha256, "fingerprint": "f" * 64}.items():
        assert run.data.tags[key] == value
    assert "dvc repro" in run.data.tags["mlflow.note.content"]
    assert run.inputs is not None
    names = {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
    assert names == {("mnist-train", "d" * 36), ("mnist-test", "d" * 36)}
    for name in (*ARTIFACTS, paths.REPORT, run_files.CARD):
        assert Path(store.client.download_artifacts(run.info.run_id, str(name))).is_file()
    assert runs.note_origin(store, result)
    return run


def test_a_run_is_made_from_the_files_once(store: Store, made: Made, result: Result) -> None:
    assert not runs.note_origin(store, result)
    first = ensure(store, made, result)
    assert assert_complete(store, result).info.run_id == first.info.run_id
    assert ensure(store, made, result, "another report").info.run_id == first.info.run_id
    assert_complete(store, result)
    assert report(store, first) == "a report"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    ],
    ids=["lost", "one bit"],
)
@pytest.mark.parametrize("name", [*ARTIFACTS, paths.REPORT, run_files.CARD, record.PATCH], ids=str)
def test_a_file_that_is_lost_or_damaged_is_logged_again(
    store: Store, made: Made, store_folder: Path, name: Path, damage: Callable[[Path], object]
) -> None:
    result = of(made, patch="a patch")
    run = ensure(store, made, result)
    stored = store_folder / "mlartifacts" / run.info.run_id / "artifacts" / name
    before = stored.read_bytes()
    damage(stored)
    assert not runs.note_origin(store, result, made.folder)
    ensure(store, made, result)
    assert runs.note_origin(store, result, made.folder)
    assert stored.read_bytes() == before


def test_files_that_others_put_into_a_run_change_nothing(store: Store, made: Made, result: Result) -> None:
    run = ensure(store, made, result)
    store.client.log_text(run.info.run_id, "theirs", "metrics/notes.txt")
    assert runs.note_origin(store, result, made.folder)


@pytest.mark.parametrize("part", ["params", "points", "nothing"])
def test_what_a_live_run_is_missing_is_logged(store: Store, made: Made, result: Result, part: str) -> None:
    """The process that logged it was killed in the middle, or MLflow did not answer any more."""
    start = events.start(result.origin, {"device": "CPU"}, 1_600_000_000_000)
    TrainingInfo(time_ms=start.time_ms, seconds=2.5, facts={"device": "CPU"}).write(result.weights_sha256)
    if part == "params":
        live = store.client.create_run(store.experiment_id, start.time_ms, dict(start.tags)).info.run_id
    else:
        live = runs.begin(store, start, {}).info.run_id
    if part == "nothing":
        store.client.set_terminated(live, "KILLED")
    else:
        metrics.log_points(store, live, [Point(time_ms=5, step=50, values={"train/loss": 2.0})])
    assert ensure(store, made, result).info.run_id == live
    run = assert_complete(store, result)
    assert run.data.metrics[events.SECONDS] == 2.5
    assert run.data.tags["device"] == "CPU"


class Cut:
    """A client of MLflow that is killed at one of its calls, before or after the store has done its work."""

    def __init__(self, client: object, num_calls: int, *, is_done: bool) -> None:
        self._client, self._num_left, self._is_done = client, num_calls, is_done

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._num_left -= 1
            if self._num_left >= 0 or self._is_done:
                answer = getattr(self._client, name)(*arguments, **named)
            if self._num_left < 0:
                raise KeyboardInterrupt
            return answer

        return call


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_what_was_killed_at_any_moment_is_completed(
    store: Store, made: Made, result: Result, *, is_done: bool
) -> None:
    for num_calls in itertools.count():
        one = dataclasses.replace(result, weights_sha256=f"{num_calls:064x}")
        cut: Any = Cut(store.client, num_calls, is_done=is_done)
        try:
            ensure(dataclasses.replace(store, client=cut), made, one)
            break
        except KeyboardInterrupt:
            ensure(store, made, one)
        (run,) = [run for run in all_runs(store) if run.data.tags[events.WEIGHTS] == one.weights_sha256]
        assert run.info.status == "FINISHED"
        assert curve(store, run, "train/loss") == CURVE
        assert run.data.params["lr"] == "0.01"
        assert runs.note_origin(store, one)
    assert num_calls > 10


def test_other_weights_params_or_data_are_another_result_and_other_code_is_not(
    store: Store, made: Made, result: Result
) -> None:
    first = ensure(store, made, result)
    origin = dataclasses.replace(result.origin, fingerprint="0" * 64)
    assert ensure(store, made, dataclasses.replace(result, origin=origin)).info.run_id == first.info.run_id
    others: list[dict[str, Any]] = [
        {"weights_sha256": "b" * 64},
        {"origin": dataclasses.replace(origin, params={**origin.params, "seed": 1})},
        {"origin": dataclasses.replace(origin, dataset_sha256="0" * 64)},
    ]
    for change in others:
        ensure(store, made, dataclasses.replace(result, **change))
    assert len(all_runs(store)) == 4


def test_every_experiment_and_commit_that_led_to_a_run_is_noted_once(store: Store, made: Made) -> None:
    for name, commit in (("runny-jibe", "a" * 40), ("prone-fard", "b" * 40), ("runny-jibe", "a" * 40)):
        ensure(store, made, of(made, experiment=name, commit=commit))
    runs.note_origin(store, of(made, experiment="third"))
    (run,) = all_runs(store)
    assert run.info.run_name == "runny-jibe"
    assert run.data.tags[events.EXPERIMENTS] == "runny-jibe prone-fard third"
    assert run.data.tags[events.COMMITS].split() == ["a" * 40, "b" * 40, "c" * 40]
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40


def test_a_patch_goes_with_the_run_of_its_code_alone(store: Store, made: Made) -> None:
    run = ensure(store, made, of(made, patch="diff --git a b\n"))
    kept = store.client.download_artifacts(run.info.run_id, str(record.PATCH))
    assert Path(kept).read_text() == "diff --git a b\n"


def test_another_evaluation_of_the_same_weights_replaces_files_and_scores(
    store: Store, made: Made, result: Result
) -> None:
    run = ensure(store, made, result)
    other = dataclasses.replace(
        result, time_ms=result.time_ms + 1, evaluation_sha256="0" * 64, metrics={"accuracy": 0.25}
    )
    ensure(store, made, other, "another report")
    (run,) = all_runs(store)
    assert report(store, run) == "another report"
    assert run.data.metrics["test/accuracy"] == 0.25
    assert run.data.tags[events.EVALUATED] == "0" * 64


def test_files_that_were_lost_come_back_and_a_run_that_was_deleted_is_made_anew(
    store: Store, made: Made, result: Result, store_folder: Path
) -> None:
    run = ensure(store, made, result)
    shutil.rmtree(store_folder / "mlartifacts")
    assert not runs.note_origin(store, result)
    assert ensure(store, made, result).info.run_id == run.info.run_id
    assert_complete(store, result)
    store.client.delete_run(run.info.run_id)
    assert ensure(store, made, result).info.run_id != run.info.run_id
    assert_complete(store, result)


def test_a_file_that_is_missing_is_named(store: Store, made: Made, result: Result) -> None:
    pages = Pages(summary=made.summary(), report="", card="")
    (made.folder / paths.TEST_METRICS).unlink()
    with pytest.raises(InputError) as caught:
        runs.ensure(store, result, pages, artifacts=ARTIFACTS, folder=made.folder)
    assert caught.value.where == str(paths.TEST_METRICS)


def test_a_run_that_is_still_being_logged_is_waited_for(
    store: Store,
    made: Made,
    result: Result,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = events.start(result.origin, {}, 1_600_000_000_000)
    TrainingInfo(time_ms=start.time_ms, seconds=2.5, facts={}).write(result.weights_sha256)
    live = runs.begin(store, start, {runs.LOGGED_BY: this_process()}).info.run_id
    monkeypatch.setattr(runs, "LIVE_SECONDS", 0)
    with pytest.raises(ServiceUnavailableError):
        ensure(store, made, result)
    monkeypatch.setattr("time.sleep", lambda _: store.client.set_terminated(live, "KILLED"))
    monkeypatch.setattr(runs, "LIVE_SECONDS", 60)
    monkeypatch.setattr(client, "NOTICE_SECONDS", 0)
    assert ensure(store, made, result).info.run_id == live
    assert "still being logged" in capsys.readouterr().err


def test_runs_whose_processes_are_gone_end_as_killed(store: Store, made: Made, result: Result) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host, number, start = this_process().split(":")
    expected = {}
    for time_ms, (logged_by, status) in enumerate(
        [
            (f"{host}:{number}:{start}", "RUNNING"),
            (f"{host}:{gone.pid}:{start}", "KILLED"),
            (f"{host}:{number}:{int(start) - 60}", "KILLED"),  # its number is another process's now
            (f"elsewhere:{gone.pid}:{start}", "RUNNING"),
            ("", "RUNNING"),
            (f"{host}:x:y", "RUNNING"),  # others may have written these
            (f"{host}:1:2:3", "RUNNING"),
            (f"{host}:9999999999:{start}", "KILLED"),
        ],
        start=1,
    ):
        begin = events.start(result.origin, {}, time_ms)
        run = runs.begin(store, begin, {runs.LOGGED_BY: logged_by} if logged_by else {})
        expected[run.info.run_id] = status
    ensure(store, made, result)
    found = {run.info.run_id: run.info.status for run in all_runs(store)}
    assert {run_id: found[run_id] for run_id in expected} == expected
