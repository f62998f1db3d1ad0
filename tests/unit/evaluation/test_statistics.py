"""Intervals and tests: published examples, sums by hand, and the rates of false alarms."""

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import multivariate_normal, norm  # type: ignore[import-untyped]

from mnist.evaluation import statistics
from mnist.evaluation.statistics import ALPHA, Paired, Rate, Z


def p_at_most(heads: int, tosses: int) -> float:
    """What the comparison gives for the chance of at most so many heads."""
    return Paired(num_images=max(1, tosses), fixed=heads, broken=tosses - heads).p_worse


@cache
def of(num_images: int, fixed: int, broken: int) -> tuple[str, float, float, float]:
    """Verdict, interval and two-sided p-value, once for each table: simulations meet the same ones often."""
    paired = Paired(num_images=num_images, fixed=fixed, broken=broken)
    return paired.verdict, *paired.interval_pp, paired.p_two_sided


@pytest.mark.parametrize("tosses", range(11))
def test_chances_are_counts_of_all_tosses(tosses: int) -> None:
    heads = [sum(toss) for toss in itertools.product((0, 1), repeat=tosses)]
    for most in range(tosses + 1):
        share = sum(n <= most for n in heads) / len(heads)
        assert p_at_most(most, tosses) == pytest.approx(share, rel=1e-15)
        mirrored = Paired(num_images=11, fixed=tosses - most, broken=most)
        assert mirrored.p_better == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize("tosses", [100, 1_000, 10_000])  # the test split has 10,000 images
def test_chances_of_many_tosses_are_exact_to_eleven_digits(tosses: int) -> None:
    total, coefficient = 0, 1
    for heads in range(tosses + 1):
        total += coefficient
        coefficient = coefficient * (tosses - heads) // (heads + 1)
        if heads % (tosses // 100) == 0 or heads == tosses:
            exact = float(Fraction(total, 2**tosses))
            assert p_at_most(heads, tosses) == pytest.approx(exact, rel=1e-11, abs=1e-300)
    assert p_at_most(0, 10_000) == 0  # 2**-10000 is no float


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 5), (1, 1)], ids=str)
def test_no_difference_is_no_evidence(fixed: int, broken: int) -> None:
    paired = Paired(num_images=100, fixed=fixed, broken=broken)
    assert paired.change_pp == 0
    assert paired.p_two_sided == 1
    assert paired.p_worse == paired.p_better > 0.5
    assert paired.verdict == "within noise"


# 5 of 5 are no proof either way, 1/2**4 = 0.0625; 6 of 6 are, 1/2**5 = 0.03125.
@pytest.mark.parametrize(
    ("fixed", "broken", "verdict"),
    [(5, 0, "within noise"), (6, 0, "better"), (0, 6, "worse"), (16, 6, "within noise"), (6, 17, "worse")],
)
def test_a_verdict_is_by_the_two_sided_test_at_five_percent(fixed: int, broken: int, verdict: str) -> None:
    assert Paired(num_images=100, fixed=fixed, broken=broken).verdict == verdict


def critical(tosses: int) -> int:
    """The most heads of so many tosses that are too few for a fair coin, two-sided; -1 where none are."""
    heads, total, coefficient = -1, 0, 1
    # In whole numbers: 2 (total + coefficient) / 2**tosses < ALPHA = 1/20.
    while 40 * (total + coefficient) < 2**tosses:
        heads, total = heads + 1, total + coefficient
        coefficient = coefficient * (tosses - heads) // (heads + 1)
    return heads


# Pairs where just one is a success, where just the other is, and all; alpha; the limits as printed.
# Tango 1998 and the rest are quoted by the tests of Laud's ratesci (R), tests/testthat/test3.R;
# Cavo et al. by those of contingencytables (R), tests/testthat/test-ch8.R, to the book named above.
PUBLISHED = {
    "Tango 1998": ((9, 3, 32), 0.05, "-0.027 to 0.390"),
    "Tango 1998, section 6.1": ((0, 1, 44), 0.10, "-0.096 to 0.037"),
    "Agresti and Min 2005": ((16, 8, 86), 0.05, "-0.020 to 0.207"),
    "Tang et al. 2010": ((3, 1, 14), 0.05, "-0.1670 to 0.4327"),
    "Fagerland et al. 2014 (Bentur et al. 2009)": ((1, 7, 21), 0.05, "-0.517 to -0.026"),
    "Fagerland et al. 2017 (Cavo et al. 2012)": ((6, 16, 161), 0.05, "-0.1240 to -0.0054"),
    "Chang 2024 (Ezra et al. 2010)": ((25, 2, 102), 0.05, "0.139 to 0.321"),
}


