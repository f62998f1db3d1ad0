"""Whether a challenger may become the champion, and the record of that decision.

Nothing here knows MLflow: `mnist.cli.promote` fetches what is decided on, and does what is decided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np

from mnist.evaluation import statistics
from mnist.evaluation.statistics import Paired, Predictions

CHALLENGER, CHAMPION = "challenger", "champion"  # aliases in the registry

# A run's tag with the digest of what it was tested on, the better one first: older runs have
# only the digest of all the data.
TESTED_ON = ("test_sha256", "dataset_sha256")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A version of the registered model, and the evidence that a run of its weights holds.

    Attributes:
        version: number in the registry.
        weights_sha256: by which two versions are one model; empty where nothing tells.
        run_id: of the run.
        run_name: for people; empty where the run is gone.
        tags: of the run.
        predictions: on the test images; None where there is a `problem`.
        problem: why there are none, and what brings them back.
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
        """On the test images, where it is known."""
        return self.predictions.accuracy if self.predictions else None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, and on what grounds.

    Attributes:
        outcome: what becomes of the candidate.
        reason: for people.
        candidate: that was to become the champion.
        incumbent: that was the champion; None where there was none.
        min_accuracy: the floor, where it was asked for.
        alpha: of the paired test, where it was asked for.
        paired: the comparison with the incumbent, where it came to one.
    """

    outcome: Literal["promoted", "refused", "rolled back"]
    reason: str
    candidate: Model
    incumbent: Model | None
    min_accuracy: float | None = None
    alpha: float | None = None
    paired: Paired | None = None


def same(challenger: Model, champion: Model) -> str:
    """Why the two are one model, whatever their version numbers; empty where they are not."""
    if challenger.version == champion.version:
        return f"version {challenger.version} is the champion already"
    if challenger.weights_sha256 and challenger.weights_sha256 == champion.weights_sha256:
        return (
            f"version {challenger.version} has the same weights as version {champion.version}, the champion"
        )
    return ""


def decide(challenger: Model, champion: Model | None, *, min_accuracy: float, alpha: float) -> Decision:
    """Promote the challenger where it clears the floor and is not worse than the champion.

    Args:
        challenger: that asks for the place.
        champion: that has it; None where there is none yet.
        min_accuracy: the least share of the test images that must be right.
        alpha: worse is what the paired test finds so with a p-value below this.
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
        paired = statistics.compare(champion.predictions, challenger.predictions)
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
    """What forbids the promotion before any comparison; empty where nothing does."""
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
    """Why their predictions are not of the same images, and what helps; empty where they are."""
    assert challenger.predictions
    assert champion.predictions
    key = next((key for key in TESTED_ON if challenger.tags.get(key) and champion.tags.get(key)), "")
    ours, theirs = challenger.tags.get(key, ""), champion.tags.get(key, "")
    again = (
        f"run the champion's experiment on the present data "
        f"(it was made by `{champion.tags.get('rerun') or 'a command that its run does not name'}`)"
    )
    if not key:
        return f"no digest tells whether both were tested on the same images; {again}"
    if ours != theirs:
        return (
            f"they were tested on different data: the challenger on {key} {ours[:12]}, "
            f"the champion on {theirs[:12]}; {again}"
        )
    our_names, their_names = (
        set(predictions.labels_N.tolist()) for predictions in (challenger.predictions, champion.predictions)
    )
    if our_names != their_names:
        return (
            f"their classes have other names: {_some(our_names - their_names)} in the challenger, "
            f"{_some(their_names - our_names)} in the champion; {again}"
        )
    if not np.array_equal(challenger.predictions.labels_N, champion.predictions.labels_N):
        return (
            f"the labels in their predictions differ, though {key} is the same: one of the files is altered"
        )
    return ""


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def record(decision: Decision, *, time: datetime, who: str, store: str, name: str) -> dict[str, Any]:
    """The decision as one JSON object.

    Args:
        decision: what was decided.
        time: when, in UTC.
        who: decided.
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


def _facts(model: Model) -> dict[str, Any]:
    return {
        "version": model.version,
        "run_id": model.run_id,
        "weights_sha256": model.weights_sha256,
        "accuracy": model.accuracy,
    }


def described(model: Model) -> str:
    """A model in a line, for people."""
    text = f"version {model.version}, run {model.run_name or model.run_id or 'unknown'}"
    if model.predictions:
        right, num_images = int(model.predictions.right.sum()), model.predictions.num_images
        text += f": {model.predictions.accuracy:.2%}, {right:,} of {num_images:,} test images"
    return text


def summary(paired: Paired) -> str:
    """A comparison in a line, for people."""
    return (
        f"{paired.fixed:,} fixed, {paired.broken:,} broken, {paired.change_pp:+.2f} pp; "
        f"exact McNemar test: worse p = {paired.p_worse:.3g}, two-sided p = {paired.p_two_sided:.3g}"
    )
