"""Scores against sums done by hand and by slow loops."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mnist.core.errors import InputError
from mnist.evaluation import scores, statistics
from tests.conftest import DIGITS


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


def test_a_worked_example() -> None:
    """Five images of three classes; the third class has none."""
    predictions = log_probs(
        [
            [0.70, 0.20, 0.10],  # is 0, right
            [0.68, 0.22, 0.10],  # is 1, wrong
            [0.10, 0.80, 0.10],  # is 1, right
            [0.10, 0.30, 0.60],  # is 1, wrong
            [0.50, 0.30, 0.20],  # is 0, right
        ]
    )

    result_scores = scores.score(
        predictions, np.array([0, 1, 1, 1, 0], np.uint8), classes=["cat", "dog", "eel"]
    )

    assert result_scores.model_dump() == {
        "accuracy": 0.6,
        "loss": round(
            -(math.log(0.7) + math.log(0.22) + math.log(0.8) + math.log(0.3) + math.log(0.5)) / 5, 6
        ),
        "num_wrong": 2,
        "num_images": 5,
        # Of the bins of width 1/15, (10/15, 11/15] holds .70 (right) and .68 (wrong), the
        # others have one image each: (|1 - 1.38| + |1 - .8| + |0 - .6| + |1 - .5|) / 5.
        "expected_calibration_error": 0.336,
        "recall": {"cat": 1.0, "dog": 0.333333, "eel": None},
    }


def test_one_image_is_scored() -> None:
    result_scores = scores.score(log_probs([[0.25, 0.75]]), np.array([0], np.uint8), classes="01")

    assert (result_scores.accuracy, result_scores.num_wrong, result_scores.num_images) == (0.0, 1, 1)
    assert result_scores.loss == round(-math.log(0.25), 6)
    assert result_scores.expected_calibration_error == 0.75
    assert result_scores.recall == {"0": 0.0, "1": None}


def test_certainty_that_is_right_costs_nothing() -> None:
    result_scores = scores.score(
        log_probs([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1], np.uint8), classes="01"
    )

    assert (result_scores.accuracy, result_scores.loss, result_scores.expected_calibration_error) == (
        1.0,
        0.0,
        0.0,
    )


def test_a_network_that_knows_nothing_is_calibrated_where_the_classes_are_even() -> None:
    labels_N = (np.arange(1000) % 10).astype(np.uint8)

    result_scores = scores.score(
        np.full((1000, 10), -math.log(10), np.float32), labels_N, classes=DIGITS.classes
    )

    assert result_scores.accuracy == 0.1
    assert result_scores.loss == pytest.approx(math.log(10), abs=1e-6)
    assert result_scores.expected_calibration_error == pytest.approx(0, abs=1e-6)
    assert result_scores.recall == {"0": 1.0, **{str(digit): 0.0 for digit in range(1, 10)}}


def test_float32_does_not_limit_the_loss() -> None:
    """A loss near 100 has five digits after the point in float32; six are told."""
    rng = np.random.default_rng(1)
    log_probs_NK = -rng.uniform(0, 200, (1000, 10)).astype(np.float32)
    labels_N = rng.integers(0, 10, 1000).astype(np.uint8)

    result_scores = scores.score(log_probs_NK, labels_N, classes=DIGITS.classes)

    losses = [-float(row[label]) for row, label in zip(log_probs_NK, labels_N, strict=True)]
    assert result_scores.loss == pytest.approx(math.fsum(losses) / 1000, abs=6e-7)


# ---- calibration


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("confidence", [0.1, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_the_gap_of_one_bin_is_confidence_less_accuracy(confidence: float, accuracy: float) -> None:
    right_N = np.arange(400) < 400 * accuracy

    error = scores.calibration_error(np.full(400, confidence), right_N)

    assert error == pytest.approx(abs(confidence - accuracy), abs=1e-12)


def test_gaps_of_different_bins_do_not_cancel() -> None:
    """Half of the images are underrated by 0.4, half overrated by 0.4."""
    confidence_N = np.repeat([0.6, 0.9], 100)
    right_N = np.concatenate([np.ones(100, bool), np.arange(100) < 50])

    assert scores.calibration_error(confidence_N, right_N) == pytest.approx(0.4)


def test_gaps_within_a_bin_do_cancel() -> None:
    confidence_N = np.array([0.61, 0.65])

    error = scores.calibration_error(confidence_N, np.array([True, False]))

    assert error == pytest.approx(abs(0.63 - 0.5))


@pytest.mark.parametrize("edge", range(1, 16))
def test_the_upper_end_of_a_bin_is_in_it(edge: int) -> None:
    """An image at the edge, wrong, cancels against a right one below it, and not against one above it."""
    at, below = edge / 15, edge / 15 - 1 / 30
    right_N = np.array([False, True])

    error = scores.calibration_error(np.array([at, below]), right_N)

    assert error == pytest.approx(abs(1 - at - below) / 2)
    if edge < 15:
        above = edge / 15 + 1 / 30
        error = scores.calibration_error(np.array([at, above]), right_N)
        assert error == pytest.approx((at + 1 - above) / 2)


@given(st.lists(st.tuples(st.floats(0.1, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_definition(images: list[tuple[float, bool]]) -> None:
    confidences, right = [confidence for confidence, _ in images], [right for _, right in images]

    error = scores.calibration_error(np.array(confidences), np.array(right))

    assert error == pytest.approx(calibration_error(confidences, right), abs=1e-12)


# ---- the table of predictions


def test_the_table_has_a_row_an_image(tmp_path: Path) -> None:
    scores.write_predictions(
        tmp_path / "predictions.csv",
        labels_N=np.array([7, 2], np.uint8),
        predicted_N=np.array([7, 3]),
        classes=DIGITS.classes,
    )

    assert (tmp_path / "predictions.csv").read_bytes() == b"index,label,predicted\n0,7,7\n1,2,3\n"


def test_names_of_classes_are_quoted_where_they_must_be_and_read_back(tmp_path: Path) -> None:
    classes = ["T-shirt/top", 'a, "b"', "Ankle boot"]
    path = tmp_path / "predictions.csv"

    scores.write_predictions(
        path, labels_N=np.array([0, 1, 2], np.uint8), predicted_N=np.array([0, 1, 1]), classes=classes
    )

    assert path.read_text() == (
        'index,label,predicted\n0,T-shirt/top,T-shirt/top\n1,"a, ""b""","a, ""b"""\n2,Ankle boot,"a, ""b"""\n'
    )
    read = statistics.read(path)
    assert read.labels_N.tolist() == classes
    assert read.right.tolist() == [True, True, False]


