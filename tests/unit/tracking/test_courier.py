"""What the machine does during a training, and when it is worth showing."""

import time
from pathlib import Path

import pytest

from mnist.tracking import client, courier, journal
from mnist.tracking.journal import End, Point
from mnist.training.history import Window
from tests.unit.tracking.test_journal import TRAINING

CPU = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a spool and a default store of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    return tmp_path


def entry(*, seconds: float) -> Path:
    """A finished training of this length, with what its machine did."""
    window = Window(epoch=1, step=100, num_images=6400, loss=0.9, accuracy=0.7)
    end_ms = int(seconds * 1000)
    with journal.new_entry("train", journal.WRITER_LOCK) as folder:
        with (folder / journal.LINES).open("w") as stream:
            journal.write(stream, journal.start(TRAINING, {}, 0))
            journal.write(stream, journal.point(window, end_ms // 2))
            journal.write(stream, End(time_ms=end_ms, status="FINISHED", weights_sha256="w" * 64))
        with (folder / journal.SYSTEM_LINES).open("w") as stream:
            for step in (1, 2):
                journal.write(stream, Point(time_ms=step, step=step, values={CPU: 10.0 * step}))
    return folder


@pytest.mark.parametrize(
    ("seconds", "points"), [(2, []), (60, [(1, 10.0), (2, 20.0)])], ids=["short", "long"]
)
def test_what_the_machine_did_is_shown_for_trainings_of_more_than_a_few_seconds(
    seconds: float, points: list[tuple[int, float]]
) -> None:
    store = client.connect()
    assert courier.send(client.Sender(store), courier.Readers(entry(seconds=seconds)), is_over=True)
    (run,) = store.client.search_runs([store.experiment_id])
    shown = store.client.get_metric_history(run.info.run_id, CPU)
    assert [(point.step, point.value) for point in shown] == points


def test_the_machine_is_watched_by_mlflows_own_monitors(tmp_path: Path) -> None:
    path = tmp_path / "system.jsonl"
    with courier.sampling(path):
        deadline = time.monotonic() + 30
        while not journal.Reader(path).read() and time.monotonic() < deadline:
            time.sleep(0.1)
    first = journal.Reader(path).read()[0]
    assert isinstance(first, Point)
    assert 0 <= first.values[CPU] <= 100
    assert first.values["system/system_memory_usage_megabytes"] > 0
    assert {name.split("/")[0] for name in first.values} == {"system"}  # where MLflow's UI looks for them


def test_nobody_is_watched_who_said_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with courier.sampling(tmp_path / "system.jsonl"):
        time.sleep(1.5)
    assert not (tmp_path / "system.jsonl").exists()
