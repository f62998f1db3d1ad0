"""The store: where it is, made once and whole; its locks, and what becomes of its errors."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.tracking import MlflowClient

from mnist.core import paths
from mnist.core.errors import InputError, ServiceUnavailableError
from mnist.tracking import client, database, events
from tests import servers
from tests.servers import Fault

pytestmark = pytest.mark.usefixtures("store_folder")

ROOT = Path(__file__).parents[3]


def test_the_store_lies_beside_the_main_checkout_with_absolute_artifacts(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.connect()
    assert (store_folder / "mlflow.db").is_file()
    experiment = store.client.get_experiment(store.experiment_id)
    assert experiment.name == "mnist"
    assert experiment.artifact_location == (store_folder / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert client.connect().experiment_id == store.experiment_id


def test_an_experiment_is_one_of_model_training_unless_somebody_said_otherwise(store_folder: Path) -> None:
    plain = MlflowClient(tracking_uri=f"sqlite:///{store_folder / 'mlflow.db'}")
    number, kind = plain.create_experiment("mnist"), "mlflow.experimentKind"
    assert f"/{number}/" in client.connect().page
    assert plain.get_experiment(number).tags == events.EXPERIMENT_TAGS
    plain.set_experiment_tag(number, kind, "regression")
    client.connect()
    assert plain.get_experiment(number).tags[kind] == "regression"


def test_two_processes_at_once_make_one_sound_store(new_store_folder: Path) -> None:
    (new_store_folder / "mlflow.db").unlink()
    code = "from mnist.tracking import client; print(client.connect().experiment_id)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 2
    assert len(answers) == 1


def test_a_store_whose_making_broke_off_is_not_there(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-made one would be broken for good."""
    (store_folder / "mlflow.db").unlink()

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
    assert client.connect().experiment_id
    assert sorted(path.name for path in store_folder.iterdir()) == [".cache", "mlflow.db"]


