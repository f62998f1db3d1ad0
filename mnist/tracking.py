"""MLflow runs: found by fingerprint, logged live by `train`, made from the files where there is none."""

import getpass
import json
import logging
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from mnist import paths
from mnist.dataset import SplitName
from mnist.errors import InputError
from mnist.history import Epoch, Window
from mnist.identity import Training

# Read when mlflow is imported: nobody's use of this pipeline is anybody's business.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENT = "mnist"  # unless MLFLOW_EXPERIMENT_NAME says otherwise, as in MLflow itself
LIBRARIES = ("torch", "numpy", "mlflow", "dvc")

FINGERPRINT, WEIGHTS, EXPERIMENTS = "fingerprint", "weights_sha256", "dvc.experiments"


@dataclass(frozen=True, kw_only=True)
class Store:
    """An open tracking store, and our experiment in it."""

    client: MlflowClient
    experiment_id: str
    uri: str


def lock() -> FileLock:
    """What a process holds while it makes what must exist once: the store, a version in the registry."""
    folder = paths.root() / ".cache"
    folder.mkdir(exist_ok=True)
    return FileLock(folder / "mlflow.lock")


def connect() -> Store:
    """Open the store that `MLFLOW_TRACKING_URI` names, or else the one beside `dvc.yaml`.

    Raises:
        InputError: the store cannot be opened or reached, or our experiment in it is deleted.
    """
    # Its progress messages speak of database migrations, on stderr, at every first use.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = store_uri()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        with lock():  # four processes on a new SQLite file at once break it for good
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                # Explicit and absolute: MLflow would keep a path relative to the folder of this
                # moment, which may be a temporary one. A server knows its own place.
                local = None if uri.startswith("http") else (paths.root() / "mlartifacts").as_uri()
                experiment = client.get_experiment(client.create_experiment(name, artifact_location=local))
    except (MlflowException, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"MLflow store {uri}", found=reason, expected="a store that answers") from None
    if experiment.lifecycle_stage == "deleted":
        expected = f"a live one: run `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        raise InputError(f"MLflow experiment {name}", found="a deleted one", expected=expected)
    return Store(client=client, experiment_id=experiment.experiment_id, uri=uri)


