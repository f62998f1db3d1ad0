"""The decision whether a challenger may become the champion, and its record.

Nothing here imports MLflow: `mnist.tracking.champion` fetches the evidence and carries the decision out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mnist.core import config, files
from mnist.core.config import Section
from mnist.core.errors import InputError
from mnist.evaluation.predictions import Predictions, compare
from mnist.evaluation.statistics import Paired

CHALLENGER, CHAMPION = "challenger", "champion"  # aliases in the registry

TESTED_ON = "test_sha256"  # tag of a run: digest of the test images and labels


@dataclass(frozen=True, kw_only=True)
class Model:
    """A version of the registered model, with the evidence from a run of its weights.

    Attributes:
        version: number in the registry.
        weights_sha256: two versions with one digest are one model; empty if unknown.
        run_id: of the run.
        run_name: for people; empty where the run is gone.
        tags: of the run.
        predictions: on the test images; None where there is a `problem`.
        problem: why there are none, and how to restore them.
    """

    version: str
    weights_sha256: str
    run_id: str
    run_name: str = ""
    tags: Mapping[str, str]
    predictions: Predictions | None = None
    problem: str = ""

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy on the test images; None if it is unknown."""
        return self.predictions.accuracy if self.predictions else None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision and its reasons.

    Attributes:
        outcome: what becomes of the candidate.
        reason: for people.
        candidate: that was to become the champion.
        incumbent: that was the champion; None where there was none.
        min_accuracy: the limit, if it was applied.
        alpha: of the paired test, if it was applied.
        paired: the comparison with the incumbent, if there was one.
    """

    outcome: Literal["promoted", "refused", "rolled back"]
    reason: str
    candidate: Model
    incumbent: Model | None
    min_accuracy: float | None = None
    alpha: float | None = None
    paired: Paired | None = None


def same(challenger: Model, champion: Model) -> str:
    """Return the reason why both versions are the same model; empty if they are not."""
    if challenger.version == champion.version:
        return f"version {challenger.version} is the champion already"
    if challenger.weights_sha256 and challenger.weights_sha256 == champion.weights_sha256:
        return (
            f"version {challenger.version} has the same weights as version {champion.version}, the champion"
        )
    return ""


def decide(challenger: Model, champion: Model | None, *, min_accuracy: float, alpha: float) -> Decision:
    """Promote the challenger if it reaches the limit and is not worse than the champion.

    Args:
        challenger: the candidate.
        champion: None if there is none yet.
        min_accuracy: the smallest accepted accuracy on the test images, 0 to 1.
        alpha: significance level of the paired test for "worse".
    """
    outcome: Literal["promoted", "refused"] = "promoted"
    paired = None
    if reason := _obstacle(challenger, champion, min_accuracy):
        outcome = "refused"
    elif champion is None:
        reason = f"there is no champion yet, and its accuracy reaches {_floor(min_accuracy)}"
    else:
        assert challenger.predictions
        assert champion.predictions
        paired = compare(champion.predictions, challenger.predictions)
        if paired.p_worse < alpha:
            outcome = "refused"
            reason = f"it is worse than the champion (p = {paired.p_worse:.3g}, registry.alpha {alpha:g})"
        elif paired.p_better < alpha:
            reason = f"it is better than the champion (p = {paired.p_better:.3g}, registry.alpha {alpha:g})"
        else:
            reason = f"it is not worse than the champion, within noise (registry.alpha {alpha:g})"
    return Decision(
        outcome=outcome,
        reason=reason,
        candidate=challenger,
        incumbent=champion,
        min_accuracy=min_accuracy,
        alpha=alpha,
        paired=paired,
    )


def _obstacle(challenger: Model, champion: Model | None, min_accuracy: float) -> str:
    """Return the reason to refuse a promotion without a comparison; empty without one."""
    if challenger.predictions is None:
        return challenger.problem
    if challenger.predictions.accuracy < min_accuracy:
        return f"its accuracy, {challenger.predictions.accuracy:.2%}, is below {_floor(min_accuracy)}"
    if champion is None:
        return ""
    return champion.problem if champion.predictions is None else tested_on_others(challenger, champion)


def _floor(min_accuracy: float) -> str:
    return f"registry.min_accuracy, {min_accuracy:.2%}"


def tested_on_others(challenger: Model, champion: Model) -> str:
    """Return the reason why their test images differ, and the remedy; empty if they are the same."""
    assert challenger.predictions
    assert champion.predictions
    ours, theirs = (model.tags.get(TESTED_ON) or "" for model in (challenger, champion))
    again = (
        f"run the champion's experiment on the present data "
        f"(it was made by `{champion.tags.get('rerun') or 'a command that its run does not name'}`)"
    )
    if not ours or ours != theirs:
        return (
            f"they were tested on different data: the challenger on {TESTED_ON} {ours[:12] or 'unknown'}, "
            f"the champion on {theirs[:12] or 'unknown'}; {again}"
        )
    if not np.array_equal(challenger.predictions.labels_N, champion.predictions.labels_N):
        return (
            f"the labels in their predictions differ, though {TESTED_ON} is the same: classes have other "
            f"names, or one of the files is altered; {again}"
        )
    return ""


def record(decision: Decision, *, time: datetime, who: str, store: str, name: str) -> dict[str, Any]:
    """Return the decision as one JSON object.

    Args:
        decision: what was decided.
        time: when, in UTC.
        who: the user who decided.
        store: URI of the MLflow store, as `paths.shown` gives it.
        name: of the registered model.
    """
    predictions, paired = decision.candidate.predictions, decision.paired
    return {
        "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "who": who,
        "store": store,
        "model": name,
        "decision": decision.outcome,
        "reason": decision.reason,
        "candidate": _facts(decision.candidate),
        "incumbent": _facts(decision.incumbent) if decision.incumbent else None,
        "num_images": predictions.num_images if predictions else None,
        "fixed": paired.fixed if paired else None,
        "broken": paired.broken if paired else None,
        "p_worse": paired.p_worse if paired else None,
        "p_better": paired.p_better if paired else None,
        "p_two_sided": paired.p_two_sided if paired else None,
        "alpha": decision.alpha,
        "min_accuracy": decision.min_accuracy,
    }


class Promoted(Section, extra="ignore"):
    """The model in a `Record`."""

    weights_sha256: str


class Record(Section, extra="ignore"):
    """The part of a recorded decision by which a champion is found again."""

    time: str
    who: str
    store: str
    model: str
    decision: Literal["promoted", "refused", "rolled back"]
    candidate: Promoted


def champions(log: Path, store: str, name: str) -> list[Record]:
    """Return the records that made the champions of a model, the last one first.

    Args:
        log: file with a recorded decision on each line; it need not exist.
        store: URI of the MLflow store that they are about, as `paths.shown` gives it.
        name: of the registered model.

    Raises:
        InputError: a line is no record.
    """
    found: list[Record] = []
    for number, line in enumerate(log.read_bytes().splitlines() if log.is_file() else [], start=1):
        where = f"{log.name}, line {number}"
        try:
            one = config.check(Record, files.parse_json(line, where), where)
        except InputError as error:  # a line that a crash cut off, for example
            expected = "a record of `mnist promote`: remove the line"
            raise InputError(where, found=error.found, expected=expected) from None
        if (one.store, one.model) != (store, name) or one.decision == "refused":
            continue
        if one.decision == "rolled back":
            found = found[:-1]
        if [last.candidate for last in found[-1:]] != [one.candidate]:
            found.append(one)
    return found[::-1]


def _facts(model: Model) -> dict[str, Any]:
    return {
        "version": model.version,
        "run_id": model.run_id,
        "weights_sha256": model.weights_sha256,
        "accuracy": model.accuracy,
    }


def described(model: Model) -> str:
    """Describe a model in one line."""
    text = f"version {model.version}, run {model.run_name or model.run_id or 'unknown'}"
    if model.predictions:
        right, num_images = int(model.predictions.right.sum()), model.predictions.num_images
        text += f": {model.predictions.accuracy:.2%}, {right:,} of {num_images:,} test images"
    return text


def summary(paired: Paired) -> str:
    """Describe a comparison in one line."""
    return (
        f"{paired.fixed:,} fixed, {paired.broken:,} broken, {paired.change_pp:+.2f} pp; "
        f"exact McNemar test: worse p = {paired.p_worse:.3g}, two-sided p = {paired.p_two_sided:.3g}"
    )
