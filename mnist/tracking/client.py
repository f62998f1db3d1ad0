"""MLflow runs: found by fingerprint, sent from journals, made from the files where there is none."""

import contextlib
import json
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from filelock import FileLock

from mnist.core import paths
from mnist.core.errors import AwayError, InputError
from mnist.data.store import SplitName
from mnist.lineage import fingerprint
from mnist.lineage.fingerprint import Training
from mnist.tracking import journal
from mnist.tracking.journal import End, Event, Point, Start
from mnist.training.history import Epoch, Window

# Read when mlflow is imported: nobody's use of this pipeline is anybody's business.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# What stages print is ours to choose: no links at a run's end, no bars for files of some kB.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow waits minutes for a server that is down, and repeats requests of which only the answer
# was lost, which makes two runs. We look first what arrived, and then repeat.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import sqlalchemy
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError, TimeoutError as PoolTimeoutError

EXPERIMENT = "mnist"  # unless MLFLOW_EXPERIMENT_NAME says otherwise, as in MLflow itself
FINGERPRINT, WEIGHTS, EXPERIMENTS = "fingerprint", "weights_sha256", "dvc.experiments"
EVALUATED = "evaluation_sha256"  # of what `evaluate` wrote
MAX_BATCH = 1000  # metrics that MLflow takes in one request
HIDDEN = "(not shown)"  # what `paths.shown` makes of a URI that may hold a secret anywhere
MAX_REASON = 300  # characters of an error that is not known


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open tracking store, and our experiment in it."""

    client: MlflowClient
    experiment_id: str
    uri: str


def lock(what: Literal["store", "runs", "registry"]) -> FileLock:
    """What a process holds while it makes what must exist once, or reads and writes what others do too."""
    folder = paths.root() / ".cache"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"mlflow-{what}.lock", is_singleton=True)  # so that it may be taken twice


def connect() -> Store:
    """Open the store that `MLFLOW_TRACKING_URI` names, or else the one beside `dvc.yaml`.

    Raises:
        AwayError: it does not answer.
        InputError: it is no store, or refuses; or our experiment in it is deleted.
    """
    # They speak of migrations and of errors that become ours, on stderr, in many lines.
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
        return  # MLflow opens it, or says why it cannot

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
    local = None if uri.startswith("http") else (paths.root() / "mlartifacts").as_uri()
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=local))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody else was faster
            raise
        return client.get_experiment_by_name(name)


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what MLflow and its libraries raise for the store at `uri` into one line.

    Raises:
        AwayError: it does not answer, answers that it cannot now, or is locked by others.
        InputError: it is no store, or refuses.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        shown = paths.shown(uri)
        # The message holds the URI, perhaps; where that is not to be shown, neither is this.
        reason = type(error).__name__ if shown == HIDDEN else _reason(error)
        if _is_away(error):
            raise AwayError(f"MLflow at {shown}", reason) from None
        raise InputError(f"MLflow at {shown}", found=reason, expected="a store that takes this") from None


def _is_away(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, RestException):
        return _may_change(error.get_http_status_code())
    if isinstance(error, MlflowException):
        # Its code is "internal error" for whatever has no other: only the text tells what it was.
        said = re.search(r"failed with (?:exception|error code (\d+))", str(error))
        if said and said[1]:
            return _may_change(int(said[1]))
        is_lost = said is not None and not re.search(
            r"(?i)invalid ?(url|schema)|no connection adapters", str(error)
        )
        return is_lost or error.error_code == "TEMPORARILY_UNAVAILABLE"
    if isinstance(error, RequestException):
        return error.response is None or _may_change(error.response.status_code)
    return isinstance(error, OperationalError | PoolTimeoutError)


def _may_change(status: int) -> bool:
    """Whether this answer is one of a server's bad hour: too slow, too many, or a fault of its own."""
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


def find(store: Store, fingerprint: str, weights_sha256: str | None = None) -> Run | None:
    """The finished run of this training, of just these weights where they are given."""
    runs = _finished(store, fingerprint, weights_sha256, max_results=1)
    return runs[0] if runs else None


def evaluated(store: Store, evaluation_sha256: str) -> Run | None:
    """The last finished run whose evaluation gave just this."""
    wanted = f"tags.`{EVALUATED}` = '{evaluation_sha256}' and attributes.status = 'FINISHED'"
    runs = store.client.search_runs(
        [store.experiment_id], wanted, max_results=1, order_by=["start_time DESC"]
    )
    return runs[0] if runs else None


