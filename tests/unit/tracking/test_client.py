"""Runs in a real MLflow store: one for each result, found by what determined it."""

import dataclasses
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mnist.core import paths
from mnist.core.errors import AwayError, InputError
from mnist.lineage.fingerprint import Source, Training
from mnist.tracking import client, journal
from mnist.tracking.client import Sender
from mnist.tracking.journal import End, Event
from mnist.training.history import Epoch, Window

ROOT = Path(__file__).parents[3]
EVENTS: list[Window | Epoch] = [
    Window(epoch=1, step=100, num_images=6400, loss=0.9, accuracy=0.7),
    Window(epoch=1, step=120, num_images=1280, loss=0.5, accuracy=0.8),
    Epoch(epoch=1, step=120, train_loss=0.8, train_accuracy=0.72, val_loss=0.4, val_accuracy=0.88),
]
SOURCE = Source(commit="c" * 40, branch="main", patch="", experiment="", rerun="dvc repro")
TRAINING = Training(
    fingerprint="f" * 64, dataset_sha256="d" * 64, params={"lr": 0.01, "permute_pixels": False}, source=SOURCE
)


@pytest.fixture(autouse=True)
def store_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a new default store, in a folder that is not the current one."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return tmp_path


def runs(store: client.Store) -> list[Run]:
    return list(store.client.search_runs([store.experiment_id]))


def curve(store: client.Store, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, name)]


def datasets(run: Run) -> set[tuple[str, str]]:
    assert run.inputs is not None
    return {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}


def test_the_store_lies_beside_the_main_checkout_with_absolute_artifacts(store_folder: Path) -> None:
    store = client.connect()
    assert (store_folder / "mlflow.db").is_file()
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (store_folder / "mlartifacts").as_uri()
    assert client.connect().experiment_id == store.experiment_id


def test_four_processes_at_once_make_one_sound_store(store_folder: Path) -> None:
    code = "from mnist.tracking import client; print(client.connect().experiment_id)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(answers) == 1
    assert (store_folder / "mlflow.db").is_file()


