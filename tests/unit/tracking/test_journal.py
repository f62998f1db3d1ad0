"""What a training writes down for MLflow, and the process that sends it meanwhile."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from mlflow.entities import Run

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.lineage.fingerprint import Source, Training
from mnist.tracking import client, journal
from mnist.tracking.journal import End, Event, Point, Start
from mnist.training.history import Epoch, Window

SOURCE = Source(commit="c" * 40, branch="main", patch="", experiment="", rerun="dvc repro")
TRAINING = Training(fingerprint="f" * 64, dataset_sha256="d" * 64, params={"lr": 0.01}, source=SOURCE)
WINDOW = Window(epoch=1, step=100, num_images=6400, loss=0.9, accuracy=0.7)
EPOCH = Epoch(epoch=1, step=120, train_loss=0.8, train_accuracy=0.72, val_loss=0.4, val_accuracy=0.88)
NOWHERE = "http://127.0.0.1:9"  # the discard port, at which nothing listens

# A training in a process of its own: it logs a window, says so, and goes on when it is told to.
CHILD = """
import sys
from mnist.tracking import client, journal
from mnist.training.history import Window
from tests.unit.tracking.test_journal import TRAINING, WINDOW

with journal.recorded(TRAINING, {}, say=print) as record:
    record.log(WINDOW)
    print("logged", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a spool and a default store of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def read(path: Path) -> list[Event]:
    return journal.Reader(path).read()


def runs() -> list[Run]:
    store = client.connect()
    return list(store.client.search_runs([store.experiment_id]))


def train(say: Callable[[str], None]) -> None:
    """A training of one window and one epoch."""
    with journal.recorded(TRAINING, {"device": "CPU"}, say=say) as record:
        record.log(WINDOW)
        record.log(EPOCH)
        record.finish("w" * 64, seconds=1.5)


def test_a_training_is_told_while_it_runs_and_nothing_stays_behind() -> None:
    said: list[str] = []
    train(said.append)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["train_loss"] == 0.9
    assert run.data.metrics["val_accuracy"] == 0.88
    assert run.data.tags["device"] == "CPU"
    assert run.data.tags["torch"]
    assert said == []
    assert journal.entries() == []


def test_the_run_is_there_before_the_training_ends() -> None:
    with journal.recorded(TRAINING, {}, say=print) as record:
        record.log(WINDOW)
        deadline = time.monotonic() + 60
        while not (paths.root() / "mlflow.db").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        while not any(run.data.metrics for run in runs()) and time.monotonic() < deadline:
            time.sleep(0.1)
        (run,) = runs()
        assert run.info.status == "RUNNING"
        assert run.data.metrics == {"train_loss": 0.9, "train_accuracy": 0.7}
        record.finish("w" * 64, seconds=1.5)


def test_the_same_training_again_says_which_run_it_is() -> None:
    said: list[str] = []
    train(said.append)
    train(said.append)
    assert said == ["train: MLflow has this training already, as run main-ccccccc"]
    assert len(runs()) == 1
    assert journal.entries() == []


def test_a_store_that_is_away_is_told_of_once_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    said: list[str] = []
    train(said.append)
    (line,) = said
    assert line == (
        f"train: MLflow at {NOWHERE} does not answer (connection refused);"
        " what it missed waits in mlspool/, `make reconcile` sends it"
    )
    (entry,) = journal.entries()
    begin, window, epoch, end = read(entry / journal.LINES)
    assert isinstance(begin, Start)
    assert begin.params == {"lr": 0.01}
    assert isinstance(window, Point)
    assert window.values == {"train_loss": 0.9, "train_accuracy": 0.7}
    assert isinstance(epoch, Point)
    assert (window.step, epoch.step) == (100, 1)
    assert isinstance(end, End)
    assert (end.status, end.weights_sha256, end.values) == ("FINISHED", "w" * 64, {"training_seconds": 1.5})


def test_a_store_that_refuses_costs_the_training_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    said: list[str] = []
    train(said.append)
    (line,) = said
    assert line.startswith("train: MLflow at nonsense://host: found ")
    assert len(journal.entries()) == 1


def test_a_sender_that_cannot_even_start_costs_the_training_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.py").write_text("raise RuntimeError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    train(said.append)
    (line,) = said
    assert line.startswith("train: MLflow at sqlite:///mlflow.db was not told, for a fault that ")
    (entry,) = journal.entries()
    assert "no such library" in (entry / journal.SENDER_LOG).read_text()
    assert len(read(entry / journal.LINES)) == 4


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["fault", "interrupt"],
)
def test_a_training_that_breaks_off_says_so(error: BaseException, status: str) -> None:
    def broken() -> None:
        with journal.recorded(TRAINING, {}, say=print) as record:
            record.log(WINDOW)
            raise error

    with pytest.raises(type(error)):
        broken()
    assert [run.info.status for run in runs()] == [status]
    assert journal.entries() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["kill", "hang-up"])
def test_a_training_that_is_killed_without_a_word_leaves_a_killed_run(number: signal.Signals) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=Path(__file__).parents[3],
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert training.stdout
    assert training.stdout.readline() == "logged\n"
    training.send_signal(number)
    training.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while journal.entries() and time.monotonic() < deadline:
        time.sleep(0.1)
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert run.data.metrics["train_loss"] == 0.9
    assert journal.entries() == []


def test_a_spool_that_cannot_be_written_costs_the_training_nothing(root: Path) -> None:
    (root / "mlspool").write_text("a file where a folder should be")
    said: list[str] = []
    train(said.append)
    (line,) = said
    assert line.startswith("train: what happens is not written down for MLflow (")


def test_a_disk_that_fills_up_costs_the_training_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with (tmp_path / "journal.jsonl").open("w") as stream:
        recorder = journal.Recorder(stream, said.append)
        recorder.log(WINDOW)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(stream.fileno()).st_size, limits[1]))
        try:
            recorder.log(EPOCH)
            recorder.end("FINISHED")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    (line,) = said
    assert "File too large" in line


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert journal.user() == f"uid {os.getuid()}"


def test_entries_come_and_go_whole(root: Path) -> None:
    with journal.new_entry("result", journal.SENDER_LOCK) as entry:
        assert journal.entries() == [entry]
        with pytest.raises(Timeout), FileLock(entry / journal.SENDER_LOCK, timeout=0):
            pass
        journal.remove_entry(entry)
    assert journal.entries() == []
    assert list((root / "mlspool").iterdir()) == []


def test_a_journal_that_grows_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    reader = journal.Reader(path)
    assert reader.read() == []
    with path.open("w") as stream:
        for step in range(3):
            journal.write(stream, Point(time_ms=1, step=step, values={}))
            assert [event.step for event in reader.read() if isinstance(event, Point)] == [*range(step + 1)]


def test_a_line_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read(path) == []
    with path.open("w") as stream:
        journal.write(stream, Point(time_ms=1, step=2, values={"loss": 0.1}))
        stream.write('{"kind": "Point", "time_ms"')
    assert read(path) == [Point(time_ms=1, step=2, values={"loss": 0.1})]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"kind": "Dance"}', '{"kind": "End", "tempo": 1}', "{}"])
def test_what_is_no_journal_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    good = json.dumps({"kind": "Point", "time_ms": 1, "step": 2, "values": {}})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=r"journal\.jsonl, line 2: found .*, expected an event$"):
        read(path)
