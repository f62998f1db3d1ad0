"""MLflow's model registry: one version for each set of weights, checked before it counts.

Shape suffixes: N images, H rows, W columns, K classes.
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data import store as data
from mnist.evaluation import pages
from mnist.evaluation.predictions import read_table
from mnist.lineage.result import Result
from mnist.tracking import client, events, promotion
from mnist.tracking.client import Store
from mnist.training import model
from mnist.training.model import Classifier

LOGGED = "models:/m-"  # how the source of a version begins that is a logged model
REQUIREMENTS = ("torch", "numpy", "mlflow")
CHALLENGER_TIME = "challenger_time_ms"  # tag: when the result of the challenger was made
TOLERANCE = 1e-6  # of a probability: the exported graph may add in another order
# Share of the test images that another processor may classify otherwise, in the last bits of a tie.
MAX_OTHERS = 0.001


def signature(num_classes: int) -> ModelSignature:
    """Return the signature of a model with this number of classes."""
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 28, 28))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))]),
    )


def is_ours(other: ModelSignature | None) -> bool:
    """Return whether a signature is that of this pipeline's models, with any number of classes."""
    try:
        return bool(other and other == signature(other.outputs.inputs[0].shape[-1]))
    except (AttributeError, IndexError, TypeError):  # no outputs, or no tensor
        return False


def description(classes: Sequence[str]) -> str:
    """Return the description of the registered model, for people."""
    return (
        f"From raw pixels, uint8 (N, 28, 28), 0 black to 255 white, to the probabilities of "
        f"{', '.join(classes)}: float32 (N, {len(classes)}). Normalization is inside. "
        "`register` gives the alias `challenger`, `mnist promote` gives `champion`."
    )


def find(store: Store, name: str, weights_sha256: str) -> ModelVersion | None:
    """Return the version of these weights, if they have one."""
    wanted = f"name = '{name}' and tags.`{events.WEIGHTS}` = '{weights_sha256}'"
    versions = store.client.search_model_versions(wanted, max_results=1)
    return versions[0] if versions else None


def ensure(
    store: Store,
    run: Run,
    classifier: Classifier,
    *,
    name: str,
    weights_sha256: str,
    accuracy: float,
    card: str,
) -> tuple[ModelVersion, bool]:
    """Return the version of these weights, and whether it was made just now; never a second one.

    Args:
        store: where runs and versions are.
        run: that the weights came from.
        classifier: with the weights, on the CPU, in evaluation mode.
        name: of the registered model.
        weights_sha256: digest of the weights file, by which the version is found.
        accuracy: on the test images, for people to read beside the version.
        card: of the model: a file beside it, and the description of the version.
    """
    with client.lock("registry"):  # queued experiments may come to the same weights at once
        existing = find(store, name, weights_sha256)
        if existing and is_whole(store, existing):
            return existing, False
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_registry_uri(store.uri)
        version = existing
        if version is None or not has_files(store, version):
            uri = _log(store, run, classifier, existing)
            _check(uri, classifier)
            tags = {"test_accuracy": f"{accuracy:.4f}", events.WEIGHTS: weights_sha256}
            version = existing or _register(store, uri, name, classifier.classes, tags)
        return _attach(store, version, card), existing is None


def check_code(result: Result, classifier: Classifier, folder: Path) -> None:
    """Check that the weights give the evaluated predictions with the network of this code.

    The weights may come from another commit, whose network differs from that of this code. Then the model
    would be registered with an accuracy that it does not have.

    Args:
        result: whose files lie in `folder`.
        classifier: with its weights.
        folder: the root of a checkout.

    Raises:
        InputError: it predicts something else, or there are no test images to find out.
    """
    dataset = folder / paths.DATASET
    if not dataset.is_file() or files.sha256(dataset) != result.origin.dataset_sha256:
        expected = "the data that the weights were tested on"
        raise InputError(str(paths.DATASET), found="other data, or none", expected=expected)
    test = data.load(dataset, "test")
    log_probs_NK = model.log_probabilities(classifier, test, torch.device("cpu"))
    predicted_N = np.array(classifier.classes)[log_probs_NK.argmax(1).numpy()]
    num_others = int((predicted_N != read_table(folder / paths.PREDICTIONS).predicted_N).sum())
    if num_others > MAX_OTHERS * len(test):
        raise InputError(
            str(paths.WEIGHTS),
            found=f"weights of other code: today's network classifies {num_others:,} test images otherwise",
            expected=f"the network of {result.origin.source.commit[:12]}: run `mnist sync` there",
        )


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
    source = str(version.source)
    if not card:
        return version
    text = pages.of_version(card, version.name, str(version.version))
    if source.startswith(LOGGED):  # not so where it was registered from another place
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / pages.README
            file.write_text(text, encoding="utf-8")
            store.client.log_model_artifact(source.removeprefix("models:/"), str(file))
    if version.description:
        return version
    return store.client.update_model_version(version.name, version.version, pages.description(text))


