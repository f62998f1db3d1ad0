"""Results of experiments, in small repositories whose refs are written by hand."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result as Outcome
from ruamel.yaml import YAML

import mnist.cli
from mnist.comparison.results import Results, load_results
from mnist.core import paths
from mnist.core.config import Split
from mnist.core.errors import InputError
from tests import checkout
from tests.conftest import MadeOnce

METRICS = {"val_loss": 0.5, "val_accuracy": 0.9}


def lock(metrics: bytes, *, file: Path = paths.TRAINING_METRICS, **params: Any) -> dict[str, Any]:
    """A `dvc.lock` that records these metrics and these params."""
    digest = hashlib.md5(metrics, usedforsecurity=False).hexdigest()
    train = {
        "deps": [{"path": "data/mnist.safetensors", "md5": "d"}],
        "params": {"params.yaml": {"seed": 0, "val_size": 200, **params}},
        "outs": [{"path": file.as_posix(), "md5": digest}],
    }
    return {"schema": "2.0", "stages": {"train": train}}


@dataclass(frozen=True)
class Repository(checkout.Repository):
    """One in which experiments are made by hand, as DVC leaves them."""

    def write(self, accuracy: float, **params: Any) -> None:
        """Write the files of a result."""
        metrics = json.dumps({**METRICS, "val_accuracy": accuracy}).encode()
        (self.folder / paths.TRAINING_METRICS).write_bytes(metrics)
        YAML().dump(lock(metrics, **params), self.folder / paths.LOCK)

    def experiment(self, name: str, accuracy: float, **params: Any) -> str:
        """Make an experiment that starts from HEAD; the workspace is as before."""
        start = self.git("rev-parse", "HEAD")
        self.write(accuracy, **params)
        commit = self.commit()
        self.git("update-ref", f"refs/exps/{start[:2]}/{start[2:]}/{name}", commit)
        self.git("reset", "-q", "--hard", start)
        return commit

    def load(self, *revs: str) -> Results:
        keys = ("val_accuracy", "val_loss")
        return load_results(self.folder, revs or None, paths.TRAINING_METRICS, keys)


@pytest.fixture(scope="session")
def empty(made_once: MadeOnce) -> Path:
    """An empty repository of git and DVC, for a test to copy."""
    return made_once("repository", checkout.initialise)


@pytest.fixture
def repository(empty: Path, tmp_path: Path) -> Repository:
    """A repository with one result, of accuracy 0.9."""
    shutil.copytree(empty, tmp_path / "repository")
    made = Repository(tmp_path / "repository")
    (made.folder / "metrics").mkdir()
    (made.folder / paths.PIPELINE).write_text("stages: {}\n")
    made.write(0.9, lr=0.01)
    made.commit()
    return made


def names(results: Results) -> list[str]:
    return [one.revision.name for one in results.found]


def test_a_result_has_the_params_of_its_training(repository: Repository) -> None:
    """Those of `dvc.lock`: `params.yaml` may have been edited since."""
    repository.experiment("small", 0.95, lr=1e-05)

    (found,) = [one for one in repository.load("HEAD").found if one.revision.name == "small"]

    assert found.numbers == {"val_accuracy": 0.95, "val_loss": 0.5}
    assert found.params == {"seed": 0, "val_size": 200, "lr": 1e-05}
    assert (found.dataset_md5, found.split) == ("d", Split(seed=0, val_size=200))


def test_no_other_metrics_file_is_read(repository: Repository) -> None:
    (repository.folder / paths.TEST_METRICS).mkdir()
    assert names(repository.load("HEAD")) == ["HEAD"]


def test_the_workspace_counts_where_it_differs(repository: Repository) -> None:
    repository.experiment("a", 0.93, lr=0.02)
    assert names(repository.load("HEAD")) == ["HEAD", "a"]
    repository.write(0.93, lr=0.02)  # as `dvc exp apply a` does
    assert names(repository.load("HEAD")) == ["HEAD", "a"]
    repository.write(0.97, lr=0.03)
    assert names(repository.load("HEAD")) == ["HEAD", "a", "workspace"]


def test_experiments_of_other_commits_are_loaded_on_request(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.experiment("same", 0.95)
    repository.write(0.92, lr=0.03)
    repository.commit()
    repository.experiment("same", 0.94)
    repository.git("tag", "v1", first)

    assert names(repository.load("HEAD")) == ["HEAD", "same"]
    assert names(repository.load("v1")) == ["v1", "same"]
    assert sorted(names(repository.load())) == sorted([first[:7], "HEAD", "same", "same"])
    with pytest.raises(InputError, match="nowhere"):
        repository.load("nowhere")


def _without_metrics(folder: Path) -> None:
    (folder / paths.TRAINING_METRICS).unlink()


def _without_lock(folder: Path) -> None:
    (folder / paths.LOCK).unlink()


def _broken_lock(folder: Path) -> None:
    (folder / paths.LOCK).write_text("<<<<<<< HEAD")


def _other_metrics(folder: Path) -> None:
    (folder / paths.TRAINING_METRICS).write_text(json.dumps({**METRICS, "val_accuracy": 0.99}))


def _metrics(text: str, **params: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / paths.TRAINING_METRICS).write_text(text)
        YAML().dump(lock(text.encode(), **params), folder / paths.LOCK)

    return write


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (_without_metrics, "metrics/train.json"),
        (_without_lock, "dvc.lock"),
        (_broken_lock, "dvc.lock"),
        (_other_metrics, "metrics/train.json"),
        (_metrics('{"val_accuracy": 0.'), "metrics/train.json"),
        (_metrics('{"val_accuracy": 0.9}'), "metrics/train.json"),
        (_metrics('{"val_accuracy": 0.9, "val_loss": NaN}'), "metrics/train.json"),
        (_metrics(json.dumps(METRICS), val_size=0), "dvc.lock: train: val_size"),
    ],
)
def test_what_is_no_result_is_left_out_with_a_note(
    damage: Callable[[Path], None], where: str, repository: Repository
) -> None:
    damage(repository.folder)

    results = repository.load("HEAD")

    assert names(results) == ["HEAD"]
    (note,) = results.notes
    assert note.startswith(f"left out: workspace: {where}: found ")
    assert "\n" not in note


def test_without_git_or_without_dvc_there_is_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    made = Repository(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        made.load("HEAD")
    made.git("init", "-q")
    (tmp_path / "file").touch()
    made.commit()
    with pytest.raises(InputError, match=str(tmp_path)):
        made.load("HEAD")


def test_mnist_best_ranks_what_it_finds(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def best(*options: str) -> Outcome:
        return CliRunner().invoke(mnist.cli.main, ["best", *options])

    monkeypatch.chdir(repository.folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert best().stdout.startswith("best: no experiment of HEAD has finished")
    repository.experiment("better", 0.95, lr=0.02)

    lines = best().stdout.splitlines()

    assert [line.split()[:2] for line in lines[1:3]] == [["1", "better"], ["2", "HEAD"]]
    assert lines[4:6] == ["best: better", "  apply   dvc exp apply better"]
    assert best("--all-commits").stdout.splitlines() == lines
    assert best("--top", "0").exit_code == best("--rev", "nowhere").exit_code == 2
