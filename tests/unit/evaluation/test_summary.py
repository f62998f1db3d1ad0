"""A result in numbers, against other people's formulas and sums done by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]
from statsmodels.stats.weightstats import DescrStatsW  # type: ignore[import-untyped]

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.evaluation import scores
from mnist.evaluation.summary import MixUp, Rate
from tests.made_result import Made


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_wilsons(counts: tuple[int, int]) -> None:
    hits, num_images = counts
    found = Rate(hits=hits, num_images=num_images).interval
    expected = proportion_confint(hits, num_images, alpha=0.05, method="wilson")
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert 0 <= found[0] <= hits / num_images <= found[1] <= 1


def test_no_images_have_no_share() -> None:
    assert Rate(hits=0, num_images=0).share is None
    assert Rate(hits=0, num_images=0).interval is None


def test_scores_by_class_are_those_of_the_counts(tmp_path: Path) -> None:
    """Of `cat`, `dog` and `emu`; nobody has seen an emu, and one dog is taken for one."""
    made = Made(tmp_path, classes=("cat", "dog", "emu"), labels=[0, 0, 0, 1, 1], predicted=[0, 0, 1, 1, 2])

    said = made.summary()

    assert said.confusion_KK.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert (said.accuracy.hits, said.accuracy.num_images, said.num_wrong) == (3, 5, 2)
    cat, dog, emu = said.classes
    assert (cat.name, cat.recall.share, cat.precision.share) == ("cat", 2 / 3, 1.0)
    assert cat.f1 == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert cat.worst == MixUp(label="cat", predicted="dog", count=1)
    assert (dog.recall.share, dog.precision.share, dog.f1) == (0.5, 0.5, 0.5)
    assert (emu.recall.share, emu.precision.share, emu.f1, emu.worst) == (None, 0.0, 0.0, None)
    assert [(one.label, one.predicted, one.count) for one in said.mix_ups] == [
        ("cat", "dog", 1),
        ("dog", "emu", 1),
    ]


def test_the_commonest_mistake_is_the_first(tmp_path: Path) -> None:
    said = Made(tmp_path, labels=[7, 7, 7, 7, 4], predicted=[1, 2, 2, 7, 9]).summary()
    assert said.mix_ups[0] == MixUp(label="7", predicted="2", count=2)
    assert said.classes[7].worst == said.mix_ups[0]


def test_the_interval_of_the_loss_is_that_of_a_mean(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=200)
    loss_N = -made.log_probs_NK[np.arange(200), made.labels_N].astype(np.float64)
    expected = DescrStatsW(loss_N).zconfint_mean(alpha=0.05)
    found = made.summary().loss_interval
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_bins_come_to_the_calibration_error_and_hold_all_images(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    said = made.summary()
    assert len(said.bins) == scores.NUM_BINS
    assert sum(one.num_images for one in said.bins) == 300
    assert sum(one.num_right for one in said.bins) == said.accuracy.hits
    error = sum(
        abs(one.num_right - one.num_images * one.confidence)
        for one in said.bins
        if one.confidence is not None and one.low < one.confidence <= one.high
    )
    assert round(error / 300, 6) == said.scores.expected_calibration_error


def test_sure_mistakes_are_counted(tmp_path: Path) -> None:
    made = Made(tmp_path, labels=[0, 1, 2, 3], predicted=[0, 2, 3, 3], confidence=[0.99, 0.95, 0.85, 0.99])
    assert made.summary().num_sure_mistakes == 1


def test_training_and_validation_images_are_told_apart(tmp_path: Path) -> None:
    said = Made(tmp_path).summary()
    assert said.num_trained_on == 1200 - 200
    assert said.validation_accuracy == Rate(hits=181, num_images=200)  # of 0.905, to six digits


def test_a_result_of_before_the_log_probabilities_has_what_the_rest_tells(tmp_path: Path) -> None:
    made = Made(tmp_path)
    whole = made.summary()
    (tmp_path / paths.LOG_PROBS).unlink()
    said = made.summary()
    assert (said.log_probs_NK, said.bins, said.loss_interval, said.num_sure_mistakes) == (
        None,
        (),
        None,
        None,
    )
    assert said.classes == whole.classes


def test_files_of_two_results_are_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    other = np.roll(made.log_probs_NK, 1, axis=1)
    scores.write_log_probs(tmp_path / paths.LOG_PROBS, other)
    with pytest.raises(InputError, match=r"log_probs.safetensors: found other predictions"):
        made.summary()
    scores.write_log_probs(tmp_path / paths.LOG_PROBS, made.log_probs_NK)
    table = tmp_path / paths.PREDICTIONS
    index, label, predicted = table.read_text().splitlines()[1].split(",")
    swapped = f"{index},{(int(label) + 1) % 10},{predicted}"
    table.write_text(table.read_text().replace(f"{index},{label},{predicted}", swapped, 1))
    with pytest.raises(InputError, match=r"predictions.csv: found other labels"):
        made.summary()


def test_two_lines_tell_how_good_it_is(tmp_path: Path) -> None:
    """Of five images one is wrong, and surely so; without the log-probabilities nobody knows how surely."""
    made = Made(
        tmp_path, labels=[0, 1, 2, 3, 4], predicted=[0, 1, 2, 3, 9], confidence=[0.6, 0.7, 0.8, 0.9, 0.95]
    )
    said = made.summary()

    # Wilson's interval of 4 of 5, as statsmodels has it: proportion_confint(4, 5, method="wilson").
    assert said.headline == "accuracy 80.00% on 5 test images of MNIST, 95 % interval 37.55% to 96.38%"
    error = scores.read(tmp_path / paths.TEST_METRICS).expected_calibration_error
    loss = scores.read(tmp_path / paths.TEST_METRICS).loss
    rest = f"loss {loss:.4f}, calibration error {error:.2%}, validation accuracy 90.50%"
    assert said.details == f"1 wrong (1 surer than 90%), {rest}"

    (tmp_path / paths.LOG_PROBS).unlink()
    assert made.summary().details == f"1 wrong, {rest}"
