"""Drift: both tests against SciPy's, the rate of false alarms, and differences too small to count."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from mnist.evaluation import drift
from mnist.evaluation.drift import Measures

RNG = np.random.default_rng


def measures(num_images: int, seed: int, *, shift: float = 0.0) -> Measures:
    """Two measures that depend on each other, one of few values, and classes."""
    rng = RNG(seed)
    ink = rng.normal(shift, 1, num_images)
    return {
        "ink": ink,
        "image_mean": ink + rng.normal(0, 0.5, num_images),
        "brightest": rng.integers(0, 3, num_images),
        drift.PREDICTED: rng.integers(0, 10, num_images).astype(str),
    }


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
@pytest.mark.parametrize(("num_test", "num_found"), [(300, 300), (1000, 50)])
def test_numbers_are_compared_as_by_scipy(num_test: int, num_found: int, shift: float) -> None:
    test, found = RNG(1).normal(0, 1, num_test), RNG(2).normal(shift, 1, num_found)
    difference, p_value = drift.kolmogorov_smirnov(test, found)
    exact = stats.ks_2samp(test, found, method="exact")
    assert difference == pytest.approx(exact.statistic)
    assert p_value == pytest.approx(exact.pvalue, abs=0.05)


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 2, 1], [1, 1, 0]])
def test_classes_are_compared_as_by_scipy(weights: list[int]) -> None:
    names = np.array(["boot", "coat", "shirt"])
    test: NDArray[Any] = names[RNG(1).integers(0, 3, 400)]
    found: NDArray[Any] = RNG(2).choice(names, 100, p=np.array(weights) / sum(weights))
    difference, p_value = drift.chi_square(test, found)
    counts = np.array([[(sample == name).sum() for name in names] for sample in (test, found)])
    assert p_value == pytest.approx(stats.chi2_contingency(counts, correction=False).pvalue)
    changes = counts[0] / 400 - counts[1] / 100
    assert difference == pytest.approx(changes[changes > 0].sum())


def test_samples_of_one_class_are_alike() -> None:
    assert drift.chi_square(np.array(["7"] * 9), np.array(["7"])) == (0.0, 1.0)


@pytest.mark.parametrize("num_images", [10, 200])
def test_the_rate_of_false_alarms_is_at_most_alpha(num_images: int) -> None:
    trials = 400
    alarms = sum(
        any(
            one.drifted
            for one in drift.compare(measures(1000, seed), measures(num_images, 9999 - seed), alpha=0.2)
        )
        for seed in range(trials)
    )
    assert alarms / trials <= 0.2 + 2 * (0.2 * 0.8 / trials) ** 0.5
    assert alarms > 0.04 * trials  # nor is it far from it, which would hide drift


def test_a_difference_must_be_large_enough_however_sure_it_is() -> None:
    test = measures(20_000, 0)
    small, large = (drift.compare(test, measures(20_000, 1, shift=shift), alpha=0.05) for shift in (0.2, 0.4))
    assert small[0].p_value < 1e-9
    assert [one.drifted for one in small] == [False, False, False, False]
    assert [one.drifted for one in large] == [True, True, False, False]


@pytest.mark.parametrize(("num_images", "smallest"), [(10, 0.51), (100, 0.16), (1000, drift.MIN_DIFFERENCE)])
def test_a_number_that_differs_by_less_than_stated_is_no_drift(num_images: int, smallest: float) -> None:
    test = measures(10_000, 0)
    drifted = []
    for seed, shift in enumerate(np.linspace(0, 2, 20)):
        compared = drift.compare(test, measures(num_images, seed, shift=shift), alpha=0.05)
        drifted += [one.difference for one in compared[:3] if one.drifted]
    stated = drift.smallest(10_000, num_images, num_measures=4, alpha=0.05)
    assert stated == pytest.approx(smallest, abs=0.01)
    assert stated < min(drifted) < stated + 0.1


def test_the_class_that_changed_most_is_shown() -> None:
    test, found = measures(1000, 0), measures(200, 1)
    found[drift.PREDICTED][:100] = "7"
    shown = drift.compare(test, found, alpha=0.05)[-1]
    assert shown.measure == "predicted 7"
    assert shown.test == (test[drift.PREDICTED] == "7").mean()
    assert shown.found >= 0.5
    assert shown.drifted
