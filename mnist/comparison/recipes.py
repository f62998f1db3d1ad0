"""What a recipe comes to over seeds: mean, standard deviation and interval of its test accuracy.

One training says little: by the seed alone, the default params come to accuracies a point apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.lineage import experiments
from mnist.lineage.experiments import Contents, Revision, Sweep

ACCURACY = "accuracy"
FILES = paths.TEST_METRICS, paths.LOCK  # that are read of each revision
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Result:
    """One training, and what its weights came to.

    Attributes:
        revision: where it is.
        seed: of the training.
        accuracy: on the test images, 0 to 1.
        params: all others that it was trained with.
        dataset_md5: of the file that the images are from.
    """

    revision: Revision
    seed: int
    accuracy: float
    params: Mapping[str, Any]
    dataset_md5: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The results that differ by their seed alone.

    Attributes:
        params: that they have in common.
        dataset_md5: of the file that their images are from.
        results: one a seed, by rising seed.
    """

    params: Mapping[str, Any]
    dataset_md5: str
    results: tuple[Result, ...]

    @property
    def accuracies(self) -> list[float]:
        """By rising seed."""
        return [result.accuracy for result in self.results]

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return mean(self.accuracies)

    @property
    def sd(self) -> float | None:
        """The standard deviation of the accuracies, of a sample; None for one seed."""
        return stdev(self.accuracies) if len(self.results) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean over all seeds, on these test images, and within 0 to 1; None for one seed."""
        found = interval(self.accuracies)
        return found and (max(found[0], 0.0), min(found[1], 1.0))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of what `values` are a sample of; None for one.

    Student's t: mean ± t(n - 1, 0.975) sd / sqrt(n), for values that are about normal. Of accuracies
    over seeds it tells the luck of the seed; other test images of the same kind would add to it.
    """
    if len(values) == 1:
        return None
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def recipes(root: Path, revs: Sequence[str] | None) -> tuple[Sweep, list[Recipe], list[str]]:
    """What the repository knows, the best recipe first, and a line for each result that was left out.

    Args:
        root: of the checkout.
        revs: commits that experiments started from; None: any commit.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    known = experiments.look(root, revs)
    results, left_out = [], []
    for revision, content in zip(
        known.revisions, experiments.contents(root, known.revisions, FILES), strict=True
    ):
        try:
            results.append(read(revision, content))
        except InputError as error:
            left_out.append(f"left out: {revision.name}: {error}")
    found, twice = grouped(results)
    return known, found, left_out + twice


def read(revision: Revision, contents: Contents) -> Result:
    """Take a result out of a revision's files.

    Raises:
        InputError: one is missing or broken, or the metrics are not those that the lock knows.
    """
    metrics, lock = contents
    if metrics is None:
        raise InputError(str(paths.TEST_METRICS), found="no such file", expected=experiments.MADE)
    accuracy = experiments.number(paths.TEST_METRICS, metrics, ACCURACY, most=1)
    locked = experiments.locked(lock)
    locked.expect(paths.TEST_METRICS, metrics)
    params = dict(locked.params)
    seed = params.pop("seed", None)
    if not isinstance(seed, int):
        raise InputError(f"{paths.LOCK}: seed", found=repr(seed), expected="a whole number")
    return Result(
        revision=revision, seed=seed, accuracy=accuracy, params=params, dataset_md5=locked.dataset_md5
    )


def grouped(results: Sequence[Result]) -> tuple[list[Recipe], list[str]]:
    """The recipes, the best first, and a line for each seed that has two accuracies, of which one counts.

    A result that several revisions have, as an experiment that was committed, counts once.
    """
    by_recipe: dict[tuple[Any, ...], dict[int, Result]] = {}
    twice = []
    for result in results:
        key = (result.dataset_md5, *sorted((name, repr(value)) for name, value in result.params.items()))
        known = by_recipe.setdefault(key, {}).setdefault(result.seed, result)
        if known.accuracy != result.accuracy:
            there = f"{known.accuracy:.2%} in {known.revision.name}"
            twice.append(
                f"left out: {result.revision.name}: {result.accuracy:.2%} by seed {result.seed}, and {there}"
            )
    found = [
        Recipe(
            params=(one := [by_seed[seed] for seed in sorted(by_seed)])[0].params,
            dataset_md5=one[0].dataset_md5,
            results=tuple(one),
        )
        for by_seed in by_recipe.values()
    ]
    return sorted(found, key=lambda recipe: -recipe.mean), twice
