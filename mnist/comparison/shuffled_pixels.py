"""The tutorial's experiment: the cost of shuffled pixels for a CNN and for a fully connected network."""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe
from mnist.core import files
from mnist.core.errors import InputError
from mnist.evaluation.statistics import student_interval
from mnist.lineage import experiments

NUMBERS, PICTURE = Path("metrics/shuffled-pixels.json"), Path("metrics/shuffled-pixels.png")
LABELS = {"simple_cnn": "convolutional", "mlp": "fully connected"}  # by `model`


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and whether one fixed permutation shuffles the pixels that it sees."""

    model: str
    permute_pixels: bool


CASES = tuple(Case(model=model, permute_pixels=shuffled) for model in LABELS for shuffled in (False, True))


def known_cases(known: Iterable[Recipe], current: Mapping[str, Any]) -> dict[Case, Recipe]:
    """Return the recipes that have the `current` params but for the network and the pixels, by case."""
    found = {}
    for recipe in known:
        case = Case(model=recipe.params["model"], permute_pixels=recipe.params["permute_pixels"])
        wanted = {key: current[key] for key in recipe.params if key in current}
        if {**wanted, "model": case.model, "permute_pixels": case.permute_pixels} == recipe.params:
            found[case] = recipe
    return found


def missing(cases: Mapping[Case, Recipe], num_seeds: int) -> dict[Case, list[int]]:
    """Return the seeds from 0 to `num_seeds` - 1 that are still to be trained, by case."""
    there: dict[Case, set[int]] = {case: set(recipe.by_seed) for case, recipe in cases.items()}
    left = {case: sorted({*range(num_seeds)} - there.get(case, set())) for case in CASES}
    return {case: seeds for case, seeds in left.items() if seeds}


def train(root: Path, current: Mapping[str, Any], num_seeds: int, jobs: int) -> dict[Case, Recipe]:
    """Train what is missing of all cases as experiments, `jobs` at a time, and return the cases.

    Not in DVC's queue: a worker of it may die, and `dvc exp run --run-all` then never ends (dvc#10398).

    Raises:
        InputError: a training failed; what it printed is on stderr.
    """
    wanted = missing(_cases(root, current), num_seeds)
    settings = [
        [f"model={case.model}", f"permute_pixels={str(case.permute_pixels).lower()}", f"seed={seed}"]
        for case, seeds in wanted.items()
        for seed in seeds
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for num, done in enumerate(pool.map(_run, settings), 1):
            if done.returncode:
                pool.shutdown(wait=False, cancel_futures=True)
                sys.stderr.write(done.stdout + done.stderr)
                where, found = " ".join(settings[num - 1]), f"exit status {done.returncode}, see above"
                raise InputError(f"the training with {where}", found=found, expected="a result")
            print(f"{num} of {len(settings)} trainings are done", flush=True)
    return _cases(root, current)


def _run(settings: Sequence[str]) -> subprocess.CompletedProcess[str]:
    options = [part for one in settings for part in ("-S", one)]
    return experiments.dvc("--wait-for-lock", "exp", "run", "--temp", *options, capture=True)


def _cases(root: Path, current: Mapping[str, Any]) -> dict[Case, Recipe]:
    known, _ = recipes.load(root, ["HEAD"])
    return known_cases(known, current)


def summary(cases: Mapping[Case, Recipe], num_seeds: int) -> dict[str, Any]:
    """Return plain numbers: accuracies by case, and what shuffling costs each network, in shares of 1."""
    accuracies = {case: cases[case].accuracies[:num_seeds] for case in CASES}
    result: dict[str, Any] = {"num_seeds": num_seeds, "networks": {}}
    for model in LABELS:
        in_place, shuffled = (
            accuracies[Case(model=model, permute_pixels=permuted)] for permuted in (False, True)
        )
        # By seed, which determines the first weights and the order of the images.
        costs = [there - here for there, here in zip(in_place, shuffled, strict=True)]
        result["networks"][model] = {
            "in_place": in_place,
            "shuffled": shuffled,
            "cost": {"mean": mean(costs), "interval": student_interval(costs)},
        }
    return result


def sentence(result: Mapping[str, Any]) -> str:
    """Return the costs in a sentence."""
    parts = []
    for model, label in LABELS.items():
        cost = result["networks"][model]["cost"]
        low, high = cost["interval"]
        parts.append(
            f"the {label} network {100 * cost['mean']:.1f} points"
            f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )
    return f"Shuffling the pixels costs {' and '.join(parts)}, over {result['num_seeds']} seeds."


def table(cases: Mapping[Case, Recipe]) -> str:
    """Return the accuracy by network and pixels."""
    rows = [
        [
            LABELS[case.model],
            "shuffled" if case.permute_pixels else "in place",
            *recipes.figures(cases[case]),
        ]
        for case in CASES
    ]
    return recipes.aligned(rows, ["network", "pixels", *recipes.FIGURES], left={0, 1})


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draw both networks, in place and shuffled: a dot for each seed, a line through the means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (model, label), color in zip(LABELS.items(), ("#0969da", "#bc4c00"), strict=True):
        network = result["networks"][model]
        percent = [[100 * one for one in network[pixels]] for pixels in ("in_place", "shuffled")]
        means = list(map(mean, percent))
        axes.plot((0, 1), means, color=color, linewidth=2)
        for x, accuracies in enumerate(percent):
            axes.plot([x] * len(accuracies), accuracies, "o", color=color, alpha=0.6)
        name: dict[str, Any] = {"color": color, "va": "center", "fontsize": 11}
        axes.text(-0.05, means[0], f"{label}\n{means[0]:.1f} %", ha="right", **name)
        axes.text(1.05, means[1], f"{means[1]:.1f} %", ha="left", **name)
    axes.set(xlim=(-0.5, 1.3), ylabel="test accuracy in %")
    axes.set_xticks((0, 1), ("pixels in place", "pixels shuffled"), fontsize=11)
    axes.set_title(f"{result['num_seeds']} trainings each, and their mean", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    with files.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})  # no version in the bytes
