"""The whole pipeline as its user runs it: a clone, DVC, a store, on small data.

The tests of this file run in their order, on one clone.
"""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import pyfunc

from mnist.data import store
from mnist.training import model
from tests import checkout
from tests.checkout import NAME, STAGES, Clone
from tests.conftest import SmallData

# Each takes 0.3 s or more to import. What a stage does not use itself comes with what it uses.
BIG = {
    *("dvc", "great_expectations", "matplotlib", "mlflow", "pandas", "scipy"),
    *("sympy", "torch", "torch._dynamo", "torchvision"),
}
USED = {
    "download": set(),
    "validate": {"great_expectations", "pandas", "scipy"},
    "stats": set(),
    "train": {"torch"},
    "evaluate": {"matplotlib", "torch"},
    "register": {"mlflow", "pandas", "scipy", "torch"},
}


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout of this file's own."""
    folder = tmp_path_factory.mktemp("clone") / "pipeline"
    yield checkout.clone(folder, small_data)
    shutil.rmtree(folder)


def test_repro_runs_all_stages_and_makes_what_it_promises(clone: Clone) -> None:
    assert clone.dvc("repro") == STAGES
    scores = json.loads(clone.read("metrics/test.json"))
    assert scores["num_images"] == 300
    assert scores["accuracy"] > 0.8  # calculator digits are easy; chance is 0.1
    assert json.loads(clone.read("metrics/validation.json"))["success"]
    assert len(clone.read("metrics/predictions.csv").splitlines()) == 301
    for picture in ("predictions", "errors"):
        assert (clone.folder / f"metrics/plots/{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert not (clone.folder / "mlruns").exists()
    untracked = clone.run("git", "status", "--porcelain").stdout.splitlines()
    assert {line[3:].split("/")[0] for line in untracked} == {"dvc.lock", "metrics"}
    clone.commit("What the pipeline made")


def test_the_run_shows_params_curves_scores_and_files(clone: Clone) -> None:
    (run,) = clone.runs()
    commit = clone.run("git", "rev-parse", "HEAD~1").stdout.strip()
    assert run.info.run_name == f"main-{commit[:7]}"
    assert run.data.params["lr"] == "0.02"
    assert run.data.metrics["test_accuracy"] == json.loads(clone.read("metrics/test.json"))["accuracy"]
    assert run.data.tags["rerun"] == f"git checkout {commit[:12]} && dvc repro"
    curve = clone.client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in curve] == [63, 126, 189, 252]  # 1,000 images, 16 a step, 4 epochs
    for name in (
        "data/validation.html",
        "metrics/plots/errors.png",
        "metrics/report.html",
        "models/model.safetensors",
        "params.yaml",
    ):
        kept = Path(clone.client.download_artifacts(run.info.run_id, name))
        assert kept.read_bytes() == (clone.folder / name).read_bytes()


def test_the_report_tells_where_it_was_trained_and_is_made_again(clone: Clone) -> None:
    by_register = clone.read("metrics/report.html")
    accuracy = json.loads(clone.read("metrics/test.json"))["accuracy"]
    shown = f"<strong>{100 * accuracy:.2f}\u00a0%</strong>"
    assert shown in by_register
    assert "CPU (" in by_register
    assert f"torch {torch.__version__}".partition("+")[0] in by_register
    (clone.folder / "metrics/report.html").unlink()
    assert "metrics/report.html" in clone.run(sys.executable, "-m", "mnist.cli.report").stdout
    again = clone.read("metrics/report.html")
    assert shown in again
    assert "CPU (" in again
    assert clone.run("git", "rev-parse", "HEAD").stdout.strip() in again  # results included
    assert clone.run("git", "status", "--porcelain").stdout == ""
    checkout.edit(clone, "params.yaml", "lr: 0.02", "lr: 0.5")
    refused = clone.run(sys.executable, "-m", "mnist.cli.report", check=False)
    assert refused.returncode == 1
    assert refused.stdout.startswith("ERROR: dvc.lock: found stage train: lr is 0.5, was 0.02, expected")
    assert refused.stdout.count("\n") == 1
    clone.reset()


