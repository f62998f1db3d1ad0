"""Two classifiers on the same test images: what one gets right and the other does not, and what that proves.

Shape suffixes: N images, K classes.
"""

import csv
from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist.core import files
from mnist.core.errors import InputError

# Of a two-sided test: 2.5 % each way. What lies outside it is called better or worse, and the
# intervals are of 95 %.
ALPHA = 0.05

MAX_CLASSES = 256  # labels are bytes
STEPS = 10**12  # of an interval's limits, from no change of accuracy to one from 0 to 1

HEADER = "index,label,predicted"
COLUMNS = len(HEADER.split(","))
MAX_SHOWN = 40  # characters of a line that is wrong

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one classifier says of N test images, N at least 1.

    Attributes:
        labels_N: str (N,), the name of the class that each image shows.
        predicted_N: str (N,), the name of the class that the classifier sees.
    """

    labels_N: NDArray[np.str_]
    predicted_N: NDArray[np.str_]

    @property
    def classes(self) -> list[str]:
        """The names that occur, numbers first and by their size."""
        names = np.unique(np.concatenate([self.labels_N, self.predicted_N])).tolist()
        return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether it is right, bool (N,)."""
        return np.equal(self.predicted_N, self.labels_N)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels_N)

    @property
    def accuracy(self) -> float:
        """The share that is right, 0 to 1."""
        return int(self.right.sum()) / self.num_images


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A classifier beside another one, the base, on the same images.

    The test is McNemar's (Psychometrika 12, 1947), in its exact conditional form: were both equally
    good, each image on which just one of them is right would be a toss of a fair coin, so `fixed`
    is binomial, of `fixed + broken` tosses.

    Attributes:
        num_images: that both have seen.
        fixed: images that it gets right and the base gets wrong.
        broken: images that it gets wrong and the base gets right.
    """

    num_images: int
    fixed: int
    broken: int

    @property
    def change_pp(self) -> float:
        """The change of accuracy, in percentage points."""
        return 100 * (self.fixed - self.broken) / self.num_images

    @property
    def p_worse(self) -> float:
        """The chance of so few fixed, or fewer, were both equally good: small where it is worse."""
        return _heads_at_most(self.fixed, self.fixed + self.broken)

    @property
    def p_better(self) -> float:
        """The chance of so few broken, or fewer, were both equally good: small where it is better."""
        return _heads_at_most(self.broken, self.fixed + self.broken)

    @property
    def p_two_sided(self) -> float:
        """The chance of a difference so large, either way, were both equally good."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))

    @property
    def verdict(self) -> Literal["better", "worse", "within noise"]:
        """What the two-sided test says at `ALPHA`: of equals, less than 2.5 % are called each of the two."""
        if self.p_two_sided >= ALPHA:
            return "within noise"
        return "better" if self.fixed > self.broken else "worse"

    @property
    def interval_pp(self) -> tuple[float, float]:
        """The 95 % confidence interval of the change of accuracy, low and high, in percentage points.

        It is for the change on all images of the kind, of which these are a sample. It holds 0 just
        where the verdict is "within noise": it is `score_interval`, widened to 0 where the exact
        test, the stricter one, does not rule 0 out. At this `ALPHA` the score test rules 0 out
        wherever the exact one does; that was checked for up to 10,000 images fixed or broken.
        """
        low, high = score_interval(
            fixed=self.fixed, broken=self.broken, num_images=self.num_images, alpha=ALPHA
        )
        if self.verdict == "within noise":
            low, high = min(low, 0.0), max(high, 0.0)
        return 100 * low, 100 * high


def compare(base: Predictions, other: Predictions) -> Paired:
    """Hold `other` against `base`; both must be of the same images in the same order."""
    assert np.array_equal(base.labels_N, other.labels_N)
    return _counted(base, other, np.full(base.num_images, fill_value=True))


