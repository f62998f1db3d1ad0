"""Two classifiers on the same test images: what one gets right and the other does not, and what that proves.

Shape suffix: N images.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist import files
from mnist.errors import InputError

HEADER = "index,label,predicted"
ROW = re.compile(r"([0-9]{1,9}),([0-9]),([0-9])")
MAX_SHOWN = 40  # characters of a line that is wrong


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one classifier says of N test images, N at least 1.

    Attributes:
        labels_N: uint8 (N,), the digit that each image shows.
        predicted_N: uint8 (N,), the digit that the classifier sees.
    """

    labels_N: NDArray[np.uint8]
    predicted_N: NDArray[np.uint8]

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
        return heads_at_most(self.fixed, self.fixed + self.broken)

    @property
    def p_better(self) -> float:
        """The chance of so few broken, or fewer, were both equally good: small where it is better."""
        return heads_at_most(self.broken, self.fixed + self.broken)

    @property
    def p_two_sided(self) -> float:
        """The chance of a difference so large, either way, were both equally good."""
        return min(1.0, 2 * min(self.p_worse, self.p_better))


def compare(base: Predictions, other: Predictions) -> Paired:
    """Hold `other` against `base`; both must be of the same images in the same order."""
    assert np.array_equal(base.labels_N, other.labels_N)
    return Paired(
        num_images=base.num_images,
        fixed=int((other.right & ~base.right).sum()),
        broken=int((base.right & ~other.right).sum()),
    )


def heads_at_most(heads: int, tosses: int) -> float:
    """The chance of at most `heads` in so many tosses of a fair coin; 1 where there is no toss.

    In whole numbers, so it is the exact sum of binomial coefficients, rounded once; 10,000 tosses
    take 0.02 s.
    """
    if heads >= tosses:
        return 1.0
    coefficient = total = 1
    for k in range(heads):
        coefficient = coefficient * (tosses - k) // (k + 1)
        total += coefficient
    return total / (1 << tosses)


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
    digits = []
    for index, line in enumerate(lines):
        row = ROW.fullmatch(line)
        if row is None or int(row[1]) != index:
            raise InputError(
                f"{where}, line {index + 2}", found=_shown(line), expected=f"{index},digit,digit"
            )
        digits.append((int(row[2]), int(row[3])))
    labels_N, predicted_N = np.array(digits, np.uint8).T
    return Predictions(labels_N=labels_N, predicted_N=predicted_N)


def _shown(line: str) -> str:
    return repr(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")