def test_labels_and_predictions_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        scores.write_predictions(
            tmp_path / "predictions.csv",
            labels_N=np.array([7, 2], np.uint8),
            predicted_N=np.array([7]),
            classes=DIGITS.classes,
        )

    assert not (tmp_path / "predictions.csv").exists()


def test_the_table_and_the_scores_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    log_probs_NK = np.log(rng.dirichlet(np.full(10, 0.3), 500) + 1e-9).astype(np.float32)
    labels_N = rng.integers(0, 10, 500).astype(np.uint8)

    result_scores = scores.score(log_probs_NK, labels_N, classes=DIGITS.classes)
    scores.write_predictions(
        tmp_path / "table.csv", labels_N=labels_N, predicted_N=log_probs_NK.argmax(1), classes=DIGITS.classes
    )

    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(row["label"] != row["predicted"] for row in rows) == result_scores.num_wrong
    assert result_scores.accuracy == round(1 - result_scores.num_wrong / 500, 6)
    for digit, recall in result_scores.recall.items():
        predicted = [row["predicted"] for row in rows if row["label"] == digit]
        assert recall == round(predicted.count(digit) / len(predicted), 6)


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '{"accuracy": "high"}', "not JSON", '{"accuracy": 2}'], ids=str
)
def test_scores_that_evaluate_did_not_write_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "test.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"test\.json: ") as caught:
        scores.read(path)
    assert "\n" not in str(caught.value)


def test_log_probabilities_come_back_as_they_were(tmp_path: Path) -> None:
    predictions = log_probs([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    path = tmp_path / "log_probs.safetensors"

    scores.write_log_probs(path, predictions)

    assert np.array_equal(scores.read_log_probs(path), predictions)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (None, "found no such file"),
        ({}, "'log_probs'"),
        ({"log_probs": np.zeros((2, 3))}, r"found float64 \(2, 3\), expected float32 \(N, K\)"),
        ({"log_probs": np.zeros(3, np.float32)}, r"found float32 \(3,\)"),
    ],
    ids=["none", "another tensor", "another dtype", "another shape"],
)
def test_what_is_no_file_of_log_probabilities_is_refused(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]] | None, said: str
) -> None:
    path = tmp_path / "log_probs.safetensors"
    if tensors is not None:
        save_file(tensors, path)

    with pytest.raises(InputError, match=said):
        scores.read_log_probs(path)


def test_mistakes_come_by_their_confidence() -> None:
    predictions = log_probs([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.2, 0.8]])

    assert scores.surest_mistakes(predictions, np.array([1, 1, 0, 0], np.uint8)).tolist() == [1, 3, 0]
    assert scores.surest_mistakes(predictions, np.array([0, 0, 0, 1], np.uint8)).tolist() == []
