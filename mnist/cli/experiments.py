"""The tutorial's experiment: what shuffling the pixels costs a CNN, and what a fully connected network.

    python -m mnist.cli.experiments [--seeds 3] [--jobs 2]

Both networks, on images as they are and with their pixels shuffled by one fixed permutation, over
seeds: 12 trainings in DVC's queue, each with its MLflow run. Those that are there already, of this
commit and these params, are not run again, and what waits in the queue runs first, so that a run that
was broken off goes on. The result is a table, metrics/shuffled-pixels.json and metrics/shuffled-pixels.png.
"""

import argparse
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from mnist.cli import preset
from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe
from mnist.core import config, files, paths, process
from mnist.core.errors import InputError
from mnist.lineage import experiments

NUMBERS, PICTURE = Path("metrics/shuffled-pixels.json"), Path("metrics/shuffled-pixels.png")
LABELS = {"simple_cnn": "convolutional", "mlp": "fully connected"}  # by `model`
MIN_SEEDS = 2  # one has no interval
LOOK_SECONDS = 3  # between two looks at the queue
ENOUGH_LOOKS = 2  # one after the other, at an empty queue
# Without an experiment that runs: a worker of DVC's queue may die (docs/sweeps.md), and takes some to start.
IDLE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and what becomes of the pixels that it sees."""

    model: str
    permute_pixels: bool

    @property
    def name(self) -> str:
        """Of its experiments."""
        return f"{self.model.replace('_', '-')}-{'shuffled' if self.permute_pixels else 'in-place'}"


CASES = tuple(Case(model=model, permute_pixels=shuffled) for model in LABELS for shuffled in (False, True))


def known_cases(recipes: Sequence[Recipe], current: Mapping[str, Any]) -> dict[Case, Recipe]:
    """The recipes that are `current` params but for the network and the pixels, by case."""
    found = {}
    for recipe in recipes:
        case = Case(model=recipe.params["model"], permute_pixels=recipe.params["permute_pixels"])
        wanted = {key: current[key] for key in recipe.params if key in current}
        if {**wanted, "model": case.model, "permute_pixels": case.permute_pixels} == recipe.params:
            found[case] = recipe
    return found


def missing(recipes: Mapping[Case, Recipe], num_seeds: int) -> dict[Case, list[int]]:
    """The seeds that are still to be trained, by case."""
    there = {case: {result.seed for result in recipe.results} for case, recipe in recipes.items()}
    wanted = {
        case: [seed for seed in range(num_seeds) if seed not in there.get(case, set())] for case in CASES
    }
    return {case: left for case, left in wanted.items() if left}


def queue(case: Case, left: Sequence[int], taken: set[str]) -> None:
    """Add a case's trainings to DVC's queue.

    Raises:
        InputError: DVC refuses.
    """
    values = {
        "model": case.model,
        "permute_pixels": str(case.permute_pixels).lower(),
        "seed": ",".join(map(str, left)),
    }
    sets = [part for key, value in values.items() for part in ("-S", f"{key}={value}")]
    command = ["dvc", "exp", "run", "--queue", "--name", preset.free_name(case.name, taken), *sets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        *_, last = (done.stderr or done.stdout).strip().splitlines()
        raise InputError("dvc exp run --queue", found=last, expected="a queue that takes it")


def trained(root: Path, current: Mapping[str, Any], num_seeds: int, jobs: int) -> dict[Case, Recipe]:
    """Have DVC run what waits in its queue, and then what is missing; return all cases.

    Raises:
        InputError: some of them failed, or DVC refuses.
    """
    said, idle_since, num_empty, is_queued = -1, None, 0, False
    total = len(CASES) * num_seeds
    while True:
        known, results, _ = recipes.recipes(root, ["HEAD"])
        cases = known_cases(results, current)
        left = sum(map(len, missing(cases, num_seeds).values()))
        if left != said:
            print(f"shuffled: {total - left} of {total} trainings are done", flush=True)
            said = left
        if not left:
            return cases
        now = time.monotonic()
        # Between the queue and its worker a training may be in neither for a moment: one look says little.
        num_empty = 0 if known.num_running or known.num_queued else num_empty + 1
        if known.num_running:
            idle_since = None
        elif num_empty:
            if num_empty >= ENOUGH_LOOKS and is_queued:
                failed = f"{left} of {total} trainings ended without a result"
                expected = "all of them; `dvc queue status` and `dvc queue logs NAME` say why"
                raise InputError("dvc queue", found=failed, expected=expected)
            if num_empty >= ENOUGH_LOOKS:
                taken = preset.taken_names(root)
                for case, numbers in missing(cases, num_seeds).items():
                    queue(case, numbers, taken)
                is_queued, num_empty = True, 0
                continue
        elif idle_since is None or now - idle_since > IDLE_SECONDS:
            # The workers keep the output open that they were started with.
            nowhere = subprocess.DEVNULL
            subprocess.run(
                ["dvc", "queue", "start", "-j", str(jobs)], stdout=nowhere, stderr=nowhere, check=True
            )
            idle_since = now
        time.sleep(LOOK_SECONDS)


def summary(cases: Mapping[Case, Recipe], num_seeds: int) -> dict[str, Any]:
    """Plain numbers: accuracies by case, and what shuffling costs each network, in shares of 1."""
    accuracies = {case: cases[case].accuracies[:num_seeds] for case in CASES}
    result: dict[str, Any] = {"num_seeds": num_seeds, "networks": {}}
    for model in LABELS:
        in_place, shuffled = (
            accuracies[Case(model=model, permute_pixels=permuted)] for permuted in (False, True)
        )
        # By seed, which is the same start and the same order of images.
        costs = [there - here for there, here in zip(in_place, shuffled, strict=True)]
        result["networks"][model] = {
            "in_place": in_place,
            "shuffled": shuffled,
            "cost": {"mean": mean(costs), "interval": recipes.interval(costs)},
        }
    return result


def sentence(result: Mapping[str, Any]) -> str:
    """What the numbers say."""
    parts = []
    for model, label in LABELS.items():
        cost = result["networks"][model]["cost"]
        low, high = cost["interval"]
        parts.append(
            f"the {label} network {100 * cost['mean']:.1f} points"
            f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )
    return f"Shuffling the pixels costs {' and '.join(parts)}, over {result['num_seeds']} seeds."


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Both networks, in place and shuffled: a dot for each seed, a line through the means."""
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


