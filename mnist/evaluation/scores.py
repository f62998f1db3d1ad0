"""Scores of predictions on the test images, and the files that `evaluate` writes of them.

Shape suffixes: N images, K classes, M of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist.core import config, files
from mnist.core.config import Fraction, Section
from mnist.data.store import Bytes
from mnist.evaluation.statistics import Rate

NUM_BINS = 15  # of the reliability diagram in Guo et al. 2017


class Scores(Section):
    """The scores of N predictions.

    Attributes:
        accuracy: share of right predictions.
        balanced_accuracy: see `balanced_accuracy`.
        loss: mean negative log-likelihood of an image, in nats.
        expected_calibration_error: see `calibration_error`.
    """

    accuracy: Fraction
    balanced_accuracy: Fraction
    loss: float
    expected_calibration_error: float


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions whose confidence lies in one interval.

    Attributes:
        low: lower end of the interval, which is not in it.
        high: upper end of the interval, which is in it.
        right: share of right predictions among them.
        confidence: their mean confidence; None in an empty bin.
    """

    low: float
    high: float
    right: Rate
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The scores of one class.

    Attributes:
        name: of the class.
        recall: share of its images for which it was predicted.
        precision: share of the images for which it was predicted that are of it.
    """

    name: str
    recall: Rate
    precision: Rate

    @property
    def f1(self) -> float | None:
        """Return the harmonic mean of both; None of a class without images that was never predicted."""
        count = self.recall.num_images + self.precision.num_images
        return 2 * self.recall.hits / count if count else None


def score(log_probs_NK: NDArray[np.float32], labels_N: Bytes) -> Scores:
    """Score log-probabilities, float32 (N, K), against labels, uint8 (N,); to six decimals."""
    log_probs_NK = log_probs_NK.astype(np.float64)
    predicted_N = log_probs_NK.argmax(1)
    right_N = predicted_N == labels_N
    counts_KK = confusion(labels_N, predicted_N, num_classes=log_probs_NK.shape[1])
    return Scores(
        accuracy=round(float(right_N.mean()), 6),
        balanced_accuracy=round(balanced_accuracy(counts_KK), 6),
        loss=round(float(-log_probs_NK[np.arange(len(labels_N)), labels_N].mean()), 6),
        expected_calibration_error=round(calibration_error(bins(confidence(log_probs_NK), right_N)), 6),
    )


def confusion(
    labels_N: NDArray[np.integer[Any]], predicted_N: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.int64]:
    """Count the images by class (rows) and predicted class (columns), int64 (K, K)."""
    counts_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_KK, (labels_N, predicted_N), 1)
    return counts_KK


def balanced_accuracy(counts_KK: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have images, from the counts that `confusion` makes.

    Each class counts alike, however rare: Brodersen et al. 2010 (https://doi.org/10.1109/ICPR.2010.764).
    """
    num_images_K = counts_KK.sum(1)
    recall_K = counts_KK.diagonal() / np.maximum(num_images_K, 1)
    return float(recall_K[num_images_K > 0].mean())


def class_scores(counts_KK: NDArray[np.int64], classes: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each class, from the counts that `confusion` makes."""
    columns = counts_KK.diagonal().tolist(), counts_KK.sum(1).tolist(), counts_KK.sum(0).tolist()
    return [
        ClassScore(
            name=name,
            recall=Rate(hits=hits, num_images=num_images),
            precision=Rate(hits=hits, num_images=num_predicted),
        )
        for name, hits, num_images, num_predicted in zip(classes, *columns, strict=True)
    ]


def confidence(log_probs_NK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the probability of each predicted class, float64 (N,), from log-probabilities (N, K)."""
    probability_N: NDArray[np.float64] = np.exp(log_probs_NK.max(1).astype(np.float64))
    return probability_N


def confident_mistakes(log_probs_NK: NDArray[np.float32], labels_N: Bytes) -> NDArray[np.int64]:
    """Return the positions of the wrong predictions, int64 (M,), the most confident first."""
    wrong_M = np.flatnonzero(log_probs_NK.argmax(1) != labels_N)
    return wrong_M[np.argsort(-confidence(log_probs_NK)[wrong_M], kind="stable")]


def bins(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> list[Bin]:
    """Return the bins of the reliability diagram: `NUM_BINS` equal intervals (low, high] of confidence."""
    number_N = np.clip(np.ceil(confidence_N * NUM_BINS) - 1, 0, NUM_BINS - 1)
    found = []
    for number in range(NUM_BINS):
        in_bin_N = number_N == number
        right = Rate(hits=int(right_N[in_bin_N].sum()), num_images=int(in_bin_N.sum()))
        mean = float(confidence_N[in_bin_N].mean()) if right.num_images else None
        found.append(Bin(low=number / NUM_BINS, high=(number + 1) / NUM_BINS, right=right, confidence=mean))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error of Guo et al. 2017, eq. 3 (https://arxiv.org/abs/1706.04599).

    It is the mean of |accuracy - mean confidence| over the bins, weighted by their images.
    """
    gaps = (abs(one.right.hits - one.right.num_images * (one.confidence or 0)) for one in bins)
    return sum(gaps) / sum(one.right.num_images for one in bins)


def read(path: Path) -> Scores:
    """Read the scores that `evaluate` wrote.

    Raises:
        InputError: the file is missing or malformed.
    """
    return config.check(Scores, files.read_json(path), str(path))


def class_table(counts_KK: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return a table of a row for each class: its number of images, recall and precision, to six decimals.

    A share of no images is left empty.

    Args:
        counts_KK: as `confusion` makes them.
        classes: their names.
    """

    def rounded(rate: Rate) -> float | None:
        return None if rate.share is None else round(rate.share, 6)

    return files.csv_text(
        ("class", "num_images", "recall", "precision"),
        (
            (one.name, one.recall.num_images, rounded(one.recall), rounded(one.precision))
            for one in class_scores(counts_KK, classes)
        ),
    )
