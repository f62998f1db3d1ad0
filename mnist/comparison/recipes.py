"""The recipes of experiments over seeds, and the tutorial's comparison of four: shuffled pixels.

A recipe is all params of the training but the seed. The accuracy of one training is not enough: with other
seeds alone, the default params reach accuracies that are a point apart.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mnist.comparison.ranking import Result, aligned, differing, load_results
from mnist.core import files, paths
from mnist.core.config import as_typed
from mnist.core.errors import InputError
from mnist.evaluation.statistics import student_interval
from mnist.lineage import experiments

ACCURACY = "accuracy"
FIGURES = ("seeds", "test accuracy", "sd", "95 % interval", "least to most")

SHUFFLED_PIXELS = Path("metrics/shuffled-pixels.json")
SHUFFLED_PIXELS_PLOT = Path("metrics/shuffled-pixels.png")
NETWORKS = {"simple_cnn": "convolutional", "mlp": "fully connected"}  # names for people, by `model`


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Results that differ in their seed alone."""

    params: Mapping[str, Any]  # that they have in common
    dataset_md5: str  # of the file that their images are from
    by_seed: dict[int, float]  # accuracies on the test images, 0 to 1

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracies, in the order of the seeds."""
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]


def figures(accuracies: Sequence[float]) -> list[str]:
    """Return the cells of a table under `FIGURES`, in percent; dashes for the spread of one seed.

    The interval is that of the mean over all seeds.
    """
    percent = [100 * one for one in accuracies]
    sd = interval = "-"
    if len(percent) > 1:
        low, high = student_interval(percent)
        sd, interval = f"{stdev(percent):.2f}", f"{max(low, 0):.2f} to {min(high, 100):.2f}"
    spread = f"{min(percent):.2f} to {max(percent):.2f}"
    return [str(len(percent)), f"{mean(percent):.2f}%", sd, interval, spread]


def load(root: Path) -> tuple[list[Recipe], list[str]]:
    """Return the recipes that the experiments of HEAD tried, the best first, and notes in lines.

    Raises:
        InputError: there is no checkout with git and DVC.
    """
    known = load_results(root, ["HEAD"], paths.TEST_METRICS, (ACCURACY,))
    recipes, notes = grouped(known.found)
    return recipes, [*notes, *known.notes]


def grouped(results: Iterable[Result]) -> tuple[list[Recipe], list[str]]:
    """Return the recipes, the best first, and a line for each result that contradicts an earlier one.

    Of several results with one recipe and seed the first counts; without a change of the code, of the
    versions or of the machine they are equal.
    """
    recipes: dict[str, Recipe] = {}
    notes = []
    for one in results:
        params = {key: value for key, value in one.params.items() if key != "seed"}
        recipe = recipes.setdefault(
            repr((one.dataset_md5, sorted(params.items()))),
            Recipe(params=params, dataset_md5=one.dataset_md5, by_seed={}),
        )
        accuracy = one.numbers[ACCURACY]
        known = recipe.by_seed.setdefault(one.params["seed"], accuracy)
        if known != accuracy:
            notes.append(f"left out: {one.revision.name}: {accuracy:.2%}, where another has {known:.2%}")
    return sorted(recipes.values(), key=lambda recipe: -mean(recipe.accuracies)), notes


def table(recipes: Sequence[Recipe]) -> str:
    """Return a row for each recipe, with the params that differ."""
    keys = differing([recipe.params for recipe in recipes])
    rows = [[*figures(one.accuracies), *(as_typed(one.params.get(key)) for key in keys)] for one in recipes]
    return aligned(rows, [*FIGURES, *keys])


# Shuffled pixels


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and whether one fixed permutation shuffles the pixels that it sees."""

    model: str
    permute_pixels: bool


CASES = tuple(Case(model=model, permute_pixels=shuffled) for model in NETWORKS for shuffled in (False, True))


def by_case(recipes: Iterable[Recipe], current: Mapping[str, Any]) -> dict[Case, Recipe]:
    """Return the recipes that have the `current` params but for the network and the pixels."""
    found = {}
    for recipe in recipes:
        case = Case(model=recipe.params["model"], permute_pixels=recipe.params["permute_pixels"])
        wanted = {key: current[key] for key in recipe.params if key in current}
        if {**wanted, "model": case.model, "permute_pixels": case.permute_pixels} == recipe.params:
            found[case] = recipe
    return found


