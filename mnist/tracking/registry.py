"""MLflow's model registry: one version for each set of weights, checked before it counts.

Nothing here runs what a stored model names (`mnist.tracking.stored`).
"""

import contextlib
import functools
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.types import Schema, TensorSpec

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data import store as data
from mnist.evaluation import pages, predictions
from mnist.tracking import client, events, metrics, stored
from mnist.tracking.client import Store
from mnist.tracking.promotion import CHALLENGER
from mnist.training import onnx_model
from mnist.training.onnx_model import OnnxModel

LOGGED = "models:/m-"  # how the source of a version begins that is a logged model
REQUIREMENTS = ("onnxruntime", "numpy", "mlflow")
NUM_COMPARED = 1000  # test images
CHALLENGER_TIME = "challenger_time_ms"  # tag: when the result of the challenger was made
MILLISECONDS = re.compile("[0-9]{1,14}")  # since 1970, up to the year 5138


def signature(num_classes: int) -> ModelSignature:
    """Return the signature of a model with this number of classes."""
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 28, 28))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))]),
    )


def description(classes: Sequence[str]) -> str:
    """Return the description of the registered model, for people."""
    return (
        f"From raw pixels, uint8 (N, 28, 28), 0 black to 255 white, to the probabilities of "
        f"{', '.join(classes)}: float32 (N, {len(classes)}). Normalization is inside. "
        "`register` gives the alias `challenger`, `mnist promote` gives `champion`."
    )


def find(store: Store, folder: Path, *, name: str, weights_sha256: str) -> tuple[ModelVersion | None, bool]:
    """Return the version of these weights that `register` made, and whether its model can be used.

    A version is not of these weights, whatever its tags are, if its model gives other probabilities than
    the result in `folder`.

    Raises:
        InputError: the ONNX file is missing in `folder`.
    """
    digest, damaged = files.sha256(folder / paths.ONNX), None
    wanted = f"name = '{name}' and tags.`{events.WEIGHTS}` = '{weights_sha256}'"
    for found in store.client.search_model_versions(wanted, order_by=["version_number ASC"]):
        if events.ONNX not in found.tags or not str(found.source).startswith(LOGGED):
            continue
        try:
            model = load_version(store, found)
        except InputError:
            damaged = damaged or found
            continue
        if found.tags[events.ONNX] == digest or _agrees(model, folder):
            return found, True
    return damaged, False


def ensure(
    store: Store, run: Run, folder: Path, *, name: str, weights_sha256: str, accuracy: float, card: str
) -> tuple[ModelVersion, bool]:
    """Return the version of these weights, and whether it was made just now; never a second one.

    A version whose stored model is lost or damaged gets it again.

    Args:
        store: where runs and versions are.
        run: that the weights came from.
        folder: the root of a checkout, with the files of the result.
        name: of the registered model.
        weights_sha256: digest of the weights file, by which the version is found.
        accuracy: on the test images, for people to read beside the version.
        card: of the model: a file beside it, and the description of the version.

    Raises:
        InputError: the ONNX file is missing, or is not of these weights or this evaluation.
    """
    with client.lock("registry"):  # queued experiments may come to the same weights at once
        existing, is_usable = find(store, folder, name=name, weights_sha256=weights_sha256)
        if existing and is_usable:
            metrics.link(store, run.info.run_id, _model_id(existing))
            return existing if existing.description else _attach(store, existing, card), False
        _use(store)
        digest = files.sha256(folder / paths.ONNX)
        tags = {"test_accuracy": f"{accuracy:.4f}", events.WEIGHTS: weights_sha256, events.ONNX: digest}
        with client.readable("MLflow's artifacts"):
            uri = _log(store, run, folder, existing)
        model = load(store, uri, tags)
        if not _agrees(model, folder):
            found = f"other probabilities than in {paths.LOG_PROBS}"
            raise InputError(str(paths.ONNX), found=found, expected="one evaluation: run `dvc repro`")
        if existing:  # other versions of torch and onnx export other bytes
            store.client.set_model_version_tag(name, existing.version, events.ONNX, digest)
            version = store.client.get_model_version(name, existing.version)
        else:
            version = _register(store, uri, name, model.about.classes, tags)
        metrics.link(store, run.info.run_id, _model_id(version))
        return _attach(store, version, card), existing is None  # last: `find` takes it for the end


def _register(
    store: Store, uri: str, name: str, classes: Sequence[str], tags: Mapping[str, str]
) -> ModelVersion:
    """Register a logged model as a version."""
    with contextlib.redirect_stderr(io.StringIO()):  # register_model writes of each step there
        version = mlflow.register_model(uri, name, tags=dict(tags))
    if int(version.version) == 1:  # later ones leave alone what people wrote
        store.client.update_registered_model(name, description(classes))
    return version


