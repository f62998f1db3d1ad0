"""How good predictions are.

Shape suffixes: N images, K classes, M bins.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist import files, params
from mnist.dataset import Bytes
from mnist.params import Fraction, Section

NUM_BINS = 15  # of the reliability diagram in Guo et al. 2017


class Scores(Section):
    """Of N predictions.

    Attributes:
        accuracy: share that is right.
        loss: mean negative log-likelihood, in nats an image.
        num_wrong: how many are not right.
        num_images: N.
        expected_calibration_error: see `calibration_error`.
        recall: share of each class's images that is right, by its name; None for a class without images.
    """

    accuracy: Fraction
    loss: float
    num_wrong: int
    num_images: int
    expected_calibration_error: float
    recall: dict[str, Fraction | None]


def score(log_probs_NK: NDArray[np.float32], labels_N: Bytes, *, classes: Sequence[str]) -> Scores:
    """Score log-probabilities, float32 (N, K), against labels, uint8 (N,), of K classes; to six decimals."""
    log_probs_NK = log_probs_NK.astype(np.float64)
    right_N = log_probs_NK.argmax(1) == labels_N
    confidence_N = np.exp(log_probs_NK.max(1))
    recall = {
        name: round(float(right_N[labels_N == label].mean()), 6) if (labels_N == label).any() else None
        for label, name in enumerate(classes)
    }
    return Scores(
        accuracy=round(float(right_N.mean()), 6),
        loss=round(float(-log_probs_NK[np.arange(len(labels_N)), labels_N].mean()), 6),
        num_wrong=int((~right_N).sum()),
        num_images=len(labels_N),
        expected_calibration_error=round(calibration_error(confidence_N, right_N), 6),
        recall=recall,
    )


def calibration_error(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """Expected calibration error of Guo et al. 2017, equation 3 (https://arxiv.org/abs/1706.04599).

    The mean, weighted by images, of |accuracy - mean confidence| over `NUM_BINS` equal intervals
    (low, high] of confidence.
    """
    bin_N = np.clip(np.ceil(confidence_N * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    # |sum of right - sum of confidence| in a bin is its weight times its gap, times N.
    gap_M = np.bincount(bin_N, weights=right_N - confidence_N, minlength=NUM_BINS)
    return float(np.abs(gap_M).sum() / len(right_N))


def read(path: Path) -> Scores:
    """Read the scores that `evaluate` wrote.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    return params.check(Scores, files.read_json(path), str(path))


def write_predictions(
    path: Path, *, labels_N: Bytes, predicted_N: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Write a row an image: its position in the test split, its class and the predicted one, by name."""
    names_K = np.array(classes)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "label", "predicted"])
    labels, predicted = names_K[labels_N].tolist(), names_K[predicted_N].tolist()
    table.writerows(zip(range(len(labels_N)), labels, predicted, strict=True))
    files.write_text(path, text.getvalue())