def missing(cases: Mapping[Case, Recipe], num_seeds: int) -> list[tuple[str, ...]]:
    """Return the settings of the trainings, with seeds from 0 to `num_seeds` - 1, that have no result yet."""
    return [
        (f"model={case.model}", f"permute_pixels={as_typed(case.permute_pixels)}", f"seed={seed}")
        for case in CASES
        for seed in range(num_seeds)
        if case not in cases or seed not in cases[case].by_seed
    ]


def train_cases(root: Path, current: Mapping[str, Any], num_seeds: int, jobs: int) -> dict[Case, Recipe]:
    """Train what is missing of all cases as experiments, `jobs` at a time, and return the cases.

    Not in DVC's queue: a worker of it may die, and `dvc exp run --run-all` then never ends (dvc#10398).

    Raises:
        InputError: a training failed, and what it printed is on stderr; or its result is left out.
    """
    recipes, _ = load(root)
    wanted = missing(by_case(recipes, current), num_seeds)
    with ThreadPoolExecutor(jobs) as pool:
        for num, (settings, done) in enumerate(zip(wanted, pool.map(_train, wanted), strict=True), 1):
            if done.returncode:
                pool.shutdown(wait=False, cancel_futures=True)
                sys.stderr.write(done.stdout + done.stderr)
                where, found = " ".join(settings), f"exit status {done.returncode}, see above"
                raise InputError(f"the training with {where}", found=found, expected="a result")
            print(f"{num} of {len(wanted)} trainings are done", flush=True)
    recipes, notes = load(root)
    cases = by_case(recipes, current)
    if left := missing(cases, num_seeds):
        found = "; ".join(["no result", *notes])
        raise InputError(f"the training with {' '.join(left[0])}", found=found, expected="a result")
    return cases


def _train(settings: Sequence[str]) -> subprocess.CompletedProcess[str]:
    options = [part for one in settings for part in ("-S", one)]
    return experiments.dvc("--wait-for-lock", "exp", "run", "--temp", *options, capture=True)


def costs(cases: Mapping[Case, Recipe], num_seeds: int) -> dict[str, Any]:
    """Return plain numbers: accuracies by case, and what shuffling costs each network, in shares of 1."""
    result: dict[str, Any] = {"num_seeds": num_seeds, "networks": {}}
    for model in NETWORKS:
        in_place, shuffled = (
            cases[Case(model=model, permute_pixels=permuted)].accuracies[:num_seeds]
            for permuted in (False, True)
        )
        # By seed, which determines the first weights and the order of the images.
        differences = [there - here for there, here in zip(in_place, shuffled, strict=True)]
        result["networks"][model] = {
            "in_place": in_place,
            "shuffled": shuffled,
            "cost": {"mean": mean(differences), "interval": student_interval(differences)},
        }
    return result


def sentence(result: Mapping[str, Any]) -> str:
    """Return the costs in a sentence."""
    parts = []
    for model, name in NETWORKS.items():
        cost = result["networks"][model]["cost"]
        low, high = cost["interval"]
        parts.append(
            f"the {name} network {100 * cost['mean']:.1f} points"
            f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )
    return f"Shuffling the pixels costs {' and '.join(parts)}, over {result['num_seeds']} seeds."


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draw both networks, in place and shuffled: a dot for each seed, a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for (model, name), color in zip(NETWORKS.items(), ("#0969da", "#bc4c00"), strict=True):
        network = result["networks"][model]
        percent = [[100 * one for one in network[pixels]] for pixels in ("in_place", "shuffled")]
        means = list(map(mean, percent))
        axes.plot((0, 1), means, color=color, linewidth=2)
        for x, accuracies in enumerate(percent):
            axes.plot([x] * len(accuracies), accuracies, "o", color=color, alpha=0.6)
        style: dict[str, Any] = {"color": color, "va": "center", "fontsize": 11}
        axes.text(-0.05, means[0], f"{name}\n{means[0]:.1f} %", ha="right", **style)
        axes.text(1.05, means[1], f"{means[1]:.1f} %", ha="left", **style)
    axes.set(xlim=(-0.5, 1.3), ylabel="test accuracy in %")
    axes.set_xticks((0, 1), ("pixels in place", "pixels shuffled"), fontsize=11)
    axes.set_title(f"{result['num_seeds']} trainings each, and their mean", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    with files.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})  # no version in the bytes