def by_class(base: Predictions, other: Predictions) -> dict[str, Paired]:
    """Hold `other` against `base` on the images of each label: what became of each class's recall.

    Both must be of the same images in the same order. Labels that do not occur are left out. Whoever
    looks at all classes for one that changed passes the p-values through `holm` first; the
    intervals are of one class each, and are not widened for there being several.
    """
    assert np.array_equal(base.labels_N, other.labels_N)
    return {
        name: _counted(base, other, base.labels_N == name)
        for name in base.classes
        if (base.labels_N == name).any()
    }


def _counted(base: Predictions, other: Predictions, of_N: NDArray[np.bool_]) -> Paired:
    """The comparison on some of the images, bool (N,)."""
    return Paired(
        num_images=int(of_N.sum()),
        fixed=int((other.right & ~base.right & of_N).sum()),
        broken=int((base.right & ~other.right & of_N).sum()),
    )


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjust p-values for there being several: Holm's step-down method.

    Naming those whose adjusted value is below alpha names one wrongly with a chance of at most
    alpha, however the tests depend on each other (Scandinavian Journal of Statistics 6:65-70, 1979).
    The smallest of K is multiplied by K, the next one by K - 1, and so on; none may be below the
    one before it.
    """
    ordered = sorted(p_values, key=p_values.__getitem__)
    steps = (min(1.0, (len(ordered) - rank) * p_values[key]) for rank, key in enumerate(ordered))
    adjusted = dict(zip(ordered, accumulate(steps, max), strict=True))
    return {key: adjusted[key] for key in p_values}


def score_interval(*, fixed: int, broken: int, num_images: int, alpha: float) -> tuple[float, float]:
    """Tango's confidence interval for a change of accuracy, low and high, as fractions from -1 to 1.

    It is one of those that Fagerland, Lydersen and Laake recommend (Statistics in Medicine
    33:2850-2875, 2014): it says of no change what McNemar's asymptotic test says, has a width where
    nothing is fixed or broken, and never leaves -1 to 1. It is approximate: of 95 %, widened to 0 as
    in `Paired.interval_pp`, it covers the true change in 93 to 100 % of samples, 93 % where some 4
    to 8 images are fixed and hardly one is broken.

    Args:
        fixed: images that just the other classifier gets right.
        broken: images that just the base gets right.
        num_images: all of them, the rest included on which both are right or both wrong.
        alpha: how often it may miss, 0.05 for an interval of 95 %.
    """
    assert min(fixed, broken) >= 0
    assert max(1, fixed + broken) <= num_images
    z = NormalDist().inv_cdf(1 - alpha / 2)
    return _lowest(fixed, broken, num_images, z), -_lowest(broken, fixed, num_images, z)


def _lowest(fixed: int, broken: int, num_images: int, z: float) -> float:
    """The least change of accuracy below which the true one is not: the score test's lower limit.

    Tango, Statistics in Medicine 17:891-908 (1998), equations 24 to 26, with the change for -Delta:
    the observed change, less the one that is tested, in standard errors, with the chance that
    an image is broken at its likeliest under the one that is tested. It falls as the tested change
    grows, so the limit is where it comes down to z, found by halving.
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
    """The chance of at most `heads` in so many tosses of a fair coin; 1 where there is no toss.

    The binomial distribution as an incomplete beta function (https://dlmf.nist.gov/8.17#E5), which
    SciPy has from Boost: at 10,000 tosses its relative error is 1.2e-12 at most. That of
    `scipy.special.bdtr` is 20 times as large, and `scipy.stats` takes a second to import.
    """
    from scipy.special import betainc  # type: ignore[import-untyped]  # 0.2 s, not for who only reads

    return float(betainc(tosses - heads, heads + 1, 0.5))


def read(path: Path) -> Predictions:
    """Read the table that `evaluate` wrote.

    Raises:
        InputError: the file is missing, or holds something else; the line is named.
    """
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except FileNotFoundError:
        raise files.missing(path) from None


def parse(text: str, where: str) -> Predictions:
    """Read the same table from its text; `where` names its source in an error.

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
    """The cells of a line; none where its quotes do not close."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _shown(line: str) -> str:
    return repr(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")
