"""Live logging: the training's side never waits, and the process on the other side ends the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from mnist.core.errors import ServiceUnavailableError
from mnist.lineage import result
from mnist.tracking import client, events, live, log
from mnist.tracking.events import End, Point, Start
from tests.unit.tracking.conftest import EPOCH, TRAINING, WINDOW

pytestmark = pytest.mark.usefixtures("store_folder")

ROOT = Path(__file__).parents[3]
NOWHERE = "http://127.0.0.1:9"  # the discard port, at which nothing listens
START = events.start(TRAINING, {"device": "CPU"}, 1_700_000_000_000)
CPU = "system/cpu_utilization_percentage"

# A training in a process of its own: it logs a window, prints that, and goes on when it gets a line.
CHILD = """
import sys
from mnist.tracking import events
from tests.unit.tracking.conftest import TRAINING, WINDOW

with events.recorded(TRAINING, device="CPU") as record:
    record.log(WINDOW)
    print("logged", flush=True)
    sys.stdin.readline()
"""


def runs(status: str) -> list[Run]:
    """Wait for the runs of the store to have this status, as a logging process ends some time later."""
    store, deadline = client.connect(), time.monotonic() + 120
    while True:
        found = list(store.client.search_runs([store.experiment_id]))
        if found and all(run.info.status == status for run in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_a_training_is_logged_while_it_runs() -> None:
    with events.recorded(TRAINING, device="CPU") as record:
        record.log(WINDOW)
        record.log(EPOCH)
        (running,) = runs("RUNNING")
        record.finish("w" * 64, seconds=1.5)
    (run,) = runs("FINISHED")
    assert run.info.run_id == running.info.run_id
    assert run.data.params == {"lr": "0.01", "permute_pixels": "False"}
    assert run.data.tags["weights_sha256"] == "w" * 64
    assert run.data.tags["device"] == "CPU"
    assert run.data.tags["torch"]
    for name, value in (("train_loss", 0.9), ("val_accuracy", 0.88), ("training_seconds", 1.5)):
        assert run.data.metrics[name] == value
    info = result.training_info("w" * 64)
    assert info is not None
    assert (info.time_ms, info.seconds, info.facts["device"]) == (run.info.start_time, 1.5, "CPU")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["fault", "interrupt"],
)
def test_a_training_that_breaks_off_ends_its_run(
    error: BaseException, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(events, "_logging_process", lambda: writer)

    def broken() -> None:
        with events.recorded(TRAINING, device="CPU"):
            raise error

    with pytest.raises(type(error)):
        broken()
    with os.fdopen(reader, "rb") as stream:
        begin, end = map(events.parse, stream)  # and the pipe is closed
    assert isinstance(begin, Start)
    assert isinstance(end, End)
    assert (end.status, end.weights_sha256) == (status, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["kill", "hang-up"])
def test_a_training_that_is_gone_without_a_word_leaves_a_killed_run(number: signal.Signals) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert training.stdout
    assert training.stdout.readline() == "logged\n"
    training.send_signal(number)
    training.communicate(timeout=120)
    (run,) = runs("KILLED")
    assert run.data.metrics["train_loss"] == 0.9


def test_a_full_pipe_and_a_process_that_is_gone_drop_events_and_never_wait() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    recorder = events.Recorder(START, writer)
    for _ in range(2000):  # far more than a pipe holds
        recorder.log(WINDOW)
    lines = os.read(reader, 1 << 20).splitlines()
    assert 0 < len(lines) < 2000
    assert all(json.loads(line)["kind"] == "Point" for line in lines)
    recorder.log(WINDOW)  # there is room again
    assert isinstance(events.parse(os.read(reader, 1 << 20)), Point)
    os.close(reader)
    recorder.log(WINDOW)
    recorder.end("FINISHED")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


def test_a_system_without_room_for_a_process_costs_the_training_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", full)
    with events.recorded(TRAINING, device="CPU") as record:
        record.log(WINDOW)
        record.finish("w" * 64, seconds=1.5)
    assert result.training_info("w" * 64) is not None


def follow(*logged: events.Event) -> None:
    """Let this process read a training's events."""
    reader, writer = os.pipe()
    recorder = events.Recorder(START, writer)
    for event in logged:
        recorder.send(event)
    os.close(writer)
    live.follow(reader)
    os.close(reader)


def test_a_store_that_does_not_answer_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri in (NOWHERE, "nonsense://host"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        follow(START, events.point(WINDOW, 1), End(time_ms=2, status="FINISHED", weights_sha256="w" * 64))
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"train: MLflow at {uri}")


def test_params_that_could_not_be_logged_are_logged_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ServiceUnavailableError("MLflow", "answer 500")

    logger = live.Logger()
    logger.events.append(START)
    with monkeypatch.context() as patch:
        patch.setattr(log, "describe", fails)
        with pytest.raises(ServiceUnavailableError):
            logger.log()
    logger.events.append(End(time_ms=2, status="FAILED"))
    logger.log()
    (run,) = runs("FAILED")
    assert run.data.params == {"lr": "0.01", "permute_pixels": "False"}


def test_the_same_training_again_leaves_one_run_with_both_names() -> None:
    end = End(time_ms=1_700_000_009_000, status="FINISHED", weights_sha256="w" * 64)
    follow(START, events.point(WINDOW, 1), end)
    (first,) = runs("FINISHED")
    again = Start(
        time_ms=START.time_ms + 1, name="x", params=START.params, tags={**START.tags, client.EXPERIMENTS: "x"}
    )
    other = Start(time_ms=START.time_ms + 2, name="y", params={**START.params, "lr": 0.1}, tags=START.tags)
    follow(again, events.point(WINDOW, 1), end)
    follow(other, events.point(WINDOW, 1), end)
    found = {run.info.run_id: run for run in runs("FINISHED")}
    assert len(found) == 2
    assert found[first.info.run_id].data.tags[client.EXPERIMENTS] == "x"


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
