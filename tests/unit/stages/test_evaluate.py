"""The stage `evaluate`: its files, and that they agree with each other."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mnist.core import config, files, paths
from mnist.core.config import Architecture
from mnist.core.errors import InputError
from mnist.data import store
from mnist.data.store import Images
from mnist.evaluation import figures
from mnist.evaluation.predictions import read_log_probs
from mnist.training import model, onnx_export, onnx_model
from stages import evaluate
from tests.conftest import DIGITS, SmallData
from tests.unit.stages.test_stats import verdict_on

pytestmark = pytest.mark.usefixtures("torch_as_before")

ROOT = Path(__file__).parents[3]
OUTPUTS = [
    paths.TEST_METRICS,
    paths.PREDICTIONS,
    paths.CLASSES,
    paths.LOG_PROBS,
    paths.GALLERY,
    paths.ERRORS_GALLERY,
    paths.FILTERS,
    paths.FEATURE_MAPS,
]


@pytest.fixture(autouse=True)
def checkout(small_data: SmallData, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with everything that the stage reads, the current one."""
    monkeypatch.chdir(tmp_path)
    store.write(paths.DATASET, train=small_data.train, test=small_data.test, description=DIGITS)
    paths.VALIDATION.parent.mkdir()
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)
    monkeypatch.setenv("DVC_ROOT", str(scored))  # the exported graph is there
    architecture = Architecture(model="simple_cnn", n_features=6, permute_pixels=False)
    classifier = model.build(architecture, classes=DIGITS.classes, seed=5, mean=0.2, std=0.4)
    for parameter in classifier.parameters():  # the probabilities of fresh weights are all alike
        parameter.data.mul_(3)
    model.save(paths.WEIGHTS, classifier, architecture)
    digest = files.sha256(paths.WEIGHTS)
    onnx_export.export(paths.ONNX, classifier.eval(), weights_sha256=digest, images=small_data.test)
    shutil.copy(ROOT / paths.PARAMS, paths.PARAMS)
    return tmp_path


def run() -> None:
    evaluate.run(params=config.load(paths.PARAMS).only(evaluate.Params))


def log_probabilities(images: Images) -> NDArray[np.float64]:
    """Return the log-probabilities of the saved weights, by the loaded network itself."""
    with torch.no_grad():
        probabilities_NK = model.load(paths.WEIGHTS)(torch.from_numpy(images.images_NHW))
    return np.asarray(probabilities_NK.double().log().numpy())


def enlarge(factor: float) -> None:
    """Multiply the weights in the ONNX file, which keeps its metadata."""
    classifier = onnx.load(paths.ONNX)
    for tensor in classifier.graph.initializer:
        if tensor.name.endswith("weight"):
            larger = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(larger, tensor.name))
    onnx.save(classifier, paths.ONNX)


def renamed(name: str) -> None:
    """Give the last class of the data another name."""
    described = store.describe(paths.DATASET)
    classes = (*described.classes[:-1], name)
    train, test = (store.load(paths.DATASET, split) for split in ("train", "test"))
    store.write(paths.DATASET, train=train, test=test, description=replace(described, classes=classes))
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_all_files_hold_the_same_predictions(small_data: SmallData) -> None:
    run()

    labels = small_data.test.labels_N.tolist()
    log_probs_NK = log_probabilities(small_data.test)
    predicted = log_probs_NK.argmax(1).tolist()
    table = rows(paths.PREDICTIONS)
    assert [int(row["index"]) for row in table] == list(range(300))
    assert [int(row["label"]) for row in table] == labels
    assert [int(row["predicted"]) for row in table] == predicted
    assert np.allclose(np.exp(read_log_probs(paths.LOG_PROBS)), np.exp(log_probs_NK), atol=1e-6)
    result = json.loads(paths.TEST_METRICS.read_text())
    pairs = list(zip(labels, predicted, strict=True))
    right = [label == one for label, one in pairs]
    assert 0 < sum(right) < 300
    assert result["accuracy"] == round(sum(right) / 300, 6)
    assert result["loss"] == pytest.approx(-log_probs_NK[np.arange(300), labels].mean(), rel=1e-4)
    by_class = rows(paths.CLASSES)
    assert [row["class"] for row in by_class] == list(DIGITS.classes)
    for label, row in enumerate(by_class):
        of_class = [one == label for true, one in pairs if true == label]
        assert int(row["num_images"]) == len(of_class)
        assert float(row["recall"]) == round(sum(of_class) / len(of_class), 6)
    recalls = [float(row["recall"]) for row in by_class]
    assert result["balanced_accuracy"] == pytest.approx(sum(recalls) / 10, abs=2e-6)


def test_the_figures_show_the_right_images(checkout: Path, small_data: SmallData) -> None:
    """The first images, the most confident mistakes; filters and maps of the first image of each class."""
    run()

    log_probs_NK = log_probabilities(small_data.test)
    predicted_N, confidence_N = log_probs_NK.argmax(1), log_probs_NK.max(1)
    wrong = [index for index in range(300) if predicted_N[index] != small_data.test.labels_N[index]]
    confident = sorted(wrong, key=lambda index: -confidence_N[index])[:10]
    expected = checkout / "expected.png"
    for path, title, shown in (
        (paths.GALLERY, "The first test images, as predicted", list(range(10))),
        (paths.ERRORS_GALLERY, "The most confident mistakes", confident),
    ):
        figures.gallery(
            expected,
            title,
            np.array(shown),
            test=small_data.test,
            log_probs_NK=log_probs_NK,
            classes=DIGITS.classes,
        )
        assert path.read_bytes() == expected.read_bytes()

    classifier = onnx_model.load(paths.ONNX)
    figures.filters(expected, figures.first_weights(paths.WEIGHTS))
    assert paths.FILTERS.read_bytes() == expected.read_bytes()
    first = [small_data.test.labels_N.tolist().index(label) for label in range(10)]
    of_each_class = small_data.test.take(np.array(first))
    figures.feature_maps(expected, *figures.layers(classifier, of_each_class, DIGITS.classes))
    assert paths.FEATURE_MAPS.read_bytes() == expected.read_bytes()


def test_few_images_without_a_mistake_make_all_files(small_data: SmallData) -> None:
    three = small_data.test.take(np.arange(3))
    predicted_N = log_probabilities(three).argmax(1).astype(np.uint8)
    test = Images(images_NHW=three.images_NHW, labels_N=predicted_N)
    store.write(paths.DATASET, train=small_data.train, test=test, description=DIGITS)
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)

    run()

    result = json.loads(paths.TEST_METRICS.read_text())
    assert (result["accuracy"], result["balanced_accuracy"]) == (1.0, 1.0)
    assert "" in [row["recall"] for row in rows(paths.CLASSES)]
    assert all(path.stat().st_size > 0 for path in OUTPUTS)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (
            lambda: verdict_on(paths.DATASET.resolve(), success=False).rename(paths.VALIDATION),
            paths.VALIDATION,
        ),
        (paths.WEIGHTS.unlink, paths.WEIGHTS),
        (lambda: save_file({}, paths.WEIGHTS), paths.ONNX),
        (paths.ONNX.unlink, paths.ONNX),
        (lambda: renamed("ten"), paths.ONNX),
        (lambda: enlarge(1e30), paths.ONNX),
    ],
    ids=["bad data", "no weights", "other weights", "no model", "other classes", "too large"],
)
def test_a_bad_input_stops_it_before_it_writes(fault: Callable[[], object], where: Path) -> None:
    fault()

    with pytest.raises(InputError) as caught:
        run()

    assert caught.value.where == str(where)
    assert [path for path in OUTPUTS if path.exists()] == []
