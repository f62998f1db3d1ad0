"""Scores of predictions on the test images, and the files that `evaluate` writes.

Shape suffixes: N images, K classes, M bins.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mnist.core import config, files
from mnist.core.config import Fraction, Section
from mnist.core.errors import InputError
from mnist.data.store import Bytes

NUM_BINS = 15  # of the reliability diagram in Guo et al. 2017


class Scores(Section):
    """The scores of N predictions.

    Attributes:
        accuracy: share of right predictions.
        loss: mean negative log-likelihood of an image, in nats.
        num_wrong: number of wrong predictions.
        num_images: N.
        expected_calibration_error: see `calibration_error`.
    """

    accuracy: Fraction
    loss: float
    num_wrong: int
    num_images: int
    expected_calibration_error: float


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The predictions whose confidence lies in one interval.

    Attributes:
        low: lower end of the interval, which is not in it.
        high: upper end of the interval, which is in it.
        num_images: number of predictions.
        num_right: number of right ones among them.
        confidence: their mean confidence; None in an empty bin.
    """

    low: float
    high: float
    num_images: int
    num_right: int
    confidence: float | None


def score(log_probs_NK: NDArray[np.float32], labels_N: Bytes) -> Scores:
    """Score log-probabilities, float32 (N, K), against labels, uint8 (N,); to six decimals."""
    log_probs_NK = log_probs_NK.astype(np.float64)
    right_N = log_probs_NK.argmax(1) == labels_N
    return Scores(
        accuracy=round(float(right_N.mean()), 6),
        loss=round(float(-log_probs_NK[np.arange(len(labels_N)), labels_N].mean()), 6),
        num_wrong=int((~right_N).sum()),
        num_images=len(labels_N),
        expected_calibration_error=round(calibration_error(confidence(log_probs_NK), right_N), 6),
    )


def confusion(
    labels_N: NDArray[np.integer[Any]], predicted_N: NDArray[np.int64], *, num_classes: int
) -> NDArray[np.int64]:
    """Count the images by class (rows) and predicted class (columns), int64 (K, K)."""
    counts_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_KK, (labels_N, predicted_N), 1)
    return counts_KK


def confidence(log_probs_NK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the probability of each predicted class, float64 (N,), from log-probabilities (N, K)."""
    probability_N: NDArray[np.float64] = np.exp(log_probs_NK.max(1).astype(np.float64))
    return probability_N


def confident_mistakes(log_probs_NK: NDArray[np.float32], labels_N: Bytes) -> NDArray[np.int64]:
    """Return the positions of the wrong predictions, int64 (M,), the most confident first."""
    wrong_M = np.flatnonzero(log_probs_NK.argmax(1) != labels_N)
    return wrong_M[np.argsort(-confidence(log_probs_NK)[wrong_M], kind="stable")]


def calibration_error(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of Guo et al. 2017, eq. 3 (https://arxiv.org/abs/1706.04599).

    It is the mean, weighted by images, of |accuracy - mean confidence| over `NUM_BINS` equal intervals
    (low, high] of confidence.
    """
    # |sum of right - sum of confidence| in a bin is its weight times its gap, times N.
    gap_M = np.bincount(_bin(confidence_N), weights=right_N - confidence_N, minlength=NUM_BINS)
    return float(np.abs(gap_M).sum() / len(right_N))


def bins(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> list[Bin]:
    """Return the bins of the reliability diagram, which `calibration_error` sums up, by confidence."""
    bin_N = _bin(confidence_N)
    count_M, right_M, confidence_M = (
        np.bincount(bin_N, weights=weight_N, minlength=NUM_BINS).tolist()
        for weight_N in (None, right_N, confidence_N)
    )
    return [
        Bin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            num_images=count,
            num_right=round(right),
            confidence=confidence / count if count else None,
        )
        for number, (count, right, confidence) in enumerate(zip(count_M, right_M, confidence_M, strict=True))
    ]


def _bin(confidence_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each confidence, 0 to `NUM_BINS` - 1: intervals (low, high]."""
    return np.clip(np.ceil(confidence_N * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def read(path: Path) -> Scores:
    """Read the scores that `evaluate` wrote.

    Raises:
        InputError: the file is missing or malformed.
    """
    return config.check(Scores, files.read_json(path), str(path))


def write_predictions(
    path: Path, *, labels_N: Bytes, predicted_N: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Write a row for each image: its position in the split, the names of its class and the predicted one."""
    names_K = np.array(classes)
    labels, predicted = names_K[labels_N].tolist(), names_K[predicted_N].tolist()
    rows = zip(range(len(labels_N)), labels, predicted, strict=True)
    _write_csv(path, ("index", "label", "predicted"), rows)


def write_classes(
    path: Path, *, labels_N: Bytes, predicted_N: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """Write a row for each class: its number of images, recall and precision, to six decimals.

    A share of no images is left empty.
    """
    counts_KK = confusion(labels_N, predicted_N, num_classes=len(classes))

    def share(count: int, of: int) -> float | None:
        return round(count / of, 6) if of else None

    columns = counts_KK.diagonal().tolist(), counts_KK.sum(1).tolist(), counts_KK.sum(0).tolist()
    rows = zip(classes, *columns, strict=True)
    _write_csv(
        path,
        ("class", "num_images", "recall", "precision"),
        (
            (name, num_images, share(right, num_images), share(right, num_predicted))
            for name, right, num_images, num_predicted in rows
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    files.write_text(path, text.getvalue())


def write_log_probs(path: Path, log_probs_NK: NDArray[np.float32]) -> None:
    """Write the log-probabilities of all test images, float32 (N, K), in the order of the split."""
    with files.replacing(path) as part:
        save_file({"log_probs": log_probs_NK}, part)


def read_log_probs(path: Path) -> NDArray[np.float32]:
    """Read the log-probabilities that `evaluate` wrote, float32 (N, K).

    Raises:
        InputError: the file is missing or malformed.
    """
    try:
        log_probs_NK = load_file(path)["log_probs"]
    except FileNotFoundError:
        raise files.missing(path) from None
    except (SafetensorError, KeyError) as error:
        raise InputError(str(path), found=f"{error}", expected="what `evaluate` writes") from None
    if log_probs_NK.dtype != np.float32 or log_probs_NK.ndim != 2:  # noqa: PLR2004 -- images, classes
        found = f"{log_probs_NK.dtype} {log_probs_NK.shape}"
        raise InputError(str(path), found=found, expected="float32 (N, K)")
    return log_probs_NK
