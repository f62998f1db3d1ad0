"""The MLflow store: opened, made where there is none; its locks, and its errors in one line."""

import contextlib
import logging
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from filelock import FileLock, Timeout

from mnist.core import paths
from mnist.core.errors import InputError, ServiceUnavailableError

# MLflow reads them when it is imported. No telemetry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# No links at a run's end, no progress bars for files of some kB.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow waits minutes for a server that is down, and repeats requests of which only the answer
# was lost, which makes two runs. We look first what arrived, and then repeat.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import sqlalchemy
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError, TimeoutError as PoolTimeoutError
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from mnist.tracking import database, events

EXPERIMENT = "mnist"  # unless MLFLOW_EXPERIMENT_NAME is set, as in MLflow itself
HIDDEN = "(not shown)"  # from `paths.shown`, for a URI that may hold a secret anywhere
NOTICE_SECONDS = 10.0  # after which a wait for a lock is reported
MAX_REASON = 300  # characters of an error that is not known
STATUS = re.compile(r"too many (\d+) error responses|error code (\d+)")  # of HTTP, in MLflow's messages
Server = tuple[str | None, str | None, int | None]  # scheme, host and port
HTTP_PLACES: dict[str, type[HttpArtifactRepository]] = {  # by scheme
    **dict.fromkeys(("http", "https"), HttpArtifactRepository),
    "mlflow-artifacts": MlflowArtifactsRepository,
}
# Where MLflow keeps absolute paths of a local store's files.
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open tracking store, and our experiment in it."""

    client: MlflowClient
    experiment_id: str
    uri: str

    @property
    def page(self) -> str:
        """Return the address of our runs in MLflow's UI, without that of the server."""
        shown = f"workflowType=machine_learning&viewStateShareKey={events.VIEW}"
        return f"#/experiments/{self.experiment_id}/runs?{shown}"


@contextmanager
def lock(name: Literal["store", "runs", "registry"]) -> Iterator[None]:
    """Hold a lock of this checkout and its worktrees, which the same process may take twice.

    It is for what must exist once, and for what is read and then written. A long wait is reported on stderr.
    """
    file = paths.root() / ".cache" / f"mlflow-{name}.lock"
    file.parent.mkdir(exist_ok=True)
    held = FileLock(file, is_singleton=True)
    try:
        held.acquire(timeout=NOTICE_SECONDS)
    except Timeout:
        holder = file.read_text() or "unknown"
        print(f"waiting for process {holder}, which holds the lock {file}", file=sys.stderr, flush=True)
        held.acquire()
    try:
        file.write_text(str(os.getpid()))
        yield
    finally:
        held.release()


def connect() -> Store:
    """Open the store that `MLFLOW_TRACKING_URI` names, or else the one beside `dvc.yaml`.

    Raises:
        ServiceUnavailableError: it does not answer.
        InputError: it is no store, or refuses; or our experiment in it is deleted.
    """
    # They write of migrations, and of errors that become ours, on stderr, in many lines.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = paths.store_uri()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    # Four processes on a new SQLite file at once break it for good. A server looks after itself.
    alone = lock("store") if uri.startswith("sqlite:") else contextlib.nullcontext()
    with answering(uri), alone:
        database.check(uri)
        try:
            _stay_at(uri)
            _make_sqlite(uri)
            if not uri.startswith("http"):  # MLflow would try for minutes
                sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(name) or _new_experiment(client, name, uri)
        except (ImportError, ValueError) as error:  # no driver for the database; no URL
            found = str(error) if isinstance(error, ImportError) else paths.shown(uri)
            expected = "one that MLflow can open"
            raise InputError("MLFLOW_TRACKING_URI", found=found, expected=expected) from None
        assert experiment
        with contextlib.suppress(MlflowException):  # on a server, it may be ours to read alone
            for key in events.EXPERIMENT_TAGS.keys() - experiment.tags.keys():  # others may have changed them
                client.set_experiment_tag(experiment.experiment_id, key, events.EXPERIMENT_TAGS[key])
        _follow_checkout(uri, experiment)
    if experiment.lifecycle_stage == "deleted":
        expected = f"a live one: run `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        raise InputError(f"MLflow experiment {name}", found="a deleted one", expected=expected)
    if not re.match(r"/|[\w+-]+:", location := str(experiment.artifact_location)):
        found = f"files in {location}, relative to whatever folder is the current one"
        expected = "another one: run `export MLFLOW_EXPERIMENT_NAME=other`"
        raise InputError(f"MLflow experiment {name}", found=found, expected=expected)
    return Store(client=client, experiment_id=experiment.experiment_id, uri=uri)


