"""How experiments are found in git, ranked and applied."""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result as Outcome

import mnist.cli
from mnist.comparison import ranking
from mnist.comparison.ranking import Result, Results, load_results
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.lineage.experiments import Revision
from tests import checkout
from tests.conftest import MadeOnce

METRICS = {"val_loss": 0.5, "val_accuracy": 0.9}


def files_of(metrics: str, **params: Any) -> dict[Path, str]:
    """Return the files of a result: these metrics, and a `dvc.lock` that records them and these params."""
    digest = hashlib.md5(metrics.encode(), usedforsecurity=False).hexdigest()
    train = {
        "cmd": "train",
        "deps": [{"path": "data/mnist.safetensors", "md5": "digest"}],
        "params": {"params.yaml": {"seed": 0, "val_size": 200, **params}},
        "outs": [{"path": paths.TRAINING_METRICS.as_posix(), "md5": digest}],
    }
    lock = json.dumps({"schema": "2.0", "stages": {"train": train}})
    return {paths.TRAINING_METRICS: metrics, paths.LOCK: lock}


@dataclass(frozen=True)
class Repository(checkout.Repository):
    """One in which experiments are made by hand, as DVC leaves them."""

    def write_result(self, accuracy: float, **params: Any) -> None:
        """Write the files of a result."""
        metrics = json.dumps({**METRICS, "val_accuracy": accuracy})
        for name, text in files_of(metrics, **params).items():
            (self.folder / name).write_text(text)

    def experiment(self, name: str, accuracy: float, **params: Any) -> str:
        """Make an experiment that starts from HEAD; the workspace is as before."""
        start = self.git("rev-parse", "HEAD")
        self.write_result(accuracy, **params)
        commit = self.commit()
        self.git("update-ref", f"refs/exps/{start[:2]}/{start[2:]}/{name}", commit)
        self.git("reset", "-q", "--hard", start)
        return commit

    def load(self, *revs: str) -> Results:
        return load_results(self.folder, revs or None)


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
    made.write_result(0.9, lr=0.01)
    made.commit()
    return made


def names(results: Sequence[Result]) -> list[str]:
    return [one.revision.name for one in results]


def test_a_result_has_the_params_of_its_training(repository: Repository) -> None:
    """Those of `dvc.lock`: `params.yaml` may have been edited since."""
    repository.experiment("small", 0.95, lr=1e-05)

    (found,) = [one for one in repository.load("HEAD").found if one.revision.name == "small"]

    assert found.numbers == {"val_accuracy": 0.95, "val_loss": 0.5}
    assert found.params == {"seed": 0, "val_size": 200, "lr": 1e-05}
    assert found.dataset_md5 == "digest"


def test_no_other_metrics_file_is_read(repository: Repository) -> None:
    (repository.folder / paths.TEST_METRICS).mkdir()
    assert names(repository.load("HEAD").found) == ["HEAD"]


def test_the_workspace_counts_where_it_differs(repository: Repository) -> None:
    repository.experiment("a", 0.93, lr=0.02)
    assert names(repository.load("HEAD").found) == ["HEAD", "a"]
    repository.write_result(0.93, lr=0.02)  # as `dvc exp apply a` does
    assert names(repository.load("HEAD").found) == ["HEAD", "a"]
    repository.write_result(0.97, lr=0.03)
    assert names(repository.load("HEAD").found) == ["HEAD", "a", "workspace"]


def test_experiments_of_other_commits_are_loaded_on_request(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.experiment("same", 0.95)
    repository.write_result(0.92, lr=0.03)
    repository.commit()
    repository.experiment("same", 0.94)
    repository.git("tag", "v1", first)

    assert names(repository.load("HEAD").found) == ["HEAD", "same"]
    assert names(repository.load("v1").found) == ["v1", "same"]
    assert sorted(names(repository.load().found)) == sorted([first[:7], "HEAD", "same", "same"])
    with pytest.raises(InputError, match="nowhere"):
        repository.load("nowhere")


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({paths.TRAINING_METRICS: None}, "metrics/train.json"),
        ({paths.LOCK: None}, "dvc.lock"),
        ({paths.LOCK: "<<<<<<< HEAD"}, "dvc.lock"),
        ({paths.TRAINING_METRICS: '{"val_accuracy": 0.99}'}, "metrics/train.json"),
        (files_of('{"val_accuracy": 0.9}'), "metrics/train.json: val_loss"),
        (files_of('{"val_accuracy": 0.9, "val_loss": NaN}'), "metrics/train.json: val_loss"),
        (files_of(json.dumps(METRICS), val_size=0), "dvc.lock: train: val_size"),
    ],
)
def test_what_is_no_result_is_left_out_with_a_note(
    files: dict[Path, str | None], where: str, repository: Repository
) -> None:
    for name, text in files.items():
        (repository.folder / name).unlink()
        if text is not None:
            (repository.folder / name).write_text(text)

    results = repository.load("HEAD")

    assert names(results.found) == ["HEAD"]
    (note,) = results.notes
    assert note.startswith(f"left out: workspace: {where}: found ")
    assert "\n" not in note


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
    assert best("--top", "0").exit_code == 2
    unnamed = best("--rev", "")
    assert (unnamed.exit_code, unnamed.stdout) == (2, "")
    assert unnamed.stderr.startswith("ERROR: revision: found nothing")