def test_the_registered_model_takes_raw_pixels_in_any_number(clone: Clone, small_data: SmallData) -> None:
    version = clone.client.get_model_version_by_alias(NAME, "challenger")
    assert str(version.version) == "1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone.folder}/mlflow.db")
        registered = pyfunc.load_model(f"models:/{NAME}@challenger")
    ours = model.load(clone.folder / "models/model.safetensors")
    predicted = np.loadtxt(clone.folder / "metrics/predictions.csv", delimiter=",", skiprows=1, dtype=int)[
        :, 2
    ]
    for num_images in (1, 7):
        images_NHW = small_data.test.images_NHW[:num_images]
        probs_NK = registered.predict(images_NHW)
        assert probs_NK.shape == (num_images, 10)
        assert probs_NK.dtype == np.float32
        np.testing.assert_allclose(probs_NK.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(probs_NK, ours(torch.from_numpy(images_NHW)).detach().numpy(), atol=1e-6)
        assert probs_NK.argmax(1).tolist() == predicted[:num_images].tolist()
    files = [path for path in clone.folder.glob("mlartifacts/**/*") if path.is_file()]
    assert any(path.suffix == ".pt2" for path in files)
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pth", ".pt"}]


def test_a_second_repro_runs_nothing(clone: Clone) -> None:
    assert clone.dvc("repro") == []


def test_a_forced_repro_gives_the_same_bytes_and_no_second_run_or_version(clone: Clone) -> None:
    before = clone.read("dvc.lock")
    output = clone.run("dvc", "repro", "--force").stdout
    assert re.findall(r"> python -m stages\.(\w+)", output) == STAGES
    assert clone.read("dvc.lock") == before
    assert clone.run("git", "status", "--porcelain").stdout == ""
    assert len(clone.runs()) == 1
    assert len(clone.client.search_model_versions()) == 1
    # It ends with a summary, and what is no terminal gets no colours.
    summary = output.rpartition("> python -m stages.register\n")[2].splitlines()
    accuracy = json.loads(clone.read("metrics/test.json"))["accuracy"]
    assert summary[0].startswith(
        f"register: accuracy {accuracy:.2%} on 300 test images of MNIST, 95 % interval"
    )
    assert [line.split()[0] for line in summary[1:7]] == ["also", "run", "model", "page", "files", "next"]
    assert "\x1b" not in "".join(summary)
    assert (clone.folder / "metrics/report.html").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_a_big_library_that_it_does_not_use(clone: Clone, stage: str) -> None:
    """In a whole run, where nothing is new: the exporter is for a model that is not registered yet."""
    log = clone.run(sys.executable, "-X", "importtime", "-m", f"stages.{stage}").stdout
    imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", log, re.MULTILINE))
    assert f"{stage}: " in log
    assert "pydantic" in imported
    assert imported & BIG <= USED[stage]


def test_another_lr_reruns_what_depends_on_it_and_has_a_run_of_its_own(clone: Clone) -> None:
    assert clone.dvc("exp", "run", "-S", "lr=0.01", "-n", "slower") == ["train", "evaluate", "register"]
    newest, *others = clone.runs()
    assert len(others) == 1
    assert newest.info.run_name == "slower"
    assert newest.data.params["lr"] == "0.01"
    assert newest.data.tags["dvc.experiments"] == "slower"
    baseline = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    assert newest.data.tags["rerun"] == f"git checkout {baseline[:12]} && dvc exp run -S lr=0.01"
    assert clone.client.get_model_version_by_alias(NAME, "challenger").run_id == newest.info.run_id


def test_a_small_lr_in_dvcs_spelling_is_a_number(clone: Clone) -> None:
    assert clone.dvc("exp", "run", "-S", "lr=1e-5", "-S", "epochs=1") == ["train", "evaluate", "register"]
    assert clone.runs()[0].data.params["lr"] == "1e-05"
    assert clone.runs()[0].data.metrics["test_accuracy"] < 0.5
    # Below registry.min_accuracy there is a run, but no version.
    assert len(clone.client.search_model_versions()) == 2
    clone.reset()


def test_an_experiment_in_a_temporary_tree_shares_store_and_cache(clone: Clone) -> None:
    alias = clone.client.get_model_version_by_alias(NAME, "challenger").version
    ran = clone.dvc("exp", "run", "--temp", "-S", "lr=0.015", "-n", "aside")
    assert ran[-3:] == ["train", "evaluate", "register"]
    newest = clone.runs()[0]
    assert newest.info.run_name == "aside"
    assert Path(clone.client.download_artifacts(newest.info.run_id, "metrics/test.json")).is_file()
    versions = clone.client.search_model_versions(f"run_id = '{newest.info.run_id}'")
    assert len(versions) == 1
    # One candidate of many moves no alias, and the workspace is as it was.
    assert clone.client.get_model_version_by_alias(NAME, "challenger").version == alias
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_a_result_from_the_run_cache_has_its_run_and_no_second_one(clone: Clone) -> None:
    clone.reset()
    runs = len(clone.runs())
    assert clone.dvc("exp", "run", "-S", "lr=0.01", "-n", "again") == ["register"]
    assert len(clone.runs()) == runs
    (run,) = [run for run in clone.runs() if run.data.params["lr"] == "0.01"]
    assert run.data.tags["dvc.experiments"] == "slower again"


def test_another_store_is_filled_from_the_files(clone: Clone) -> None:
    (before,) = [run for run in clone.runs() if run.data.params["lr"] == "0.01"]
    elsewhere = dataclasses.replace(clone, store="elsewhere.db")
    elsewhere.environment["MLFLOW_TRACKING_URI"] = "sqlite:///elsewhere.db"
    assert elsewhere.dvc("repro", "--force", "--single-item", "register") == ["register"]
    del elsewhere.environment["MLFLOW_TRACKING_URI"]
    (after,) = elsewhere.runs()
    assert after.data.params == before.data.params
    curves = []
    for client, run in ((clone.client, before), (elsewhere.client, after)):
        points = client.get_metric_history(run.info.run_id, "train_loss")
        curves.append([(point.step, point.value) for point in points])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    assert elsewhere.client.get_model_version_by_alias(NAME, "challenger").run_id == after.info.run_id
    (clone.folder / "elsewhere.db").unlink()


def test_bad_data_stop_the_pipeline_with_the_name_of_the_expectation(clone: Clone) -> None:
    clone.reset()
    before = clone.read("dvc.lock")
    checkout.edit(clone, "datasets.yaml", "num_test: 300", "num_test: 301")
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "test_size: expected 301" in done.stdout
    assert "stages.train" not in done.stdout
    assert "Traceback" not in done.stdout
    assert not json.loads(clone.read("metrics/validation.json"))["success"]
    # Nor does a stage run by hand take them.
    by_hand = clone.run(sys.executable, "-m", "stages.train", check=False)
    assert by_hand.returncode == 1
    assert by_hand.stdout.count("\n") == 1
    assert "test_size" in by_hand.stdout
    clone.reset()
    assert clone.read("dvc.lock") == before


def test_training_that_diverges_says_so_and_leaves_a_failed_run(clone: Clone) -> None:
    finished = len(clone.runs())
    done = clone.run("dvc", "exp", "run", "--temp", "-S", "lr=1e9", check=False)
    assert done.returncode != 0
    assert "params.yaml: lr: found a loss of " in done.stdout
    assert "Traceback" not in done.stdout
    assert [run.data.params["lr"] for run in clone.runs("FAILED")] == ["1000000000.0"]
    assert len(clone.runs()) == finished


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_training_that_is_interrupted_leaves_a_killed_run_and_the_old_files(
    clone: Clone, request_to_stop: signal.Signals
) -> None:
    clone.reset()
    weights = (clone.folder / "models/model.safetensors").read_bytes()
    text = clone.read("params.yaml")
    epochs = f"epochs: {1000 - request_to_stop}"  # another training for each signal
    (clone.folder / "params.yaml").write_text(text.replace("epochs: 4", epochs))
    killed = len(clone.runs("KILLED"))
    training = subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=clone.folder,
        env=clone.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(run.data.metrics for run in clone.runs("RUNNING")) and time.monotonic() < deadline:
        time.sleep(0.2)
    training.send_signal(request_to_stop)
    _, complaint = training.communicate(timeout=60)
    assert training.returncode == 130
    assert complaint.strip() == "interrupted"
    assert len(clone.runs("KILLED")) == killed + 1
    assert clone.runs("RUNNING") == []
    assert (clone.folder / "models/model.safetensors").read_bytes() == weights
    clone.reset()


def test_plots_and_metrics_are_shown(clone: Clone) -> None:
    shown = clone.run("dvc", "metrics", "show").stdout
    assert "accuracy" in shown
    assert "val_accuracy" in shown
    clone.run("dvc", "plots", "show")
    page = clone.read("dvc_plots/index.html")
    for title in ("Training loss by step", "Confusion matrix of the test images", "metrics/plots/errors.png"):
        assert title.replace("metrics/plots/", "") in page
    clone.dvc("exp", "run", "-S", "lr=0.012", "-n", "other")
    difference = clone.run("dvc", "metrics", "diff").stdout
    assert "accuracy" in difference
    assert "lr" in clone.run("dvc", "params", "diff").stdout


def test_the_downloaded_dataset_is_the_made_one(clone: Clone, small_data: SmallData) -> None:
    for split, images in (("train", small_data.train), ("test", small_data.test)):
        read = store.load(clone.folder / "data/mnist.safetensors", split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read.images_NHW, images.images_NHW)
        np.testing.assert_array_equal(read.labels_N, images.labels_N)
