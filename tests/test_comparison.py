"""The paired comparison: published examples, sums by hand, and the odds of a false alarm."""

import itertools
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from mnist import comparison, scoring
from mnist.comparison import Paired, Predictions
from mnist.errors import InputError


def classifier(right: ArrayLike) -> Predictions:
    right_N = np.asarray(right)
    labels_N = np.arange(len(right_N)).astype(np.uint8) % 10
    predicted_N = np.where(right_N, labels_N, (labels_N + 1) % 10).astype(np.uint8)
    return Predictions(labels_N=labels_N, predicted_N=predicted_N)


def test_comparing_counts_what_one_gets_right_and_the_other_wrong() -> None:
    base = classifier([True] * 6 + [False] * 2 + [True] * 2)
    other = classifier([True] * 4 + [False] * 2 + [True] * 1 + [False] * 1 + [True] * 1 + [False] * 1)
    paired = comparison.compare(base, other)
    assert paired == Paired(num_images=10, fixed=1, broken=3)
    assert paired.change_pp == pytest.approx(-20)
    assert (base.accuracy, other.accuracy) == (0.8, 0.6)


# Fay's exact2x2 (R), vignette "Exact McNemar's test": 2 and 9 of 44 pairs, p = 0.06543.
# Agresti, Categorical Data Analysis (1990), p. 350: the approval of the president in two surveys
# of 1,600 voters, 150 lost and 86 won; McNemar's chi-squared 17.36, exact p = 3.716e-05.
@pytest.mark.parametrize(
    ("fixed", "broken", "published"),
    [(2, 9, 0.06543), (9, 2, 0.06543), (86, 150, 3.716e-05)],
    ids=["Fay", "Fay, turned round", "Agresti"],
)
def test_two_sided_p_values_are_the_published_ones(fixed: int, broken: int, published: float) -> None:
    paired = Paired(num_images=1600, fixed=fixed, broken=broken)
    assert paired.p_two_sided == pytest.approx(published, rel=1e-4)


def test_one_sided_p_values_add_up_by_hand() -> None:
    paired = Paired(num_images=44, fixed=2, broken=9)
    assert paired.p_worse == (1 + 11 + 55) / 2**11
    assert paired.p_better == (2**11 - 1 - 11) / 2**11


@pytest.mark.parametrize("tosses", range(11))
def test_chances_are_counts_of_all_tosses(tosses: int) -> None:
    heads = [sum(toss) for toss in itertools.product((0, 1), repeat=tosses)]
    for most in range(tosses + 1):
        assert comparison.heads_at_most(most, tosses) == sum(n <= most for n in heads) / len(heads)


def test_chances_of_many_tosses_are_exact() -> None:
    exact = Fraction(sum(comb(2_000, k) for k in range(981)), 2**2_000)
    assert comparison.heads_at_most(980, 2_000) == float(exact)
    assert comparison.heads_at_most(0, 2_000) == 0  # 2**-2000 is no float


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 5), (1, 1)], ids=str)
def test_no_difference_is_no_evidence(fixed: int, broken: int) -> None:
    paired = Paired(num_images=100, fixed=fixed, broken=broken)
    assert paired.change_pp == 0
    assert paired.p_two_sided == 1
    assert paired.p_worse == paired.p_better > 0.5


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_equals_are_called_worse_at_most_alpha_of_the_time_whatever_the_number_of_images(
    alpha: float,
) -> None:
    for tosses in range(60):
        false_alarms = sum(
            comb(tosses, heads)
            for heads in range(tosses + 1)
            if comparison.heads_at_most(heads, tosses) < alpha
        )
        assert Fraction(false_alarms, 2**tosses) < alpha


def test_the_odds_of_a_false_alarm_and_of_a_miss_in_simulated_tests() -> None:
    # 2,000 pairs of classifiers on 1,000 images each, half of whose mistakes are the same.
    rng = np.random.default_rng(0)
    alpha, num_pairs, num_images = 0.05, 2_000, 1_000

    def share_called_worse(accuracy: float) -> float:
        worse = 0
        for _ in range(num_pairs):
            hard = rng.random(num_images) < 0.03
            base, other = (classifier(~hard & (rng.random(num_images) < share)) for share in (0.97, accuracy))
            worse += comparison.compare(base, other).p_worse < alpha
        return worse / num_pairs

    assert 0.02 < share_called_worse(0.97) <= alpha
    assert share_called_worse(0.94) > 0.9


def test_predictions_are_read_as_evaluate_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    labels_N, predicted_N = np.array([7, 2, 1], np.uint8), np.array([7, 2, 8])
    scoring.write_predictions(path, labels_N=labels_N, predicted_N=predicted_N)
    predictions = comparison.read(path)
    np.testing.assert_array_equal(predictions.labels_N, labels_N)
    np.testing.assert_array_equal(predictions.predicted_N, predicted_N)
    assert predictions.right.tolist() == [True, True, False]
    assert predictions.num_images == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: found ''"),
        ("index,label\n0,1\n", "line 1: found 'index,label'"),
        ("index,label,predicted\n", "found no predictions"),
        ("index,label,predicted\n0,1,1\n2,1,1\n", "line 3: found '2,1,1', expected 1,digit,digit"),
        ("index,label,predicted\n0,1,10\n", "line 2: found '0,1,10'"),
        ("index,label,predicted\n0,1,-1\n", "line 2: found '0,1,-1'"),
        ("index,label,predicted\n0,1\n", "line 2: found '0,1'"),
        ("index,label,predicted\n0,1,1\n\n", "line 3: found ''"),
        ("index,label,predicted\n0,1,\u0661\n", "line 2: found"),
        ("\x00" * 100, "line 1: found '" + r"\x00" * 40 + "...'"),
    ],
    ids=["empty", "header", "no rows", "order", "class", "negative", "short", "blank", "digit", "binary"],
)
def test_a_file_that_is_no_table_of_predictions_is_one_line(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        comparison.read(path)
    assert str(error.value).startswith(str(path))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        comparison.read(tmp_path / "predictions.csv")


def test_bytes_that_are_no_text_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="line 1"):
        comparison.read(path)
