"""Two revisions held against each other, and which of them is better.

Accuracy is compared on the same test images, one by one (`mnist.evaluation.statistics`); of other
metrics there is one number each, which has no noise that could be told from it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mnist.comparison.changes import (
    Changes,
    ClassChange,
    Cost,
    CurvePair,
    Direction,
    FindingChange,
    Images,
    Metric,
    Param,
    Side,
    StageChange,
    Timing,
    ValidationChange,
    is_number,
)
from mnist.comparison.plots import Curve
from mnist.comparison.revision import Snapshot, Stage
from mnist.core import paths
from mnist.data.validation import Finding, Verdict
from mnist.evaluation import statistics
from mnist.evaluation.statistics import Predictions
from mnist.lineage import fingerprint

# Words in the names of metrics that say which way is good; where both kinds occur
# (`accuracy_error`), less is.
MORE_IS_BETTER = {
    "accuracy",
    "auc",
    "f1",
    "map",
    "precision",
    "recall",
    "score",
    "sensitivity",
    "specificity",
}
LESS_IS_BETTER = {"error", "errors", "loss", "losses", "mae", "mse", "nll", "perplexity", "rmse", "wrong"}
# What decides which training images are held out, so that `val_...` is of other images where it changed.
SPLIT = ("seed", "val_size", "dataset")
MAX_NAMED = 3  # files or params of a stage, in a warning
PRECISION = 1e-6  # metrics are written with six decimals


def between(
    base: Snapshot,
    head: Snapshot,
    *,
    base_timing: Timing | None = None,
    head_timing: Timing | None = None,
) -> Changes:
    """Compare two snapshots.

    Args:
        base: what there was.
        head: what there is now.
        base_timing: of its training, where known.
        head_timing: the same.
    """
    reason = _obstacle(base, head)
    images = None
    if not reason:
        assert base.predictions
        assert head.predictions
        images = _images(base.predictions, head.predictions, _classes(base, head))
    params = _params(base.params, head.params)
    doubts = [*_doubts(base), *_doubts(head)]
    return Changes(
        base=base.name,
        base_commit=base.commit,
        head=head.name,
        head_commit=head.commit,
        outcome=images.paired.verdict if images else "not comparable",
        reason=reason,
        images=images,
        metrics=_metrics(base, head, images),
        other_held_out=tuple(param.name for param in params if param.name in SPLIT),
        params=params,
        stages=_stages(base.stages, head.stages, params),
        validation=_validation(base.validation, head.validation),
        curves=_curves(base.curves, head.curves),
        costs=_costs(base, head, base_timing, head_timing),
        devices=_devices(base_timing, head_timing),
        is_doubtful=bool(doubts),
        warnings=(*doubts, *_behind(base, head)),
        problems={"base": base.problems, "head": head.problems},
    )


def _obstacle(base: Snapshot, head: Snapshot) -> str:
    """Why the two cannot be compared image by image; empty where they can."""
    without = [
        f"{side.name} ({side.unreadable})" if side.unreadable else side.name
        for side in (base, head)
        if side.predictions is None
    ]
    if without:
        return f"no predictions on the test images at {' and '.join(without)}"
    assert base.predictions
    assert head.predictions
    names = [fingerprint.dataset_of(side.params) for side in (base, head)]
    if names[0] != names[1]:
        return f"another data set: {names[0]} at {base.name}, {names[1]} at {head.name}"
    if base.predictions.num_images != head.predictions.num_images:
        found = f"{base.predictions.num_images:,} test images at {base.name}, "
        return f"another split: {found}{head.predictions.num_images:,} at {head.name}"
    if base.validation and head.validation and base.validation.test_sha256 != head.validation.test_sha256:
        digests = (base.validation.test_sha256[:12], head.validation.test_sha256[:12])
        return f"different test data: digest {digests[0]} at {base.name}, {digests[1]} at {head.name}"
    others = int((base.predictions.labels_N != head.predictions.labels_N).sum())
    return f"different test data: {others:,} test images have another label" if others else ""


def _classes(*sides: Snapshot) -> tuple[str, ...]:
    """The names of the classes: those that the data have, in their order, and then what else occurs."""
    counted = (side.validation.class_counts["test"] for side in sides if side.validation)
    known = [name for counts in counted for name in list(counts)[: statistics.MAX_CLASSES]]
    seen = [name for side in sides if side.predictions for name in side.predictions.classes]
    return tuple(dict.fromkeys([*known, *seen]))


def _images(base: Predictions, head: Predictions, names: tuple[str, ...]) -> Images:
    by_class = statistics.by_class(base, head)
    adjusted = statistics.holm({label: paired.p_two_sided for label, paired in by_class.items()})
    classes = []
    for label in sorted(by_class, key=names.index):
        paired = by_class[label]
        of_label = base.labels_N == label
        recalls = [float(side.right[of_label].mean()) for side in (base, head)]
        classes.append(
            ClassChange(
                label=label,
                base_recall=recalls[0],
                head_recall=recalls[1],
                paired=paired,
                p=adjusted[label],
            )
        )
    return Images(
        base_accuracy=base.accuracy,
        head_accuracy=head.accuracy,
        paired=statistics.compare(base, head),
        classes=tuple(classes),
        fixed=tuple(np.flatnonzero(head.right & ~base.right).tolist()),
        broken=tuple(np.flatnonzero(base.right & ~head.right).tolist()),
        names=names,
        confusion=statistics.confusion(head, names) - statistics.confusion(base, names),
    )


def _metrics(base: Snapshot, head: Snapshot, images: Images | None) -> tuple[Metric, ...]:
    sides = [_by_name(side, other) for side, other in ((base, head), (head, base))]
    return tuple(
        _metric(name, sides[0].get(name), sides[1].get(name), images)
        for name in dict.fromkeys([*sides[0], *sides[1]])
    )


def _by_name(snapshot: Snapshot, other: Snapshot) -> dict[str, Any]:
    """Metrics by their key; where files of one side share a key, with the file."""
    shared = {
        key
        for side in (snapshot, other)
        for key, num_files in Counter(key for values in side.metrics.values() for key in values).items()
        if key and num_files > 1
    }
    return {
        f"{path}: {key}" if key in shared else key or path: value
        for path, values in snapshot.metrics.items()
        for key, value in values.items()
    }


def _metric(name: str, base: Any, head: Any, images: Images | None) -> Metric:
    interval = p = None
    if images and (counted := _counted(name, images)):
        # The metric is a count or a share of the very images that were compared.
        values, unit = counted
        if all(_is_close(value, seen) for value, seen in zip(values, (base, head), strict=True)):
            low, high = sorted(unit * bound for bound in images.paired.interval_pp)
            interval, p = (low, high), images.paired.p_two_sided
    return Metric(name=name, base=base, head=head, good=_direction(name), interval=interval, p=p)


def _counted(name: str, images: Images) -> tuple[tuple[float, float], float] | None:
    """What the predictions say of a metric, and what a percentage point of accuracy is in its unit."""
    num_images = images.paired.num_images
    match re.split(r"[.: ]", name)[-1]:
        case "accuracy":
            return (images.base_accuracy, images.head_accuracy), 1 / 100
        case "num_wrong":
            wrong = (
                (1 - images.base_accuracy) * num_images,
                (1 - images.head_accuracy) * num_images,
            )
            return wrong, -num_images / 100
    return None


def _is_close(value: float, seen: Any) -> bool:
    return is_number(seen) and abs(value - float(seen)) <= PRECISION


def _direction(name: str) -> Direction:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & LESS_IS_BETTER:
        return "less"
    return "more" if words & MORE_IS_BETTER else ""


def _params(base: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[Param, ...]:
    params = tuple(
        Param(name=name, side=_side(name, base, head), base=base.get(name), head=head.get(name))
        for name in dict.fromkeys([*base, *head])
        if name not in base or name not in head or base[name] != head[name]
    )
    # Of another data set all is other that is known of it, which its name says.
    names = {fingerprint.dataset_of(side) for side in (base, head)}
    own = tuple(f"{paths.DATASETS}:{name}." for name in names) if len(names) > 1 else ()
    return tuple(param for param in params if param.side == "both" or not param.name.startswith(own))


def _side(name: str, base: Mapping[str, Any], head: Mapping[str, Any]) -> Side:
    return "both" if name in base and name in head else "base" if name in base else "head"


def _stages(
    base: Mapping[str, Stage], head: Mapping[str, Stage], params: Iterable[Param]
) -> tuple[StageChange, ...]:
    nothing = Stage(cmd="", params=frozenset(), code={}, data={})
    changes = []
    for name in dict.fromkeys([*base, *head]):
        before, after = base.get(name, nothing), head.get(name, nothing)
        change = StageChange(
            name=name,
            side=_side(name, base, head),
            is_cmd=before.cmd != after.cmd,
            params=tuple(param.name for param in params if _depends(before, param) or _depends(after, param)),
            code=_different(before.code, after.code),
            data=_different(before.data, after.data),
        )
        if change.is_cmd or change.params or change.code or change.data or change.side != "both":
            changes.append(change)
    return tuple(changes)


def _depends(stage: Stage, param: Param) -> bool:
    """Whether it lists the param, or a section that it is in."""
    return any(param.name == name or param.name.startswith(f"{name}.") for name in stage.params)


def _different(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path))


def _validation(base: Verdict | None, head: Verdict | None) -> ValidationChange:
    said = [
        {finding.expectation: finding for finding in verdict.expectations} if verdict else {}
        for verdict in (base, head)
    ]
    findings = []
    for name in dict.fromkeys([*said[0], *said[1]]):
        lines = [_shown(side[name]) if name in side else None for side in said]
        if lines[0] != lines[1] and base and head:
            findings.append(FindingChange(expectation=name, base=lines[0], head=lines[1]))
    return ValidationChange(
        base=_tally(base),
        head=_tally(head),
        is_same_data=base.dataset_sha256 == head.dataset_sha256 if base and head else None,
        findings=tuple(findings),
    )


def _shown(finding: Finding) -> str:
    outcome = "holds" if finding.success else "BROKEN"
    return f"{outcome}: expected {finding.expected}, observed {finding.observed}"


def _tally(verdict: Verdict | None) -> tuple[bool, int, int] | None:
    if verdict is None:
        return None
    num_expectations = len(verdict.expectations)
    return verdict.success, num_expectations - len(verdict.failed), num_expectations


def _curves(base: Iterable[Curve], head: Iterable[Curve]) -> tuple[CurvePair, ...]:
    sides = [_by_axes(side) for side in (base, head)]
    pairs = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        curves = [side.get(key) for side in sides]
        points = [curve.points if curve else () for curve in curves]
        if any(side and side[0][0] < side[-1][0] for side in points):
            title = next(curve.title for curve in reversed(curves) if curve)
            x, y, _ = key
            pairs.append(CurvePair(title=title, x=x, y=y, base=points[0], head=points[1]))
    return tuple(pairs)


def _by_axes(curves: Iterable[Curve]) -> dict[tuple[str, str, int], Curve]:
    """By what they show, and their number among all that show it: file and title may be others now."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        alike = found.setdefault((curve.x, curve.y), [])
        if all(curve.points != other.points for other in alike):  # or else it is drawn in two plots
            alike.append(curve)
    return {(x, y, number): curve for (x, y), alike in found.items() for number, curve in enumerate(alike)}


