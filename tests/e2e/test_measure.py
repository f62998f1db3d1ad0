"""Data of one's own: a file that `mnist measure` prints, and the whole pipeline on its three classes."""

import csv
import json
from pathlib import Path

from mlflow.tracking import MlflowClient

from mnist.core import paths
from mnist.data import store
from tests.checkout import STAGES, Clone
from tests.conftest import three_classes, write_archives
from tests.e2e.conftest import Invoke

CLASSES = ("fish", "bird", "ox/cow")


def test_own_data_run_through_the_whole_pipeline(trained: Clone, invoke: Invoke, tmp_path: Path) -> None:
    write_archives(tmp_path / "archives", three_classes(700, seed=5), three_classes(150, seed=6))
    options = ("--title", "Three kinds", "--classes", ",".join(CLASSES))
    measured = invoke(trained, "measure", "three", str(tmp_path / "archives"), *options)
    assert measured.exit_code == 0, measured.output
    (trained.folder / "datasets/three.yaml").write_text(measured.stdout)
    trained.environment["MNIST_MIRROR"] = str(tmp_path / "archives")

    assert trained.dvc("exp", "run", "-S", "dataset=three", "-n", "three") == STAGES

    assert store.describe(trained.folder / paths.DATASET).classes == CLASSES
    assert json.loads(trained.read("metrics/test.json"))["accuracy"] > 0.6  # chance is 0.4
    rows = list(csv.DictReader(trained.read("metrics/predictions.csv").splitlines()))
    assert {row["label"] for row in rows} == set(CLASSES)
    page = trained.read("data/validation.html")
    assert "Three kinds, 700 training and 150 test images" in page
    assert "MNIST" not in page
    # Its run and its model are its own.
    client: MlflowClient = trained.client
    run = trained.runs()[0]
    assert run.data.params["dataset"] == "three"
    assert run.inputs
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"three-train", "three-test"}
    models = {model.name: model for model in client.search_registered_models()}
    assert models.keys() == {"mnist-simplecnn", "three-simplecnn"}
    assert "fish, bird, ox/cow" in str(models["three-simplecnn"].description)
    # It is not compared with the committed result, which is another data set's.
    found = invoke(trained, "diff", "HEAD", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["images"] is None
