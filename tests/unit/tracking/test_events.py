"""Live logging: the training's side never waits, and the process on the other side ends the run."""

import dataclasses
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from mlflow.entities import Run

from mnist.core.errors import ServiceUnavailableError
from mnist.lineage import result
from mnist.tracking import client, events, live, runs
from mnist.tracking.events import End, Point, Recorder, Start
from tests.unit.tracking.conftest import EPOCH, TRAINING, WINDOW

pytestmark = pytest.mark.usefixtures("store_folder")

ROOT = Path(__file__).parents[3]
NOWHERE = "http://127.0.0.1:9"  # the discard port, at which nothing listens
START = events.start(TRAINING, {"device": "CPU"}, 1_700_000_000_000)
CPU = "system/cpu_utilization_percentage"


def await_runs(status: str) -> list[Run]:
    """Wait for the runs of the store to have this status, as a logging process ends some time later."""
    store, deadline = client.connect(), time.monotonic() + 120
    while True:
        found = list(store.client.search_runs([store.experiment_id]))
        if found and all(run.info.status == status for run in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_a_training_is_logged_while_it_runs(
    store_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path_factory.mktemp("tree"))  # as of `dvc exp run --temp`
    with events.recorded(TRAINING, device="CPU", time_ms=START.time_ms) as record:
        record.log(WINDOW)
        record.log(EPOCH)
        (running,) = await_runs("RUNNING")
        _, number, _ = running.data.tags[runs.LOGGED_BY].split(":")
        assert psutil.Process(int(number)).cwd() == str(store_folder)
        record.finish("w" * 64, seconds=1.5)
    (run,) = await_runs("FINISHED")
    assert run.info.run_id == running.info.run_id
    assert run.data.params == {"lr": "0.01", "permute_pixels": "False"}
    assert run.data.tags["weights_sha256"] == "w" * 64
    assert run.data.tags["device"] == "CPU"
    assert run.data.tags["torch"]
    for name, value in (("train/loss", 0.9), ("val/accuracy", 0.88), ("train/seconds", 1.5)):
        assert run.data.metrics[name] == value
    info = result.training_info("w" * 64)
    assert info is not None
    assert (info.time_ms, info.seconds, info.facts["device"]) == (run.info.start_time, 1.5, "CPU")


def test_a_point_is_the_same_from_the_training_and_from_its_table() -> None:
    """`register` logs from the table what a killed process could not."""
    window = dataclasses.replace(WINDOW, loss=1.73147412109375)
    assert events.point(window, 0).values["train/loss"] == float("1.73147")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of the pipe to a logging process that does not read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    monkeypatch.setattr(events, "_logging_process", lambda: writer)
    yield reader
    os.close(reader)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["fault", "interrupt"],
)
def test_a_training_that_breaks_off_ends_its_run_also_where_the_pipe_is_full(
    error: BaseException, status: str, pipe: int
) -> None:
    def broken() -> None:
        with events.recorded(TRAINING, device="CPU", time_ms=START.time_ms) as record:
            for _ in range(2000):  # far more than a pipe holds
                record.log(WINDOW)
            raise error

    with pytest.raises(type(error)):
        broken()
    begin, *points, end = map(events.parse, os.read(pipe, 1 << 20).splitlines())
    assert os.read(pipe, 1) == b""  # it is closed
    assert isinstance(begin, Start)
    assert 0 < len(points) < 2000
    assert all(isinstance(point, Point) for point in points)
    assert isinstance(end, End)
    assert (end.status, end.weights_sha256) == (status, "")


def test_a_pipe_that_was_read_takes_points_again() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    recorder = Recorder(START, writer)
    for _ in range(2000):
        recorder.log(WINDOW)
    os.read(reader, 1 << 20)
    recorder.log(WINDOW)
    assert json.loads(os.read(reader, 1 << 20))["kind"] == "Point"
    os.close(reader)
    recorder.log(WINDOW)  # the process is gone
    os.close(writer)


def test_a_system_without_room_for_a_process_costs_the_training_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", full)
    with events.recorded(TRAINING, device="CPU", time_ms=START.time_ms) as record:
        record.log(WINDOW)
        record.finish("w" * 64, seconds=1.5)
    assert result.training_info("w" * 64) is not None


def follow(begin: Start, *logged: events.Event) -> None:
    """Let this process read the events of a training that is over."""
    reader, writer = os.pipe()
    recorder = Recorder(begin, writer)
    for event in logged:
        recorder.send(event)
    os.close(writer)
    live.follow(reader)
    os.close(reader)


def test_a_store_that_does_not_answer_costs_a_line_while_the_training_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0)
    reader, writer = os.pipe()
    recorder, times = Recorder(START, writer), []

    def answers_later(*_: object) -> None:
        times.append(1)
        if len(times) == 2:
            recorder.end("FAILED")
            os.close(writer)
        raise ServiceUnavailableError(f"MLflow at {NOWHERE}", "connection refused")

    monkeypatch.setattr(client, "connect", answers_later)
    live.follow(reader)
    os.close(reader)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"train: MLflow at {NOWHERE}")
    follow(START, End(time_ms=2, status="FAILED"))  # `register` reports it
    assert capsys.readouterr().out == ""


def test_params_that_could_not_be_logged_are_logged_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ServiceUnavailableError("MLflow", "answer 500")

    logger = live.Logger()
    logger.events.append(START)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "describe", fails)
        with pytest.raises(ServiceUnavailableError):
            logger.log()
    logger.events.append(End(time_ms=2, status="FAILED"))
    logger.log()
    (run,) = await_runs("FAILED")
    assert run.data.params == {"lr": "0.01", "permute_pixels": "False"}


@pytest.mark.parametrize("state", ["ended", "left running", "ending"])
def test_a_training_that_is_resumed_goes_on_with_its_run(state: str) -> None:
    follow(START, events.point(WINDOW, 1), events.point(EPOCH, 1))
    (killed,) = await_runs("KILLED")
    store, run_id = client.connect(), killed.info.run_id
    with subprocess.Popen(["sleep", "1" if state == "ending" else "0"]) as process:
        began = psutil.Process(process.pid).create_time()
        store.client.set_tag(run_id, runs.LOGGED_BY, f"{socket.gethostname()}:{process.pid}:{began:.0f}")
        if state != "ended":
            store.client.update_run(run_id, "RUNNING")
        again = dataclasses.replace(TRAINING.source, experiment="again")
        resumed = events.start(dataclasses.replace(TRAINING, source=again), {"device": "CPU"}, START.time_ms)
        later = dataclasses.replace(WINDOW, step=200)
        end = End(time_ms=3, status="FINISHED", weights_sha256="w" * 64)
        follow(resumed, *(events.point(event, 2) for event in (WINDOW, EPOCH, later)), end)
        assert process.poll() is not None or state != "ending"
    (run,) = await_runs("FINISHED")
    assert run.info.run_id == run_id
    assert run.data.tags["dvc.experiments"] == "again"
    assert run.data.tags["weights_sha256"] == "w" * 64
    points = store.client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.timestamp) for point in points] == [(100, 1), (200, 2)]


def test_what_the_machine_does_is_logged_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    store = client.connect()
    run_id = store.client.create_run(store.experiment_id).info.run_id
    monitor, deadline = live.watched(store, run_id), time.monotonic() + 120
    assert monitor
    while CPU not in store.client.get_run(run_id).data.metrics:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    monitor.finish()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert live.watched(store, run_id) is None