@pytest.mark.parametrize(("counts", "alpha", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_intervals_are_the_published_ones(counts: tuple[int, int, int], alpha: float, published: str) -> None:
    fixed, broken, num_images = counts
    low, high = statistics.score_interval(fixed=fixed, broken=broken, num_images=num_images, alpha=alpha)
    digits = len(published.rpartition(".")[2])
    assert f"{low:.{digits}f} to {high:.{digits}f}" == published


def test_where_the_exact_test_sees_noise_and_the_score_test_does_not_zero_stays_in() -> None:
    low, high = Paired(num_images=161, fixed=6, broken=16).interval_pp
    assert low == pytest.approx(-12.40, abs=0.005)
    assert high == 0


@pytest.mark.parametrize("num_images", [1, 10, 10_000])
def test_intervals_that_a_pen_can_find(num_images: int) -> None:
    # Where nothing is fixed or broken, the likeliest under a change d is |d| fixed or broken and the
    # standard error sqrt(|d| (1 - |d|) / N), so that |d| = z**2 / (N + z**2).
    limit = 100 * Z**2 / (num_images + Z**2)
    nothing = Paired(num_images=num_images, fixed=0, broken=0)
    assert nothing.interval_pp == pytest.approx((-limit, limit), abs=1e-9)
    # Where all are fixed, a change d below 1 leaves the likeliest broken at (1 - d) / 2 and the
    # standard error sqrt((1 - d**2) / N), so that d = (N - z**2) / (N + z**2).
    low, high = statistics.score_interval(fixed=num_images, broken=0, num_images=num_images, alpha=ALPHA)
    assert low == pytest.approx((num_images - Z**2) / (num_images + Z**2), abs=1e-11)
    assert high == 1


# All tables of up to 40 images, and of 100, 1,000 and 10,000 those on which the verdict turns.
SMALL = [
    (num_images, fixed, broken)
    for num_images in range(1, 41)
    for fixed in range(num_images + 1)
    for broken in range(num_images + 1 - fixed)
]
TURNING = [
    (num_images, *counts)
    for num_images in (100, 1_000, 10_000)
    for tosses in (*range(100), *range(100, num_images + 1, num_images // 40))
    for few in {max(0, critical(tosses)), critical(tosses) + 1}
    for counts in ((few, tosses - few), (tosses - few, few))
    if few <= tosses
]


@pytest.mark.parametrize("tables", [SMALL, TURNING], ids=["all small tables", "where verdicts turn"])
def test_intervals_hold_zero_just_where_the_verdict_is_noise(tables: list[tuple[int, int, int]]) -> None:
    seen = set()
    for num_images, fixed, broken in tables:
        verdict, low, high, p_two_sided = of(num_images, fixed, broken)
        seen.add(verdict)
        assert -100 <= low < high <= 100
        assert (low <= 0 <= high) == (verdict == "within noise") == (p_two_sided >= ALPHA)
        assert low <= 100 * (fixed - broken) / num_images <= high
        assert of(num_images, broken, fixed)[1:3] == (-high, -low)
    assert seen == {"better", "worse", "within noise"}


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_wilsons(counts: tuple[int, int]) -> None:
    from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

    hits, num_images = counts
    found = Rate(hits=hits, num_images=num_images).interval
    assert found
    expected = proportion_confint(hits, num_images, alpha=0.05, method="wilson")
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert 0 <= found[0] <= hits / num_images <= found[1] <= 1


def test_no_images_have_no_share() -> None:
    assert Rate(hits=0, num_images=0).share is None
    assert Rate(hits=0, num_images=0).interval is None


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    """t(2, 0.975) = 4.302653; the deviation of 1, 2, 3 is 1."""
    error = 1 / 3**0.5
    found = statistics.student_interval([1.0, 2.0, 3.0])
    assert found == pytest.approx((2 - 4.302653 * error, 2 + 4.302653 * error), abs=1e-6)


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    rng = np.random.default_rng(0)
    for size in (1, 2, 10, 10, 30):
        p_values = rng.choice([0.0, 1.0, *rng.random(20) ** 3], size=size).tolist()  # with ties
        theirs = multipletests(p_values, method="holm")[1]
        assert list(statistics.holm(dict(enumerate(p_values))).values()) == pytest.approx(theirs)
    assert statistics.holm({}) == {}


@pytest.mark.parametrize("looks", [[20], [3, 5], [3, 5, 8, 12, 20]], ids=str)
def test_the_levels_of_all_looks_together_are_alpha(looks: list[int]) -> None:
    """By the joint distribution of the z-statistics, whose correlations are roots of ratios of sizes."""
    alphas = np.array(statistics.sequential_levels(looks, 0.1))
    limits = norm.isf(alphas / 2)
    smaller, larger = np.minimum.outer(looks, looks), np.maximum.outer(looks, looks)
    for num_looks, size in enumerate(looks, 1):
        some = slice(num_looks)
        joint = multivariate_normal(cov=np.sqrt(smaller / larger)[some, some], abseps=1e-6, seed=0)
        inside = joint.cdf(limits[some], lower_limit=-limits[some])
        assert 1 - inside == pytest.approx(0.1 * (size / looks[-1]) ** 2, abs=2e-5)
