"""What recipes reach over seeds, and what shuffling the pixels costs; on results made by hand."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import mnist.cli
from mnist.comparison import recipes
from mnist.comparison.ranking import Result
from mnist.comparison.recipes import CASES, Case, Recipe
from mnist.core import config, paths
from mnist.core.errors import InputError
from mnist.lineage import experiments
from mnist.lineage.experiments import Revision
from tests.checkout import ROOT


def result(name: str, seed: int, accuracy: float, dataset_md5: str = "d", **params: Any) -> Result:
    return Result(
        revision=Revision(kind="experiment", name=name),
        numbers={"accuracy": accuracy},
        params={"seed": seed, **params},
        dataset_md5=dataset_md5,
    )


def recipe(*accuracies: float, **params: Any) -> Recipe:
    return Recipe(params=params, dataset_md5="d", by_seed=dict(enumerate(accuracies)))


def test_mean_deviation_and_interval_are_those_of_the_book() -> None:
    """t(4, 0.975) = 2.7764, as tables of Student's distribution have it: 95 ± 2.7764 * 0.31623."""
    found = recipes.figures([0.94, 0.95, 0.95, 0.95, 0.96])

    assert found == ["5", "95.00%", "0.71", "94.12 to 95.88", "94.00 to 96.00"]


def test_one_seed_has_no_spread_and_no_interval_leaves_0_to_100() -> None:
    assert recipes.figures([0.95]) == ["1", "95.00%", "-", "-", "95.00 to 95.00"]
    assert recipes.figures([0.0, 1.0])[3] == "0.00 to 100.00"


def test_a_recipe_is_all_params_but_the_seed_on_one_data_set() -> None:
    found, notes = recipes.grouped(
        [
            result("a", 1, 0.9, lr=0.01),
            result("b", 0, 0.8, lr=0.01),
            result("c", 0, 0.99, lr=0.1),
            result("d", 0, 0.7, "other", lr=0.01),
        ]
    )

    assert [(one.params, one.dataset_md5, one.accuracies) for one in found] == [
        ({"lr": 0.1}, "d", [0.99]),
        ({"lr": 0.01}, "d", [0.8, 0.9]),
        ({"lr": 0.01}, "other", [0.7]),
    ]
    assert notes == []


def test_of_one_seed_the_first_result_counts_and_another_accuracy_is_noted() -> None:
    (found,), notes = recipes.grouped(
        [result("HEAD", 0, 0.9), result("again", 0, 0.9), result("elsewhere", 0, 0.91), result("b", 1, 0.8)]
    )

    assert found.accuracies == [0.9, 0.8]
    (note,) = notes
    assert "elsewhere" in note


# Shuffled pixels

CNN, SHUFFLED_CNN, MLP, SHUFFLED_MLP = CASES
ACCURACIES = {
    CNN: (0.95, 0.94, 0.96),
    SHUFFLED_CNN: (0.86, 0.84, 0.85),
    MLP: (0.86, 0.84, 0.85),
    SHUFFLED_MLP: (0.85, 0.85, 0.85),
}


def of_case(case: Case, *accuracies: float, lr: float = 0.01) -> Recipe:
    return recipe(*accuracies, model=case.model, permute_pixels=case.permute_pixels, lr=lr)


RECIPES = {case: of_case(case, *accuracies) for case, accuracies in ACCURACIES.items()}
CURRENT = {"model": "simple_cnn", "permute_pixels": False, "lr": 0.01, "seed": 5, "registry": {}}


def test_only_results_of_the_current_params_count() -> None:
    others = [of_case(CNN, 0.99, lr=0.1), of_case(MLP, 0.99, lr=0.1)]

    assert recipes.by_case([*others, *RECIPES.values()], CURRENT) == RECIPES


