"""The store: where it is, made once and whole, and what becomes of its errors."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.tracking import MlflowClient

from mnist.core import paths
from mnist.core.errors import InputError, ServiceUnavailableError
from mnist.tracking import client

pytestmark = pytest.mark.usefixtures("store_folder")

ROOT = Path(__file__).parents[3]


def test_the_store_lies_beside_the_main_checkout_with_absolute_artifacts(store_folder: Path) -> None:
    store = client.connect()
    assert (store_folder / "mlflow.db").is_file()
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == (store_folder / "mlartifacts").as_uri()
    assert client.connect().experiment_id == store.experiment_id


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


def test_a_store_in_use_waits_for_the_disk() -> None:
    """Only its making does without."""
    client.connect()
    engine = sqlalchemy.create_engine(paths.store_uri(), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 2  # FULL


def test_a_store_that_cannot_be_used_is_one_line(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store_folder / "mlflow.db").write_text("this is no database, whatever its name says, but a text")
    with pytest.raises(InputError, match=r"^MLflow at sqlite:///mlflow\.db: found ") as caught:
        client.connect()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(InputError, match=r"^MLflow at nonsense://host: found ") as caught:
        client.connect()
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    """Answer every request with this status, or never, for 0; yields the URL."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status:
                self.send_error(status)
            else:
                done.wait(60)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        done.set()
        listener.shutdown()


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (500, ServiceUnavailableError, "answer 500"),
        (429, ServiceUnavailableError, "answer 429"),
        (0, ServiceUnavailableError, "no answer within 1 s"),
        (401, InputError, "answer 401"),
    ],
)
def test_a_server_that_cannot_now_is_away_and_one_that_refuses_is_a_mistake(
    status: int, kind: type[InputError], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with server(status) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with pytest.raises(InputError, match=reason) as caught:
            client.connect()
    assert type(caught.value) is kind
    assert url in str(caught.value)


def test_a_file_that_others_write_is_away() -> None:
    with pytest.raises(ServiceUnavailableError), client.answering(paths.store_uri()):
        raise sqlite3.OperationalError("database is locked")


def test_a_server_that_is_down_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(ServiceUnavailableError) as caught:
        client.connect()
    assert str(caught.value) == "MLflow at http://127.0.0.1:9 does not answer (connection refused)"


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
    assert not isinstance(caught.value, ServiceUnavailableError)
    assert "SECRET" not in str(caught.value)


def test_a_deleted_experiment_is_not_written_to() -> None:
    store = client.connect()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        client.connect()


def test_a_checkout_that_was_copied_has_its_own_artifacts(
    store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.connect()
    run_id = first.client.create_run(first.experiment_id).info.run_id
    first.client.log_text(run_id, "first", "note.txt")
    copied = tmp_path / "a copy"
    copied.mkdir()
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
