"""Intervals and tests: of a share, of a mean, and of two classifiers on the same test images.

Shape suffix: Q points of a numerical integral.
"""

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import pi, sqrt
from statistics import NormalDist, mean, stdev
from typing import Literal, TypeVar

import numpy as np

ALPHA = 0.05  # of two-sided tests, 2.5 % each way; intervals are of 95 %
Z = NormalDist().inv_cdf(1 - ALPHA / 2)
MAX_Z = 40.0  # standard deviations, beyond any limit of a test
NUM_NODES = 100  # of Gauss and Legendre: nine digits for up to some ten looks
STEPS = 10**12  # of an interval's limits, from no change of accuracy to one from 0 to 1

Key = TypeVar("Key", bound=Hashable)
Interval = tuple[float, float]  # low and high


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of images.

    Attributes:
        hits: number of images that count.
        num_images: number of all images.
    """

    hits: int
    num_images: int

    @property
    def share(self) -> float | None:
        """Return the share, 0 to 1; None without images."""
        return self.hits / self.num_images if self.num_images else None

    @property
    def interval(self) -> Interval | None:
        """Return the 95 % interval of the share in all images of the kind; None without images.

        By Wilson's score method (Journal of the American Statistical Association 22:209-212, 1927), which
        Brown, Cai and DasGupta recommend (Statistical Science 16:101-133, 2001): it stays within 0 to 1
        and always has a width.
        """
        if not self.num_images:
            return None
        p, n = self.hits / self.num_images, self.num_images
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        # At either end one limit is 0 or 1, up to the rounding.
        return 0.0 if self.hits == 0 else middle - half, 1.0 if self.hits == n else middle + half


def student_interval(values: Sequence[float], *, alpha: float = ALPHA, least_sd: float = 0.0) -> Interval:
    """Return the interval of the mean of the population that two or more `values` are drawn from.

    Student's t: mean ± t(n - 1, 1 - alpha / 2) sd / sqrt(n), for values that are about normal. For accuracies
    over seeds it is the luck of the seed; other test images of the same kind would add to it.

    Args:
        values: of a sample.
        alpha: 0.05 for an interval of 95 %.
        least_sd: the smallest standard deviation to reckon with, where values are rounded.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    sd = max(stdev(values), least_sd)
    half = float(stdtrit(len(values) - 1, 1 - alpha / 2)) * sd / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def sequential_levels(looks: Sequence[int], alpha: float) -> list[float]:
    """Return the two-sided significance level of each look at a growing sample.

    If the mean is 0, the chance that any of the tests at these levels says otherwise is `alpha`. Until a
    share t of the sample is there, alpha t**2 of it is spent: the power family of Kim and DeMets (Biometrika
    74:149-154, 1987), for the looks at any time of Lan and DeMets (Biometrika 70:659-663, 1983). The levels
    are those of sums of normal values, by numerical integration from look to look (Armitage, McPherson and
    Rowe, Journal of the Royal Statistical Society A 132:235-244, 1969).

    Student's tests at these levels keep `alpha` approximately: Pocock's significance level approach
    (Biometrika 64:191-199, 1977). Looks at 3, 5, 8, 12 and 20 values falsely find a mean in 5.3 % of 400,000
    normal samples, and in 4.5 % of samples of differences of two Student's t with 3 degrees of freedom.

    Args:
        looks: sizes of the sample, the last one being the largest.
        alpha: 0.05 for one false alarm in twenty.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import ndtr

    nodes_Q, weights_Q = np.polynomial.legendre.leggauss(NUM_NODES)
    levels: list[float] = []
    # The sum of the values so far, where no look has stopped: points, and the probability at each.
    sums_Q, mass_Q, size, spent = np.zeros(1), np.ones(1), 0, 0.0
    for look in looks:
        sd, to_spend = sqrt(look - size), alpha * (look / looks[-1]) ** 2
        size = look

        def excess(limit: float) -> float:
            """Return the chance that this sum is beyond ± limit, less what this look may spend."""
            beyond_Q = ndtr((sums_Q - limit) / sd) + ndtr((-limit - sums_Q) / sd)  # noqa: B023 -- called below
            return float(mass_Q @ beyond_Q) - (to_spend - spent)  # noqa: B023

        limit = brentq(excess, 0, MAX_Z * sqrt(look))
        levels.append(2 * float(ndtr(-limit / sqrt(look))))
        steps_QQ = (limit * nodes_Q[:, None] - sums_Q) / sd
        mass_Q = limit * weights_Q * (np.exp(-(steps_QQ**2) / 2) @ mass_Q) / (sd * sqrt(2 * pi))
        sums_Q, spent = limit * nodes_Q, to_spend
    return levels


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A classifier compared with another one, the base, on the same images.

    The test is McNemar's (Psychometrika 12, 1947), in its exact conditional form: if both are equally
    good, each image on which exactly one of them is right is a toss of a fair coin, so `fixed` is
    binomial, of `fixed + broken` tosses.

    Attributes:
        num_images: number of images.
        fixed: images on which it is right and the base is wrong.
        broken: images on which it is wrong and the base is right.
    """

    num_images: int
    fixed: int
    broken: int

    @property
    def change_pp(self) -> float:
        """Return the change of accuracy, in percentage points."""
        return 100 * (self.fixed - self.broken) / self.num_images

    @property
    def p_worse(self) -> float:
        """Return the chance of at most `fixed` fixed images if both are equally good: small if worse."""
        return _heads_at_most(self.fixed, self.fixed + self.broken)

    @property
    def p_better(self) -> float:
        """Return the chance of at most `broken` broken images if both are equally good: small if better."""
        return _heads_at_most(self.broken, self.fixed + self.broken)

    @property
    def p_two_sided(self) -> float:
        """Return the chance of a difference at least as large, either way, if both are equally good."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))

    @property
    def verdict(self) -> Literal["better", "worse", "within noise"]:
        """Return the result of the two-sided test at `ALPHA`; less than 2.5 % of equals are "better"."""
        if self.p_two_sided >= ALPHA:
            return "within noise"
        return "better" if self.fixed > self.broken else "worse"

    @property
    def interval_pp(self) -> Interval:
        """Return the 95 % confidence interval of the change of accuracy, in percentage points.

        The change is that on all images of the kind, of which these are a sample. The interval holds 0
        exactly where the verdict is "within noise": it is `score_interval`, widened to 0 where the
        exact test, the stricter one, does not rule 0 out. At this `ALPHA` the score test rules 0 out
        wherever the exact one does (checked for up to 10,000 images fixed or broken).
        """
        low, high = score_interval(
            fixed=self.fixed, broken=self.broken, num_images=self.num_images, alpha=ALPHA
        )
        if self.verdict == "within noise":
            low, high = min(low, 0.0), max(high, 0.0)
        return 100 * low, 100 * high


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust several p-values by Holm's step-down method.

    If all whose adjusted value is below alpha are called changed, the chance that one of them is not
    is at most alpha, however the tests depend on each other (Scandinavian Journal of Statistics
    6:65-70, 1979). The smallest of K is multiplied by K, the next one by K - 1, and so on; none is
    below the one before it.
    """
    ordered = sorted(p_values, key=p_values.__getitem__)
    steps = (min(1.0, (len(ordered) - rank) * p_values[key]) for rank, key in enumerate(ordered))
    adjusted = dict(zip(ordered, accumulate(steps, max), strict=True))
    return {key: adjusted[key] for key in p_values}


