"""What is different between two snapshots made by hand, and what that is called."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from mnist.comparison import diff
from mnist.comparison.changes import Changes, Metric, Timing
from mnist.comparison.plots import Curve
from mnist.comparison.revision import Snapshot, Stage
from mnist.data import validation
from mnist.data.validation import Verdict
from mnist.evaluation.statistics import Predictions

TEST = "metrics/test.json"
N = 200
LABELS = np.arange(N).astype(np.uint8) % 10
VERDICT = validation.read(Path(__file__).parents[3] / "metrics/validation.json")


def predictions(wrong: Any = (), labels: Any = LABELS) -> Predictions:
    """All right but for these images, which are taken for the next digit."""
    labels_N = np.asarray(labels, np.uint8)
    predicted_N = labels_N.copy()
    wrong = list(wrong)
    predicted_N[wrong] = (labels_N[wrong] + 1) % 10
    return Predictions(labels_N=labels_N.astype(str), predicted_N=predicted_N.astype(str))


def snapshot(name: str = "base", **fields: Any) -> Snapshot:
    return Snapshot(name=name, commit=fields.pop("commit", name.ljust(40, "0")), **fields)


def scored(name: str, wrong: Any = (), **metrics: Any) -> Snapshot:
    """With predictions and the scores that belong to them."""
    said = predictions(wrong)
    scores = {"accuracy": round(said.accuracy, 6), "num_wrong": len(list(wrong)), "loss": 0.1, **metrics}
    return snapshot(name, predictions=said, metrics={TEST: scores})


def metrics(found: Changes) -> dict[str, Metric]:
    return {metric.name: metric for metric in found.metrics}


def between(base: dict[str, Any], head: dict[str, Any]) -> Changes:
    return diff.between(snapshot("base", **base), snapshot("head", **head))


# The verdict


@pytest.mark.parametrize(
    ("base", "head", "outcome"),
    [
        (range(20), range(20), "within noise"),
        (range(20), range(26), "worse"),
        (range(20), range(25), "within noise"),
        (range(26), range(20), "better"),
        (range(25), range(20), "within noise"),
        (range(20), range(20, 40), "within noise"),
    ],
    ids=["same", "six broken", "five broken", "six fixed", "five fixed", "as many others"],
)
def test_the_verdict_is_by_the_images(base: range, head: range, outcome: str) -> None:
    found = diff.between(scored("base", base), scored("head", head))

    assert found.outcome == outcome
    assert found.reason == ""
    assert found.images
    assert set(found.images.fixed) == set(base) - set(head)
    assert set(found.images.broken) == set(head) - set(base)
    assert found.images.drop == pytest.approx((len(head) - len(base)) / N, abs=1e-15)
    assert found.images.base_accuracy == pytest.approx(1 - len(base) / N)
    assert found.images.head_accuracy == pytest.approx(1 - len(head) / N)
    assert found.warnings == ()


def with_test_data(digest: str) -> Verdict:
    return VERDICT.model_copy(update={"test_sha256": digest * 64})


OTHER_LABELS = (LABELS + np.where(np.arange(N) < 3, 1, 0)) % 10
OBSTACLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no predictions at base": (
        {},
        {"predictions": predictions()},
        "no predictions on the test images at base",
    ),
    "no predictions at head": (
        {"predictions": predictions()},
        {},
        "no predictions on the test images at head",
    ),
    "none at all": ({}, {}, "no predictions on the test images at base and head"),
    "fewer images": (
        {"predictions": predictions(labels=np.arange(10_000) % 10), "validation": with_test_data("a")},
        {"predictions": predictions(), "validation": with_test_data("b")},
        "another split: 10,000 test images at base, 200 at head",
    ),
    "other images": (
        {"predictions": predictions(), "validation": with_test_data("a")},
        {"predictions": predictions(labels=OTHER_LABELS), "validation": with_test_data("b")},
        "different test data: digest aaaaaaaaaaaa at base, bbbbbbbbbbbb at head",
    ),
    "other labels": (
        {"predictions": predictions(), "validation": with_test_data("a")},
        {"predictions": predictions(labels=OTHER_LABELS), "validation": with_test_data("a")},
        "different test data: 3 test images have another label",
    ),
    "other labels, and a verdict is missing": (
        {"predictions": predictions()},
        {"predictions": predictions(labels=OTHER_LABELS), "validation": with_test_data("a")},
        "different test data: 3 test images have another label",
    ),
}


@pytest.mark.parametrize(("base", "head", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_be_compared_says_the_first_reason(
    base: dict[str, Any], head: dict[str, Any], reason: str
) -> None:
    scores = {TEST: {"accuracy": 1.0}}
    found = between({**base, "metrics": scores}, {**head, "metrics": scores})

    assert (found.outcome, found.reason, found.images) == ("not comparable", reason, None)
    assert metrics(found)["accuracy"].interval is None
    assert metrics(found)["accuracy"].p is None


@pytest.mark.parametrize("missing", ["base", "head", "both"])
def test_without_a_verdict_on_the_data_the_labels_decide(missing: str) -> None:
    sides = {
        name: {
            "predictions": predictions(),
            "validation": None if missing in (name, "both") else with_test_data(name[0].replace("h", "c")),
        }
        for name in ("base", "head")
    }
    found = between(sides["base"], sides["head"])
    assert found.outcome == "within noise"
    assert found.validation.is_same_data is None
    assert found.validation.findings == ()


def test_classes_have_a_test_each_adjusted_by_holm() -> None:
    rng = np.random.default_rng(0)
    base, head = (np.flatnonzero(rng.random(N) < share) for share in (0.1, 0.3))
    head = np.union1d(head, np.flatnonzero(LABELS == 4)[:16])
    found = diff.between(scored("base", base), scored("head", head)).images
    assert found

    said = [predictions(wrong) for wrong in (base, head)]
    p_values = []
    for one in found.classes:
        right = [side.right[int(one.label) == LABELS] for side in said]
        table = [
            [(right[0] & right[1]).sum(), (right[0] & ~right[1]).sum()],
            [(~right[0] & right[1]).sum(), 0],
        ]
        assert (one.paired.broken, one.paired.fixed) == (table[0][1], table[1][0])
        assert one.paired.num_images == len(right[0]) == 20
        assert (one.base_recall, one.head_recall) == pytest.approx([right[0].mean(), right[1].mean()])
        p_values.append(mcnemar(table, exact=True).pvalue)
    assert [one.label for one in found.classes] == list("0123456789")
    adjusted = multipletests(p_values, method="holm")[1]
    assert [one.p for one in found.classes] == pytest.approx(adjusted.tolist())
    # Alone 0.05 would be passed more often.
    beyond = [int(one.label) for one in found.classes if one.is_beyond_noise]
    assert 4 in beyond
    assert beyond == np.flatnonzero(adjusted < 0.05).tolist()
    assert len(beyond) < (np.array(p_values) < 0.05).sum()


def test_the_change_of_the_confusion_is_the_difference_of_counts() -> None:
    base = Predictions(labels_N=LABELS.astype(str), predicted_N=np.full(N, "3"))
    head = Predictions(labels_N=LABELS.astype(str), predicted_N=(LABELS + (LABELS == 7)).astype(str))
    found = between({"predictions": base}, {"predictions": head}).images
    assert found
    expected = np.zeros((10, 10), np.int64)
    for label, before, after in zip(LABELS, base.predicted_N, head.predicted_N, strict=True):
        expected[label, int(before)] -= 1
        expected[label, int(after)] += 1
    assert found.confusion.tolist() == expected.tolist()
    assert found.confusion.sum() == 0
    assert (found.confusion[7, 8], found.confusion[7, 3], found.confusion[3, 3]) == (20, -20, 0)


# Metrics


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("accuracy", "more"),
        ("val_accuracy", "more"),
        ("top5.Accuracy", "more"),
        ("f1", "more"),
        ("metrics/test.json: recall.3", "more"),
        ("loss", "less"),
        ("train_loss", "less"),
        ("num_wrong", "less"),
        ("expected_calibration_error", "less"),
        ("accuracy_error", "less"),
        ("RMSE", "less"),
        ("num_images", ""),
        ("num_parameters", ""),
        ("glossary", ""),
        ("bitmap_size", ""),
        ("", ""),
    ],
)
def test_the_name_tells_which_way_is_good(name: str, good: str) -> None:
    sides = [{"metrics": {"m.json": {name: value}}} for value in (1, 2)]
    (found,) = between(*sides).metrics
    assert found.good == good


def test_only_what_counts_the_images_has_an_interval() -> None:
    base, head = scored("base", range(20)), scored("head", range(40), loss=0.2)
    for side in (base, head):
        side.metrics["metrics/train.json"] = {"val_accuracy": 0.5, "inner": {}}
        side.metrics["mine.json"] = {"sub.accuracy": 0.123}
    found = diff.between(base, head)
    by_name = metrics(found)

    assert found.images
    low, high = found.images.paired.interval_pp
    assert by_name["accuracy"].interval == pytest.approx((low / 100, high / 100))
    assert by_name["num_wrong"].interval == pytest.approx((-high * N / 100, -low * N / 100))
    for name in ("accuracy", "num_wrong"):
        metric = by_name[name]
        assert metric.interval
        assert metric.change is not None
        assert metric.interval[0] < metric.change < metric.interval[1]
        assert metric.p == found.images.paired.p_two_sided
    for name in ("loss", "val_accuracy", "sub.accuracy"):
        assert by_name[name].interval is None
        assert by_name[name].p is None


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_metric_that_is_not_of_the_predictions_has_no_interval_and_is_told(side: str) -> None:
    sides = {name: scored(name, range(20)) for name in ("base", "head")}
    sides[side].metrics[TEST]["accuracy"] = 0.99
    found = diff.between(sides["base"], sides["head"])

    assert metrics(found)["accuracy"].interval is None
    assert metrics(found)["num_wrong"].interval is not None
    (warning,) = found.warnings
    assert warning.startswith(f"at {side} the metric accuracy is 0.99, but the predictions give 0.9: ")
    assert found.outcome == "within noise"


@pytest.mark.parametrize(
    ("said", "is_told"),
    [(0.9, False), (0.9 + 4e-7, False), (0.900002, True), ("0.9", True), (math.nan, True), (None, False)],
    ids=["right", "rounded", "a little off", "text", "NaN", "missing"],
)
def test_an_accuracy_is_held_against_the_predictions(said: Any, is_told: bool) -> None:
    base = scored("base", range(20))
    if said is None:
        del base.metrics[TEST]["accuracy"]
    else:
        base.metrics[TEST]["accuracy"] = said
    assert bool(diff.between(base, scored("head", range(20))).warnings) == is_told


@pytest.mark.parametrize(
    ("files", "is_told"),
    [
        ({TEST: {"accuracy": 0.99}, "mine.json": {"accuracy": 0.9}}, True),
        ({TEST: {"accuracy": 0.9}, "mine.json": {"accuracy": 0.99}}, False),
        ({"renamed.json": {"accuracy": 0.99}}, True),
        ({TEST: {"loss": 1}, "mine.json": {"accuracy": 0.99}}, False),
        ({"a.json": {"accuracy": 0.99}, "b.json": {"accuracy": 0.98}}, False),
    ],
    ids=["ours among others", "somebody else's", "renamed", "ours has none", "nobody knows whose"],
)
def test_which_accuracy_is_held_against_the_predictions(
    files: dict[str, dict[str, Any]], is_told: bool
) -> None:
    found = between({"metrics": files, "predictions": predictions(range(20))}, {"predictions": predictions()})
    assert bool(found.warnings) == is_told


def test_metrics_pair_by_key_and_by_file_where_a_key_is_shared() -> None:
    base: dict[str, Any] = {
        "metrics": {"old.json": {"loss": 2.0, "only": 1}, "a.json": {"deep.f1": 0.5}, "n.txt": {"": 3}}
    }
    head: dict[str, Any] = {
        "metrics": {"new.json": {"loss": 1.0}, "a.json": {"deep.f1": 0.5, "more": "x"}, "n.txt": {"": 4}}
    }
    found = metrics(between(base, head))
    assert {name: (one.base, one.head, one.change) for name, one in found.items()} == {
        "loss": (2.0, 1.0, -1.0),
        "only": (1, None, None),
        "deep.f1": (0.5, 0.5, 0.0),
        "n.txt": (3, 4, 1.0),
        "more": (None, "x", None),
    }
    assert [name for name, one in found.items() if one.is_same] == ["deep.f1"]

    # A number that is a file needs no other name.
    files = {"metrics": {"a.txt": {"": 1}, "b.txt": {"": 2}}}
    assert set(metrics(between(files, files))) == {"a.txt", "b.txt"}

    # Where one side has a key twice, both sides name the file.
    head["metrics"]["a.json"]["loss"] = 7.0
    found = metrics(between(base, head))
    assert {name: (one.base, one.head) for name, one in found.items() if "loss" in name} == {
        "old.json: loss": (2.0, None),
        "new.json: loss": (None, 1.0),
        "a.json: loss": (None, 7.0),
    }


def test_with_the_file_in_its_name_the_accuracy_keeps_its_interval() -> None:
    sides = [scored(name, wrong) for name, wrong in (("base", range(20)), ("head", range(40)))]
    for side in sides:
        side.metrics["mine.json"] = {"accuracy": 0.5}
    found = metrics(diff.between(*sides))
    assert found[f"{TEST}: accuracy"].interval is not None
    assert found["mine.json: accuracy"].interval is None


@pytest.mark.parametrize(
    ("base", "head", "change"),
    [
        (1, 3, 2),
        (0.5, 0.25, -0.25),
        (1, None, None),
        ("a", "b", None),
        (True, 3, None),
        (math.nan, 1.0, None),
        (1.0, math.inf, None),
        (10**400, 1, None),
        (-1.7e308, 1.7e308, None),
    ],
    ids=str,
)
def test_a_change_is_of_two_numbers(base: Any, head: Any, change: float | None) -> None:
    assert Metric(name="m", base=base, head=head, good="").change == change


# Params, stages, data


def test_params_that_changed() -> None:
    base = {"params": {"lr": 0.1, "same": [1], "list": [1, 2], "gone": None, "text": "1"}}
    head = {"params": {"lr": 0.2, "same": [1], "list": [2, 1], "new": False, "text": 1}}
    found = between(base, head).params
    assert [(one.name, one.side, one.base, one.head) for one in found] == [
        ("lr", "both", 0.1, 0.2),
        ("list", "both", [1, 2], [2, 1]),
        ("gone", "base", None, None),
        ("text", "both", "1", 1),
        ("new", "head", None, False),
    ]


@pytest.mark.parametrize(
    ("changed", "other_held_out"),
    [({}, ()), ({"lr": 1}, ()), ({"seed": 1}, ("seed",)), ({"val_size": 9, "seed": 3}, ("seed", "val_size"))],
    ids=["nothing", "lr", "seed", "both"],
)
def test_other_held_out_images_are_told(changed: dict[str, Any], other_held_out: tuple[str, ...]) -> None:
    params = {"seed": 0, "val_size": 5, "lr": 0.1}
    assert between({"params": params}, {"params": {**params, **changed}}).other_held_out == other_held_out


STAGE = Stage(
    cmd="run", params=frozenset({"lr", "data"}), code={"a.py": "1", "b.py": "2"}, data={"d.csv": "3"}
)


@pytest.mark.parametrize(
    ("now", "params", "expected"),
    [
        ({}, {}, None),
        ({"cmd": "run fast"}, {}, {"is_cmd": True}),
        ({"code": {"a.py": "9", "b.py": "2"}}, {}, {"code": ("a.py",)}),
        ({"code": {"a.py": "1", "c.py": "2"}}, {}, {"code": ("b.py", "c.py")}),
        ({"data": {"d.csv": "4"}}, {}, {"data": ("d.csv",)}),
        ({}, {"lr": 2, "other": 3}, {"params": ("lr",)}),
        ({}, {"data.mirror": "x", "database": 1}, {"params": ("data.mirror",)}),
        ({"params": frozenset({"lr", "other"})}, {"other": 3}, {"params": ("other",)}),
        ({"changed": ("a.py",)}, {}, None),
    ],
    ids=["same", "command", "code", "dep", "data", "param", "in a section", "new param", "stale"],
)
def test_a_stage_that_changed(now: Any, params: dict[str, Any], expected: dict[str, Any] | None) -> None:
    before = {"lr": 1, "other": 1, "data.mirror": "m", "database": 0}
    found = between(
        {"stages": {"train": STAGE}, "params": before},
        {"stages": {"train": dataclasses.replace(STAGE, **now)}, "params": {**before, **params}},
    ).stages
    nothing = {"is_cmd": False, "params": (), "code": (), "data": ()}
    if expected is None:
        assert found == ()
    else:
        (one,) = found
        assert dataclasses.asdict(one) == {"name": "train", "side": "both", **nothing, **expected}


def test_stages_added_and_removed() -> None:
    found = between(
        {"stages": {"old": STAGE, "both": STAGE}}, {"stages": {"both": STAGE, "new": STAGE}}
    ).stages
    assert [(one.name, one.side) for one in found] == [("old", "base"), ("new", "head")]


def test_old_results_are_told_by_stage_and_reason() -> None:
    stale = dataclasses.replace(STAGE, changed=("a.py", "lr"))
    found = between({"stages": {"train": STAGE}}, {"stages": {"train": stale, "evaluate": stale, "x": STAGE}})
    (warning,) = found.warnings
    assert warning.startswith("at head the results are old")
    assert "train (a.py, lr); evaluate (a.py, lr)" in warning
    assert "x" not in warning.replace("experiment", "").split()


def test_many_reasons_are_counted() -> None:
    stale = dataclasses.replace(STAGE, changed=tuple("abcde"))
    (warning,) = between({}, {"stages": {"train": stale}}).warnings
    assert warning.endswith("train (a, b, c and 2 more)")


def test_altered_results_and_a_base_that_went_on_are_told() -> None:
    altered = dataclasses.replace(STAGE, altered=("metrics/test.json",))
    found = between({}, {"stages": {"evaluate": altered}})
    assert found.warnings == ("at head this is not what the pipeline wrote: metrics/test.json",)
    assert found.is_doubtful
    found = between({}, {"num_missing": 2})
    assert found.warnings[0].startswith("2 commits of base not in head")
    assert not found.is_doubtful
    assert between({}, {"num_missing": 0}).warnings == ()


def test_the_verdict_on_the_data() -> None:
    first, second, *others = VERDICT.expectations
    broken = first.model_copy(update={"success": False, "observed": "7 images"})
    renamed = second.model_copy(update={"expectation": "another"})
    head = VERDICT.model_copy(
        update={"success": False, "expectations": [broken, renamed, *others], "dataset_sha256": "f" * 64}
    )
    found = between({"validation": VERDICT}, {"validation": head}).validation
    num = len(VERDICT.expectations)
    assert (found.base, found.head) == ((True, num, num), (False, num - 1, num))
    assert found.is_same_data is False
    assert [one.expectation for one in found.findings] == [first.expectation, second.expectation, "another"]
    assert found.findings[0].base == f"holds: expected {first.expected}, observed {first.observed}"
    assert found.findings[0].head == f"BROKEN: expected {first.expected}, observed 7 images"
    assert (found.findings[1].head, found.findings[2].base) == (None, None)

    same = between({"validation": VERDICT}, {"validation": VERDICT}).validation
    assert (same.is_same_data, same.findings) == (True, ())


# Curves, costs


def curve(y: str = "loss", values: Any = (1, 2), x: str = "epoch", title: str = "") -> Curve:
    points = tuple((float(number), float(value)) for number, value in enumerate(values))
    return Curve(title=title or f"{y} by {x}", x=x, y=y, points=points)


def test_curves_pair_by_their_axes() -> None:
    base = {"curves": [curve("loss", [3, 2]), curve("loss", [9, 8], x="step"), curve("f1", [0, 1])]}
    head = {"curves": [curve("recall", [5, 6]), curve("loss", [3, 1], title="Other title")]}
    found = between(base, head).curves
    assert [(one.title, one.x, one.y, len(one.base), len(one.head)) for one in found] == [
        ("Other title", "epoch", "loss", 2, 2),
        ("loss by step", "step", "loss", 2, 0),
        ("f1 by epoch", "epoch", "f1", 2, 0),
        ("recall by epoch", "epoch", "recall", 0, 2),
    ]
    assert found[0].base == ((0.0, 3.0), (1.0, 2.0))
    assert found[0].head == ((0.0, 3.0), (1.0, 1.0))


def test_two_curves_of_the_same_axes_stay_two() -> None:
    base = {"curves": [curve(values=[1, 2], title="a"), curve(values=[3, 4], title="b")]}
    head = {"curves": [curve(values=[1, 3], title="a"), curve(values=[3, 5], title="b")]}
    found = between(base, head).curves
    assert [(one.title, one.base[1][1], one.head[1][1]) for one in found] == [("a", 2, 3), ("b", 4, 5)]


def test_a_curve_that_is_in_two_plots_is_one() -> None:
    side = {"curves": [curve(title="a"), curve(title="b")]}
    assert len(between(side, side).curves) == 1


@pytest.mark.parametrize(
    "points", [(), ((1.0, 2.0),), ((1.0, 2.0), (1.0, 3.0))], ids=["none", "one", "above it"]
)
def test_points_at_one_place_are_no_curve(points: tuple[tuple[float, float], ...]) -> None:
    side = {"curves": [Curve(title="t", x="x", y="y", points=points)]}
    assert between(side, side).curves == ()
    (found,) = between(side, {"curves": [curve("y", [1, 2], x="x")]}).curves
    assert (len(found.base), len(found.head)) == (len(points), 2)


@pytest.mark.parametrize(
    ("base", "head", "costs"),
    [
        (
            (6422, 10, 1.5),
            (7000, 20, 3.0),
            [("parameters", 6422, 7000), ("optimizer steps", 10, 20), ("training seconds", 1.5, 3.0)],
        ),
        (
            (6422, None, None),
            (None, None, 3.0),
            [("parameters", 6422, None), ("training seconds", None, 3.0)],
        ),
        ((None, None, None), (None, None, None), []),
        (("many", 0, None), (math.nan, 0, None), [("optimizer steps", 0, 0)]),
        ((math.inf, None, None), (10**400, None, None), []),
    ],
    ids=["all", "some", "none", "no numbers", "too large"],
)
def test_costs_are_those_that_a_side_knows(base: Any, head: Any, costs: list[Any]) -> None:
    sides, timings = [], []
    for parameters, steps, seconds in (base, head):
        of = {} if parameters is None else {"num_parameters": parameters}
        sides.append(snapshot(metrics={"metrics/train.json": of} if of else {}, num_steps=steps))
        timings.append(None if seconds is None else Timing(seconds, "cpu"))
    found = diff.between(sides[0], sides[1], base_timing=timings[0], head_timing=timings[1])
    assert [(one.name, one.base, one.head) for one in found.costs] == costs


@pytest.mark.parametrize(
    ("base", "head", "devices"),
    [("cpu", "cuda", ("cpu", "cuda")), ("cpu", "cpu", None), ("cpu", None, None), (None, None, None)],
)
def test_devices_are_told_where_they_are_not_the_same(base: Any, head: Any, devices: Any) -> None:
    timings = [None if device is None else Timing(1, device) for device in (base, head)]
    found = diff.between(snapshot(), snapshot(), base_timing=timings[0], head_timing=timings[1])
    assert found.devices == devices


def test_names_and_problems_are_kept_by_side() -> None:
    found = diff.between(
        snapshot("main", commit="a" * 40, problems={"m.json": "no such file"}),
        snapshot("workspace", commit=""),
    )
    assert (found.base, found.base_commit, found.head, found.head_commit) == (
        "main",
        "a" * 40,
        "workspace",
        "",
    )
    assert found.problems == {"base": {"m.json": "no such file"}, "head": {}}
