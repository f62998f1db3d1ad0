"""The verdict about recipes: its false alarms by simulation, and the trials that it needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist.comparison import trials, verdict
from mnist.core.errors import InputError
from mnist.evaluation.statistics import sequential_levels

NUM_PAIRS = 2_000
RNG = np.random.default_rng(0)
SHAPE = (NUM_PAIRS, 2, 20)  # pairs, sides, seeds


@pytest.mark.parametrize(
    "noise", [RNG.standard_normal(SHAPE), RNG.standard_t(3, SHAPE)], ids=["normal", "heavy tails"]
)
def test_few_pairs_of_equal_recipes_get_a_verdict(noise: NDArray[np.float64]) -> None:
    """Accuracies on 10,000 images with a deviation of 0.7 points, as those of the default params."""
    accuracies = (0.948 + 0.007 * noise).round(4).tolist()
    levels = dict(zip(verdict.looks(20), sequential_levels(verdict.looks(20), 0.05), strict=True))

    def is_different(base: list[float], head: list[float]) -> bool:
        looks = (
            verdict.difference(base[:look], head[:look], level=level, num_images=10_000)
            for look, level in levels.items()
        )
        return any(look.outcome != "no evidence" for look in looks)

    assert 0.03 < np.mean([is_different(base, head) for base, head in accuracies]) <= 0.06


def test_the_interval_is_students_at_the_level_of_the_look() -> None:
    found = verdict.difference([0.90, 0.91, 0.92], [0.92, 0.93, 0.95], level=0.05, num_images=10_000)

    assert found.outcome == "better"
    assert found.change_pp == pytest.approx(7 / 3)
    half = 4.3027 / 3  # t(2, 0.975) of a table; the changes of 2, 2 and 3 points have sd 1 / sqrt(3)
    assert found.interval_pp == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)


def test_rounding_to_one_image_is_no_evidence() -> None:
    """One more image of 300 with each of 3 seeds: no deviation, and yet no proof."""
    better = verdict.difference([0.99] * 3, [0.99 + 1 / 300] * 3, level=0.001, num_images=300)
    equal = verdict.difference([0.99] * 3, [0.99] * 3, level=0.05, num_images=300)

    assert {better.outcome, equal.outcome} == {"no evidence"}
    assert equal.interval_pp[0] < 0 < equal.interval_pp[1]


@pytest.mark.parametrize(("seeds", "looks"), [(2, [2]), (3, [3]), (9, [3, 5, 8, 9]), (20, [3, 5, 8, 12, 20])])
def test_the_last_look_has_all_seeds(seeds: int, looks: list[int]) -> None:
    assert verdict.looks(seeds) == looks


@dataclass
class Made:
    """Trials whose accuracies are made by hand, and which count them."""

    name: str
    mean: float = 0.9
    recipe: str = ""
    test_sha256: str = "test"
    num_threads: int = 1
    num_images: int = 10_000
    commit: str = "c"
    seeds: list[int] = field(default_factory=list)

    def accuracy(self, seed: int) -> float:
        self.seeds.append(seed)
        return self.mean + 0.001 * (seed % 3)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., verdict.Report]:
    def run(*sides: Made, num_seeds: int = 20) -> verdict.Report:
        @contextmanager
        def of_revision(name: str) -> Iterator[Made]:
            yield next(side for side in sides if side.name == name)

        monkeypatch.setattr(trials, "of_revision", of_revision)
        monkeypatch.setattr(verdict, "Trials", Made)
        seeds = range(10, 10 + num_seeds)
        return verdict.compare([side.name for side in sides], seeds, 0.05, lambda _: None)

    return run


def test_a_large_difference_needs_few_seeds(compare: Callable[..., verdict.Report]) -> None:
    sides = Made("base", 0.9, "a"), Made("head", 0.8, "b")

    report = compare(*sides)

    assert report.seeds == (10, 11, 12)
    assert [side.seeds for side in sides] == [[10, 11, 12]] * 2
    assert report.difference
    assert report.difference.outcome == "worse"
    assert report.sides[1].accuracies == pytest.approx((0.801, 0.802, 0.8))


def test_without_a_difference_all_seeds_are_looked_at(compare: Callable[..., verdict.Report]) -> None:
    report = compare(Made("base", recipe="a"), Made("head", recipe="b"), num_seeds=7)

    assert len(report.seeds) == 7
    assert report.difference
    assert report.difference.outcome == "no evidence"


def test_one_recipe_is_not_compared_with_itself(compare: Callable[..., verdict.Report]) -> None:
    sides = Made("base"), Made("head")

    report = compare(*sides)

    assert (report.seeds, report.difference) == ((), None)
    assert [side.seeds for side in sides] == [[], []]


def test_one_revision_has_figures_and_no_verdict(compare: Callable[..., verdict.Report]) -> None:
    report = compare(Made("workspace"), num_seeds=4)

    (side,) = report.sides
    assert (len(side.accuracies), report.difference) == (4, None)


def test_other_test_images_do_not_compare(compare: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="the test images of head") as caught:
        compare(Made("base", recipe="a"), Made("head", recipe="b", test_sha256="other"))
    assert "other" in caught.value.found