def store_uri() -> str:
    """The tracking URI; a relative SQLite path is one under `paths.root()`, whatever the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or not file else f"sqlite:///{paths.root() / file}"


def find(store: Store, training: Training, weights_sha256: str | None = None) -> Run | None:
    """The finished run of this training, of just these weights where they are given."""
    wanted = f"tags.`{FINGERPRINT}` = '{training.fingerprint}' and attributes.status = 'FINISHED'"
    if weights_sha256:
        wanted += f" and tags.`{WEIGHTS}` = '{weights_sha256}'"
    runs = store.client.search_runs([store.experiment_id], wanted, max_results=1, order_by=["start_time ASC"])
    return runs[0] if runs else None


class LiveRun:
    """A run in the making, or nothing where the store holds this result already.

    Args:
        store: where it is.
        run_id: which it is; None logs nothing.
    """

    def __init__(self, store: Store, run_id: str | None) -> None:
        self.store, self.run_id = store, run_id

    def log(self, *events: Window | Epoch) -> None:
        """Add what happened to the curves."""
        if self.run_id:
            metrics = [metric for event in events for metric in _metrics(event)]
            self.store.client.log_batch(self.run_id, metrics=metrics)

    def finish(self, weights_sha256: str, seconds: float | None = None) -> None:
        """Say which weights came out, and how long the training took where that is known."""
        if self.run_id:
            now = get_current_time_millis()
            metrics = [] if seconds is None else [Metric("training_seconds", seconds, now, 0)]
            self.store.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(WEIGHTS, weights_sha256)])


@contextmanager
def live(training: Training, facts: Mapping[str, str]) -> Iterator[LiveRun]:
    """Log a training while it runs; its run ends as FINISHED, FAILED or, for an interrupt, KILLED.

    A training that was done before, with the same data, code and params, has its run: nothing
    is logged then, and `register` checks that the weights are that run's too.
    """
    store = connect()
    known = find(store, training)
    if known:
        print(f"train: MLflow has this training already, as run {known.info.run_name}")
        yield LiveRun(store, None)
        return
    with _new_run(store, training, facts) as run:
        yield run


def ensure(store: Store, training: Training, *, events: Sequence[Window | Epoch], weights_sha256: str) -> Run:
    """The run of these weights; made from the files where `train` left none, and never a second one.

    There is none where the files were restored from a cache, or the store is new.
    """
    run = find(store, training, weights_sha256)
    if run is None:
        with _new_run(store, training, {"rebuilt": "from files"}) as rebuilt:
            rebuilt.log(*events)
            rebuilt.finish(weights_sha256)
        run = find(store, training, weights_sha256)
        assert run is not None
    names = run.data.tags.get(EXPERIMENTS, "").split()
    experiment = training.source.experiment
    if experiment and experiment not in names:
        store.client.set_tag(run.info.run_id, EXPERIMENTS, " ".join([*names, experiment]))
    return run


def log_evaluation(
    store: Store, run: Run, training: Training, *, metrics: Mapping[str, float], artifacts: Iterable[Path]
) -> None:
    """Add test metrics and files to a run; doing it again changes nothing."""
    client, run_id, now = store.client, run.info.run_id, get_current_time_millis()
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, now, 0)
            for name, value in metrics.items()
            if run.data.metrics.get(name) != value
        ],
    )
    client.log_inputs(run_id, [_dataset(training, "test", context="testing")])
    for path in artifacts:
        folder = path.parent.as_posix()
        client.log_artifact(run_id, str(path), None if folder == "." else folder)


@contextmanager
def _new_run(store: Store, training: Training, facts: Mapping[str, str]) -> Iterator[LiveRun]:
    run_id = _create_run(store, training, facts)
    status = "FAILED"
    try:
        yield LiveRun(store, run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        store.client.set_terminated(run_id, status)


def _create_run(store: Store, training: Training, facts: Mapping[str, str]) -> str:
    source = training.source
    tags = {
        FINGERPRINT: training.fingerprint,
        "dataset_sha256": training.dataset_sha256,
        EXPERIMENTS: source.experiment,
        "dvc.baseline": source.commit if source.experiment else "",
        "rerun": source.rerun,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "dvc.yaml:train",
        "mlflow.source.git.commit": source.commit,
        "mlflow.source.git.branch": source.branch,
        "mlflow.note.content": f"Run it again:\n\n```sh\n{source.rerun}\n```\n",
        **facts,
    }
    tags = {key: value for key, value in tags.items() if value}
    run = store.client.create_run(store.experiment_id, run_name=source.name, tags=tags)
    run_id: str = run.info.run_id
    params = [Param(key, str(value)) for key, value in training.params.items()]
    store.client.log_batch(run_id, params=params)
    store.client.log_inputs(run_id, [_dataset(training, "train", context="training")])
    if source.patch:
        store.client.log_text(run_id, source.patch, "dirty.patch")
    return run_id


def _dataset(training: Training, split: SplitName, *, context: str) -> DatasetInput:
    where = json.dumps({"uri": str(paths.DATASET)})
    # MLflow shows a digest of at most 36 characters, and one context for one name and digest.
    digest = training.dataset_sha256[:36]
    data = Dataset(name=f"mnist-{split}", digest=digest, source_type="local", source=where)
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


def _metrics(event: Window | Epoch) -> list[Metric]:
    now = get_current_time_millis()
    if isinstance(event, Window):
        values = {"train_loss": event.loss, "train_accuracy": event.accuracy}
    else:
        values = {
            "epoch": event.epoch,
            "epoch_train_loss": event.train_loss,
            "epoch_train_accuracy": event.train_accuracy,
            "val_loss": event.val_loss,
            "val_accuracy": event.val_accuracy,
        }
    return [Metric(key, value, now, event.step) for key, value in values.items()]
