"""What is slow to make is made once a session, under a lock, and copied by each test that changes it."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import mnist.cli
from mnist.core import files, paths
from mnist.tracking import client
from tests import checkout
from tests.checkout import Clone
from tests.conftest import MadeOnce, SmallData


@pytest.fixture(scope="session")
def trained_template(made_once: MadeOnce, small_data: SmallData) -> Clone:
    """A clone with a committed result, its run and its model version 1 (the challenger). Do not change it."""
    folder = made_once("trained", lambda folder: make_trained(folder, small_data))
    return Clone(folder=folder / "clone", environment=checkout.environment(folder))


def make_trained(folder: Path, small_data: SmallData) -> None:
    """Make the trained clone in `folder` / "clone"."""
    clone = checkout.clone(folder / "clone", small_data)
    clone.run("git", "config", "user.name", "t")
    clone.run("git", "config", "user.email", "t@example.org")
    clone.dvc("repro")
    clone.commit("What the pipeline made")
    checkout.set_up(clone)


@pytest.fixture
def trained(trained_template: Clone, tmp_path: Path) -> Clone:
    """A copy of the trained clone, with its own store and cache, for one test to change."""
    return copy(trained_template, tmp_path / "trained")


@pytest.fixture(scope="module")
def trained_module(trained_template: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the trained clone for the tests of one file that only read it."""
    return copy(trained_template, tmp_path_factory.mktemp("trained"))


def copy(template: Clone, folder: Path) -> Clone:
    """Copy a clone into `folder` / "clone"; its store is moved with it."""
    made = Clone(folder=folder / "clone", environment=checkout.environment(folder), store=template.store)
    shutil.copytree(template.folder, made.folder, symlinks=True)
    if (made.folder / made.store).exists():
        client.move(made.folder / made.store, old=template.folder, new=made.folder)
    return made


def without_store(clone: Clone) -> Clone:
    """Remove the store; the returned clone names a new one, since MLflow keeps the old file open here."""
    (clone.folder / clone.store).unlink(missing_ok=True)
    shutil.rmtree(clone.folder / "mlartifacts", ignore_errors=True)
    return dataclasses.replace(clone, store=f"./{clone.store}")


def check_complete(client: MlflowClient, run: Run) -> None:
    """Check that a run has its params, each point of its curves once, its files, and a model version."""
    run_id, weights_sha256 = run.info.run_id, run.data.tags["weights_sha256"]
    assert run.info.status == "FINISHED"
    assert set(run.data.params) >= {"lr", "seed", "model", "num_threads"}
    for name, steps in (("train/loss", [63, 126, 189, 252]), ("val/accuracy", [63, 126, 189, 252])):
        assert sorted(point.step for point in client.get_metric_history(run_id, name)) == steps
    assert run.data.metrics["test/accuracy"] > 0.5
    kept = Path(client.download_artifacts(run_id, ""))
    for path in (*paths.ARTIFACTS, paths.REPORT):
        assert (kept / path).is_file(), path
    assert files.sha256(kept / paths.WEIGHTS) == weights_sha256
    assert weights_sha256 in (kept / paths.REPORT).read_text()
    for name in ("params.yaml", "dvc.lock"):
        assert f"lr: {run.data.params['lr']}" in (kept / name).read_text()
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    model = client.get_logged_model(str(version.source).removeprefix("models:/"))
    linked = {metric.key: (metric.value, metric.dataset_name) for metric in model.metrics or ()}
    for name, dataset in (("val/accuracy", "mnist-train"), ("test/accuracy", "mnist-test")):
        assert linked[name] == (run.data.metrics[name], dataset)
    assert version.tags["weights_sha256"] == weights_sha256
    assert version.status == "READY"
    assert f"models:/{version.name}/{version.version}" in str(version.description)


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command of `mnist` in this process, in the folder and the environment of a clone."""

    def run(clone: Clone, *arguments: str, **environment: str) -> Result:
        with monkeypatch.context() as patch:
            patch.chdir(clone.folder)
            for name in [name for name in os.environ if name.startswith(checkout.FOREIGN)]:
                patch.delenv(name)
            for name, value in {**clone.environment, **environment}.items():
                patch.setenv(name, value)
            return CliRunner().invoke(mnist.cli.main, arguments, prog_name="mnist")

    return run
