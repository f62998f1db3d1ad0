"""Two networks on the same test images: their accuracies, and the predictions that differ."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mnist.evaluation import statistics
from mnist.evaluation.predictions import Predictions, by_class, compare


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """The test images of one class.

    Attributes:
        label: name of the class.
        num_images: of it.
        base_recall: share of them that base gets right, 0 to 1.
        head_recall: the same of head.
        fixed: images that head alone gets right.
        broken: images that base alone gets right.
        p: of the exact two-sided McNemar test, adjusted by Holm for the number of classes.
    """

    label: str
    num_images: int
    base_recall: float
    head_recall: float
    fixed: int
    broken: int
    p: float


@dataclass(frozen=True, kw_only=True)
class PredictionChange:
    """The test images of one label whose prediction changed from one class to another; indices from 0."""

    label: str
    base: str
    head: str
    images: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Images:
    """Both networks on the same test images.

    Attributes:
        verdict: of the exact test.
        num_images: of them.
        base_accuracy: 0 to 1.
        head_accuracy: 0 to 1.
        change_pp: head less base, in percentage points.
        interval_pp: 95 % confidence interval of the change.
        p: of the exact two-sided McNemar test.
        fixed: indices of the images that head alone gets right.
        broken: indices of the images that base alone gets right.
        classes: the same class by class.
        changed: predictions that changed, the most frequent change first.
    """

    verdict: Literal["better", "worse", "within noise"]
    num_images: int
    base_accuracy: float
    head_accuracy: float
    change_pp: float
    interval_pp: tuple[float, float]
    p: float
    fixed: tuple[int, ...]
    broken: tuple[int, ...]
    classes: tuple[ClassChange, ...]
    changed: tuple[PredictionChange, ...]


def compare_images(base: Predictions, head: Predictions) -> Images:
    """Compare two networks; both predictions must be of the same images in the same order."""
    paired, classes = compare(base, head), by_class(base, head)
    adjusted = statistics.holm({label: of_class.p_two_sided for label, of_class in classes.items()})
    changed = defaultdict(list)
    for index in np.flatnonzero(base.predicted_N != head.predicted_N).tolist():
        key = str(base.labels_N[index]), str(base.predicted_N[index]), str(head.predicted_N[index])
        changed[key].append(index)
    return Images(
        verdict=paired.verdict,
        num_images=paired.num_images,
        base_accuracy=base.accuracy,
        head_accuracy=head.accuracy,
        change_pp=paired.change_pp,
        interval_pp=paired.interval_pp,
        p=paired.p_two_sided,
        fixed=tuple(np.flatnonzero(head.right & ~base.right).tolist()),
        broken=tuple(np.flatnonzero(base.right & ~head.right).tolist()),
        classes=tuple(
            ClassChange(
                label=label,
                num_images=of_class.num_images,
                base_recall=float(base.right[base.labels_N == label].mean()),
                head_recall=float(head.right[head.labels_N == label].mean()),
                fixed=of_class.fixed,
                broken=of_class.broken,
                p=adjusted[label],
            )
            for label, of_class in classes.items()
        ),
        changed=tuple(
            PredictionChange(label=label, base=before, head=after, images=tuple(images))
            for (label, before, after), images in sorted(changed.items(), key=lambda one: -len(one[1]))
        ),
    )
