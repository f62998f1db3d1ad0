"""What shuffling the pixels costs each network: on made numbers, on real images, and through DVC's queue."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mnist.cli import experiments
from mnist.cli.experiments import CASES, Case
from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe
from mnist.core import config, paths
from mnist.core.config import Params
from mnist.core.errors import InputError
from mnist.data import catalog, download, store
from mnist.evaluation import scores
from mnist.training import loop, model
from tests import checkout
from tests.checkout import ROOT, Clone
from tests.conftest import DIGITS, SmallData
from tests.unit.comparison.test_recipes import result

CNN, SHUFFLED_CNN, MLP, SHUFFLED_MLP = CASES
ACCURACIES = {
    CNN: [0.95, 0.94, 0.96],
    SHUFFLED_CNN: [0.86, 0.84, 0.85],
    MLP: [0.86, 0.84, 0.85],
    SHUFFLED_MLP: [0.85, 0.85, 0.85],
}


def recipe(case: Case, accuracies: list[float], **others: Any) -> Recipe:
    values = {"model": case.model, "permute_pixels": case.permute_pixels, "lr": 0.01, **others}
    (made,), _ = recipes.grouped([result("a", seed, one, **values) for seed, one in enumerate(accuracies)])
    return made


RECIPES = {case: recipe(case, accuracies) for case, accuracies in ACCURACIES.items()}
CURRENT = {"model": "simple_cnn", "permute_pixels": False, "lr": 0.01, "seed": 5, "registry": {}}


def test_only_results_of_the_current_params_count() -> None:
    others = [recipe(CNN, [0.99], lr=0.1), recipe(MLP, [0.99], lr=0.1)]

    assert experiments.known_cases([*others, *RECIPES.values()], CURRENT) == RECIPES


def test_what_is_there_is_not_trained_again() -> None:
    some = {CNN: recipe(CNN, [0.9]), MLP: RECIPES[MLP]}

    assert experiments.missing(some, 3) == {CNN: [1, 2], SHUFFLED_CNN: [0, 1, 2], SHUFFLED_MLP: [0, 1, 2]}
    assert experiments.missing(RECIPES, 3) == {}
    assert experiments.missing(RECIPES, 4) == {case: [3] for case in CASES}


def test_costs_are_paired_by_seed_and_told_with_their_interval() -> None:
    found = experiments.summary(RECIPES, 3)

    cost = found["networks"]["simple_cnn"]["cost"]
    assert cost["mean"] == pytest.approx(0.1)
    half = 4.3027 * 0.01 / 3**0.5  # t(2, 0.975) of a table; the costs are 9, 10 and 11 points
    assert cost["interval"] == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)
    assert experiments.sentence(found) == (
        "Shuffling the pixels costs the convolutional network 10.0 points (95 % interval 7.5 to 12.5)"
        " and the fully connected network 0.0 points (95 % interval -2.5 to 2.5), over 3 seeds."
    )


def test_the_picture_shows_both_networks_and_is_the_same_each_time(tmp_path: Path) -> None:
    found = experiments.summary(RECIPES, 3)
    for name in ("one.png", "two.png"):
        experiments.draw(tmp_path / name, found)

    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    picture = imread(tmp_path / "one.png")[:, :, :3]
    for color in ((0x09, 0x69, 0xDA), (0xBC, 0x4C, 0x00)):
        assert (np.abs(picture - np.array(color) / 255).max(2) < 0.01).sum() > 300


def test_what_is_committed_says_what_the_readme_says() -> None:
    found = json.loads((ROOT / experiments.NUMBERS).read_text())

    readme = " ".join((ROOT / "README.md").read_text().split())
    assert experiments.sentence(found) in readme
    cnn, mlp = (found["networks"][name]["cost"] for name in ("simple_cnn", "mlp"))
    assert cnn["interval"][0] > 0.01
    assert mlp["interval"][0] < 0 < mlp["interval"][1]


MIRROR = ROOT / config.load(ROOT / paths.PARAMS).data.mirrors_of("mnist")[0]


@pytest.mark.skipif(not MIRROR.is_dir(), reason="no copy of MNIST here")
def test_on_real_images_the_cnn_needs_neighbours_and_the_mlp_does_not(tmp_path: Path) -> None:
    settings = config.load(ROOT / paths.PARAMS)
    fetched = download.fetch(catalog.load(ROOT / paths.DATASETS, "mnist"), tmp_path, ahead=[str(MIRROR)])
    images, test = download.read(fetched.archives)
    torch.set_num_threads(1)

    def accuracy(case: Case) -> float:
        of: Params = settings.model_copy(
            update={"model": case.model, "permute_pixels": case.permute_pixels, "val_size": 1000}
        )
        train, val = store.cut(images, val_size=of.val_size, seed=0)
        classifier = model.build(of, classes=DIGITS.classes, seed=0, mean=0.1307, std=0.3081)
        cpu = torch.device("cpu")
        for _ in loop.fit(
            classifier, train=train, val=val, recipe=of, seed=0, device=cpu, precision="float32"
        ):
            pass
        log_probs_NK = model.log_probabilities(classifier, test, cpu).numpy()
        return scores.score(log_probs_NK, test.labels_N, classes=DIGITS.classes).accuracy

    assert accuracy(CNN) - accuracy(SHUFFLED_CNN) > 0.02
    assert abs(accuracy(MLP) - accuracy(SHUFFLED_MLP)) < 0.04  # of seeds alone it is a point or two


# From here on: a real queue, on one clone, in this order.


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    folder = tmp_path_factory.mktemp("clone") / "pipeline"
    made = checkout.clone(folder, small_data)
    checkout.edit(made, "params.yaml", "epochs: 4", "epochs: 1")
    checkout.edit(made, "params.yaml", "min_accuracy: 0.5", "min_accuracy: 1.0")
    made.dvc("repro", "stats")
    made.commit("Data")
    yield made
    checkout.stop_workers(folder)
    shutil.rmtree(folder)


def test_a_training_that_fails_ends_it_with_a_line(clone: Clone) -> None:
    before = clone.read(str(experiments.NUMBERS))
    checkout.edit(clone, "params.yaml", "lr: 0.02", "lr: 1.0e+30")
    done = clone.run("python", "-m", "mnist.cli.experiments", "--seeds", "2", check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("ERROR: dvc queue: found 8 of 8 trainings ended without")
    assert clone.read(str(experiments.NUMBERS)) == before
    clone.run("dvc", "queue", "remove", "--all")
    clone.run("git", "checkout", "-q", ".")  # there is no result that DVC could check out


def test_the_queue_trains_each_case_and_what_is_there_stays(clone: Clone) -> None:
    # Broken off before, with some in the queue: they are not queued again.
    clone.run("dvc", "exp", "run", "--queue", "-S", "model=mlp", "-S", "seed=0,1")
    done = clone.run("python", "-m", "mnist.cli.experiments", "--seeds", "2")

    assert "shuffled: 0 of 8 trainings are done" in done.stdout
    assert "shuffled: 8 of 8 trainings are done" in done.stdout
    assert done.stdout.splitlines()[-2].startswith("Shuffling the pixels costs the convolutional network ")
    found = json.loads(clone.read(str(experiments.NUMBERS)))
    assert all(len(one["shuffled"]) == 2 for one in found["networks"].values())
    runs = clone.runs()
    assert {
        (run.data.params["model"], run.data.params["permute_pixels"], run.data.params["seed"]) for run in runs
    } == {(case.model, str(case.permute_pixels), str(seed)) for case in CASES for seed in range(2)}

    again = clone.run("python", "-m", "mnist.cli.experiments", "--seeds", "2")

    assert again.stdout.splitlines()[0] == "shuffled: 8 of 8 trainings are done"
    assert len(clone.runs()) == len(runs) == 8
    refs = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    assert len([ref for ref in refs if ref.count("/") == 4]) == 8


def test_their_spread_is_told(clone: Clone) -> None:
    lines = clone.run("python", "-m", "mnist.cli.seeds").stdout.splitlines()

    assert lines[0].split() == [
        *["seeds", "test", "accuracy", "sd", "95", "%", "interval", "least", "to", "most"],
        "model",
        "permute_pixels",
    ]
    assert sorted(line.split()[-2:] for line in lines[1:5]) == [
        ["mlp", "false"],
        ["mlp", "true"],
        ["simple_cnn", "false"],
        ["simple_cnn", "true"],
    ]
    assert "try more seeds: dvc exp run --queue -S 'seed=range(0,5)' && dvc queue start -j 2" in lines
    assert lines[-1].startswith("left out: ")


def test_without_a_checkout_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(SystemExit) as caught:
        experiments.main([])
    assert str(caught.value.code).startswith("ERROR: ")
    assert "\n" not in str(caught.value.code)


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--jobs", "0"]], ids=" ".join)
def test_silly_numbers_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        experiments.main(arguments)
    assert caught.value.code == 2


def test_dvc_refuses_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="dvc exp run --queue: found "):
        experiments.queue(CNN, [0, 1], set())
