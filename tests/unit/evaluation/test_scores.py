"""Scores against sums done by hand and by slow loops, and the files that hold them."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from mnist.core.errors import InputError
from mnist.evaluation import scores


def log_probs(rows: list[list[float]]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.array(rows)), np.float32)


def calibration_error(confidences: list[float], right: list[bool]) -> float:
    """By the definition, a bin at a time."""
    error = 0.0
    for bin_ in range(15):
        low, high = bin_ / 15, (bin_ + 1) / 15
        inside = [i for i, confidence in enumerate(confidences) if low < confidence <= high]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            error += len(inside) / len(confidences) * abs(accuracy - confidence)
    return error


def test_scores_of_a_worked_example() -> None:
    predictions = log_probs(
        [
            [0.70, 0.20, 0.10],  # is 0, right
            [0.68, 0.22, 0.10],  # is 1, wrong
            [0.10, 0.80, 0.10],  # is 1, right
            [0.10, 0.30, 0.60],  # is 1, wrong
            [0.50, 0.30, 0.20],  # is 0, right
        ]
    )

    result = scores.score(predictions, np.array([0, 1, 1, 1, 0], np.uint8))

    losses = [-math.log(p) for p in (0.7, 0.22, 0.8, 0.3, 0.5)]
    assert result.model_dump() == {
        "accuracy": 0.6,
        "balanced_accuracy": 0.666667,  # 2 of 2 and 1 of 3 are found, and the third class has no image
        "loss": round(sum(losses) / 5, 6),
        # Of the bins of width 1/15, (10/15, 11/15] holds .70 (right) and .68 (wrong), the
        # others have one image each: (|1 - 1.38| + |1 - .8| + |0 - .6| + |1 - .5|) / 5.
        "expected_calibration_error": 0.336,
    }


def test_the_loss_is_summed_in_float64() -> None:
    """A loss near 100 has five digits after the point in float32; six are written."""
    rng = np.random.default_rng(1)
    log_probs_NK = -rng.uniform(0, 200, (1000, 10)).astype(np.float32)
    labels_N = rng.integers(0, 10, 1000).astype(np.uint8)

    result = scores.score(log_probs_NK, labels_N)

    losses = [-float(row[label]) for row, label in zip(log_probs_NK, labels_N, strict=True)]
    assert result.loss == pytest.approx(math.fsum(losses) / 1000, abs=6e-7)


# ---- calibration


CONFIDENCES = st.floats(0.01, 1) | st.integers(1, 15).map(lambda edge: edge / 15)


@given(st.lists(st.tuples(CONFIDENCES, st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_definition(images: list[tuple[float, bool]]) -> None:
    """The images also at the upper ends of bins, which are in them."""
    confidences, right = [confidence for confidence, _ in images], [right for _, right in images]

    bins = scores.bins(np.array(confidences), np.array(right))

    assert [round(15 * one.low) for one in bins] == list(range(15))
    assert sum(one.right.num_images for one in bins) == len(images)
    assert sum(one.right.hits for one in bins) == sum(right)
    expected = calibration_error(confidences, right)
    assert scores.calibration_error(bins) == pytest.approx(expected, abs=1e-12)


def test_mistakes_come_by_their_confidence() -> None:
    predictions = log_probs([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])

    assert scores.confident_mistakes(predictions, np.array([1, 1, 0, 0], np.uint8)).tolist() == [1, 3, 0]
    assert scores.confident_mistakes(predictions, np.array([0, 0, 0, 1], np.uint8)).tolist() == []


# ---- files


def test_the_table_of_classes_has_recall_and_precision() -> None:
    """Of four classes: the third has no images, the fourth is never predicted."""
    labels_N = np.array([0, 0, 0, 1, 1, 3], np.uint8)
    counts_KK = scores.confusion(labels_N, np.array([0, 1, 0, 1, 2, 1]), num_classes=4)
    assert scores.class_table(counts_KK, ["cat", "dog, big", "eel", "fox"]) == (
        'class,num_images,recall,precision\ncat,3,0.666667,1.0\n"dog, big",2,0.5,0.333333\neel,0,,0.0\n'
        "fox,1,0.0,\n"
    )


@pytest.mark.parametrize("text", ["not JSON", '{"accuracy": 2}'], ids=str)
def test_scores_that_evaluate_did_not_write_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "test.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        scores.read(path)
    assert caught.value.where.startswith(str(path))
