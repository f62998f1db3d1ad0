"""One run for each result, however it came about: each way of running, with the real tools."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from mlflow import pyfunc
from mlflow.entities import Run

from mnist.core import files
from mnist.core.paths import WEIGHTS
from mnist.data import store
from mnist.evaluation.predictions import read_table
from mnist.tracking import runs
from tests import checkout
from tests.checkout import NAME, Clone
from tests.e2e.conftest import Invoke, check_complete, without_store

NOWHERE = "http://127.0.0.1:9"  # the discard port, at which nothing listens


def complete_runs(clone: Clone) -> dict[str, Run]:
    """Return all runs of the store by learning rate; each is complete, and the only one of its result."""
    runs = clone.runs()
    assert len(list(clone.client.search_runs(["1"]))) == len(runs)  # each is finished
    for run in runs:
        check_complete(clone.client, run)
    found = {run.data.params["lr"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def ids(runs: dict[str, Run]) -> dict[str, str]:
    return {lr: run.info.run_id for lr, run in runs.items()}


def names(run: Run) -> set[str]:
    """Return the experiments that led to a run."""
    return set(run.data.tags.get("dvc.experiments", "").split())


def challenger(clone: Clone) -> str:
    """Return the run id of the challenger."""
    return str(clone.client.get_model_version_by_alias(NAME, "challenger").run_id)


def test_queued_experiments_at_once_on_a_new_store_which_is_lost_and_rebuilt(
    trained: Clone, invoke: Invoke
) -> None:
    clone = without_store(trained)
    for number in range(2):
        clone.run("dvc", "exp", "run", "--queue", "-n", f"queued-{number}", "-S", f"lr=0.01{number}")
    checkout.run_queue(clone)
    before = complete_runs(clone)
    assert {lr: names(run) for lr, run in before.items()} == {"0.01": {"queued-0"}, "0.011": {"queued-1"}}
    assert {run.info.run_name for run in before.values()} == {"queued-0", "queued-1"}
    assert not clone.client.get_registered_model(NAME).aliases  # of many candidates none is the challenger

    clone = without_store(clone)
    assert invoke(clone, "sync").exit_code == 0
    after = complete_runs(clone)
    assert set(after) == {*before, "0.02"}  # and what main has committed
    for lr, run in before.items():
        assert names(after[lr]) == names(run)
        for tag in ("weights_sha256", "fingerprint", "rerun"):
            assert after[lr].data.tags[tag] == run.data.tags[tag]
        assert after[lr].data.metrics["test/loss"] == run.data.metrics["test/loss"]
    assert challenger(clone) == after["0.02"].info.run_id  # the result in the workspace
    assert invoke(clone, "sync").exit_code == 0
    assert ids(complete_runs(clone)) == ids(after)


def test_params_of_before_are_restored_from_the_run_cache(trained: Clone) -> None:
    before = complete_runs(trained)
    assert "train" in trained.dvc("exp", "run", "-n", "other", "-S", "lr=0.011")
    assert trained.dvc("exp", "run", "-n", "back", "-S", "lr=0.02") == ["register"]
    after = complete_runs(trained)
    assert ids(after) == {**ids(before), "0.011": after["0.011"].info.run_id}
    assert "back" in names(after["0.02"])
    assert "receipts" not in trained.run("dvc", "metrics", "diff", "--all").stdout


def test_the_same_result_from_a_temporary_tree_and_other_code_in_a_worktree(
    trained: Clone, invoke: Invoke, tmp_path: Path
) -> None:
    before = complete_runs(trained)
    assert trained.dvc("exp", "run", "--temp", "-n", "aside") == ["register"]
    assert trained.dvc("exp", "run", "-n", "again", "-S", "lr=0.02", "-S", "epochs=4") == []
    tree = dataclasses.replace(trained, folder=tmp_path / "tree")
    trained.run("git", "worktree", "add", "-q", "--detach", str(tree.folder))
    checkout.edit(tree, "mnist/training/loop.py", '"""', '"""Edited. ')  # other code, the same weights
    assert "train" in tree.dvc("exp", "run", "-n", "in-tree")
    assert not (tree.folder / "mlflow.db").exists()
    assert invoke(trained, "sync").exit_code in (0, 1)  # the cache of the worktree is its own
    after = complete_runs(trained)
    assert ids(after) == ids(before)
    assert names(after["0.02"]) >= {"aside", "again", "in-tree"}


def test_an_applied_experiment_that_sync_logs_has_its_name(trained: Clone, invoke: Invoke) -> None:
    trained.dvc("exp", "run", "-n", "applied", "-S", "lr=0.011")
    clone = without_store(trained)
    assert invoke(clone, "sync").exit_code == 0
    runs = complete_runs(clone)
    assert runs["0.011"].info.run_name == "applied"
    assert names(runs["0.011"]) == {"applied"}
    assert challenger(clone) == runs["0.011"].info.run_id


def test_a_fresh_clone_with_the_cache_and_a_store_of_its_own(trained: Clone, tmp_path: Path) -> None:
    fresh = dataclasses.replace(trained, folder=tmp_path / "fresh")
    trained.run("git", "clone", "-q", str(trained.folder), str(fresh.folder))
    shutil.copytree(trained.folder / ".dvc/cache", fresh.folder / ".dvc/cache")
    fresh.run("dvc", "checkout", "--force")
    assert fresh.dvc("repro") == ["register"]  # the store is another one, and has no run yet
    assert set(complete_runs(fresh)) == {"0.02"}
    assert fresh.dvc("repro") == []
    assert fresh.run("git", "status", "--short").stdout == ""


def test_a_pipeline_that_was_killed_and_run_again_has_one_finished_run(trained: Clone) -> None:
    checkout.edit(trained, "params.yaml", "lr: 0.02", "lr: 0.018")
    for moment in ("epoch 2/4", "> python -m stages.register"):
        with subprocess.Popen(
            ["dvc", "repro"],
            cwd=trained.folder,
            env={**trained.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as pipeline:
            assert pipeline.stdout
            assert any(moment in line for line in pipeline.stdout)
            os.killpg(pipeline.pid, signal.SIGKILL)
        (trained.folder / ".dvc/tmp/rwlock").unlink(missing_ok=True)  # DVC may have been writing it
    trained.dvc("repro")
    runs = [run for run in trained.client.search_runs(["1"]) if run.data.params["lr"] == "0.018"]
    (run,) = runs  # the training that was killed was resumed
    assert run.info.status == "FINISHED"
    assert run.data.tags["weights_sha256"] == files.sha256(trained.folder / WEIGHTS)
    assert challenger(trained) == run.info.run_id


def test_lost_files_and_a_deleted_version_come_back(trained: Clone, invoke: Invoke) -> None:
    before = complete_runs(trained)
    assert invoke(trained, "promote").exit_code == 0
    (version,) = trained.client.search_model_versions()
    trained.client.delete_model_version(NAME, version.version)
    shutil.rmtree(trained.folder / "mlartifacts")
    abandoned = trained.client.create_run("1", tags={runs.LOGGED_BY: f"{socket.gethostname()}:{2**30}:0"})
    assert invoke(trained, "sync").exit_code == 0
    assert trained.client.get_run(abandoned.info.run_id).info.status == "KILLED"
    trained.client.delete_run(abandoned.info.run_id)
    assert ids(complete_runs(trained)) == ids(before)
    version = trained.client.get_model_version_by_alias(NAME, "champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained.folder}/{trained.store}")
        registered = pyfunc.load_model(f"models:/{NAME}/{version.version}")
    test = store.load(trained.folder / "data/mnist.safetensors", "test")
    expected = read_table(trained.folder / "metrics/predictions.csv").predicted_N
    probs_NK = registered.predict(test.images_NHW)["probabilities"]
    assert (probs_NK.argmax(1).astype(str) == expected).all()


def test_a_result_that_mlflow_missed_is_registered_by_other_code(trained: Clone) -> None:
    """A result brings its ONNX file, so its network need not be the one of this code."""
    trained.environment["MLFLOW_TRACKING_URI"] = NOWHERE
    output = trained.run("dvc", "exp", "run", "-n", "missed", "-S", "lr=0.016").stdout
    del trained.environment["MLFLOW_TRACKING_URI"]
    before, register = output.split("> python -m stages.register")
    assert "MLflow" not in before.partition("> python -m stages.evaluate")[2]
    (line,) = (line for line in register.splitlines() if "MLflow" in line)
    assert f"MLflow at {NOWHERE} does not answer (connection refused)" in line
    text = trained.read("mnist/training/model.py")
    assert "relu" in text
    (trained.folder / "mnist/training/model.py").write_text(text.replace("relu", "sigmoid"))
    done = trained.run("python", "-m", "mnist", "sync", check=False)  # with that code
    assert done.stdout.splitlines()[-1].endswith("; 1 of these left out")  # the workspace has no result of it
    assert len(trained.client.search_model_versions()) == 2
    assert set(complete_runs(trained)) == {"0.02", "0.016"}


def test_sync_repairs_a_stored_model(trained: Clone, invoke: Invoke) -> None:
    (stored,) = (trained.folder / "mlartifacts").glob("models/m-*/artifacts/model.onnx")
    content = stored.read_bytes()
    stored.write_bytes(content[:-1])
    assert invoke(trained, "sync").exit_code == 0
    assert stored.read_bytes() == content


def test_sync_names_what_it_leaves_out(trained: Clone, invoke: Invoke) -> None:
    """A workspace whose files are no result of it, and an experiment that left the cache."""
    trained.run("dvc", "exp", "save", "-n", "kept")
    assert invoke(trained, "sync").exit_code == 0
    checkout.edit(trained, "params.yaml", "lr: 0.02", "lr: 0.018")
    shutil.rmtree(trained.folder / ".dvc/cache")
    done = invoke(trained, "sync")
    assert done.exit_code == 1
    assert "; 3 of these left out" in done.output.splitlines()[-1]
    (workspace,) = (line for line in done.output.splitlines() if "workspace left out" in line)
    assert "lr" in workspace
    (kept,) = (line for line in done.output.splitlines() if "kept" in line)
    assert "data/" in kept
