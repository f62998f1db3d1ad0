"""The stage `evaluate`: its files, and that they agree with each other."""

import csv
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mnist.core import config, paths
from mnist.core.config import Architecture
from mnist.core.errors import InputError
from mnist.data import store
from mnist.data.store import Images
from mnist.evaluation import figures, insight, scores
from mnist.training import model
from stages import evaluate
from tests.conftest import DIGITS, SmallData
from tests.unit.stages.test_stats import verdict_on

ROOT = Path(__file__).parents[3]
OUTPUTS = [
    paths.TEST_METRICS,
    paths.PREDICTIONS,
    paths.LOG_PROBS,
    paths.GALLERY,
    paths.ERRORS_GALLERY,
    paths.FILTERS,
    paths.FEATURE_MAPS,
]


@pytest.fixture
def checkout(small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the stage reads, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    store.write(paths.DATASET, train=small_data.train, test=small_data.test, description=DIGITS)
    paths.VALIDATION.parent.mkdir()
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)
    architecture = Architecture(model="simple_cnn", n_features=4, permute_pixels=True)
    classifier = model.build(architecture, classes=DIGITS.classes, seed=5, mean=0.2, std=0.4)
    for parameter in classifier.parameters():  # fresh weights are sure of nothing
        parameter.data.mul_(3)
    model.save(paths.WEIGHTS, classifier, architecture)
    text = (ROOT / paths.PARAMS).read_text()
    text = text.replace("\nnum_threads: 2", "\nnum_threads: 1").replace("\ndevice: auto", "\ndevice: cpu")
    paths.PARAMS.write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undo what the stage sets for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")
    gc.unfreeze()


def run() -> None:
    evaluate.run(params=config.load(paths.PARAMS).only(evaluate.Params))


def log_probabilities(images: Images) -> NDArray[np.float64]:
    """Of the saved weights, by the loaded network itself."""
    with torch.no_grad():
        probabilities_NK = model.load(paths.WEIGHTS)(torch.from_numpy(images.images_NHW))
    return np.asarray(probabilities_NK.double().log().numpy())