def _restored(store: Store, fingerprint: str, weights_sha256: str) -> Run | None:
    """The run of this result out of MLflow's bin: its versions point to it, and to no other."""
    deleted = _finished(store, fingerprint, weights_sha256, max_results=1, view=ViewType.DELETED_ONLY)
    if not deleted:
        return None
    store.client.restore_run(deleted[0].info.run_id)
    return find(store, fingerprint, weights_sha256)


def _finished(
    store: Store,
    fingerprint: str,
    weights_sha256: str | None,
    max_results: int,
    view: int = ViewType.ACTIVE_ONLY,
) -> list[Run]:
    wanted = f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'"
    if weights_sha256:
        wanted += f" and tags.`{WEIGHTS}` = '{weights_sha256}'"
    found = store.client.search_runs(
        [store.experiment_id],
        wanted,
        run_view_type=view,
        max_results=max_results,
        order_by=["start_time ASC"],
    )
    return list(found)


class Sender:
    """Sends one journal to a store.

    Whatever was sent before, by this sender or by another one that was cut off, arrives once:
    a run is found by fingerprint and start before it is made, and MLflow keeps equal points once.

    Attributes:
        known: the run that holds this training already, where there is one; a second one is not made.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: Run | None = None
        self._run_id: str | None = None
        self._num_sent: tuple[int, int] = (0, 0)

    def send(self, events: Sequence[Event], system: Sequence[Event] = ()) -> bool:
        """Send what is new; True when the end has arrived.

        Args:
            events: all of the training so far.
            system: all points of its machine so far.
        """
        if not events:
            return False
        start, last = events[0], events[-1]
        assert isinstance(start, Start)
        end = last if isinstance(last, End) else None
        if self.known and not end:
            return False  # it was looked for before
        if self._run_id is None and self._is_known(start, end):
            if end:
                self._discard(start)
            return end is not None
        if self._run_id is None:
            self._run_id = _attempt(self.store, start, end.weights_sha256 if end else None)
        fresh = [*events[self._num_sent[0] :], *system[self._num_sent[1] :]]
        points = [event for event in fresh if isinstance(event, Point)]
        metrics = [metric for point in points for metric in _metrics(point.values, point.time_ms, point.step)]
        for first in range(0, len(metrics), MAX_BATCH):
            self.store.client.log_batch(self._run_id, metrics=metrics[first : first + MAX_BATCH])
        self._num_sent = (len(events), len(system))
        if end:
            self._finish(self._run_id, start, end)
        return end is not None

    def _is_known(self, start: Start, end: End | None) -> bool:
        """Whether another run holds this training, as far as can be told before it ends."""
        # Other weights, which another machine makes, are another result.
        weights_sha256 = end.weights_sha256 if end else None
        known = find(self.store, start.fingerprint, weights_sha256)
        is_other = known is not None and known.info.start_time != start.time_ms
        self.known = known if is_other else None
        return is_other

    def _discard(self, start: Start) -> None:
        """Delete what another sender, that was cut off, began of this training, now that it is known."""
        for run in _begun(self.store, start):
            if self.known and run.info.run_id != self.known.info.run_id:
                for experiment in run.data.tags.get(EXPERIMENTS, "").split():
                    note(self.store, self.known, experiment)
                self.store.client.delete_run(run.info.run_id)

    def _finish(self, run_id: str, start: Start, end: End) -> None:
        client = self.store.client
        tags = [RunTag(WEIGHTS, end.weights_sha256)] if end.weights_sha256 else []
        client.log_batch(run_id, metrics=_metrics(end.values or {}, end.time_ms, 0), tags=tags)
        client.set_terminated(run_id, end.status, end_time=end.time_ms)
        if end.status == "FINISHED":
            self._leave_one(start.fingerprint, end.weights_sha256)

    def _leave_one(self, fingerprint: str, weights_sha256: str) -> None:
        """Keep one run of a training that ran twice at once: the evaluated one, or else the first."""
        with lock("runs"):
            runs = _finished(self.store, fingerprint, weights_sha256, max_results=100)
            runs.sort(key=lambda run: (EVALUATED not in run.data.tags, run.info.start_time, run.info.run_id))
            kept, *others = runs
            for other in others:
                for experiment in other.data.tags.get(EXPERIMENTS, "").split():
                    note(self.store, kept, experiment)
                self.store.client.delete_run(other.info.run_id)


def ensure(
    store: Store, training: Training, *, events: Sequence[Window | Epoch], weights_sha256: str, time_ms: int
) -> Run:
    """The run of these weights; made from the files where there is none, and never a second one.

    There is none where the files were restored from a cache, or the store is new.
    """
    run = find(store, training.fingerprint, weights_sha256) or _restored(
        store, training.fingerprint, weights_sha256
    )
    if run is None:
        begin = journal.start(training, {"rebuilt": "from files"}, time_ms)
        points = [journal.point(event, time_ms) for event in events]
        end = End(time_ms=time_ms, status="FINISHED", weights_sha256=weights_sha256)
        Sender(store).send([begin, *points, end])
        run = find(store, training.fingerprint, weights_sha256)
        assert run is not None
    note(store, run, training.source.experiment)
    return run


def note(store: Store, run: Run, experiment: str) -> None:
    """Add an experiment's name to those that led to this run."""
    if not experiment:
        return
    with lock("runs"):  # queued experiments may come to one result at once
        tags = store.client.get_run(run.info.run_id).data.tags
        names = tags.get(EXPERIMENTS, "").split()
        if experiment not in names:
            store.client.set_tag(run.info.run_id, EXPERIMENTS, " ".join([*names, experiment]))


