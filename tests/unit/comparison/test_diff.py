"""The comparison of two snapshots that are written by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from mnist.comparison.diff import Comparison, Metric, compare_revisions
from mnist.comparison.revision import Snapshot
from mnist.core.errors import InputError
from mnist.data import validation
from mnist.evaluation.predictions import Predictions

VERDICT = validation.read(Path(__file__).parents[3] / "metrics/validation.json")
LABELS = np.array([str(index % 4) for index in range(200)])
METRICS = {"metrics/test.json": {"loss": 0.5}}


def predictions(wrong: Any = (), labels: Any = LABELS) -> Predictions:
    """Return predictions that are right but for these indices."""
    predicted = labels.copy()
    for index in wrong:
        predicted[index] = str((int(labels[index]) + 1) % 4)
    return Predictions(labels_N=labels, predicted_N=predicted)


def snapshot(name: str = "base", wrong: Any = (), **fields: Any) -> Snapshot:
    given = {"commit": "", "metrics": METRICS, "predictions": predictions(wrong), "validation": VERDICT}
    return Snapshot(name=name, **{**given, **fields})


def compare(base: dict[str, Any] | Snapshot, head: dict[str, Any] | Snapshot) -> Comparison:
    sides = [
        side if isinstance(side, Snapshot) else snapshot(name, **side)
        for name, side in (("base", base), ("head", head))
    ]
    return compare_revisions(*sides)


def metrics(found: Comparison) -> dict[str, Metric]:
    return {metric.name: metric for metric in found.metrics}


# Test images


@pytest.mark.parametrize(
    ("base", "head", "outcome"),
    [
        (range(0), range(5), "within noise"),  # p 0.0625
        (range(0), range(6), "worse"),  # p 0.03125
        (range(6), range(0), "better"),
        (range(20), range(10, 30), "within noise"),
        (range(20), range(20), "within noise"),
    ],
)
def test_the_verdict_is_on_the_same_images(base: range, head: range, outcome: str) -> None:
    found = compare({"wrong": base}, {"wrong": head})
    fixed, broken = sorted(set(base) - set(head)), sorted(set(head) - set(base))
    assert found.outcome == outcome
    images = found.images
    assert images
    assert (list(images.fixed), list(images.broken)) == (fixed, broken)
    assert images.base_accuracy == pytest.approx(1 - len(base) / 200)
    assert images.head_accuracy == pytest.approx(1 - len(head) / 200)
    assert images.change_pp == pytest.approx((len(fixed) - len(broken)) / 2)
    low, high = images.interval_pp
    assert low <= images.change_pp <= high
    assert (low <= 0 <= high) == (outcome == "within noise")


def test_each_class_has_its_test_adjusted_by_holm() -> None:
    base, head = range(0, 60, 4), [*range(1, 41, 4), 2, 6]  # 15 fixed of 0, 10 broken of 1, 2 of 2
    images = compare({"wrong": base}, {"wrong": head}).images
    assert images
    by_label = {one.label: one for one in images.classes}
    assert [(one.num_images, one.fixed, one.broken) for one in by_label.values()] == [
        (50, 15, 0),
        (50, 0, 10),
        (50, 0, 2),
        (50, 0, 0),
    ]
    raw = [mcnemar([[0, n], [0, 0]], exact=True).pvalue for n in (15, 10, 2)] + [1.0]
    assert [one.p for one in by_label.values()] == pytest.approx(multipletests(raw, method="holm")[1])
    assert (by_label["0"].base_recall, by_label["0"].head_recall) == pytest.approx((0.7, 1))


def test_changed_predictions_are_grouped_the_most_frequent_first() -> None:
    base, head = predictions(), predictions([1, 5, 9, 2])
    head.predicted_N[3] = "0"
    base.predicted_N[3] = "1"
    images = compare({"predictions": base}, {"predictions": head}).images
    assert images
    assert [dataclasses.astuple(one) for one in images.changed] == [
        ("1", "1", "2", (1, 5, 9)),
        ("2", "2", "3", (2,)),
        ("3", "1", "0", (3,)),
    ]


OTHER = VERDICT.model_copy(update={"test_sha256": VERDICT.test_sha256[::-1]})
OBSTACLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no predictions": ({}, {"predictions": None}, "at head"),
    "none at all": ({"predictions": None}, {"predictions": None}, "at base and head"),
    "fewer images": ({}, {"predictions": predictions(labels=LABELS[:-1])}, "200 and 199"),
    "other images": ({}, {"validation": OTHER}, VERDICT.test_sha256[:12]),
    "other labels": ({}, {"predictions": predictions(labels=LABELS[::-1])}, "other labels"),
}


@pytest.mark.parametrize(("base", "head", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_results_that_are_not_comparable(base: dict[str, Any], head: dict[str, Any], reason: str) -> None:
    found = compare(base, head)
    assert (found.outcome, found.images) == ("not comparable", None)
    assert reason in found.reason
    assert metrics(found)["loss"].base == 0.5


def test_without_a_digest_equal_labels_are_enough() -> None:
    assert compare({"validation": None}, {}).outcome == "within noise"


# Metrics, params, code, data, curves


def test_metrics_are_paired_by_key_and_by_file_where_two_have_the_key() -> None:
    found = metrics(
        compare(
            {"metrics": {"old.json": {"loss": 2, "same": 1}}},
            {"metrics": {"new.json": {"loss": 1.5, "same": 1, "f1": 0.5}, "b.json": {"f1": 0.25}}},
        )
    )
    assert (found["loss"].base, found["loss"].head, found["loss"].change) == (2, 1.5, -0.5)
    assert found["same"].change == 0
    assert (found["new.json: f1"].base, found["new.json: f1"].head) == (None, 0.5)
    assert found["b.json: f1"].head == 0.25
    assert "f1" not in found


@pytest.mark.parametrize(
    ("base", "head", "change"),
    [
        (1, 3, 2),
        (0.5, 0.25, -0.25),
        (1, None, None),
        ("a", "b", None),
        (True, False, None),
        (1, "nan", None),
        (1e308, -1e308, None),
        (10**400, 0.5, None),
        (1, 10**400, None),
    ],
)
def test_a_change_is_of_two_numbers(base: Any, head: Any, change: float | None) -> None:
    sides = [{"metrics": {"m.json": {"m": value}}} for value in (base, head)]
    assert metrics(compare(*sides))["m"].change == change


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("accuracy", "more"),
        ("test/loss", "less"),
        ("accuracy_error", "less"),
        ("num_parameters", ""),
        ("glossary", ""),
    ],
)
def test_the_name_of_a_metric_shows_what_is_better(name: str, better: str) -> None:
    assert metrics(compare({"metrics": {"m.json": {name: 1}}}, {}))[name].better == better


def test_without_any_metric_there_is_nothing_to_compare() -> None:
    with pytest.raises(InputError, match=r"m\.json: no such file"):
        compare({"metrics": {}, "problems": {"m.json": "no such file"}}, {"metrics": {}})
    assert compare({"metrics": {}}, {}).outcome == "within noise"


def test_params_that_changed() -> None:
    found = compare(
        {"params": {"gone": 1, "lr": 0.01, "same": [1, 2], "n": 1}},
        {"params": {"lr": 0.02, "same": [1, 2], "n": 1.0, "new": "x"}},
    )
    assert [dataclasses.astuple(param) for param in found.params] == [
        ("lr", 0.01, 0.02),
        ("gone", 1, None),
        ("new", None, "x"),
    ]


def test_code_and_curves_that_changed() -> None:
    line = ((0.0, 1.0), (1.0, 0.5))
    found = compare(
        {"code": {"a.py": "1", "b.py": "1", "old": "1"}, "curves": {"same": line, "loss": line}},
        {"code": {"a.py": "1", "b.py": "2", "new": "1"}, "curves": {"same": line}},
    )
    assert found.code == ("b.py", "old", "new")
    assert found.curves == {"loss": (line, ())}
    same = compare({}, {})
    assert (same.code, same.curves, same.params) == ((), {}, ())


# Warnings and gates


@pytest.mark.parametrize(
    ("side", "is_stale", "named"),
    [
        ({"stale": ("train.py", "lr")}, True, ["head", "train.py", "lr"]),
        ({"metrics": {"metrics/test.json": {"accuracy": 0.99}}}, True, ["0.99", "1"]),
        ({"metrics": {"metrics/test.json": {"accuracy": 1.0}}}, False, None),
        ({"metrics": {"mine.json": {"accuracy": 0.5}}}, False, None),
        ({"problems": {"metrics/test.json": "no JSON"}}, False, ["head", "metrics/test.json"]),
        ({"problems": {"other.json": "no JSON"}}, False, None),
        ({"num_missing": 2}, False, ["2 commits of base"]),
        ({"params": {"seed": 1}, "metrics": {"m.json": {"val_loss": 1}}}, False, ["seed", "val_"]),
        ({"params": {"val_size": 1}, "metrics": {"m.json": {"val_loss": 1}}}, False, None),
    ],
)
def test_warnings(side: dict[str, Any], is_stale: bool, named: list[str] | None) -> None:
    found = compare({"params": {"seed": 0}} if "params" in side else {}, side)
    assert found.is_stale == is_stale
    assert len(found.warnings) == (named is not None)
    assert all(name in found.warnings[0] for name in named or ())
    assert not found.objection(fail_if=["worse", "not-comparable"], max_drop=None)
    assert bool(found.objection(fail_if=["stale"], max_drop=None)) == is_stale


@pytest.mark.parametrize(
    ("num_wrong", "fail_if", "max_drop", "fails"),
    [
        (6, ["worse"], None, True),
        (5, ["worse"], None, False),
        (5, [], 0.025, False),
        (5, [], 0.0249, True),
        (5, ["worse"], 0.0, True),
        (5, [], float("nan"), True),
        (None, ["worse", "not-comparable"], None, True),
        (None, ["worse"], None, False),
        (None, [], 1.0, True),
        (5, ["not-comparable"], None, False),
    ],
)
def test_gates(num_wrong: int | None, fail_if: list[str], max_drop: float | None, fails: bool) -> None:
    head = snapshot("head", predictions=None) if num_wrong is None else snapshot("head", range(num_wrong))
    assert bool(compare({}, head).objection(fail_if=fail_if, max_drop=max_drop)) == fails
