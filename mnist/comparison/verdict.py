"""The verdict about two recipes: about code with params, not about two networks.

Both are trained with the same seeds, and the differences of their accuracies, seed by seed, are tested. A
large one needs few seeds: the test looks at the first 3, 5, 8, ... of them, and stops at the first verdict.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import sqrt
from statistics import mean
from typing import Literal

from mnist.comparison import trials
from mnist.comparison.trials import Trials
from mnist.core.errors import InputError
from mnist.evaluation.statistics import Interval, sequential_levels, student_interval

LOOKS = (3, 5, 8, 12, 20)  # numbers of seeds


@dataclass(frozen=True, kw_only=True)
class Side:
    """A revision and what its recipe reaches, in the order of the seeds."""

    name: str
    commit: str  # full hash; empty for the workspace
    accuracies: tuple[float, ...] = ()  # on the test images, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of two recipes at a look.

    Attributes:
        outcome: better or worse where the interval is on one side of 0.
        change_pp: head less base, in percentage points.
        interval_pp: of the change over all seeds: at all looks together it misses that with probability alpha
            (Jennison and Turnbull, Journal of the Royal Statistical Society B 51:305-361, 1989).
    """

    outcome: Literal["better", "worse", "no evidence"]
    change_pp: float
    interval_pp: Interval


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison of two recipes, or the trials of one.

    Attributes:
        sides: base and head, or head alone.
        seeds: of the trials; none where both sides have one recipe.
        alpha: chance of a verdict about two equally good recipes.
        difference: of two recipes; None of one.
    """

    sides: tuple[Side, ...]
    seeds: tuple[int, ...]
    alpha: float
    difference: Difference | None


def looks(num_seeds: int) -> list[int]:
    """Return the numbers of seeds at which a comparison looks, the last one being all of them."""
    return [*(look for look in LOOKS if look < num_seeds), num_seeds]


def difference(base: Sequence[float], head: Sequence[float], *, level: float, num_images: int) -> Difference:
    """Test the difference of accuracies, paired by seed, at the level of a look (`sequential_levels`)."""
    changes = [100 * (after - before) for before, after in zip(base, head, strict=True)]
    # Accuracies are rounded to one image: each has an error of variance 1/12, as a uniform one.
    least_sd = 100 / num_images / sqrt(6)
    low, high = student_interval(changes, alpha=level, least_sd=least_sd)
    outcome: Literal["better", "worse", "no evidence"] = "no evidence"
    if low > 0 or high < 0:
        outcome = "better" if low > 0 else "worse"
    return Difference(outcome=outcome, change_pp=mean(changes), interval_pp=(low, high))


def compare(names: Sequence[str], seeds: Sequence[int], alpha: float, show: Callable[[str], None]) -> Report:
    """Train the recipes of one or two revisions with these seeds, or with fewer where those give a verdict.

    Args:
        names: of the revisions, as a user names them; base first.
        seeds: of the trials.
        alpha: chance of a verdict about two equally good recipes.
        show: is called with lines on the progress.

    Raises:
        InputError: a revision is unknown or has no such pipeline, a training fails, or test images differ.
    """
    levels = dict(zip(looks(len(seeds)), sequential_levels(looks(len(seeds)), alpha), strict=True))
    rows: list[list[float]] = []
    found = None
    with ExitStack() as stack:
        # Its threads wait for the processes of the trials, which end before it.
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        sides: list[Trials] = []
        for name in names:
            show(f"laying out {name}")
            sides.append(stack.enter_context(trials.of_revision(name)))
        is_one_recipe = len(sides) > len({side.recipe for side in sides})
        digests = list(dict.fromkeys(side.test_sha256[:12] for side in sides))
        if len(digests) > 1:
            expected = "those of the base: accuracies on others do not compare"
            raise InputError(
                f"the test images of {names[1]}", found=f"SHA-256 {digests[1]}", expected=expected
            )
        # With more busy threads than cores, each training takes many times as long.
        num_threads = sum(side.num_threads for side in sides)
        each = pool.map if num_threads <= (os.cpu_count() or 1) else map
        for number, seed in enumerate([] if is_one_recipe else seeds, 1):
            rows.append(list(each(Trials.accuracy, sides, [seed] * len(sides))))
            show(f"seed {seed}: {' → '.join(f'{accuracy:.2%}' for accuracy in rows[-1])}")
            if len(sides) > 1 and number in levels:
                found = difference(
                    *zip(*rows, strict=True), level=levels[number], num_images=sides[0].num_images
                )
                show(f"{number} seeds: {found.change_pp:+.2f} pp, {found.outcome}")
                if found.outcome != "no evidence":
                    break
    return Report(
        sides=tuple(
            Side(name=side.name, commit=side.commit, accuracies=tuple(row[number] for row in rows))
            for number, side in enumerate(sides)
        ),
        seeds=tuple(seeds[: len(rows)]),
        alpha=alpha,
        difference=found,
    )