def log_evaluation(
    store: Store,
    run: Run,
    *,
    metrics: dict[str, float],
    tags: dict[str, str],
    time_ms: int,
    files: Path,
    digest: str,
) -> None:
    """Add test metrics, tags and all files in a folder to a run; doing it again changes nothing.

    The tag `EVALUATED` comes last: a run that has it, with this `digest`, has the rest too. Its files
    stay then: one result may be told from several commits or experiments, and the run's report is to
    speak of the one that its tags and its patch speak of.
    """
    client, run_id = store.client, run.info.run_id
    kept = {file.path for file in client.list_artifacts(run_id, str(paths.REPORT.parent))}
    is_told = run.data.tags.get(EVALUATED) == digest and str(paths.REPORT) in kept
    new = {name: value for name, value in metrics.items() if run.data.metrics.get(name) != value}
    client.log_batch(
        run_id,
        metrics=_metrics(new, time_ms, 0),
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    of_it = fingerprint.dataset_of(run.data.params), run.data.tags["dataset_sha256"]
    client.log_inputs(run_id, [_dataset(*of_it, "test", context="testing")])
    if not is_told:
        client.log_artifacts(run_id, str(files))
    client.set_tag(run_id, EVALUATED, digest)


def _begun(store: Store, start: Start) -> list[Run]:
    wanted = f"tags.`{FINGERPRINT}` = '{start.fingerprint}' and attributes.start_time = {start.time_ms}"
    return list(store.client.search_runs([store.experiment_id], wanted))


def _attempt(store: Store, start: Start, weights_sha256: str | None) -> str:
    """The run of this start, made where it is not there, with all that is known when it starts."""
    client = store.client
    found = [run for run in _begun(store, start) if run.data.tags.get(WEIGHTS) in (None, weights_sha256)]
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {FINGERPRINT: start.fingerprint, **start.tags}
        run = client.create_run(store.experiment_id, start.time_ms, tags, start.name)
        run_id = run.info.run_id
    # The description of the run's page.
    note = f"```sh\n{start.tags['rerun']}  # run it again\n"
    note += f"make reproduce MODEL={run_id}  # prove that it gives the same weights\n```\n"
    params = [Param(key, str(value)) for key, value in start.params.items()]
    client.log_batch(run_id, params=params, tags=[RunTag("mlflow.note.content", note)])
    of_it = fingerprint.dataset_of(start.params), start.dataset_sha256
    client.log_inputs(run_id, [_dataset(*of_it, "train", context="training")])
    if start.patch:
        with tempfile.TemporaryDirectory() as folder:
            patch = Path(folder) / "dirty.patch"
            patch.write_bytes(start.patch.encode(errors="surrogateescape"))
            client.log_artifact(run_id, str(patch))
    return str(run_id)


def _dataset(name: str, sha256: str, split: SplitName, *, context: str) -> DatasetInput:
    where = json.dumps({"uri": str(paths.DATASET)})
    # MLflow shows a digest of at most 36 characters, and one context for one name and digest.
    data = Dataset(name=f"{name}-{split}", digest=sha256[:36], source_type="local", source=where)
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


def _metrics(values: dict[str, float], time_ms: int, step: int) -> list[Metric]:
    return [Metric(key, value, time_ms, step) for key, value in values.items()]