# Ranked

HEAD, ELSEWHERE = "a" * 40, "b" * 40


def result(
    name: str,
    accuracy: float,
    loss: float = 0.5,
    *,
    kind: Literal["experiment", "commit", "workspace"] = "experiment",
    baseline: str = HEAD,
    dataset_md5: str = "d",
    **params: Any,
) -> Result:
    """Return one with these params, beside those of the split."""
    split = {key: params.get(key, value) for key, value in {"seed": 0, "val_size": 1000}.items()}
    return Result(
        revision=Revision(
            kind=kind,
            name=name,
            commit=HEAD if kind == "commit" else "",
            baseline=baseline if kind == "experiment" else "",
        ),
        numbers={"val_accuracy": accuracy, "val_loss": loss},
        params={**split, **params},
        dataset_md5=dataset_md5,
    )


def test_accuracy_then_loss_then_what_is_there_then_the_name_decide() -> None:
    found = ranking.rank(
        [
            result("d", 0.96),
            result("a", 0.96),
            result("workspace", 0.96, kind="workspace"),
            result("z", 0.97, 0.9),
            result("c", 0.96, 0.4),
        ]
    )

    assert names(found.ranked) == ["z", "c", "workspace", "a", "d"]
    assert found.others == ()


@pytest.mark.parametrize(
    ("accuracy", "val_size", "error"),
    [(0.9, 1000, math.sqrt(0.9 * 0.1 / 1000)), (0.5, 400, 0.025), (1.0, 200, 0.005), (0.0, 1, 1.0)],
)
def test_the_standard_error_is_binomial_and_at_least_one_image(
    accuracy: float, val_size: int, error: float
) -> None:
    assert ranking.standard_error(result("a", accuracy, val_size=val_size)) == pytest.approx(error)


def test_what_is_within_one_standard_error_is_close() -> None:
    scores = {"best": 0.9, "equal": 0.9, "at": 0.88, "below": 0.879}  # sqrt(0.9 * 0.1 / 225) = 0.02

    found = ranking.rank([result(name, score, val_size=225) for name, score in scores.items()])

    assert names(found.close) == ["equal", "at"]


def test_one_image_of_many_is_close_in_spite_of_rounding() -> None:
    scores = {"a": 59999, "b": 59998}

    found = ranking.rank([result(name, round(n / 59999, 6), val_size=59999) for name, n in scores.items()])

    assert names(found.close) == ["b"]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"val_size": 100}, {"dataset_md5": "e"}], ids=["seed", "val_size", "data"]
)
def test_other_validation_images_get_a_mark_and_no_rank(other: dict[str, Any]) -> None:
    found = ranking.rank([result("lucky", 1.0, **other), result("a", 0.9), result("b", 0.8)])

    assert (names(found.ranked), names(found.others)) == (["a", "b"], ["lucky"])
    rows = [line.split()[:2] for line in ranking.table(found).splitlines()]
    assert rows[1:] == [["1", "a"], ["2", "b"], ["*", "lucky"]]
    assert found.best
    assert found.best.revision.name == "a"


def test_a_sweep_over_seeds_has_no_best() -> None:
    found = ranking.rank([result(f"s{seed}", 0.9 + seed / 100, seed=seed) for seed in range(3)])

    assert found.best is None
    assert ranking.advice(found, HEAD)[-1].startswith("best: none")


def test_the_table_shows_the_params_that_differ() -> None:
    found = ranking.rank(
        [
            result("HEAD", 0.95, kind="commit", lr=0.01, model="mlp", epochs=1, shift=True),
            result("long-name", 0.96, 12.25, lr=1e-05, model="simple_cnn", epochs=1),
        ]
    )

    assert [line.split() for line in ranking.table(found).splitlines()] == [
        ["experiment", "val_accuracy", "val_loss", "lr", "model", "shift"],
        ["1", "long-name", "0.9600", "±", "0.0062", "12.2500", "1e-05", "simple_cnn", "-"],
        ["2", "HEAD", "0.9500", "±", "0.0069", "0.5000", "0.01", "mlp", "true"],
    ]
    assert ranking.table(found, top=1).splitlines()[2:] == ["... and 1 more"]


def test_the_best_is_applied_by_name_from_its_own_commit() -> None:
    here, there = (ranking.rank([result("a", 0.9, baseline=start)]) for start in (HEAD, ELSEWHERE))

    assert ranking.advice(here, HEAD) == [
        "best: a",
        "  apply   dvc exp apply a",
        "  branch  dvc exp branch a a-branch",
        "  MLflow  make ui, then the run a",
    ]
    assert ranking.advice(there, HEAD)[1] == "  apply   git checkout bbbbbbbbbbbb && dvc exp apply a"


def test_what_is_there_already_needs_no_command() -> None:
    found = ranking.rank([result("HEAD", 0.9, kind="commit"), result("a", 0.899)])

    assert len(ranking.advice(found, HEAD)) == 1
    assert ranking.advice(found, ELSEWHERE)[1:] == ["  apply   git checkout aaaaaaaaaaaa && dvc checkout"]
