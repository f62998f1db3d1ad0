"""The test accuracy of each recipe over seeds: its mean, standard deviation and interval.

A recipe is all params of the training but the seed. The accuracy of one training is not enough: with other
seeds alone, the default params reach accuracies that are a point apart.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from mnist.comparison.results import Result, load_results
from mnist.core import paths
from mnist.core.config import as_typed
from mnist.evaluation.statistics import student_interval

ACCURACY = "accuracy"
FIGURES = ("seeds", "test accuracy", "sd", "95 % interval", "least to most")
FEW_SEEDS = 3  # with fewer, the interval is too wide to be of use


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Results that differ in their seed alone.

    Attributes:
        params: that they have in common.
        dataset_md5: of the file that their images are from.
        by_seed: accuracies on the test images, 0 to 1.
    """

    params: Mapping[str, Any]
    dataset_md5: str
    by_seed: dict[int, float]

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracies, in the order of the seeds."""
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]

    @property
    def mean(self) -> float:
        """Return the mean of the accuracies."""
        return mean(self.accuracies)

    @property
    def sd(self) -> float | None:
        """Return the sample standard deviation of the accuracies; None for one seed."""
        return stdev(self.accuracies) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean over all seeds, within 0 to 1; None for one seed."""
        if len(self.by_seed) == 1:
            return None
        low, high = student_interval(self.accuracies)
        return max(low, 0.0), min(high, 1.0)


def load(root: Path, revs: Sequence[str] | None) -> tuple[list[Recipe], list[str]]:
    """Return the recipes that the experiments of `revs` tried, the best first, and notes in lines.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    known = load_results(root, revs, paths.TEST_METRICS, (ACCURACY,))
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
        known = recipe.by_seed.setdefault(one.split.seed, accuracy)
        if known != accuracy:
            notes.append(f"left out: {one.revision.name}: {accuracy:.2%}, where another has {known:.2%}")
    return sorted(recipes.values(), key=lambda recipe: -recipe.mean), notes


def differing(all_params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of params that are not equal in all of them."""
    keys = dict.fromkeys(key for params in all_params for key in params)
    return [key for key in keys if len({as_typed(params.get(key)) for params in all_params}) > 1]


def figures(recipe: Recipe) -> list[str]:
    """Return what a table shows of a recipe under `FIGURES`, in percent."""
    least, most = min(recipe.accuracies), max(recipe.accuracies)
    return [
        str(len(recipe.by_seed)),
        f"{recipe.mean:.2%}",
        "-" if recipe.sd is None else f"{100 * recipe.sd:.2f}",
        "-" if recipe.interval is None else " to ".join(f"{100 * end:.2f}" for end in recipe.interval),
        f"{100 * least:.2f} to {100 * most:.2f}",
    ]


def aligned(rows: Sequence[Sequence[str]], headers: Sequence[str], *, left: Container[int] = ()) -> str:
    """Return a table for a terminal: its columns are aligned to the right, but for those in `left`."""
    align = ["left" if column in left else "right" for column in range(len(headers))]
    return tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)


def table(recipes: Sequence[Recipe]) -> str:
    """Return a row for each recipe, with the params that differ."""
    keys = differing([recipe.params for recipe in recipes])
    rows = [[*figures(one), *(as_typed(one.params.get(key)) for key in keys)] for one in recipes]
    headers = [*FIGURES, *keys]
    return aligned(rows, headers)


def report(root: Path, revs: Sequence[str] | None) -> str:
    """Return the table of the recipes that the experiments of `revs` tried; None: of any commit.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    recipes, notes = load(root, revs)
    lines = [table(recipes) if recipes else "seeds: none has a result"]
    if recipes and all(len(recipe.by_seed) < FEW_SEEDS for recipe in recipes):
        lines += ["", "try more seeds: dvc exp run --queue -S 'seed=range(0,5)' && dvc queue start -j 2"]
    if len({recipe.dataset_md5 for recipe in recipes}) > 1:
        lines += ["", "these are of several data sets: their accuracies do not compare"]
    return "\n".join([*lines, *notes])