def test_a_store_whose_making_broke_off_is_not_there(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-made one would be broken for good."""

    def broken_off(tracking_uri: str, **_: str) -> None:
        made = sqlite3.connect(tracking_uri.removeprefix("sqlite:///"))
        made.execute("CREATE TABLE half (made INTEGER)")
        made.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "MlflowClient", broken_off)
        with pytest.raises(KeyboardInterrupt):
            client.connect()
    assert [path.name for path in store_folder.iterdir()] == [".cache"]
    store = client.connect()
    assert runs(store) == []
    assert sorted(path.name for path in store_folder.iterdir()) == [".cache", "mlflow.db"]


def test_a_store_that_another_checkout_made_meanwhile_stays(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkouts that share a store have locks of their own."""
    file, plain = store_folder / "mlflow.db", MlflowClient

    def late(tracking_uri: str, **more: str) -> MlflowClient:
        if not file.exists():
            plain(tracking_uri=f"sqlite:///{file}").create_experiment("theirs")
        return plain(tracking_uri=tracking_uri, **more)

    monkeypatch.setattr(client, "MlflowClient", late)

    assert client.connect().client.get_experiment_by_name("theirs") is not None


def test_a_store_in_use_waits_for_the_disk() -> None:
    """Only its making does without."""
    client.connect()
    with sqlalchemy.create_engine(paths.store_uri()).connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 2  # FULL


def ensure(store: client.Store, training: Training = TRAINING, weights: str = "w" * 64) -> Run:
    return client.ensure(store, training, events=EVENTS, weights_sha256=weights, time_ms=1_700_000_000_000)


def recorded(
    *, time_ms: int = 1_700_000_000_000, status: str = "FINISHED", weights: str = "w" * 64
) -> list[Event]:
    """The journal of a training."""
    start = journal.start(TRAINING, {"device": "CPU"}, time_ms)
    points = [journal.point(event, time_ms + 1000) for event in EVENTS]
    values = {"training_seconds": 1.5}
    return [
        start,
        *points,
        End(time_ms=time_ms + 2000, status=status, weights_sha256=weights, values=values)
        if status == "FINISHED"
        else End(time_ms=time_ms + 2000, status=status),
    ]


def test_a_journal_becomes_a_run_with_params_curves_and_tags() -> None:
    store = client.connect()
    assert Sender(store).send(recorded())
    (logged,) = runs(store)
    assert logged.info.status == "FINISHED"
    assert (logged.info.start_time, logged.info.end_time) == (1_700_000_000_000, 1_700_000_002_000)
    assert logged.info.run_name == "main-ccccccc"
    assert logged.data.params == {"lr": "0.01", "permute_pixels": "False"}
    assert curve(store, logged, "train_loss") == [(100, 0.9), (120, 0.5)]
    assert curve(store, logged, "val_accuracy") == [(1, 0.88)]  # over epochs
    assert logged.data.metrics["training_seconds"] == 1.5
    tags = logged.data.tags
    assert tags["fingerprint"] == "f" * 64
    assert tags["weights_sha256"] == "w" * 64
    assert tags["device"] == "CPU"
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert "dvc repro" in tags["mlflow.note.content"]
    assert datasets(logged) == {("mnist-train", "d" * 36)}


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_training_that_broke_off_says_so_and_does_not_count(status: str) -> None:
    store = client.connect()
    Sender(store).send(recorded(status=status))
    assert [run.info.status for run in runs(store)] == [status]
    assert client.find(store, TRAINING.fingerprint) is None
    Sender(store).send(recorded(time_ms=1_700_000_009_000))  # so the next try has a run of its own
    assert sorted(run.info.status for run in runs(store)) == sorted([status, "FINISHED"])


@pytest.mark.parametrize("num_sent", range(1, 6))
def test_what_was_cut_off_is_sent_again_and_arrives_once(num_sent: int) -> None:
    store, events = client.connect(), recorded()
    Sender(store).send(events[:num_sent])
    Sender(store).send(events)  # another sender, which knows nothing of the first
    Sender(store).send(events)
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert curve(store, run, "train_loss") == [(100, 0.9), (120, 0.5)]
    assert len(store.client.get_metric_history(run.info.run_id, "training_seconds")) == 1
    assert datasets(run) == {("mnist-train", "d" * 36)}


def test_one_sender_sends_what_is_new_as_it_comes() -> None:
    store, events = client.connect(), recorded()
    sender = Sender(store)
    for number in range(len(events)):
        assert sender.send(events[: number + 1]) == (number == len(events) - 1)
    (run,) = runs(store)
    assert curve(store, run, "train_accuracy") == [(100, 0.7), (120, 0.8)]


def test_the_same_training_again_logs_no_second_run() -> None:
    store = client.connect()
    Sender(store).send(recorded())
    again = Sender(store)
    events = recorded(time_ms=1_700_000_009_000)
    assert not again.send(events[:2])
    assert again.known is not None
    assert again.send(events)
    assert len(runs(store)) == 1
    assert len(curve(store, runs(store)[0], "train_loss")) == 2


def test_other_weights_of_the_same_training_are_a_run_of_their_own() -> None:
    store = client.connect()
    Sender(store).send(recorded())
    other = recorded(time_ms=1_700_000_009_000, weights="x" * 64)
    sender = Sender(store)
    sender.send(other[:3])
    assert sender.send(other)
    assert sender.known is None
    assert {run.data.tags["weights_sha256"] for run in runs(store)} == {"w" * 64, "x" * 64}
    assert [len(curve(store, run, "train_loss")) for run in runs(store)] == [2, 2]


@pytest.mark.parametrize("evaluated", [0, 1, None], ids=["first", "second", "none"])
def test_the_same_training_twice_at_once_leaves_the_evaluated_run(evaluated: int | None) -> None:
    store = client.connect()
    senders = [Sender(store), Sender(store)]
    journals = [recorded(time_ms=1_700_000_000_000 + number) for number in range(2)]
    for sender, events in zip(senders, journals, strict=True):
        sender.send(events[:-1])
    assert len(runs(store)) == 2
    for number in [evaluated or 0, 1 - (evaluated or 0)]:  # the evaluated one ends first
        senders[number].send(journals[number])
        if number == evaluated:
            run = client.find(store, "f" * 64)
            assert run is not None
            store.client.set_tag(run.info.run_id, client.EVALUATED, "e" * 64)
        else:
            for run in runs(store):
                if client.EVALUATED not in run.data.tags:
                    store.client.set_tag(run.info.run_id, client.EXPERIMENTS, "twin")
    (run,) = runs(store)
    assert run.info.start_time == 1_700_000_000_000 + (evaluated or 0)
    assert run.info.status == "FINISHED"


def test_the_names_of_a_twin_are_kept() -> None:
    store = client.connect()
    journals = [recorded(time_ms=1_700_000_000_000 + number) for number in range(2)]
    for events in journals:
        Sender(store).send(events[:-1])
    for run, name in zip(runs(store), ("one", "two"), strict=True):
        store.client.set_tag(run.info.run_id, client.EXPERIMENTS, name)
    for events in journals:
        Sender(store).send(events)
    (run,) = runs(store)
    assert set(run.data.tags[client.EXPERIMENTS].split()) == {"one", "two"}


def test_a_known_training_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store, events = client.connect(), recorded(time_ms=1_700_000_009_000)
    Sender(store).send(recorded())
    again = Sender(store)
    again.send(events[:1])
    monkeypatch.setattr(again, "store", None)  # with nobody to ask
    assert not again.send(events[:2])
    assert not again.send(events[:3])


def test_a_run_is_made_from_the_files_where_there_is_none_and_only_then() -> None:
    store = client.connect()
    first, again = ensure(store), ensure(store)
    assert first.info.run_id == again.info.run_id
    assert first.info.status == "FINISHED"
    assert curve(store, first, "train_loss") == [(100, 0.9), (120, 0.5)]
    assert curve(store, first, "epoch_train_accuracy") == [(1, 0.72)]
    # Other weights of the same training (another machine's, say) are another result.
    other = ensure(store, weights="x" * 64)
    assert other.info.run_id != first.info.run_id
    assert len(runs(store)) == 2


def test_a_deleted_run_comes_back_rather_than_a_second_one() -> None:
    store = client.connect()
    Sender(store).send(recorded())
    (run,) = runs(store)
    store.client.delete_run(run.info.run_id)
    assert ensure(store).info.run_id == run.info.run_id
    assert "rebuilt" not in ensure(store).data.tags


def test_every_experiment_that_led_to_a_run_is_noted_once() -> None:
    store = client.connect()
    for name in ("runny-jibe", "prone-fard", "runny-jibe"):
        ensure(store, dataclasses.replace(TRAINING, source=dataclasses.replace(SOURCE, experiment=name)))
    (run,) = runs(store)
    assert run.info.run_name == "runny-jibe"
    assert run.data.tags["dvc.experiments"] == "runny-jibe prone-fard"


def test_the_evaluation_is_logged_once_however_often_it_is_told(tmp_path: Path) -> None:
    store, files = client.connect(), tmp_path / "files"
    (files / "metrics").mkdir(parents=True)
    (files / "metrics" / "test.json").write_text("{}")
    for _ in range(2):
        run = ensure(
            store, dataclasses.replace(TRAINING, source=dataclasses.replace(SOURCE, experiment="one"))
        )
        metrics, tags = {"test_accuracy": 0.95}, {"test_sha256": "t" * 64}
        client.log_evaluation(store, run, metrics=metrics, tags=tags, time_ms=1, files=files, digest="e" * 64)
    assert len(store.client.get_metric_history(run.info.run_id, "test_accuracy")) == 1
    kept = store.client.download_artifacts(run.info.run_id, "metrics/test.json")
    assert Path(kept).read_text() == "{}"
    (run,) = runs(store)
    assert run.data.tags["test_sha256"] == "t" * 64
    assert datasets(run) == {("mnist-train", "d" * 36), ("mnist-test", "d" * 36)}
    assert run.data.tags[client.EVALUATED] == "e" * 64


def test_the_files_of_a_run_are_those_of_the_result_that_came_first(tmp_path: Path) -> None:
    """Told again, from another commit, its report would speak of what its tags and patch do not."""
    store, files = client.connect(), tmp_path / "files"
    old, new = ["test.json"], ["test.json", "report.html"]
    kept = []
    for number, (digest, names) in enumerate([("e", old), ("e", new), ("e", new), ("f", new)]):
        (files / "metrics").mkdir(parents=True, exist_ok=True)
        for name in names:
            (files / "metrics" / name).write_text(f"{number}")
        run = ensure(store, TRAINING)
        client.log_evaluation(store, run, metrics={}, tags={}, time_ms=1, files=files, digest=64 * digest)
        kept.append(Path(store.client.download_artifacts(run.info.run_id, "metrics/test.json")).read_text())
    # A run of before there were reports gets one; the same result again changes nothing, another one does.
    assert kept == ["0", "1", "1", "3"]


def test_uncommitted_changes_are_kept_as_a_patch() -> None:
    changed = dataclasses.replace(TRAINING, source=dataclasses.replace(SOURCE, patch="diff --git a b\n"))
    store = client.connect()
    run = ensure(store, changed)
    folder = store.client.download_artifacts(run.info.run_id, "dirty.patch")
    assert Path(folder).read_text() == "diff --git a b\n"


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:////somewhere/runs.db", "sqlite:////somewhere/runs.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("", "sqlite:///{root}/mlflow.db"),
    ],
    ids=["relative", "absolute", "server", "empty"],
)
def test_the_tracking_uri_of_the_environment_is_honoured(
    uri: str, resolved: str, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert paths.store_uri() == resolved.format(root=store_folder)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/ada/pipeline/mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ada:SECRET@tracking.example.org/mlflow/", "https://tracking.example.org/mlflow/"),
        ("postgresql+psycopg2://ada:SECRET@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://db/mlflow?user=ada&password=SECRET", "postgresql://db/mlflow"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("postgresql://ada@/mlflow?host=/run/postgresql", "postgresql:///mlflow"),
        ("postgresql://ada:12/SECRET@db/mlflow", "(not shown)"),
        ("postgresql://ada:12?SECRET@db/mlflow", "(not shown)"),
        ("postgresql://ada:12#SECRET@db/mlflow", "(not shown)"),
        ("postgresql://ada:a@SECRET@db/mlflow", "(not shown)"),
        ("postgresql://db/mlflow?password=a@SECRET", "(not shown)"),
        ("ada:SECRET@db", "(not shown)"),
    ],
)
def test_no_secret_of_a_store_is_shown(uri: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/home/ada/pipeline")
    assert paths.shown(uri) == shown


def test_a_store_that_cannot_be_used_is_one_line(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store_folder / "mlflow.db").write_text("this is no database, whatever its name says, but a text")
    with pytest.raises(InputError, match=r"^MLflow at sqlite:///mlflow\.db: found ") as caught:
        client.connect()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(InputError, match=r"^MLflow at nonsense://host: found ") as caught:
        client.connect()
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down_is_away_and_soon_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(AwayError) as caught:
        client.connect()
    assert str(caught.value) == "MLflow at http://127.0.0.1:9 does not answer (connection refused)"
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("http://me:pa/SECRET@host", r"^MLflow at \(not shown\): found InvalidUrlException, expected"),
        ("nonsense://me:pa/SECRET@host", r"^MLflow at \(not shown\): found "),
        ("http://a:b@[bad/", r"expected the URI of a store|expected a store that takes this"),
        ("mssql+nodriver://host/db", r"expected the URI of a store|expected a store that takes this"),
    ],
)
def test_a_uri_that_is_none_is_a_mistake_and_shows_no_secret(
    uri: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=line) as caught:
        client.connect()
    assert not isinstance(caught.value, AwayError)
    assert "SECRET" not in str(caught.value)


def test_a_deleted_experiment_is_not_written_to() -> None:
    store = client.connect()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        client.connect()


def test_a_worktree_shares_the_store_of_the_main_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, tree = tmp_path / "main", tmp_path / "tree"
    identified = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(main)]
    subprocess.run(["git", "init", "-q", str(main)], check=True)
    subprocess.run([*identified, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    subprocess.run([*identified, "worktree", "add", "-q", str(tree)], check=True, capture_output=True)
    for checkout in (main, tree):
        monkeypatch.setenv("DVC_ROOT", str(checkout))
        assert paths.checkout() == checkout
        assert paths.root() == main
        assert paths.store_uri() == f"sqlite:///{main}/mlflow.db"