def is_whole(store: Store, version: ModelVersion) -> bool:
    """Return whether a version has all that `ensure` gives it; the description comes last."""
    return bool(version.description) and has_files(store, version)


def has_files(store: Store, version: ModelVersion) -> bool:
    """Return whether the files of a version are there: they may be lost, and the store not."""
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    try:
        return bool(mlflow.artifacts.list_artifacts(f"models:/{version.name}/{version.version}"))
    except (MlflowException, OSError):
        return False


def _log(store: Store, run: Run, classifier: Classifier, existing: ModelVersion | None) -> str:
    """Store the classifier as a logged model of its run, or of a version that lost it; return its URI."""
    # Made by the client, for our experiment; `log_model` would take the process's current one, whose
    # artifacts are relative to the current folder.
    run_id = run.info.run_id
    begun = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    if existing and (source := str(existing.source)).startswith(LOGGED):
        model_id = source.removeprefix("models:/")
    elif begun:  # of an attempt that was cut off
        model_id = begun[0].model_id
    else:
        model_id = store.client.create_logged_model(store.experiment_id, "model", run_id).model_id
    outputs = store.client.get_run(run_id).outputs
    linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
    Model.log(
        artifact_path=None,
        model_id=model_id,
        run_id=None if model_id in linked else run_id,  # MLflow fails to link the two a second time
        flavor=mlflow.pytorch,
        pytorch_model=classifier,
        serialization_format="pt2",  # a graph and tensors: no pickle, none of our code
        signature=signature(len(classifier.classes)),
        # Two images: the exporter freezes a batch size of 1 into the graph.
        input_example=np.zeros((2, 28, 28), np.uint8),
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        validate_serving_input=False,  # `_check` does, with more than one batch size
    )
    return f"models:/{model_id}"


def _check(uri: str, classifier: Classifier) -> None:
    """Load the stored model as a user would, and compare it with the one in memory.

    Raises:
        RuntimeError: they differ, or the stored one fails.
    """
    # It was exported on the CPU, and refuses the GPU that MLflow would choose where there is one.
    stored = mlflow.pyfunc.load_model(uri, model_config={"device": "cpu"})
    for num_images in (1, 7):
        images_NHW = np.random.default_rng(0).integers(0, 256, (num_images, 28, 28), np.uint8)
        with torch.inference_mode():
            expected_NK = classifier(torch.from_numpy(images_NHW)).numpy()
        found_NK = stored.predict(images_NHW)
        if found_NK.dtype != np.float32 or not np.allclose(found_NK, expected_NK, rtol=0, atol=TOLERANCE):
            raise RuntimeError(f"{uri}: the stored model is not the one in memory, at batch {num_images}")


def set_challenger(store: Store, version: ModelVersion, *, time_ms: int) -> None:
    """Make this version the one that promotion will compare with the champion, unless a newer result is."""
    registry, name = store.client, version.name
    with client.lock("registry"):
        newest_ms = int(registry.get_registered_model(name).tags.get(CHALLENGER_TIME, 0))
        if time_ms >= newest_ms:
            registry.set_registered_model_alias(name, promotion.CHALLENGER, version.version)
            registry.set_registered_model_tag(name, CHALLENGER_TIME, str(time_ms))