def _stay_at(uri: str) -> None:
    """Let MLflow get files by HTTP from the server at `uri` alone.

    A run or a model names the place of its files, and MLflow would send the user's password there.
    """

    def staying(repository: type[HttpArtifactRepository]) -> Callable[..., HttpArtifactRepository]:
        def checked(
            place: str, tracking_uri: str | None = None, **more: str | None
        ) -> HttpArtifactRepository:
            own, other = _server(tracking_uri or uri), _server(place)
            if other[1] in (None, own[1]):
                found = repository(place, tracking_uri=tracking_uri, **more)  # resolves `mlflow-artifacts:`
                if (other := _server(found.artifact_uri)) == own:
                    return found
            expected = "those of MLflow's own server"
            raise InputError("MLflow's artifacts", found=f"files on {other[1]}", expected=expected)

        return checked

    for scheme, repository in HTTP_PLACES.items():
        _artifact_repository_registry.register(scheme, staying(repository))


def _server(uri: str) -> Server:
    """Return scheme, host and port of a URL, as requests reads it; its text where that cannot."""
    try:
        url = parse_url(uri)
    except LocationParseError:
        return None, uri, None
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme or "")


def _make_sqlite(uri: str) -> None:
    """Make the SQLite file of a new store whole or not at all.

    MLflow makes it in 140 commits; where it is killed between two of them, the file is broken for good.
    """
    file = paths.sqlite_file(uri)
    if not uri.startswith("sqlite:///") or file.exists() or not os.access(file.parent, os.W_OK):
        return  # MLflow opens it, or reports why it cannot
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        part = Path(folder) / file.name
        MlflowClient(tracking_uri=paths.sqlite_uri(part))
        # Not `replace`: another checkout that shares the store, with a lock of its own, may have made
        # it meanwhile and put runs into it. On a file system without links MLflow makes it itself.
        with contextlib.suppress(OSError):
            os.link(part, file)


def _new_experiment(client: MlflowClient, name: str, uri: str) -> Experiment | None:
    # Explicit and absolute: MLflow would keep a path relative to the folder of this moment, which
    # may be a temporary one. A server knows its own place.
    local = None if uri.startswith("http") else _artifacts().as_uri()
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=local))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
            raise
        return client.get_experiment_by_name(name)


def _artifacts() -> Path:
    return paths.root() / "mlartifacts"


def _follow_checkout(uri: str, experiment: Experiment) -> None:
    """Correct the store of a checkout that was moved or copied with its files."""
    database, location = paths.root() / "mlflow.db", str(experiment.artifact_location)
    old = Path(unquote(location.removeprefix("file://")))
    if uri == paths.sqlite_uri(database) and old.name == _artifacts().name and _artifacts().is_dir():
        move(database, old=old.parent, new=paths.root())


def move(database: Path, *, old: Path, new: Path) -> None:
    """Rewrite the absolute paths in a local store, from one checkout to another."""
    if old == new:
        return
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in LOCATIONS.items():
            for head, new_head in ((f"{old.as_uri()}/", f"{new.as_uri()}/"), (f"{old}/", f"{new}/")):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 -- our own names
                    f" WHERE substr({column}, 1, ?) = ?",
                    (new_head, len(head) + 1, len(head), head),
                )


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what MLflow and its libraries raise for the store at `uri` into one line.

    Raises:
        ServiceUnavailableError: it does not answer, answers that it cannot now, or is locked by others.
        InputError: it is no store, or refuses.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, RequestException) as error:
        cause, shown = _cause(error), paths.shown(uri)
        # The message holds the URI, perhaps; where that is not to be shown, neither is this.
        reason = type(error).__name__ if shown == HIDDEN else _reason(cause)
        if _may_succeed_later(cause):
            raise ServiceUnavailableError(f"MLflow at {shown}", reason) from None
        raise InputError(f"MLflow at {shown}", found=reason, expected="a store that takes this") from None


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what the store of artifacts raises into one line; each kind of store has its own errors."""
    try:
        yield
    except (InputError, MlflowException, RequestException):  # see `answering`
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(where, found=found, expected="files that can be read and written") from error


def _cause(error: BaseException) -> BaseException:
    """Return the error of the database or of the connection that MLflow has wrapped."""
    for cause in (getattr(error, "orig", None), error.__cause__, error.__context__):
        if isinstance(cause, SQLAlchemyError | sqlite3.Error | RequestException):
            return _cause(cause)
    return error


def _may_succeed_later(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    status = error.get_http_status_code() if isinstance(error, RestException) else 0
    if code := STATUS.search(str(error)):
        status = int(code[1] or code[2])
    if status:
        busy = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        return status in busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(error, sqlite3.Error):
        return "locked" in str(error)
    if isinstance(error, RequestException):
        return not isinstance(error, ValueError)  # a URL that is none
    return isinstance(error, OperationalError | PoolTimeoutError)


def _reason(error: BaseException) -> str:
    text = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))
    if "out-of-date database schema" in text:  # MLflow reports a newer one in the same words
        return "tables of another MLflow (`mnist doctor` names the versions)"
    if "Connection refused" in text:
        return "connection refused"
    if "timed out" in text:
        return f"no answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    if code := STATUS.search(text):
        return f"answer {code[1] or code[2]}"
    text = text.rpartition("(Caused by ")[2]  # of a chain of wrappers, as for a certificate that fails
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."
