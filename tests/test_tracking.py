"""Runs in a real MLflow store: one for each result, found by what determined it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Run

from mnist import paths, tracking
from mnist.errors import InputError
from mnist.history import Epoch, Window
from mnist.identity import Source, Training

ROOT = Path(__file__).parents[1]
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


def runs(store: tracking.Store) -> list[Run]:
    return list(store.client.search_runs([store.experiment_id]))


def curve(store: tracking.Store, run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, name)]


def datasets(run: Run) -> set[tuple[str, str]]:
    assert run.inputs is not None
    return {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}


def test_the_store_lies_beside_the_main_checkout_with_absolute_artifacts(store_folder: Path) -> None:
    store = tracking.connect()
    assert (store_folder / "mlflow.db").is_file()
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (store_folder / "mlartifacts").as_uri()
    assert tracking.connect().experiment_id == store.experiment_id


def test_four_processes_at_once_make_one_sound_store(store_folder: Path) -> None:
    code = "from mnist import tracking; print(tracking.connect().experiment_id)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(answers) == 1
    assert (store_folder / "mlflow.db").is_file()


def test_a_live_run_shows_params_curves_and_tags() -> None:
    with tracking.live(TRAINING, {"device": "CPU"}) as run:
        for event in EVENTS:
            run.log(event)
        run.finish("w" * 64, seconds=1.5)
    store = tracking.connect()
    (logged,) = runs(store)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "main-ccccccc"
    assert logged.data.params == {"lr": "0.01", "permute_pixels": "False"}
    assert curve(store, logged, "train_loss") == [(100, 0.9), (120, 0.5)]
    assert curve(store, logged, "val_accuracy") == [(120, 0.88)]
    assert logged.data.metrics["training_seconds"] == 1.5
    tags = logged.data.tags
    assert tags["fingerprint"] == "f" * 64
    assert tags["weights_sha256"] == "w" * 64
    assert tags["device"] == "CPU"
    assert tags["mlflow.source.git.commit"] == "c" * 40
    assert "dvc repro" in tags["mlflow.note.content"]
    assert datasets(logged) == {("mnist-train", "d" * 36)}


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    ids=["fault", "interrupt"],
)
def test_a_run_that_breaks_off_says_so(error: BaseException, status: str) -> None:
    def broken() -> None:
        with tracking.live(TRAINING, {}) as run:
            run.log(EVENTS[0])
            raise error

    with pytest.raises(type(error)):
        broken()
    store = tracking.connect()
    assert [run.info.status for run in runs(store)] == [status]
    assert tracking.find(store, TRAINING) is None  # so the next try logs a run of its own


def test_the_same_training_again_logs_no_second_run(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with tracking.live(TRAINING, {}) as run:
            run.log(*EVENTS)
            run.finish("w" * 64)
    store = tracking.connect()
    assert len(runs(store)) == 1
    assert len(curve(store, runs(store)[0], "train_loss")) == 2
    assert "MLflow has this training already, as run main-ccccccc" in capsys.readouterr().out


def test_a_run_is_made_from_the_files_where_there_is_none_and_only_then() -> None:
    store = tracking.connect()
    first = tracking.ensure(store, TRAINING, events=EVENTS, weights_sha256="w" * 64)
    again = tracking.ensure(store, TRAINING, events=EVENTS, weights_sha256="w" * 64)
    assert first.info.run_id == again.info.run_id
    assert first.info.status == "FINISHED"
    assert curve(store, first, "train_loss") == [(100, 0.9), (120, 0.5)]
    assert curve(store, first, "epoch_train_accuracy") == [(120, 0.72)]
    # Other weights of the same training (another machine's, say) are another result.
    other = tracking.ensure(store, TRAINING, events=EVENTS, weights_sha256="x" * 64)
    assert other.info.run_id != first.info.run_id
    assert len(runs(store)) == 2


def test_every_experiment_that_led_to_a_run_is_noted_once() -> None:
    store = tracking.connect()
    for name in ("runny-jibe", "prone-fard", "runny-jibe"):
        named = dataclasses.replace(TRAINING, source=dataclasses.replace(SOURCE, experiment=name))
        tracking.ensure(store, named, events=EVENTS, weights_sha256="w" * 64)
    (run,) = runs(store)
    assert run.info.run_name == "runny-jibe"
    assert run.data.tags["dvc.experiments"] == "runny-jibe prone-fard"


def test_the_evaluation_is_logged_once_however_often_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    store = tracking.connect()
    for _ in range(2):
        run = tracking.ensure(store, TRAINING, events=EVENTS, weights_sha256="w" * 64)
        tracking.log_evaluation(
            store, run, TRAINING, metrics={"test_accuracy": 0.95}, artifacts=[Path("params.yaml")]
        )
    assert len(store.client.get_metric_history(run.info.run_id, "test_accuracy")) == 1
    kept = store.client.download_artifacts(run.info.run_id, "params.yaml")
    assert Path(kept).read_bytes() == (ROOT / "params.yaml").read_bytes()
    (run,) = runs(store)
    assert datasets(run) == {("mnist-train", "d" * 36), ("mnist-test", "d" * 36)}


def test_uncommitted_changes_are_kept_as_a_patch() -> None:
    changed = dataclasses.replace(TRAINING, source=dataclasses.replace(SOURCE, patch="diff --git a b\n"))
    store = tracking.connect()
    run = tracking.ensure(store, changed, events=EVENTS, weights_sha256="w" * 64)
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
    assert tracking.store_uri() == resolved.format(root=store_folder)


def test_a_store_that_cannot_be_used_is_one_line(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store_folder / "mlflow.db").write_text("this is no database, whatever its name says, but a text")
    with pytest.raises(InputError, match=r"^MLflow store sqlite:///.*mlflow\.db: found ") as caught:
        tracking.connect()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(InputError, match=r"^MLflow store nonsense://host: found ") as caught:
        tracking.connect()
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_not_written_to() -> None:
    store = tracking.connect()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        tracking.connect()


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
        assert tracking.store_uri() == f"sqlite:///{main}/mlflow.db"
