"""How good predictions are.

Shape suffixes: N images, K classes, M bins.
"""

import csv
import io
from collections.abc import Sequence
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


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions of about one confidence.

    Attributes:
        low: the interval of their confidence, which it is above.
        high: the same, which it is at most.
        num_images: of them.
        num_right: how many are right.
        confidence: their mean; None of none.
    """

    low: float
    high: float
    num_images: int
    num_right: int
    confidence: float | None


def score(log_probs_NK: NDArray[np.float32], labels_N: Bytes, *, classes: Sequence[str]) -> Scores:
    """Score log-probabilities, float32 (N, K), against labels, uint8 (N,), of K classes; to six decimals."""
    log_probs_NK = log_probs_NK.astype(np.float64)
    right_N = log_probs_NK.argmax(1) == labels_N
    recall = {
        name: round(float(right_N[labels_N == label].mean()), 6) if (labels_N == label).any() else None
        for label, name in enumerate(classes)
    }
    return Scores(
        accuracy=round(float(right_N.mean()), 6),
        loss=round(float(-log_probs_NK[np.arange(len(labels_N)), labels_N].mean()), 6),
        num_wrong=int((~right_N).sum()),
        num_images=len(labels_N),
        expected_calibration_error=round(calibration_error(confidence(log_probs_NK), right_N), 6),
        recall=recall,
    )


def confidence(log_probs_NK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The probability of what is predicted, float64 (N,), from log-probabilities (N, K)."""
    probability_N: NDArray[np.float64] = np.exp(log_probs_NK.max(1).astype(np.float64))
    return probability_N


def surest_mistakes(log_probs_NK: NDArray[np.float32], labels_N: Bytes) -> NDArray[np.int64]:
    """Positions of the wrong predictions, int64 (M,), the most confident first."""
    wrong_M = np.flatnonzero(log_probs_NK.argmax(1) != labels_N)
    return wrong_M[np.argsort(-confidence(log_probs_NK)[wrong_M], kind="stable")]


def calibration_error(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> float:
    """Expected calibration error of Guo et al. 2017, equation 3 (https://arxiv.org/abs/1706.04599).

    The mean, weighted by images, of |accuracy - mean confidence| over `NUM_BINS` equal intervals
    (low, high] of confidence.
    """
    # |sum of right - sum of confidence| in a bin is its weight times its gap, times N.
    gap_M = np.bincount(_bin(confidence_N), weights=right_N - confidence_N, minlength=NUM_BINS)
    return float(np.abs(gap_M).sum() / len(right_N))


def bins(confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]) -> list[Bin]:
    """What `calibration_error` is the mean of: the reliability diagram, from the least sure to the surest."""
    bin_N = _bin(confidence_N)
    count_M, right_M, sure_M = (
        np.bincount(bin_N, weights=weight_N, minlength=NUM_BINS).tolist()
        for weight_N in (None, right_N, confidence_N)
    )
    return [
        Bin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            num_images=count,
            num_right=round(right),
            confidence=sure / count if count else None,
        )
        for number, (count, right, sure) in enumerate(zip(count_M, right_M, sure_M, strict=True))
    ]


def _bin(confidence_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each confidence, 0 to `NUM_BINS` - 1: intervals (low, high]."""
    return np.clip(np.ceil(confidence_N * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def read(path: Path) -> Scores:
    """Read the scores that `evaluate` wrote.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    return config.check(Scores, files.read_json(path), str(path))


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


def write_log_probs(path: Path, log_probs_NK: NDArray[np.float32]) -> None:
    """Write the log-probabilities of all test images, float32 (N, K), in their order."""
    with files.replacing(path) as part:
        save_file({"log_probs": log_probs_NK}, part)


def read_log_probs(path: Path) -> NDArray[np.float32]:
    """Read them back.

    Raises:
        InputError: the file is missing, or holds something else.
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
