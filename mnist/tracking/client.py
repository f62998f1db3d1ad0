"""The MLflow store: opened, made where there is none, and its errors in one line."""

import contextlib
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from filelock import FileLock

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
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError, TimeoutError as PoolTimeoutError

EXPERIMENT = "mnist"  # unless MLFLOW_EXPERIMENT_NAME is set, as in MLflow itself
WEIGHTS, EXPERIMENTS = "weights_sha256", "dvc.experiments"  # tags of a run
EVALUATED = "evaluation_sha256"  # of what `evaluate` wrote
HIDDEN = "(not shown)"  # from `paths.shown`, for a URI that may hold a secret anywhere
MAX_REASON = 300  # characters of an error that is not known
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


def lock(name: Literal["store", "runs", "registry"]) -> FileLock:
    """Return the lock for what must exist once, or what others read and write too; it may be taken twice."""
    folder = paths.root() / ".cache"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"mlflow-{name}.lock", is_singleton=True)


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
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    # Four processes on a new SQLite file at once break it for good. A server looks after itself.
    alone = lock("store") if uri.startswith("sqlite:") else contextlib.nullcontext()
    with answering(uri), alone:
        try:
            if re.match(r"(postgresql|mysql|mssql)\b", uri):
                sqlalchemy.create_engine(uri).connect().close()  # MLflow would try for an hour
            _make_sqlite(uri)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(name) or _new_experiment(client, name, uri)
        except (ImportError, ValueError) as error:  # no driver for the database; no URL
            found = f"{type(error).__name__}{'' if paths.shown(uri) == HIDDEN else f': {error}'}"
            raise InputError("MLFLOW_TRACKING_URI", found=found, expected="the URI of a store") from None
        assert experiment
        _follow_checkout(uri, experiment)
    if experiment.lifecycle_stage == "deleted":
        expected = f"a live one: run `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        raise InputError(f"MLflow experiment {name}", found="a deleted one", expected=expected)
    return Store(client=client, experiment_id=experiment.experiment_id, uri=uri)


def _make_sqlite(uri: str) -> None:
    """Make the SQLite file of a new store whole or not at all, though MLflow makes it in 140 commits.

    They need not wait for the disk, since nothing counts before the file is in its place: 0.2 s
    less, and 3 s where others keep the disk busy.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    is_file = uri.startswith("sqlite:///") and "?" not in uri
    if not is_file or file.exists() or not os.access(file.parent, os.W_OK):
        return  # MLflow opens it, or reports why it cannot

    def hurry(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", hurry)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
            part = Path(folder) / file.name
            MlflowClient(tracking_uri=f"sqlite:///{part}")
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            # Not `replace`: another checkout that shares the store, with a lock of its own, may have made
            # it meanwhile and put runs into it. On a file system without links MLflow makes it itself.
            with contextlib.suppress(OSError):
                os.link(part, file)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", hurry)


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
    """Correct the absolute paths in the store of a checkout that was moved or copied with its files."""
    old, new = str(experiment.artifact_location), _artifacts().as_uri()
    is_ours = uri == f"sqlite:///{paths.root() / 'mlflow.db'}" and old.endswith(f"/{_artifacts().name}")
    if not is_ours or old == new or not _artifacts().is_dir():
        return
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
        for table, column in LOCATIONS.items():
            for pair in ((old, new), (unquote(old.removeprefix("file://")), str(_artifacts()))):
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"  # noqa: S608 -- our names
                connection.execute(change, pair)


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
        shown = paths.shown(uri)
        # The message holds the URI, perhaps; where that is not to be shown, neither is this.
        reason = type(error).__name__ if shown == HIDDEN else _reason(error)
        if _is_away(error):
            raise ServiceUnavailableError(f"MLflow at {shown}", reason) from None
        raise InputError(f"MLflow at {shown}", found=reason, expected="a store that takes this") from None


def _is_away(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, RestException):
        return _may_change(error.get_http_status_code())
    if isinstance(error, MlflowException):
        # Its code is "internal error" for whatever has no other: only the text has the cause.
        cause = re.search(r"failed with (?:exception|error code (\d+))", str(error))
        if cause and cause[1]:
            return _may_change(int(cause[1]))
        is_lost = cause is not None and not re.search(
            r"(?i)invalid ?(url|schema)|no connection adapters", str(error)
        )
        return is_lost or error.error_code == "TEMPORARILY_UNAVAILABLE"
    if isinstance(error, RequestException):
        return error.response is None or _may_change(error.response.status_code)
    return isinstance(error, OperationalError | sqlite3.OperationalError | PoolTimeoutError)


def _may_change(status: int) -> bool:
    """Return whether this answer may be another one later: too slow, too many, or a fault of the server."""
    busy = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    return status in busy or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _reason(error: Exception) -> str:
    text = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))
    if "Connection refused" in text:
        return "connection refused"
    if "timed out" in text:
        return f"no answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    if status := re.search(r"too many (\d+) error responses|error code (\d+)", text):
        return f"answer {status[1] or status[2]}"
    text = text.rpartition("(Caused by ")[2]  # of a chain of wrappers, as for a certificate that fails
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."