@pytest.mark.usefixtures("checkout")
def test_the_files_tell_of_the_same_predictions(
    small_data: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    run()

    scores = json.loads(paths.TEST_METRICS.read_text())
    with paths.PREDICTIONS.open(newline="") as stream:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    labels = small_data.test.labels_N.tolist()
    log_probs_NK = log_probabilities(small_data.test)
    assert [row["index"] for row in rows] == list(range(300))
    assert [row["label"] for row in rows] == labels
    assert [row["predicted"] for row in rows] == log_probs_NK.argmax(1).tolist()
    right = [row["label"] == row["predicted"] for row in rows]
    assert 0 < sum(right) < 300
    assert scores["num_images"] == 300
    assert scores["num_wrong"] == right.count(False)
    assert scores["accuracy"] == round(sum(right) / 300, 6)
    assert scores["loss"] == pytest.approx(-log_probs_NK[np.arange(300), labels].mean(), rel=1e-4)
    for digit, recall in scores["recall"].items():
        own = [ok for ok, label in zip(right, labels, strict=True) if label == int(digit)]
        assert recall == round(sum(own) / len(own), 6)
    assert capsys.readouterr().out == (
        f"evaluate: accuracy {scores['accuracy']:.2%} on 300 test images"
        f" ({scores['num_wrong']} wrong), loss {scores['loss']:.4f}\n"
    )


def test_the_galleries_show_the_first_images_and_the_surest_mistakes(
    checkout: Path, small_data: SmallData
) -> None:
    run()

    log_probs_NK = log_probabilities(small_data.test)
    predicted_N, sureness_N = log_probs_NK.argmax(1), log_probs_NK.max(1)
    wrong = [index for index in range(300) if predicted_N[index] != small_data.test.labels_N[index]]
    surest = sorted(wrong, key=lambda index: -sureness_N[index])[:10]
    expected = {
        paths.GALLERY: ("The first test images, as predicted", list(range(10))),
        paths.ERRORS_GALLERY: ("The most confident mistakes", surest),
    }
    for path, (title, shown) in expected.items():
        index_M = np.array(shown)
        figures.gallery(
            checkout / "expected.png",
            title=title,
            images=small_data.test.take(index_M),
            predicted_N=predicted_N[index_M],
            confidence_N=np.exp(sureness_N[index_M]),
            index_N=index_M,
            classes=DIGITS.classes,
        )
        assert path.read_bytes() == (checkout / "expected.png").read_bytes()


def test_what_is_kept_for_others_is_what_the_network_says_of_every_image(
    checkout: Path, small_data: SmallData
) -> None:
    """Log-probabilities; and pictures of its filters, and of the first image of each class."""
    run()

    log_probs_NK = scores.read_log_probs(paths.LOG_PROBS)
    assert log_probs_NK.dtype == np.float32
    assert np.allclose(np.exp(log_probs_NK), np.exp(log_probabilities(small_data.test)), atol=1e-6)

    classifier = model.load(paths.WEIGHTS)
    figures.filters(checkout / "expected.png", insight.filters(classifier))
    assert paths.FILTERS.read_bytes() == (checkout / "expected.png").read_bytes()
    first = [small_data.test.labels_N.tolist().index(label) for label in range(10)]
    inputs_NHW, layers = insight.layers(classifier, small_data.test.images_NHW[first])
    figures.feature_maps(checkout / "expected.png", inputs_NHW, list("0123456789"), layers)
    assert paths.FEATURE_MAPS.read_bytes() == (checkout / "expected.png").read_bytes()


def test_the_bytes_are_the_same_in_another_process(checkout: Path) -> None:
    """As DVC runs it, and with a user's sitting after the other."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("evaluate: accuracy ")
    assert done.stderr == ""
    there = {path: path.read_bytes() for path in OUTPUTS}
    for path in OUTPUTS:
        path.unlink()

    run()

    assert {path: path.read_bytes() for path in OUTPUTS} == there


@pytest.mark.usefixtures("checkout")
def test_few_images_without_a_mistake_make_all_files(small_data: SmallData) -> None:
    """Where every prediction is right, the gallery of mistakes says that there are none."""
    three = small_data.test.take(np.arange(3))
    predicted_N = log_probabilities(three).argmax(1).astype(np.uint8)
    store.write(
        paths.DATASET,
        train=small_data.train,
        test=Images(images_NHW=three.images_NHW, labels_N=predicted_N),
        description=DIGITS,
    )
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)

    run()

    scores = json.loads(paths.TEST_METRICS.read_text())
    assert (scores["accuracy"], scores["num_wrong"], scores["num_images"]) == (1.0, 0, 3)
    assert None in scores["recall"].values()
    assert all(path.stat().st_size > 0 for path in OUTPUTS)


@pytest.mark.usefixtures("checkout")
def test_training_images_do_not_count(small_data: SmallData) -> None:
    run()
    before = {path: path.read_bytes() for path in OUTPUTS}
    store.write(
        paths.DATASET, train=small_data.train.take(np.arange(7)), test=small_data.test, description=DIGITS
    )
    verdict_on(paths.DATASET.resolve()).rename(paths.VALIDATION)

    run()

    assert {path: path.read_bytes() for path in OUTPUTS} == before


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: verdict_on(paths.DATASET.resolve(), success=False).rename(paths.VALIDATION), "bad data"),
        (paths.VALIDATION.unlink, "metrics/validation.json: found no such file"),
        (paths.WEIGHTS.unlink, "models/model.safetensors: found no such file"),
        (lambda: paths.WEIGHTS.write_bytes(b"no weights"), "expected weights that `train` wrote"),
    ],
    ids=["bad data", "no verdict", "no weights", "broken weights"],
)
def test_a_bad_input_stops_it_before_it_writes(fault: Callable[[], object], said: str) -> None:
    fault()

    with pytest.raises(InputError, match=said):
        run()

    assert [path for path in OUTPUTS if path.exists()] == []