def table(cases: Mapping[Case, Recipe]) -> list[str]:
    """Accuracy by network and pixels, in lines."""
    rows = [["network", "pixels", "seeds", "test accuracy", "sd", "least to most"]]
    for case in CASES:
        recipe = cases[case]
        rows.append(
            [
                LABELS[case.model],
                "shuffled" if case.permute_pixels else "in place",
                str(len(recipe.results)),
                f"{recipe.mean:.2%}",
                "-" if recipe.sd is None else f"{100 * recipe.sd:.2f}",
                f"{100 * min(recipe.accuracies):.2f} to {100 * max(recipe.accuracies):.2f}",
            ]
        )
    return experiments.aligned(rows, left=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print, write and draw; exits with 1 and one line where a training fails."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.experiments", description="What shuffling the pixels costs each network."
    )
    parser.add_argument("--seeds", type=int, default=3, help="from 0 on (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: 2)")
    options = parser.parse_args(arguments)
    if options.seeds < MIN_SEEDS or options.jobs < 1:
        parser.error(f"--seeds: at least {MIN_SEEDS}; --jobs: at least 1")
    with process.reported():
        root = paths.checkout()
        current = config.load(paths.PARAMS).model_dump()
        cases = trained(root, current, options.seeds, options.jobs)
        result = summary(cases, options.seeds)
        files.write_json(NUMBERS, result)
        draw(PICTURE, result)
        print("\n".join([*table(cases), "", sentence(result), f"{PICTURE}, {NUMBERS}"]))


if __name__ == "__main__":
    main()
