"""Figures of a recipe over seeds, and the tutorial's comparison of four recipes: shuffled pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mnist.comparison import trials
from mnist.comparison.ranking import aligned
from mnist.core import files
from mnist.core.config import as_typed
from mnist.evaluation.statistics import student_interval

FIGURES = ("seeds", "test accuracy", "sd", "95 % interval", "least to most")

SHUFFLED_PIXELS = Path("metrics/shuffled-pixels.json")
SHUFFLED_PIXELS_PLOT = Path("metrics/shuffled-pixels.png")
NETWORKS = {"simple_cnn": "convolutional", "mlp": "fully connected"}  # names for people, by `model`


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, and whether one fixed permutation shuffles the pixels that it sees."""

    model: str
    permute_pixels: bool


CASES = tuple(Case(model=model, permute_pixels=shuffled) for model in NETWORKS for shuffled in (False, True))
Accuracies = Mapping[Case, Sequence[float]]  # on the test images, 0 to 1, in the order of the seeds


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


def table(cases: Accuracies) -> str:
    """Return a row for each case."""
    rows = [[*figures(accuracies), *map(as_typed, astuple(case))] for case, accuracies in cases.items()]
    return aligned(rows, [*FIGURES, "model", "permute_pixels"])


def train_cases(num_seeds: int, show: Callable[[str], None]) -> Accuracies:
    """Train the workspace's recipe in all cases, with seeds from 0 to `num_seeds` - 1.

    Args:
        num_seeds: of each case.
        show: is called with a line for each training.

    Raises:
        InputError: a training fails.
    """
    found: dict[Case, list[float]] = {case: [] for case in CASES}
    for case in CASES:
        settings = asdict(case)
        with trials.of_revision(trials.WORKSPACE, settings) as of_case:
            for seed in range(num_seeds):
                found[case].append(of_case.accuracy(seed))
                words = " ".join(f"{key}={as_typed(value)}" for key, value in settings.items())
                show(f"{words} seed={seed}: {found[case][-1]:.2%}")
    return found


def costs(cases: Accuracies, num_seeds: int) -> dict[str, Any]:
    """Return plain numbers: accuracies by case, and what shuffling costs each network, in shares of 1."""
    result: dict[str, Any] = {"num_seeds": num_seeds, "networks": {}}
    for model in NETWORKS:
        in_place, shuffled = (
            list(cases[Case(model=model, permute_pixels=permuted)]) for permuted in (False, True)
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
