"""What shuffling the pixels costs each network, on numbers made by hand."""

import json
import subprocess
from pathlib import Path

import pytest

from mnist.comparison import shuffled_pixels
from mnist.comparison.recipes import Recipe
from mnist.comparison.shuffled_pixels import CASES, Case
from mnist.core.errors import InputError
from mnist.lineage import experiments
from tests.checkout import ROOT

CNN, SHUFFLED_CNN, MLP, SHUFFLED_MLP = CASES
ACCURACIES = {
    CNN: [0.95, 0.94, 0.96],
    SHUFFLED_CNN: [0.86, 0.84, 0.85],
    MLP: [0.86, 0.84, 0.85],
    SHUFFLED_MLP: [0.85, 0.85, 0.85],
}


def recipe(case: Case, accuracies: list[float], lr: float = 0.01) -> Recipe:
    params = {"model": case.model, "permute_pixels": case.permute_pixels, "lr": lr}
    return Recipe(params=params, dataset_md5="d", by_seed=dict(enumerate(accuracies)))


RECIPES = {case: recipe(case, accuracies) for case, accuracies in ACCURACIES.items()}
CURRENT = {"model": "simple_cnn", "permute_pixels": False, "lr": 0.01, "seed": 5, "registry": {}}


def test_only_results_of_the_current_params_count() -> None:
    others = [recipe(CNN, [0.99], lr=0.1), recipe(MLP, [0.99], lr=0.1)]

    assert shuffled_pixels.known_cases([*others, *RECIPES.values()], CURRENT) == RECIPES


def test_what_is_there_is_not_trained_again() -> None:
    some = {CNN: recipe(CNN, [0.9]), MLP: RECIPES[MLP]}

    assert shuffled_pixels.missing(some, 3) == {
        CNN: [1, 2],
        SHUFFLED_CNN: [0, 1, 2],
        SHUFFLED_MLP: [0, 1, 2],
    }
    assert shuffled_pixels.missing(RECIPES, 3) == {}
    assert shuffled_pixels.missing(RECIPES, 4) == {case: [3] for case in CASES}


@pytest.mark.parametrize("status", [0, 255])
def test_what_is_missing_is_trained_and_a_failure_is_an_error(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = [RECIPES[CNN]]

    def dvc(*arguments: str, capture: bool) -> subprocess.CompletedProcess[str]:
        assert capture
        assert {"permute_pixels=true", "seed=0"} <= set(arguments)
        known.append(RECIPES[MLP if "model=mlp" in arguments else SHUFFLED_CNN])
        return subprocess.CompletedProcess(arguments, status, "", "")

    monkeypatch.setattr(experiments, "dvc", dvc)
    monkeypatch.setattr("mnist.comparison.recipes.load", lambda *_: (known, []))
    monkeypatch.setattr("mnist.comparison.shuffled_pixels.CASES", (CNN, SHUFFLED_CNN))

    if status:
        with pytest.raises(InputError, match="model=simple_cnn permute_pixels=true seed=0"):
            shuffled_pixels.train(tmp_path, CURRENT, 1, jobs=2)
    else:
        cases = shuffled_pixels.train(tmp_path, CURRENT, 1, jobs=2)
        assert cases == {CNN: RECIPES[CNN], SHUFFLED_CNN: RECIPES[SHUFFLED_CNN]}


def test_costs_are_paired_by_seed() -> None:
    found = shuffled_pixels.summary(RECIPES, 3)

    cost = found["networks"]["simple_cnn"]["cost"]
    assert cost["mean"] == pytest.approx(0.1)
    half = 4.3027 * 0.01 / 3**0.5  # t(2, 0.975) of a table; the costs are 9, 10 and 11 points
    assert cost["interval"] == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)
    rows = shuffled_pixels.table(RECIPES).splitlines()
    assert rows[2].split()[:4] == ["convolutional", "shuffled", "3", "85.00%"]


def test_the_committed_numbers_are_those_of_the_readme() -> None:
    found = json.loads((ROOT / shuffled_pixels.NUMBERS).read_text())

    assert shuffled_pixels.sentence(found) in " ".join((ROOT / "README.md").read_text().split())
    cnn, mlp = (found["networks"][name]["cost"] for name in ("simple_cnn", "mlp"))
    assert cnn["interval"][0] > 0.01
    assert mlp["interval"][0] < 0 < mlp["interval"][1]
