"""What is different between two revisions: the form of it, in numbers, without words for people."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mnist.evaluation import statistics
from mnist.evaluation.statistics import Paired

Outcome = Literal["better", "worse", "within noise", "not comparable"]
Side = Literal["both", "base", "head"]
Direction = Literal["more", "less", ""]

# Before the names of what is measured on the held-out images.
HELD_OUT = "val_"


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """The test images of one label.

    Attributes:
        label: the name of the class.
        base_recall: share of them that base gets right, 0 to 1.
        head_recall: the same of head.
        paired: the comparison.
        p: of the exact two-sided McNemar test, adjusted by Holm for looking at all classes.
    """

    label: str
    base_recall: float
    head_recall: float
    paired: Paired
    p: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether its recall changed by more than chance explains, though all classes were looked at."""
        return self.p < statistics.ALPHA


@dataclass(frozen=True, kw_only=True)
class Images:
    """Both networks on the same test images.

    Attributes:
        base_accuracy: 0 to 1.
        head_accuracy: the same.
        paired: the comparison.
        classes: the same by label.
        fixed: indices of the images that head alone gets right.
        broken: indices of those that base alone gets right.
        names: of the K classes, in their order.
        confusion: change of the number of images, int64 (K, K), rows label, columns predicted.
    """

    base_accuracy: float
    head_accuracy: float
    paired: Paired
    classes: tuple[ClassChange, ...]
    fixed: tuple[int, ...]
    broken: tuple[int, ...]
    names: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def drop(self) -> float:
        """By how much the accuracy fell, as a fraction; negative where it rose."""
        return (self.paired.broken - self.paired.fixed) / self.paired.num_images


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric on both sides.

    Attributes:
        name: dotted key, with its file where the key alone would be ambiguous.
        base: its value; None where there is none.
        head: the same.
        good: which way is better, as far as the name tells.
        interval: 95 % confidence interval of the change, in the metric's unit, where each image has its say.
        p: of the exact two-sided McNemar test, where there is an interval.
    """

    name: str
    base: Any
    head: Any
    good: Direction
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def change(self) -> float | None:
        """Head less base; None where they are no finite numbers."""
        if not (is_number(self.base) and is_number(self.head)):
            return None
        change = float(self.head) - float(self.base)
        return change if math.isfinite(change) else None

    @property
    def is_same(self) -> bool:
        """Whether both sides have one value."""
        if self.base is None or isinstance(self.base, bool) != isinstance(self.head, bool):
            return False
        both_nan = all(isinstance(side, float) and math.isnan(side) for side in (self.base, self.head))
        return both_nan or bool(self.base == self.head)


@dataclass(frozen=True, kw_only=True)
class Param:
    """A param that is not the same; `side` tells where it is."""

    name: str
    side: Side
    base: Any
    head: Any


@dataclass(frozen=True, kw_only=True)
class StageChange:
    """A stage that is not the same.

    Attributes:
        name: in `dvc.yaml`.
        side: where it is.
        is_cmd: whether its command is another one.
        params: that changed and that it depends on, on a side or the other.
        code: files whose content is another one, or that one side alone reads; what no stage makes.
        data: the same of what other stages make.
    """

    name: str
    side: Side
    is_cmd: bool
    params: tuple[str, ...]
    code: tuple[str, ...]
    data: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FindingChange:
    """An expectation of the data that came out otherwise; None where it is not on that side."""

    expectation: str
    base: str | None
    head: str | None


@dataclass(frozen=True, kw_only=True)
class ValidationChange:
    """The verdicts on the data.

    Attributes:
        base: whether all expectations hold, how many do and how many there are; None where unknown.
        head: the same.
        is_same_data: whether both sides have the same data set; None where unknown.
        findings: what came out otherwise.
    """

    base: tuple[bool, int, int] | None
    head: tuple[bool, int, int] | None
    is_same_data: bool | None
    findings: tuple[FindingChange, ...]


@dataclass(frozen=True, kw_only=True)
class CurvePair:
    """A learning curve on both sides; a side that has none has no points."""

    title: str
    x: str
    y: str
    base: tuple[tuple[float, float], ...]
    head: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it takes, on both sides; None where nobody knows."""

    name: str
    base: float | None
    head: float | None


@dataclass(frozen=True)
class Timing:
    """How long a training took, on what."""

    seconds: float
    device: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All of it.

    Attributes:
        base: name of the revision.
        base_commit: its full hash; empty for the workspace.
        head: name of the other one.
        head_commit: its full hash.
        outcome: the verdict, by the exact test on the test images.
        reason: why they are not comparable; empty where they are.
        images: the test images; None where they are not comparable.
        metrics: all of them, the same and the different.
        other_held_out: params that changed which training images are held out, so that `val_...` do
            not compare.
        params: that changed.
        stages: that changed.
        validation: of the data.
        curves: with points at two places of x, or more, on a side.
        costs: parameters, steps, seconds.
        devices: that base and head were trained on, where both are known and are not the same.
        is_doubtful: whether results of a side are old or altered: the warnings say which.
        warnings: what a reader must know to trust the rest.
        problems: why something could not be read, by side and file.
    """

    base: str
    base_commit: str
    head: str
    head_commit: str
    outcome: Outcome
    reason: str
    images: Images | None
    metrics: tuple[Metric, ...]
    other_held_out: tuple[str, ...]
    params: tuple[Param, ...]
    stages: tuple[StageChange, ...]
    validation: ValidationChange
    curves: tuple[CurvePair, ...]
    costs: tuple[Cost, ...]
    devices: tuple[str, str] | None
    is_doubtful: bool
    warnings: tuple[str, ...]
    problems: Mapping[str, Mapping[str, str]]


def is_number(value: Any) -> bool:
    """Whether it is one to calculate with: no NaN, and not so large that a float cannot hold it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
