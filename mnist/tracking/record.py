"""The records of a result in MLflow that a reproduction needs: its run, its files, its model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.tracking import client
from mnist.tracking.client import Store
from mnist.tracking.events import COMMIT, DATASET, EXPERIMENTS, FINGERPRINT, WEIGHTS

PATCH = Path("dirty.patch")
METRICS = (paths.TRAINING_METRICS, paths.TEST_METRICS)
KEPT = (PATCH, paths.PARAMS, paths.WEIGHTS, *METRICS)
TAGS = (WEIGHTS, FINGERPRINT, DATASET, COMMIT)
VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))")
NUM_LISTED = 8  # names in a message


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run to reproduce, and the model version that led to it."""

    run: Run
    version: ModelVersion | None = None

    def __str__(self) -> str:
        return f"run {self.run.info.run_id}" + (f", {self.uri}" if self.version else "")

    @property
    def uri(self) -> str:
        """Return the URI of the version; empty without one."""
        return f"models:/{self.version.name}/{self.version.version}" if self.version else ""


def find(store: Store, model: str, tags: Iterable[str] = TAGS) -> Candidate:
    """Return the finished run that a version, the name of an experiment, or the start of a run id names.

    Raises:
        InputError: there is none, or there are several, or it has not these tags.
    """
    version = None
    if parsed := VERSION.fullmatch(model):
        version = _version(store, *parsed.groups())
        runs = _finished(store, f"attributes.run_id = '{version.run_id}'") if version else []
        if version and not runs:  # another run of the same weights will do
            runs = _finished(store, f"tags.`{WEIGHTS}` = '{version.tags.get(WEIGHTS, '')}'")[:1]
    else:
        some = re.sub(r"\W", "_", model)  # in LIKE, `_` is any character
        runs = _finished(store, f"tags.`{EXPERIMENTS}` LIKE '%{some}%'")
        runs = [run for run in runs if model in _experiments(run)][:1]
        if not runs:
            runs = _finished(store, f"attributes.run_id LIKE '{some}%'")
            runs = [run for run in runs if run.info.run_id.startswith(model)]
    if len(runs) != 1:
        found = "several runs whose id begins so" if runs else "no such version, experiment or finished run"
        registered = store.client.search_registered_models()
        aliases = (f"models:/{one.name}@{alias}" for one in registered for alias in one.aliases)
        names = dict.fromkeys(name for run in _finished(store) for name in _experiments(run))
        expected = f"a version ({_listed(aliases)}), an experiment ({_listed(names)}) or a run id"
        where = f"{model} in MLflow at {paths.shown(store.uri)}"
        raise InputError(where, found=found, expected=f"{expected}; `mnist sync` restores runs")
    candidate = Candidate(run=runs[0], version=version)
    if missing := [name for name in tags if not runs[0].data.tags.get(name)]:
        expected = "a run of this pipeline, made in a git checkout"
        raise InputError(str(candidate), found=f"no tag {', '.join(missing)}", expected=expected)
    return candidate


def find_version(store: Store, model: str) -> ModelVersion:
    """Return the version that models:/NAME/VERSION or models:/NAME@ALIAS names.

    Raises:
        InputError: there is none.
    """
    parsed = VERSION.fullmatch(model)
    version = _version(store, *parsed.groups()) if parsed else None
    if version is None:
        expected = "one that MLflow has: `dvc repro` registers models, `mnist promote` makes one the champion"
        raise InputError(model, found="no such version", expected=expected)
    return version


def _version(store: Store, name: str, alias: str | None, number: str) -> ModelVersion | None:
    try:
        if alias:
            return store.client.get_model_version_by_alias(name, alias)
        return store.client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _finished(store: Store, wanted: str = "") -> list[Run]:
    """Return the finished runs that a filter finds, the newest first; 1,000 of them at most."""
    query = " and ".join(filter(None, ["attributes.status = 'FINISHED'", wanted]))
    return list(store.client.search_runs([store.experiment_id], query, order_by=["start_time DESC"]))


def _experiments(run: Run) -> list[str]:
    return str(run.data.tags.get(EXPERIMENTS) or "").split()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:NUM_LISTED]) or "none yet"


def download(store: Store, candidate: Candidate, folder: Path) -> None:
    """Download the files of a run that a reproduction needs, as far as it has them.

    Raises:
        InputError: they cannot be read.
    """
    run_id = candidate.run.info.run_id
    with client.readable(f"files of {candidate}"):
        for parent in {path.parent for path in KEPT}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            for file in store.client.list_artifacts(run_id, parent.as_posix()):
                if Path(file.path) in KEPT:
                    # Where in the folder it arrives is each artifact store's own choice.
                    arrived = store.client.download_artifacts(run_id, file.path, str(folder / parent))
                    Path(arrived).replace(folder / file.path)
