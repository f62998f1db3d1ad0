"""What is decided on two models, and how it is recorded."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from mnist.evaluation.predictions import Predictions
from mnist.tracking import promotion
from mnist.tracking.promotion import Decision, Model

NUM_IMAGES = 100
LABELS = np.arange(NUM_IMAGES).astype(np.uint8) % 10


def model(version: str, wrong: range = range(0), **changes: Any) -> Model:
    """A model that is wrong on these images."""
    predicted_N = LABELS.copy()
    predicted_N[list(wrong)] = (LABELS[list(wrong)] + 1) % 10
    made = Model(
        version=version,
        weights_sha256=f"weights-{version}",
        run_id=f"run-{version}",
        run_name=f"name-{version}",
        tags={"test_sha256": "a" * 64, "rerun": "dvc exp run -S lr=0.02"},
        predictions=Predictions(labels_N=LABELS.astype(str), predicted_N=predicted_N.astype(str)),
    )
    return dataclasses.replace(made, **changes)


def decided(challenger: Model, champion: Model | None) -> Decision:
    return promotion.decide(challenger, champion, min_accuracy=0.8, alpha=0.05)


def test_the_first_champion_needs_the_floor_alone() -> None:
    decision = decided(model("1", range(20)), None)
    assert decision.outcome == "promoted"
    assert (
        decision.reason == "there is no champion yet, and its accuracy reaches registry.min_accuracy, 80.00%"
    )
    assert decision.paired is None


@pytest.mark.parametrize("champion", [None, model("1", range(50))], ids=["no champion", "a worse champion"])
def test_below_the_floor_is_refused_whoever_is_the_champion(champion: Model | None) -> None:
    decision = decided(model("2", range(21)), champion)
    assert decision.outcome == "refused"
    assert decision.reason == "its accuracy, 79.00%, is below registry.min_accuracy, 80.00%"


@pytest.mark.parametrize(
    ("wrong", "outcome", "reason"),
    [
        (range(4), "promoted", "better than the champion (p = 0.0156, registry.alpha 0.05)"),
        (range(6), "promoted", "not worse than the champion, within noise"),
        (range(10), "promoted", "not worse than the champion, within noise"),
        (range(14), "promoted", "not worse than the champion, within noise"),
        (range(15), "refused", "worse than the champion (p = 0.0312, registry.alpha 0.05)"),
    ],
    ids=["6 fixed", "4 fixed", "equal", "4 broken", "5 broken"],
)
def test_a_champion_gives_way_to_what_is_not_worse(wrong: range, outcome: str, reason: str) -> None:
    # 1/2**5 = 0.031 is below alpha, 1/2**4 = 0.0625 is not.
    decision = decided(model("2", wrong), model("1", range(10)))
    assert decision.outcome == outcome
    assert reason in decision.reason
    assert decision.paired
    assert decision.paired.fixed - decision.paired.broken == 10 - len(wrong)


def test_the_images_decide_and_not_the_accuracy() -> None:
    # 5 points worse, but 10 fixed and 15 broken are no proof: P(at most 10 of 25) = 0.21.
    decision = decided(model("2", range(10, 25)), model("1", range(10)))
    assert decision.outcome == "promoted"
    assert decision.paired
    assert decision.paired.p_worse == pytest.approx(0.2122, abs=1e-4)


@pytest.mark.parametrize("whose", ["challenger", "champion"])
def test_without_predictions_the_problem_is_the_reason(whose: str) -> None:
    models = {"challenger": model("2"), "champion": model("1")}
    models[whose] = dataclasses.replace(models[whose], predictions=None, problem="run 9 is gone")
    decision = decided(**models)
    assert decision.outcome == "refused"
    assert decision.reason == "run 9 is gone"


def test_different_test_data_is_refused_with_both_digests_and_the_way_out() -> None:
    tags = {"test_sha256": "c" * 64, "rerun": "dvc exp run -S lr=0.02"}
    decision = decided(model("2"), model("1", tags=tags))
    assert decision.outcome == "refused"
    assert decision.reason == (
        "they were tested on different data: the challenger on test_sha256 aaaaaaaaaaaa, the champion on "
        "cccccccccccc; run the champion's experiment on the present data (it was made by "
        "`dvc exp run -S lr=0.02`)"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "is_same"), [("a", "a", True), ("a", "b", False), ("", "a", False), ("", "", False)]
)
def test_the_digest_of_the_test_data_decides(ours: str, theirs: str, is_same: bool) -> None:
    challenger, champion = model("2", tags={"test_sha256": ours}), model("1", tags={"test_sha256": theirs})
    assert (promotion.tested_on_others(challenger, champion) == "") == is_same


@pytest.mark.parametrize(
    "labels_N", [LABELS[::-1], LABELS[:-1], LABELS + 1], ids=["order", "number", "names"]
)
def test_other_labels_under_the_same_digest_are_refused(labels_N: Any) -> None:
    names_N = labels_N.astype(str)
    altered = Predictions(labels_N=names_N, predicted_N=names_N)
    decision = decided(model("2"), model("1", predictions=altered))
    assert decision.outcome == "refused"
    assert "one of the files is altered" in decision.reason


def test_the_same_model_is_known_by_number_and_by_weights() -> None:
    assert promotion.same(model("1"), model("1")) == "version 1 is the champion already"
    twin = promotion.same(model("2", weights_sha256="weights-1"), model("1"))
    assert twin == "version 2 has the same weights as version 1, the champion"
    assert promotion.same(model("2"), model("1")) == ""
    assert promotion.same(model("2", weights_sha256=""), model("1", weights_sha256="")) == ""


def test_a_record_holds_what_was_decided_and_why() -> None:
    decision = decided(model("2", range(8)), model("1", range(5, 10)))
    time = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    record = promotion.record(decision, time=time, who="ada", store="sqlite:///mlflow.db", name="mnist")
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "time": "2026-01-02T03:04:05.678Z",
        "who": "ada",
        "store": "sqlite:///mlflow.db",
        "model": "mnist",
        "decision": "promoted",
        "reason": "it is not worse than the champion, within noise (registry.alpha 0.05)",
        "candidate": {"version": "2", "run_id": "run-2", "weights_sha256": "weights-2", "accuracy": 0.92},
        "incumbent": {"version": "1", "run_id": "run-1", "weights_sha256": "weights-1", "accuracy": 0.95},
        "num_images": 100,
        "fixed": 2,
        "broken": 5,
        "p_worse": (1 + 7 + 21) / 2**7,
        "p_better": (2**7 - 1 - 7) / 2**7,
        "p_two_sided": (1 + 7 + 21) / 2**6,
        "alpha": 0.05,
        "min_accuracy": 0.8,
    }


def test_a_record_without_an_incumbent_or_numbers_is_json_too() -> None:
    gone = model("1", predictions=None, problem="run 1 is gone")
    time = datetime(2026, 1, 2, tzinfo=UTC)
    record = promotion.record(decided(gone, None), time=time, who="ada", store="", name="mnist")
    assert record["incumbent"] is None
    assert record["candidate"]["accuracy"] is None
    assert {record[key] for key in ("num_images", "fixed", "broken", "p_worse")} == {None}