def _attach(store: Store, version: ModelVersion, card: str) -> ModelVersion:
    """Put the card beside the stored model, and then, where it has none, into the description."""
    if not card:
        return version
    text = pages.of_version(card, version.name, str(version.version))
    with files.temporary("card") as folder:
        file = folder / pages.README
        file.write_text(text, encoding="utf-8")
        store.client.log_model_artifact(_model_id(version), str(file))
    if version.description:
        return version
    return store.client.update_model_version(version.name, version.version, pages.description(text))


def _use(store: Store) -> None:
    """Let MLflow's own functions use this store."""
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)


def _model_id(version: ModelVersion) -> str:
    return str(version.source).removeprefix("models:/")


def _log(store: Store, run: Run, folder: Path, existing: ModelVersion | None) -> str:
    """Store the ONNX file as a logged model of its run, or of this version; return its URI."""
    # Made by the client, for our experiment; `log_model` would take the process's current one, whose
    # artifacts are relative to the current folder.
    num_classes = len(onnx_model.load(folder / paths.ONNX).about.classes)  # first: it may be damaged
    run_id = run.info.run_id
    begun = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    if existing:
        model_id = _model_id(existing)
    elif begun:  # of an attempt that was cut off
        model_id = begun[0].model_id
    else:
        params = store.client.get_run(run_id).data.params
        model = store.client.create_logged_model(store.experiment_id, "model", run_id, params=params)
        model_id = model.model_id
    # Without `run_id`, by which it links some of the metrics, without data sets: `metrics.link` does that.
    with files.temporary("model") as temporary:
        # MLflow makes a temporary folder, which it would leave where it is killed.
        default, tempfile.tempdir = tempfile.tempdir, str(temporary)
        try:
            Model.log(
                artifact_path=None,
                model_id=model_id,
                flavor=mlflow.onnx,
                onnx_model=onnx.load(folder / paths.ONNX),
                save_as_external_data=False,
                onnx_execution_providers=["CPUExecutionProvider"],
                signature=signature(num_classes),
                pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            )
        finally:
            tempfile.tempdir = default
    store.client.log_model_artifact(model_id, str(folder / paths.WEIGHTS))
    return f"models:/{model_id}"


def _agrees(model: OnnxModel, folder: Path) -> bool:
    """Return whether a stored model gives the probabilities that `evaluate` wrote.

    Other weights give others for every image, so the first ones tell.
    """
    images_NHW = data.load(folder / paths.DATASET, "test").images_NHW
    log_probs_NK = predictions.read_log_probs(folder / paths.LOG_PROBS)
    return model.agrees(images_NHW[:NUM_COMPARED], log_probs_NK[:NUM_COMPARED])


def load(store: Store, uri: str, tags: Mapping[str, str], *, num_threads: int = 1) -> OnnxModel:
    """Download and read a stored model; see `stored.read`."""
    _use(store)
    with files.temporary("model") as temporary, client.readable(uri):
        fetch = functools.partial(_download, ModelsArtifactRepository(uri), temporary)
        return stored.read(fetch, uri, tags, num_threads=num_threads)


def load_version(store: Store, version: ModelVersion, *, num_threads: int = 1) -> OnnxModel:
    """Load the model of a version; see `load`."""
    uri = f"models:/{version.name}/{version.version}"
    return load(store, uri, version.tags, num_threads=num_threads)


def _download(source: ModelsArtifactRepository, folder: Path, name: str, max_bytes: int) -> Path:
    """Download one file of a stored model."""
    listed = {file.path: file for file in source.list_artifacts(None)}
    found = "no such file" if name not in listed else "a folder" if listed[name].is_dir else ""
    if not found and (listed[name].file_size or 0) > max_bytes:
        found = f"more than {max_bytes:,} bytes"
    if found:
        raise InputError(f"{source.artifact_uri}/{name}", found=found, expected=stored.EXPECTED)
    return Path(source.download_artifacts(name, str(folder)))


def set_challenger(store: Store, version: ModelVersion, *, time_ms: int) -> str:
    """Make this version the candidate for promotion, unless there is one of a later result.

    Returns:
        The reason why the alias stays where it is; empty where it moves.
    """
    registry, name = store.client, version.name
    with client.lock("registry"):
        model = registry.get_registered_model(name)
        tag = model.tags.get(CHALLENGER_TIME) or ""
        latest_ms = int(tag) if MILLISECONDS.fullmatch(tag) else 0  # others may have written it
        if time_ms < latest_ms:
            latest, this = (datetime.fromtimestamp(ms // 1000, UTC) for ms in (latest_ms, time_ms))
            stays = f"`{CHALLENGER}` stays version {model.aliases.get(CHALLENGER)}"
            return (
                f"{stays}: its result is of {latest}, this one of {this}."
                f" If a clock was wrong, delete the tag {CHALLENGER_TIME} of the model {name}"
            )
        registry.set_registered_model_alias(name, CHALLENGER, version.version)
        registry.set_registered_model_tag(name, CHALLENGER_TIME, str(time_ms))
    return ""