def _costs(
    base: Snapshot, head: Snapshot, base_timing: Timing | None, head_timing: Timing | None
) -> tuple[Cost, ...]:
    parameters = [_by_name(side, side).get("num_parameters") for side in (base, head)]
    costs = (
        Cost(
            name="parameters",
            base=parameters[0] if is_number(parameters[0]) else None,
            head=parameters[1] if is_number(parameters[1]) else None,
        ),
        Cost(name="optimizer steps", base=base.num_steps, head=head.num_steps),
        Cost(
            name="training seconds",
            base=base_timing.seconds if base_timing else None,
            head=head_timing.seconds if head_timing else None,
        ),
    )
    return tuple(cost for cost in costs if (cost.base, cost.head) != (None, None))


def _devices(base: Timing | None, head: Timing | None) -> tuple[str, str] | None:
    return (base.device, head.device) if base and head and base.device != head.device else None


def _doubts(snapshot: Snapshot) -> list[str]:
    return [*_contradictions(snapshot), *_altered(snapshot), *_stale(snapshot)]


def _contradictions(snapshot: Snapshot) -> list[str]:
    """Where the scores say something else than the predictions that they are of."""
    ours = paths.TEST_METRICS.as_posix()
    by_file = {path: values["accuracy"] for path, values in snapshot.metrics.items() if "accuracy" in values}
    if ours not in {*snapshot.metrics, *snapshot.problems} and len(by_file) == 1:
        (ours,) = by_file  # it was renamed
    said = by_file.get(ours)
    if snapshot.predictions is None or said is None or _is_close(snapshot.predictions.accuracy, said):
        return []
    given = f"{snapshot.predictions.accuracy:.6g}"
    contradiction = f"at {snapshot.name} the metric accuracy is {said}, but the predictions give {given}"
    return [f"{contradiction}: one of the files is altered. The verdict is by the predictions."]


def _altered(snapshot: Snapshot) -> list[str]:
    """Where metrics and plots are not what their stages wrote."""
    altered = ", ".join(path for stage in snapshot.stages.values() for path in stage.altered)
    return [f"at {snapshot.name} this is not what the pipeline wrote: {altered}"] if altered else []


def _stale(snapshot: Snapshot) -> list[str]:
    """Where the results are not those of the code and params that lie beside them."""
    changed = "; ".join(
        f"{name} ({_some(stage.changed)})" for name, stage in snapshot.stages.items() if stage.changed
    )
    return (
        [f"at {snapshot.name} the results are old (run dvc repro), since this changed: {changed}"]
        if changed
        else []
    )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _behind(base: Snapshot, head: Snapshot) -> list[str]:
    """Where base has what head does not: it counts as if head had undone it."""
    if not head.num_missing:
        return []
    commits = "1 commit" if head.num_missing == 1 else f"{head.num_missing:,} commits"
    counts = f"{commits} of {base.name} not in {head.name}: what they changed counts as undone"
    return [f"{counts}. Merge {base.name} first, or compare with the merge base"]