def test_a_store_that_another_checkout_made_meanwhile_stays(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkouts that share a store have locks of their own."""
    file, plain = store_folder / "mlflow.db", MlflowClient
    file.unlink()

    def late(tracking_uri: str, **more: str) -> MlflowClient:
        if not file.exists():
            plain(tracking_uri=f"sqlite:///{file}").create_experiment("theirs")
        return plain(tracking_uri=tracking_uri, **more)

    monkeypatch.setattr(client, "MlflowClient", late)

    assert client.connect().client.get_experiment_by_name("theirs") is not None


def change(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def other_tables(file: Path) -> None:
    file.unlink()
    change(file, "CREATE TABLE mine (a INTEGER)")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a text": (lambda file: file.write_text("x" * 200), "file is not a database"),
    "a folder": (folder_instead, "a folder"),
    "empty": (lambda file: file.write_text(""), "an empty file"),
    "other tables": (other_tables, "a database of something else"),
    "no version": (lambda file: change(file, "DELETE FROM alembic_version"), "a database of something else"),
    "a half": (lambda file: os.truncate(file, 100_000), "database disk image is malformed"),
    "newer": (
        lambda file: change(file, "UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        "tables of a newer MLflow",
    ),
}


@pytest.mark.parametrize(("make", "found"), KINDS.values(), ids=KINDS)
def test_a_file_that_is_no_store_is_a_mistake_and_left_alone(
    make: Callable[[Path], object], found: str, store_folder: Path
) -> None:
    file = store_folder / "mlflow.db"
    make(file)
    before = file.read_bytes() if file.is_file() else b""
    with pytest.raises(InputError) as caught:
        client.connect()
    assert type(caught.value) is InputError
    assert caught.value.where == "MLflow at sqlite:///mlflow.db"
    assert caught.value.found.startswith(found)
    assert "\n" not in str(caught.value)
    assert (file.read_bytes() if file.is_file() else b"") == before


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (500, ServiceUnavailableError, "answer 500"),
        ("hang", ServiceUnavailableError, "no answer within 1 s"),
        ("cut", ServiceUnavailableError, "RemoteDisconnected"),
        (401, InputError, "answer 401"),
    ],
)
def test_a_server_that_cannot_now_is_away_and_one_that_refuses_is_a_mistake(
    fault: Fault, kind: type[InputError], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with servers.faulty_proxy("http://127.0.0.1:9", fault) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url.replace("//", "//me:SECRET@"))
        with pytest.raises(InputError) as caught:
            client.connect()
    assert type(caught.value) is kind
    assert caught.value.where == f"MLflow at {proxy.url}"
    assert reason in caught.value.found


def test_a_file_that_others_write_is_away() -> None:
    with pytest.raises(ServiceUnavailableError), client.answering(paths.store_uri()):
        raise sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("uri", "where", "found"),
    [
        ("foo://me:SECRET@host", "MLFLOW_TRACKING_URI", "foo://host"),
        ("runs/SECRET", "MLFLOW_TRACKING_URI", "(not shown)"),
        ("http://me:pa/SECRET@host", "MLflow at (not shown)", "InvalidUrlException"),
        ("http://a:SECRET@[bad/", "MLFLOW_TRACKING_URI", "(not shown)"),
        ("mssql+nodriver://me:SECRET@host/db", "MLflow at mssql+nodriver://host/db", "nodriver"),
    ],
)
def test_a_uri_that_is_none_is_a_mistake_and_shows_no_secret(
    uri: str, where: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError) as caught:
        client.connect()
    assert type(caught.value) is InputError
    assert caught.value.where == where
    assert found in caught.value.found
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_not_written_to() -> None:
    store = client.connect()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        client.connect()


@pytest.mark.parametrize(
    "place",
    ["http://evil.org\\@mlflow.org/a", "http://mlflow.org:81/a", "mlflow-artifacts://evil.org/a"],
    ids=["as urllib reads it", "another port", "unresolved"],
)
def test_a_password_stays_at_the_server_that_requests_would_ask(place: str) -> None:
    client._stay_at("http://mlflow.org")
    repositories = _artifact_repository_registry
    assert repositories.get_artifact_repository("http://mlflow.org/a").artifact_uri == "http://mlflow.org/a"
    with pytest.raises(InputError, match="files on"):
        repositories.get_artifact_repository(place)


def test_what_a_killed_writer_left_is_rolled_back(store_folder: Path, tmp_path: Path) -> None:
    file = store_folder / "mlflow.db"
    with closing(sqlite3.connect(file)) as store:
        store.execute("PRAGMA cache_size = 1")  # so that pages are written before the end
        store.execute("BEGIN")
        store.execute("CREATE TABLE more (number, filling)")
        store.executemany("INSERT INTO more VALUES (?, zeroblob(99))", [(number,) for number in range(9999)])
        killed = tmp_path / "killed"
        shutil.copytree(store_folder, killed)
    assert (killed / "mlflow.db-journal").stat().st_size
    database.check(f"sqlite:///{killed / 'mlflow.db'}")
    assert not (killed / "mlflow.db-journal").exists()


def test_an_experiment_with_files_in_the_current_folder_is_not_written_to(store_folder: Path) -> None:
    client.connect()
    change(store_folder / "mlflow.db", "UPDATE experiments SET artifact_location = 'mlruns/1'")
    with pytest.raises(InputError, match="MLFLOW_EXPERIMENT_NAME"):
        client.connect()


@pytest.mark.parametrize("place", ["http://{}/a", "mlflow-artifacts://{}/a", "http://[x"])
def test_no_other_server_is_asked_for_the_files_of_a_run(
    place: str, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get the user's password."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "SECRET")
    store = client.connect()
    run_id = store.client.create_run(store.experiment_id).info.run_id
    with servers.faulty_proxy("", 500) as other:
        there = place.format(other.url.removeprefix("http://"))
        change(store_folder / "mlflow.db", f"UPDATE runs SET artifact_uri = '{there}'")  # noqa: S608
        with pytest.raises(InputError), client.readable("MLflow's artifacts"):
            store.client.list_artifacts(run_id)
        assert not other.exchanges


@pytest.mark.parametrize("below", ["a copy", "a%2Fcopy", "again{}"])
def test_a_checkout_that_was_copied_has_its_own_artifacts(
    below: str, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.connect()
    run_id = first.client.create_run(first.experiment_id).info.run_id
    first.client.log_text(run_id, "first", "note.txt")
    copied = store_folder / below.format(store_folder)
    copied.mkdir(parents=True)
    shutil.copyfile(store_folder / "mlflow.db", copied / "mlflow.db")
    shutil.copytree(store_folder / "mlartifacts", copied / "mlartifacts")
    monkeypatch.setenv("DVC_ROOT", str(copied))
    second = client.connect()
    location = second.client.get_run(run_id).info.artifact_uri
    assert location == f"{(copied / 'mlartifacts').as_uri()}/{run_id}/artifacts"
    other = second.client.create_run(second.experiment_id).info.run_id
    second.client.log_text(other, "second", "note.txt")
    assert (copied / "mlartifacts" / other / "artifacts/note.txt").read_text() == "second"
    assert not (store_folder / "mlartifacts" / other).exists()


def test_a_wait_for_a_lock_names_its_file_and_its_holder(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
import sys, time
from mnist.tracking import client
with client.lock("runs"):
    print("held", flush=True)
    sys.stdin.readline()
    time.sleep(1)
"""
    monkeypatch.setattr(client, "NOTICE_SECONDS", 0.1)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == "held\n"
        holder.stdin.write("\n")
        holder.stdin.flush()
        with client.lock("runs"), client.lock("runs"):
            pass
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {holder.pid}," in line
    assert str(store_folder / ".cache/mlflow-runs.lock") in line