def score_interval(*, fixed: int, broken: int, num_images: int, alpha: float) -> Interval:
    """Return Tango's confidence interval of a change of accuracy, as fractions from -1 to 1.

    Fagerland, Lydersen and Laake recommend it (Statistics in Medicine 33:2850-2875, 2014): it agrees
    with McNemar's asymptotic test on no change, has a width where nothing is fixed or broken, and
    stays within -1 to 1. It is approximate: the one of 95 %, widened to 0 as in `Paired.interval_pp`,
    covers the true change in 93 to 100 % of samples, 93 % where some 4 to 8 images are fixed and
    hardly one is broken. statsmodels has no Tango interval.

    Args:
        fixed: number of images on which only the other classifier is right.
        broken: number of images on which only the base is right.
        num_images: number of all images.
        alpha: 0.05 for an interval of 95 %.
    """
    z = NormalDist().inv_cdf(1 - alpha / 2)
    return _lowest(fixed, broken, num_images, z), -_lowest(broken, fixed, num_images, z)


def _lowest(fixed: int, broken: int, num_images: int, z: float) -> float:
    """Return the lower limit of the score test's interval.

    Tango, Statistics in Medicine 17:891-908 (1998), equations 24 to 26, with the change for -Delta:
    the observed change minus the tested one, in standard errors, where the chance that an image is
    broken has its maximum likelihood under the tested change. It falls as the tested change grows;
    the limit is where it reaches z, found by bisection.
    """

    def plausible(step: int) -> bool:
        change = step / STEPS
        b = (2 * num_images - fixed + broken) * change - fixed - broken
        # Rounding alone makes what is under this root negative, where it is 0.
        root = sqrt(max(0.0, b * b + 8 * num_images * broken * change * (1 - change)))
        p_broken = (root - b) / (4 * num_images)
        variance = num_images * (2 * p_broken + change * (1 - change))
        return fixed - broken - num_images * change <= z * sqrt(variance)

    steps = range(-STEPS, STEPS)
    return steps[bisect_left(steps, True, key=plausible)] / STEPS


def _heads_at_most(heads: int, tosses: int) -> float:
    """Return the chance of at most `heads` in so many tosses of a fair coin; 1 for no toss.

    The binomial distribution as an incomplete beta function (https://dlmf.nist.gov/8.17#E5), which
    SciPy takes from Boost: at 10,000 tosses its relative error is at most 1.2e-12. That of
    `scipy.special.bdtr` is 20 times as large, and `scipy.stats` takes a second to import.
    """
    from scipy.special import betainc  # 0.2 s, not needed to read predictions

    return float(betainc(tosses - heads, heads + 1, 0.5))
