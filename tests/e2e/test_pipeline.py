"""The pipeline as its user runs it, end to end on small data.

`make test` runs this file and the units; the other files of this folder run in `make test-all`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import pyfunc

from mnist.data import store
from mnist.training import model
from tests import checkout
from tests.checkout import NAME, STAGES, Clone
from tests.conftest import SmallData
from tests.e2e.conftest import Invoke, check_complete, copy

LR_0_05 = ("-S", "lr=0.05", "-S", "momentum=0.5")  # with which the small data are learned


@pytest.fixture(scope="module")
def experiment(trained_template: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the trained clone in which an experiment ran; do not change it."""
    clone = copy(trained_template, tmp_path_factory.mktemp("experiment"))
    assert clone.dvc("exp", "run", "-n", "faster", *LR_0_05) == ["train", "evaluate", "register"]
    return clone


def test_repro_writes_every_output(trained: Clone, small_data: SmallData) -> None:
    clone = trained
    for stage in yaml.safe_load(clone.read("dvc.lock"))["stages"].values():
        for output in stage["outs"]:
            assert (clone.folder / output["path"]).exists()
    for split, images in (("train", small_data.train), ("test", small_data.test)):
        read = store.load(clone.folder / "data/mnist.safetensors", split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read.images_NHW, images.images_NHW)
        np.testing.assert_array_equal(read.labels_N, images.labels_N)
    assert json.loads(clone.read("metrics/validation.json"))["success"]
    assert len(clone.read("metrics/predictions.csv").splitlines()) == 1 + 300
    assert json.loads(clone.read("metrics/test.json"))["accuracy"] > 0.8  # chance is 0.1
    assert len(clone.read("metrics/predictions.csv").splitlines()) == 301
    # Metrics are committed, the rest is ignored.
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_second_repro_runs_nothing(trained: Clone) -> None:
    assert trained.dvc("repro") == []


def test_an_experiment_has_a_complete_run(experiment: Clone) -> None:
    run, before = experiment.runs()
    assert (run.data.params["lr"], before.data.params["lr"]) == ("0.05", "0.02")
    assert run.info.run_name == "faster"
    assert run.data.tags["dvc.experiments"] == "faster"
    check_complete(experiment.client, run)
    accuracy = json.loads(experiment.read("metrics/test.json"))["accuracy"]
    assert accuracy > 0.8
    assert run.data.metrics["test/accuracy"] == accuracy
    for name in ("metrics/report.html", "metrics/plots/errors.png", "params.yaml"):
        kept = Path(experiment.client.download_artifacts(run.info.run_id, name))
        assert kept.read_bytes() == (experiment.folder / name).read_bytes()
    version = experiment.client.get_model_version_by_alias(NAME, "challenger")
    assert version.run_id == run.info.run_id


def test_the_registered_model_takes_raw_pixels(
    experiment: Clone, small_data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{experiment.folder}/{experiment.store}")
    registered = pyfunc.load_model(f"models:/{NAME}@challenger")
    ours = model.load(experiment.folder / "models/model.safetensors")
    for num_images in (1, 7):
        images_NHW = small_data.test.images_NHW[:num_images]
        probs_NK = registered.predict(images_NHW)["probabilities"]
        assert probs_NK.dtype == np.float32
        np.testing.assert_allclose(probs_NK, ours(torch.from_numpy(images_NHW)).detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(probs_NK.sum(1), 1, atol=1e-5)


def test_an_experiment_is_compared_with_its_base(experiment: Clone, invoke: Invoke) -> None:
    done = invoke(experiment, "diff", "HEAD", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["images"]["num_images"] == 300
    lr = {"name": "lr", "base": 0.02, "head": 0.05}
    assert lr in found["params"]
    assert found["problems"] == {"base": {}, "head": {}}


def test_the_challenger_is_promoted(trained: Clone, invoke: Invoke) -> None:
    done = invoke(trained, "promote")
    assert done.exit_code == 0, done.output
    assert str(trained.client.get_model_version_by_alias(NAME, "champion").version) == "1"


def test_bad_data_stop_the_pipeline(trained: Clone) -> None:
    locked = yaml.safe_load(trained.read("dvc.lock"))["stages"]
    checkout.edit(trained, "datasets/mnist.yaml", "num_test: 300", "num_test: 301")
    done = trained.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "test_size: expected 301" in done.stdout
    assert "Traceback" not in done.stdout
    assert "stages.train" not in done.stdout
    assert not json.loads(trained.read("metrics/validation.json"))["success"]
    after = yaml.safe_load(trained.read("dvc.lock"))["stages"]
    assert [stage for stage in STAGES if after[stage] != locked[stage]] == ["download"]
    # A stage that is started without DVC refuses them too.
    by_hand = trained.run("python", "-m", "stages.train", check=False)
    assert by_hand.returncode != 0
    assert "a `validate` that succeeded" in by_hand.stdout