def test_what_is_there_is_not_trained_again() -> None:
    some = {**RECIPES, CNN: of_case(CNN, 0.9)}
    del some[SHUFFLED_MLP]

    assert recipes.missing(some, 2) == [
        ("model=simple_cnn", "permute_pixels=false", "seed=1"),
        ("model=mlp", "permute_pixels=true", "seed=0"),
        ("model=mlp", "permute_pixels=true", "seed=1"),
    ]
    assert recipes.missing(RECIPES, 3) == []


@pytest.mark.parametrize(("status", "found"), [(255, "exit status 255"), (0, "left out: x")])
def test_a_training_without_a_result_is_an_error(
    status: int, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = [one for case, one in RECIPES.items() if case != SHUFFLED_CNN]
    done = subprocess.CompletedProcess((), status, "", "")
    monkeypatch.setattr(experiments, "dvc", lambda *_, **__: done)
    monkeypatch.setattr(recipes, "load", lambda *_: (known, ["left out: x: no file"]))

    with pytest.raises(InputError, match="model=simple_cnn permute_pixels=true seed=0") as caught:
        recipes.train_cases(tmp_path, CURRENT, 1, jobs=1)
    assert found in caught.value.found


def test_costs_are_paired_by_seed() -> None:
    cost = recipes.costs(RECIPES, 3)["networks"]["simple_cnn"]["cost"]

    assert cost["mean"] == pytest.approx(0.1)
    half = 4.3027 * 0.01 / 3**0.5  # t(2, 0.975) of a table; the costs are 9, 10 and 11 points
    assert cost["interval"] == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)


def test_mnist_experiments_trains_all_cases_and_writes_the_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in (paths.PIPELINE, paths.PARAMS):
        shutil.copy(ROOT / path, tmp_path)
    monkeypatch.chdir(tmp_path)
    current = config.load(paths.PARAMS).model_dump()
    trained: list[Result] = []

    def dvc(*arguments: str, capture: bool) -> subprocess.CompletedProcess[str]:
        assert capture
        settings = dict(one.split("=") for one in arguments if "=" in one)
        seed, is_shuffled = int(settings["seed"]), settings["permute_pixels"] == "true"
        accuracy = 0.9 + 0.01 * seed - 0.1 * (is_shuffled and settings["model"] == "simple_cnn")
        params = {"model": settings["model"], "permute_pixels": is_shuffled, "lr": current["lr"]}
        trained.append(result(str(len(trained)), seed, accuracy, **params))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(experiments, "dvc", dvc)
    monkeypatch.setattr(recipes, "load", lambda *_: recipes.grouped(trained))

    done = CliRunner().invoke(mnist.cli.main, ["experiments", "--seeds", "2", "--jobs", "1"])

    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[7] == "8 of 8 trainings are done"
    rows = [line.split() for line in lines[9:13]]
    assert sorted((row[-2], row[-1], row[1]) for row in rows) == [
        ("mlp", "false", "90.50%"),
        ("mlp", "true", "90.50%"),
        ("simple_cnn", "false", "90.50%"),
        ("simple_cnn", "true", "80.50%"),
    ]
    written = json.loads(recipes.SHUFFLED_PIXELS.read_text())
    assert lines[-1] == recipes.sentence(written)
    assert written["networks"]["simple_cnn"]["cost"]["mean"] == pytest.approx(0.1)
    assert written["networks"]["mlp"] == {
        "in_place": [0.9, 0.91],
        "shuffled": [0.9, 0.91],
        "cost": {"mean": 0, "interval": [0, 0]},
    }
    with Image.open(recipes.SHUFFLED_PIXELS_PLOT) as picture:
        assert picture.size == (760, 420)


def test_the_committed_numbers_are_those_of_the_readme() -> None:
    found = json.loads((ROOT / recipes.SHUFFLED_PIXELS).read_text())

    assert recipes.sentence(found) in " ".join((ROOT / "README.md").read_text().split())
    cnn, mlp = (found["networks"][name]["cost"] for name in ("simple_cnn", "mlp"))
    assert cnn["interval"][0] > 0.01
    assert mlp["interval"][0] < 0 < mlp["interval"][1]
