"""The records of a result in MLflow that a reproduction needs: its run, its files, its model."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.tracking.client import Store

PATCH = Path("dirty.patch")
METRICS = (paths.TRAINING_METRICS, paths.TEST_METRICS)
KEPT = (PATCH, paths.PARAMS, paths.WEIGHTS, *METRICS)
COMMIT, TAGS = "mlflow.source.git.commit", ("weights_sha256", "fingerprint", "dataset_sha256")
NUM_LISTED = 8  # names in a message


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run to reproduce, and the model version that led to it."""

    run: Run
    version: ModelVersion | None = None

    @property
    def uri(self) -> str:
        """Return the URI of the version; empty without one."""
        return f"models:/{self.version.name}/{self.version.version}" if self.version else ""

    def __str__(self) -> str:
        info = self.run.info
        return ", ".join(filter(None, [f"run {info.run_name} ({info.run_id})", self.uri]))


def find(store: Store, model: str) -> Candidate:
    """Return the finished run that `model` names.

    Raises:
        InputError: there is none, or there are several.
    """
    try:
        if parsed := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))", model):
            name, alias, number = parsed.groups()
            client = store.client
            found = (
                client.get_model_version_by_alias(name, alias)
                if alias
                else client.get_model_version(name, number)
            )
            runs = [run for run in _finished(store) if run.info.run_id == found.run_id]
            # Another run of the same weights will do where the version's own is gone.
            weights = f"tags.`weights_sha256` = '{found.tags.get('weights_sha256', '')}'"
            runs = runs or list(_finished(store, weights))
            if not runs:
                expected = "a run that records its source: `mnist sync` restores it"
                raise InputError(model, found=f"that its run {found.run_id} is gone", expected=expected)
            return Candidate(run=runs[0], version=found)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    runs = [run for run in _finished(store) if model in _experiments(run)]
    runs = runs[:1] or [run for run in _finished(store) if model and run.info.run_id.startswith(model)]
    if len(runs) == 1:
        return Candidate(run=runs[0])
    where = f"{model or 'MODEL'} in MLflow at {paths.shown(store.uri)}"
    if runs:
        ids = _listed(run.info.run_id for run in runs)
        raise InputError(where, found=f"{len(runs)} runs whose id begins so", expected=f"more of it: {ids}")
    names = _listed(dict.fromkeys(name for run in _finished(store) for name in _experiments(run)))
    models = store.client.search_registered_models()
    aliases = _listed(f"models:/{one.name}@{alias}" for one in models for alias in one.aliases)
    expected = f"a model version ({aliases}), a run id, or an experiment ({names})"
    raise InputError(where, found="no such version, experiment or finished run", expected=expected)


def _finished(store: Store, wanted: str = "") -> Iterator[Run]:
    """Yield the finished runs, the newest first."""
    query = " and ".join(filter(None, ["attributes.status = 'FINISHED'", wanted]))
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id], query, order_by=["start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _experiments(run: Run) -> list[str]:
    return str(run.data.tags.get("dvc.experiments", "")).split()


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NUM_LISTED} more" if len(every) > NUM_LISTED else ""
    return (", ".join(every[:NUM_LISTED]) or "none yet") + more


def download(store: Store, candidate: Candidate, folder: Path) -> None:
    """Download the files of a run that a reproduction needs.

    Raises:
        InputError: it does not record its source, data and weights, or the files cannot be read.
    """
    missing = [name for name in (*TAGS, COMMIT) if not candidate.run.data.tags.get(name)]
    if missing:
        found = f"no tag {', '.join(missing)}"
        raise InputError(
            str(candidate), found=found, expected="a run of this pipeline, made in a git checkout"
        )
    run_id = candidate.run.info.run_id
    with _readable(f"files of {candidate}"):
        for parent in {path.parent for path in KEPT}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            for file in store.client.list_artifacts(run_id, parent.as_posix()):
                if Path(file.path) in KEPT:
                    # Where in the folder it arrives is each artifact store's own choice.
                    arrived = store.client.download_artifacts(run_id, file.path, str(folder / parent))
                    Path(arrived).replace(folder / file.path)


def tensors(store: Store, candidate: Candidate, folder: Path) -> dict[str, bytes]:
    """Return the tensors that the stored model of a version holds, as bytes by name; none without one."""
    if not candidate.version:
        return {}
    import mlflow.pytorch  # not by all: it imports torch

    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    with _readable(candidate.uri):
        model = mlflow.pytorch.load_model(
            candidate.uri, dst_path=str(folder)
        )  # a copy: MLflow adds a file to it
        return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn any error of the block into one line; each kind of artifact store has its own errors."""
    try:
        yield
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(where, found=found, expected="files that can be read") from error
