"""One run for each result, however it came about: each way of running, with the real tools.

The tests of this file run in their order, on one clone.
"""

import dataclasses
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import pyfunc
from mlflow.entities import Run

from mnist.core.errors import InputError
from mnist.core.paths import ARTIFACTS, FEATURE_MAPS, FILTERS, LOG_PROBS, REPORT
from mnist.data import store
from mnist.evaluation import statistics
from mnist.evaluation.results import CARD
from mnist.lineage import lock
from tests import checkout
from tests.checkout import NAME, Clone
from tests.conftest import SmallData

DEADLINE_SECONDS = 300
NEWER = "filters", "feature_maps"  # pictures


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout with a committed result, and no store yet."""
    folder = tmp_path_factory.mktemp("experiments") / "pipeline"
    made = checkout.clone(folder, small_data)
    made.dvc("repro")
    made.commit("What the pipeline made")
    remove_store(made)
    yield made
    checkout.stop_workers(folder)
    shutil.rmtree(folder.parent)


def remove_store(clone: Clone) -> None:
    (clone.folder / "mlflow.db").unlink(missing_ok=True)
    shutil.rmtree(clone.folder / "mlartifacts", ignore_errors=True)
    clone.store = f"./{clone.store}"  # another name: in this process MLflow keeps the old file open


def results(clone: Clone) -> dict[str, Run]:
    """All runs of the store by learning rate, after it was seen that they are complete, and one each."""
    runs = clone.runs()
    assert len({run.data.tags["fingerprint"] for run in runs}) == len(runs)
    assert len(list(clone.client.search_runs(["1"]))) == len(runs)  # nor any that is not finished
    for run in runs:
        run_id = run.info.run_id
        assert set(run.data.params) >= {"lr", "seed", "model", "num_threads"}
        for name in ("train_loss", "val_accuracy"):
            curve = clone.client.get_metric_history(run_id, name)
            assert [point.step for point in curve] in ([63, 126, 189, 252], [1, 2, 3, 4])
        assert run.data.metrics["test_accuracy"] > 0.5
        kept = Path(clone.client.download_artifacts(run_id, ""))
        for path in (*ARTIFACTS, REPORT, CARD):
            assert (kept / path).is_file(), path
        assert run.data.tags["fingerprint"] in (kept / REPORT).read_text()
        assert f"lr: {run.data.params['lr']}" in (kept / "params.yaml").read_text()
        assert f"lr: {run.data.params['lr']}" in (kept / "dvc.lock").read_text()
        (version,) = clone.client.search_model_versions(f"run_id = '{run_id}'")
        assert version.tags["weights_sha256"] == run.data.tags["weights_sha256"]
        assert version.status == "READY"
        assert f"models:/{NAME}/{version.version}" in str(version.description)
    assert not (clone.folder / "mlspool").exists() or not list((clone.folder / "mlspool").iterdir())
    return {run.data.params["lr"]: run for run in runs}


def names(run: Run) -> set[str]:
    return set(run.data.tags.get("dvc.experiments", "").split())


def reconcile(clone: Clone) -> str:
    return clone.run("python", "-m", "mnist.cli.sync").stdout


def test_four_queued_experiments_at_once_on_a_fresh_store(clone: Clone) -> None:
    for number in range(4):
        clone.run("dvc", "exp", "run", "--queue", "-n", f"queued-{number}", "-S", f"lr=0.01{number}")
    checkout.start_workers(clone, 4)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while waiting := re.findall(r"\d+ still \w+", clone.run("python", "-m", "mnist", "best").stdout):
        assert time.monotonic() < deadline, waiting
        if not any("running" in line for line in waiting):
            checkout.start_workers(clone, 4)  # a worker of DVC dies now and then (docs/sweeps.md)
        time.sleep(2)
    found = results(clone)
    assert {lr: names(run) for lr, run in found.items()} == {
        "0.01": {"queued-0"},
        "0.011": {"queued-1"},
        "0.012": {"queued-2"},
        "0.013": {"queued-3"},
    }
    assert {run.info.run_name for run in found.values()} == {f"queued-{number}" for number in range(4)}
    # Of many candidates none is the challenger.
    assert not clone.client.get_registered_model(NAME).aliases


def test_the_same_params_again_lead_to_the_same_run(clone: Clone) -> None:
    clone.dvc("exp", "run", "-n", "again", "-S", "lr=0.011")
    clone.reset()
    clone.dvc("exp", "run", "--temp", "-n", "and-again", "-S", "lr=0.011")
    found = results(clone)
    assert len(found) == 4
    assert names(found["0.011"]) == {"queued-1", "again", "and-again"}
    assert clone.client.get_model_version_by_alias(NAME, "challenger").run_id == found["0.011"].info.run_id


def test_a_lost_store_is_rebuilt_from_experiments_and_cache(clone: Clone) -> None:
    before = results(clone)
    remove_store(clone)
    clone.dvc("exp", "run", "--temp", "-n", "later", "-S", "lr=0.014")  # a new store knows this one alone
    assert set(results(clone)) == {"0.014"}
    assert "MLflow knows all results that are here" in reconcile(clone)
    after = results(clone)
    assert set(after) == {*before, "0.014", "0.02"}  # and what main has committed
    for lr, run in before.items():
        assert names(after[lr]) == names(run)
        assert after[lr].data.tags["weights_sha256"] == run.data.tags["weights_sha256"]
        assert after[lr].data.tags["fingerprint"] == run.data.tags["fingerprint"]
        assert after[lr].data.tags["rerun"] == run.data.tags["rerun"]
        assert after[lr].data.metrics["test_loss"] == run.data.metrics["test_loss"]
    # The result in the workspace is the candidate again.
    assert clone.client.get_model_version_by_alias(NAME, "challenger").run_id == after["0.02"].info.run_id
    reconcile(clone)
    assert {lr: run.info.run_id for lr, run in results(clone).items()} == {
        lr: run.info.run_id for lr, run in after.items()
    }


def test_a_worktree_shares_the_store(clone: Clone, tmp_path: Path) -> None:
    clone.run("git", "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    tree = dataclasses.replace(clone, folder=tmp_path / "tree")
    assert "train" in tree.dvc("repro", "--force")
    assert not (tree.folder / "mlflow.db").exists()
    assert len(results(clone)) == 6  # the same result: no other run
    tree.dvc("exp", "run", "-n", "in-tree", "-S", "lr=0.015")
    found = results(clone)
    assert len(found) == 7
    assert names(found["0.015"]) == {"in-tree"}
    clone.run("dvc", "exp", "remove", "in-tree")  # its files are in the worktree's own cache
    clone.run("git", "worktree", "remove", "--force", str(tree.folder))


def test_a_fresh_clone_with_the_cache_and_a_store_of_its_own(clone: Clone, tmp_path: Path) -> None:
    fresh = dataclasses.replace(clone, folder=tmp_path / "fresh", store="mlflow.db")
    clone.run("git", "clone", "-q", str(clone.folder), str(fresh.folder))
    shutil.copytree(clone.folder / ".dvc/cache", fresh.folder / ".dvc/cache")
    fresh.run("dvc", "checkout", "--force")
    assert fresh.dvc("repro") == ["register"]  # the store is another one, and has no run yet
    assert set(results(fresh)) == {"0.02"}
    assert fresh.dvc("repro") == []
    assert fresh.run("git", "status", "--short").stdout == ""
    assert fresh.dvc("exp", "run", "-n", "cached", "-S", "lr=0.02", "-S", "epochs=4") == []
    fresh.run("dvc", "exp", "pull", "origin", "queued-2")
    assert fresh.dvc("exp", "run", "-n", "restored", "-S", "lr=0.012") == ["register"]
    found = results(fresh)
    assert names(found["0.012"]) == {"restored"}
    reconcile(fresh)
    assert {lr: names(run) for lr, run in results(fresh).items()} == {
        "0.02": {"cached"},
        "0.012": {"restored", "queued-2"},
    }


def test_lost_files_and_a_deleted_version_come_back(clone: Clone) -> None:
    clone.client.delete_run(results(clone)["0.015"].info.run_id)  # its experiment is gone, with the worktree
    before = results(clone)
    run = before["0.02"]
    shutil.rmtree(clone.folder / "mlartifacts")
    (version,) = clone.client.search_model_versions(f"run_id = '{before['0.01'].info.run_id}'")
    clone.client.delete_model_version(NAME, version.version)
    reconcile(clone)
    after = results(clone)
    assert {lr: run.info.run_id for lr, run in after.items()} == {
        lr: run.info.run_id for lr, run in before.items()
    }
    (version,) = clone.client.search_model_versions(f"run_id = '{run.info.run_id}'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone.folder}/{clone.store}")
        registered = pyfunc.load_model(f"models:/{NAME}/{version.version}")
    test = store.load(clone.folder / "data/mnist.safetensors", "test")
    said = statistics.read(clone.folder / "metrics/predictions.csv")
    # A copy, since MLflow gives torch the array itself, and those of a file cannot be written to.
    assert (registered.predict(test.images_NHW.copy()).argmax(1).astype(str) == said.predicted_N).all()


def test_a_result_that_waited_is_not_registered_with_the_code_of_today(clone: Clone) -> None:
    num_versions = len(clone.client.search_model_versions())
    clone.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    output = clone.run("dvc", "exp", "run", "-n", "waiting", "-S", "lr=0.016").stdout
    del clone.environment["MLFLOW_TRACKING_URI"]
    assert output.count("MLflow at http://127.0.0.1:9 does not answer (connection refused)") == 2
    assert "make reproduce MODEL=waiting" in clone.read("metrics/report.html")
    code = clone.folder / "mnist/training/model.py"
    text = code.read_text()
    assert "relu" in text
    code.write_text(text.replace("relu", "sigmoid"))
    done = clone.run("python", "-m", "mnist.cli.sync", check=False)
    assert done.returncode == 1
    assert "weights of other code: today's network sees" in done.stdout
    assert len(clone.client.search_model_versions()) == num_versions
    code.write_text(text)
    assert "told MLflow the result of run waiting" in reconcile(clone)
    found = results(clone)
    assert len(clone.client.search_model_versions()) == num_versions + 1
    assert clone.client.get_model_version_by_alias(NAME, "challenger").run_id == found["0.016"].info.run_id


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("params.yaml", "lr: 0.02", "lr: 0.5"),
        ("mnist/training/loop.py", '"""', '"""Edited. '),
        ("dvc.yaml", "cmd: python -m stages.train", "cmd: OMP_NUM_THREADS=2 python -m stages.train"),
        ("dvc.yaml", "      - stages/train.py\n", "      - stages/train.py\n      - README.md\n"),
    ],
    ids=["param", "code", "command", "dep"],
)
def test_what_was_edited_and_not_run_is_no_result(clone: Clone, file: str, old: str, new: str) -> None:
    clone.reset()
    lock.check(clone.folder)
    path = clone.folder / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=r"^dvc\.lock: found .*, expected a result of what is there"):
        lock.check(clone.folder)
    clone.reset()


def test_a_result_of_before_there_were_log_probabilities_is_told_without_them(clone: Clone) -> None:
    clone.reset()
    clone.run("git", "checkout", "-q", "-b", "before")
    pipeline = clone.read("dvc.yaml")
    for line in (
        "    outs:\n      - data/log_probs.safetensors\n",
        "      - data/log_probs.safetensors\n",
        *(f"      - metrics/plots/{name}.png:\n          cache: false\n" for name in NEWER),
        *(f"      - metrics/plots/{name}.png\n" for name in NEWER),
    ):
        assert pipeline.count(line) == 1, line
        pipeline = pipeline.replace(line, "")
    (clone.folder / "dvc.yaml").write_text(pipeline)
    checkout.edit(clone, "params.yaml", "lr: 0.02", "lr: 0.017")
    clone.dvc("repro", "evaluate")
    clone.commit("A result of before")
    clone.run("git", "checkout", "-q", "main")
    clone.reset()
    remove_store(clone)
    assert "branch before is told" in reconcile(clone)
    (run,) = [run for run in clone.runs() if run.data.params["lr"] == "0.017"]
    kept = Path(clone.client.download_artifacts(run.info.run_id, ""))
    made = {path.relative_to(kept) for path in kept.rglob("*.*") if path.is_file()}
    assert set(ARTIFACTS) - made == {LOG_PROBS, FILTERS, FEATURE_MAPS}
    assert "does not hold the probabilities" in (kept / REPORT).read_text()
    clone.run("git", "branch", "-q", "-D", "before")


def test_experiments_that_left_the_cache_are_named(clone: Clone) -> None:
    remove_store(clone)
    shutil.rmtree(clone.folder / ".dvc/cache")
    done = clone.run("python", "-m", "mnist.cli.sync", check=False)
    assert done.returncode == 1
    assert "experiment queued-0 left out: data/" in done.stdout
    assert "Traceback" not in done.stdout
