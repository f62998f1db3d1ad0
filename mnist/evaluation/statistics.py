"""Intervals and tests: of a share, of a mean, and of two classifiers on the same test images.

Shape suffixes: N images, K classes.
"""

import csv
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist.core import files
from mnist.core.errors import InputError

ALPHA = 0.05  # of two-sided tests, 2.5 % each way; intervals are of 95 %
Z = NormalDist().inv_cdf(1 - ALPHA / 2)

MAX_CLASSES = 256  # labels are bytes
STEPS = 10**12  # of an interval's limits, from no change of accuracy to one from 0 to 1
HEADER = "index,label,predicted"
COLUMNS = len(HEADER.split(","))
MAX_SHOWN = 40  # characters of a line that is wrong

Key = TypeVar("Key", bound=Hashable)
Interval = tuple[float, float]  # low and high


def wilson_interval(hits: int, num_images: int) -> Interval:
    """Return the 95 % interval of a share, by Wilson's score method, from 0 to 1.

    Journal of the American Statistical Association 22:209-212, 1927; recommended by Brown, Cai and
    DasGupta (Statistical Science 16:101-133, 2001): it stays within 0 to 1 and always has a width.
    """
    assert 0 <= hits <= num_images > 0
    p, n = hits / num_images, num_images
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # At either end one limit is 0 or 1, up to the rounding.
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the 95 % interval of the mean of many values, mean ± z sd / sqrt(N); None of one value."""
    if len(values) == 1:
        return None
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / sqrt(len(values))
    return mean - half, mean + half


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of one classifier for N test images, N at least 1.

    Attributes:
        labels_N: str (N,), names of the classes of the images.
        predicted_N: str (N,), names of the predicted classes.
    """

    labels_N: NDArray[np.str_]
    predicted_N: NDArray[np.str_]

    @property
    def classes(self) -> list[str]:
        """Return the names that occur: numbers first, in their order."""
        names = np.unique(np.concatenate([self.labels_N, self.predicted_N])).tolist()
        return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return whether each prediction is right, bool (N,)."""
        return np.equal(self.predicted_N, self.labels_N)

    @property
    def num_images(self) -> int:
        """Return the number of images, N."""
        return len(self.labels_N)

    @property
    def accuracy(self) -> float:
        """Return the share of right predictions, 0 to 1."""
        return int(self.right.sum()) / self.num_images


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
    def interval_pp(self) -> tuple[float, float]:
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


def compare(base: Predictions, other: Predictions) -> Paired:
    """Compare `other` with `base`; both must be of the same images in the same order."""
    assert np.array_equal(base.labels_N, other.labels_N)
    return _counted(base, other, np.full(base.num_images, fill_value=True))


def by_class(base: Predictions, other: Predictions) -> dict[str, Paired]:
    """Compare `other` with `base` on the images of each class, by name: the changes of recall.

    Both must be of the same images in the same order. Classes without images are left out. To look
    for a class that changed, adjust the p-values by `holm` first; each interval is of one class, and
    is not widened for the number of classes.
    """
    assert np.array_equal(base.labels_N, other.labels_N)
    return {
        name: _counted(base, other, base.labels_N == name)
        for name in base.classes
        if (base.labels_N == name).any()
    }


def _counted(base: Predictions, other: Predictions, of_N: NDArray[np.bool_]) -> Paired:
    """Compare on the images that `of_N`, bool (N,), selects."""
    return Paired(
        num_images=int(of_N.sum()),
        fixed=int((other.right & ~base.right & of_N).sum()),
        broken=int((base.right & ~other.right & of_N).sum()),
    )


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
    assert min(fixed, broken) >= 0
    assert max(1, fixed + broken) <= num_images
    z = NormalDist().inv_cdf(1 - alpha / 2)
    return _lowest(fixed, broken, num_images, z), -_lowest(broken, fixed, num_images, z)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the population that two or more `values` are drawn from.

    Student's t: mean ± t(n - 1, 0.975) sd / sqrt(n), for values that are about normal. For accuracies
    over seeds it is the luck of the seed; other test images of the same kind would add to it.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


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


def read(path: Path) -> Predictions:
    """Read the table that `evaluate` wrote.

    Raises:
        InputError: the file is missing or malformed; the line is named.
    """
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except FileNotFoundError:
        raise files.missing(path) from None


def parse(text: str, where: str) -> Predictions:
    """Parse the text of that table; `where` names its source in an error.

    Raises:
        InputError: as `read`.
    """
    header, *lines = text.splitlines() or [""]
    if header != HEADER:
        raise InputError(f"{where}, line 1", found=_shown(header), expected=HEADER)
    if not lines:
        raise InputError(where, found="no predictions", expected="a line for each test image")
    names = []
    for index, line in enumerate(lines):
        row = _row(line)
        if len(row) != COLUMNS or row[0] != str(index) or not all(row):
            raise InputError(
                f"{where}, line {index + 2}", found=_shown(line), expected=f"{index},class,class"
            )
        names.append(row[1:])
    labels_N, predicted_N = np.array(names).T
    predictions = Predictions(labels_N=labels_N, predicted_N=predicted_N)
    if len(predictions.classes) > MAX_CLASSES:
        found = f"{len(predictions.classes):,} names of classes"
        raise InputError(where, found=found, expected=f"at most {MAX_CLASSES}")
    return predictions


def _row(line: str) -> list[str]:
    """Return the cells of a line; none where a quote is not closed."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _shown(line: str) -> str:
    return repr(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")
