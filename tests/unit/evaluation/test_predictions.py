"""Predictions: their files, and the comparison of two classifiers."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from safetensors.numpy import save

from mnist.core.errors import InputError
from mnist.evaluation import predictions
from mnist.evaluation.predictions import Predictions
from mnist.evaluation.statistics import Paired


def classifier(right: ArrayLike) -> Predictions:
    right_N = np.asarray(right)
    labels_N = np.arange(len(right_N)).astype(np.uint8) % 10
    predicted_N = np.where(right_N, labels_N, (labels_N + 1) % 10)
    return Predictions(labels_N=labels_N.astype(str), predicted_N=predicted_N.astype(str))


def test_comparing_counts_what_one_gets_right_and_the_other_wrong() -> None:
    base = classifier([True] * 6 + [False] * 2 + [True] * 2)
    other = classifier([True] * 4 + [False] * 2 + [True] * 1 + [False] * 1 + [True] * 1 + [False] * 1)
    paired = predictions.compare(base, other)
    assert paired == Paired(num_images=10, fixed=1, broken=3)
    assert paired.change_pp == pytest.approx(-20)
    assert (base.accuracy, other.accuracy) == (0.8, 0.6)


def test_classes_are_compared_each_on_its_own_images() -> None:
    labels_N = np.array(list("3333770"))
    base = Predictions(labels_N=labels_N, predicted_N=np.array(list("3388716")))
    other = Predictions(labels_N=labels_N, predicted_N=np.array(list("3533726")))
    classes = predictions.by_class(base, other)
    assert classes == {
        "0": Paired(num_images=1, fixed=0, broken=0),
        "3": Paired(num_images=4, fixed=2, broken=1),
        "7": Paired(num_images=2, fixed=0, broken=0),
    }
    assert classes["3"].change_pp == 25  # recall 2/4, then 3/4


def test_classes_come_by_their_numbers_and_then_by_their_names() -> None:
    labels_N = np.array(["b", "10", "2", "a"])
    same = Predictions(labels_N=labels_N, predicted_N=labels_N)
    assert list(predictions.by_class(same, same)) == ["2", "10", "a", "b"]


def test_a_table_of_predictions_quotes_names_and_reads_back(tmp_path: Path) -> None:
    classes = ["T-shirt/top", 'a, "b"', "Ankle boot"]
    path = tmp_path / "predictions.csv"

    predictions.write_table(
        path, labels_N=np.array([0, 1, 2], np.uint8), predicted_N=np.array([0, 1, 1]), classes=classes
    )

    assert path.read_bytes() == (
        b'index,label,predicted\n0,T-shirt/top,T-shirt/top\n1,"a, ""b""","a, ""b"""\n'
        b'2,Ankle boot,"a, ""b"""\n'
    )
    read = predictions.read_table(path)
    assert read.labels_N.tolist() == classes
    assert read.right.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        (None, "", "no such file"),
        ("", ", line 1", "''"),
        ("index,label\n0,1\n", ", line 1", "'index,label'"),
        ("index,label,predicted\n", "", "no predictions"),
        ("index,label,predicted\n0,1,1\n2,1,1\n", ", line 3", "'2,1,1'"),
        ("index,label,predicted\n0,1,\n", ", line 2", "'0,1,'"),
        ("index,label,predicted\n0,1,1,1\n", ", line 2", "'0,1,1,1'"),
        ('index,label,predicted\n0,1,"1\n', ", line 2", "'unexpected end of data'"),
        (b"\xff\xfe\x00", "", "no UTF-8 (byte 0)"),
    ],
)
def test_a_file_that_is_no_table_of_predictions_is_refused(
    text: str | bytes | None, line: str, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        predictions.read_table(path)
    assert (caught.value.where, caught.value.found) == (f"{path}{line}", found)


def test_classes_that_are_hardly_recognised_are_named() -> None:
    """Of 1,004 images, `b` and `c` are never found, `d` is found once in two."""
    labels = ["a"] * 1000 + ["c", "b", "d", "d"]
    lost = Predictions(labels_N=np.array(labels), predicted_N=np.array(["a"] * 1003 + ["d"]))
    assert lost.warning.endswith(": b (0 of 1 images), c (0 of 1 images)")
    assert classifier([True] * 40).warning == ""


def test_log_probabilities_come_back_as_they_were(tmp_path: Path) -> None:
    log_probs_NK = np.array([[-0.1, -2.4], [-1e30, 0]], np.float32)
    predictions.write_log_probs(tmp_path / "log_probs.safetensors", log_probs_NK)
    assert np.array_equal(predictions.read_log_probs(tmp_path / "log_probs.safetensors"), log_probs_NK)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"no tensors",
        b"\x02\0\0\0\0\0\0\0{}",
        *(
            save({"log_probs": array})
            for array in (np.zeros((2, 2)), np.zeros(2, np.float32), np.full((1, 2), np.nan, np.float32))
        ),
    ],
    ids=["missing", "no tensors", "none", "float64", "one a row", "NaN"],
)
def test_a_file_without_log_probabilities_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "log_probs.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        predictions.read_log_probs(path)
    assert caught.value.where == str(path)
