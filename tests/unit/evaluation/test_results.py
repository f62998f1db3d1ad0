"""A result in numbers, against sums done by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW  # type: ignore[import-untyped]

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.evaluation import scores
from mnist.evaluation.predictions import write_log_probs
from mnist.evaluation.results import MixUp
from mnist.evaluation.statistics import Rate
from tests.made_result import Made


def test_scores_by_class_are_those_of_the_counts(tmp_path: Path) -> None:
    """Of `cat`, `dog` and `emu`, which has no images and is predicted once."""
    made = Made(tmp_path, classes=("cat", "dog", "emu"), labels=[0, 0, 0, 1, 1], predicted=[0, 0, 1, 1, 2])

    summary = made.summary()

    assert summary.confusion_KK.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert (summary.accuracy.hits, summary.accuracy.num_images) == (3, 5)
    cat, dog, emu = summary.classes
    assert (cat.name, cat.recall.share, cat.precision.share) == ("cat", 2 / 3, 1.0)
    assert cat.f1 == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert (dog.recall.share, dog.precision.share, dog.f1) == (0.5, 0.5, 0.5)
    assert (emu.recall.share, emu.precision.share, emu.f1) == (None, 0.0, 0.0)
    assert [(one.label, one.predicted, one.num_images) for one in summary.mix_ups] == [
        ("cat", "dog", 1),
        ("dog", "emu", 1),
    ]


def test_the_most_frequent_mistake_is_the_first(tmp_path: Path) -> None:
    summary = Made(tmp_path, labels=[7, 7, 7, 7, 4], predicted=[1, 2, 2, 7, 9]).summary()
    assert summary.mix_ups[0] == MixUp(label="7", predicted="2", num_images=2)


def test_the_interval_of_the_loss_is_that_of_a_mean(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=200)
    loss_N = -made.log_probs_NK[np.arange(200), made.labels_N].astype(np.float64)
    expected = DescrStatsW(loss_N).zconfint_mean(alpha=0.05)
    found = made.summary().loss_interval
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_training_and_validation_images_are_counted(tmp_path: Path) -> None:
    summary = Made(tmp_path, num_epochs=2).summary()
    assert summary.num_trained_on == 1200 - 200
    assert summary.validation_accuracy == Rate(hits=181, num_images=200)  # of 0.905, to six digits


def test_files_of_two_results_are_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    other = np.roll(made.log_probs_NK, 1, axis=1)
    write_log_probs(tmp_path / paths.LOG_PROBS, other)
    with pytest.raises(InputError) as caught:
        made.summary()
    assert caught.value.where == str(paths.LOG_PROBS)
    write_log_probs(tmp_path / paths.LOG_PROBS, made.log_probs_NK)
    table = tmp_path / paths.PREDICTIONS
    index, label, predicted = table.read_text().splitlines()[1].split(",")
    swapped = f"{index},{(int(label) + 1) % 10},{predicted}"
    table.write_text(table.read_text().replace(f"{index},{label},{predicted}", swapped, 1))
    with pytest.raises(InputError) as caught:
        made.summary()
    assert caught.value.where == str(paths.PREDICTIONS)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def without_lines(path: Path, first: int, last: int | None = None) -> None:
    lines = path.read_text().splitlines(keepends=True)
    del lines[first:last]
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (paths.TEST_METRICS, lambda path: replace(path, '"accuracy": 0.', '"accuracy": 0.9')),
        (paths.TEST_METRICS, lambda path: replace(path, '"loss": ', '"loss": 1')),
        (paths.TRAINING_METRICS, lambda path: replace(path, '"val_accuracy": 0.9', '"val_accuracy": 0.99')),
        (paths.CLASSES, lambda path: path.write_text("class,num_images,recall,precision\n")),
        (paths.PREDICTIONS, lambda path: without_lines(path, -1)),
        (paths.LOG_PROBS, lambda path: write_log_probs(path, np.zeros((60, 11), np.float32))),
        (paths.STEPS, lambda path: without_lines(path, 1)),
        (paths.STEPS, lambda path: without_lines(path, -1)),
        (paths.STEPS, lambda path: replace(path, ",500,", ",5000,")),
        (paths.STEPS, lambda path: path.write_text(path.read_text() + path.read_text().splitlines()[-1])),
        (paths.HISTORY, lambda path: without_lines(path, 1)),
        (paths.FILTERS, lambda path: path.write_text("no picture")),
        (paths.FILTERS, lambda path: path.write_bytes(path.read_bytes()[:-50])),
    ],
)
def test_a_file_that_contradicts_the_others_is_refused(
    tmp_path: Path, path: Path, change: Callable[[Path], None]
) -> None:
    made = Made(tmp_path)
    change(tmp_path / path)
    with pytest.raises(InputError) as caught:
        made.summary()
    assert caught.value.where.removeprefix(f"{tmp_path}/") == str(path)


def test_a_result_has_a_headline_and_details(tmp_path: Path) -> None:
    """Of five images two are wrong, with confidences of 85 and 95 %."""
    made = Made(
        tmp_path, labels=[0, 1, 2, 3, 4], predicted=[0, 1, 2, 4, 9], confidence=[0.6, 0.7, 0.95, 0.85, 0.95]
    )
    summary = made.summary()

    # Wilson's interval of 3 of 5, by statsmodels: proportion_confint(3, 5, method="wilson").
    assert summary.headline == "accuracy 60.00% on 5 test images of MNIST, 95 % interval 23.07% to 88.24%"
    assert "2 wrong (1 with a confidence above 90%)" in summary.details
    assert f"loss {scores.read(tmp_path / paths.TEST_METRICS).loss:.4f}" in summary.details
