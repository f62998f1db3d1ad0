"""The comparison of two revisions: what changed, and which network is better.

Accuracy is compared image by image; other metrics are one number a side, so their noise is unknown.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mnist.comparison.revision import Points, Snapshot
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.evaluation import statistics
from mnist.evaluation.predictions import Predictions, by_class, compare

# Words in the names of metrics; where both kinds occur (`accuracy_error`), less is better.
MORE_IS_BETTER = {"accuracy", "auc", "f1", "map", "precision", "recall", "score"}
LESS_IS_BETTER = {"error", "loss", "mae", "mse", "nll", "rmse"}
HELD_OUT = "val_"  # starts the names of metrics of the held-out images
SPLIT = ("seed", "val_size", "dataset")  # params that choose the held-out images
PRECISION = 1e-6  # metrics are written with six decimals


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """The test images of one class."""

    label: str
    num_images: int
    base_recall: float  # share that base gets right, 0 to 1
    head_recall: float
    fixed: int  # images that head alone gets right
    broken: int  # images that base alone gets right
    p: float  # of the exact two-sided McNemar test, adjusted by Holm for the number of classes


@dataclass(frozen=True, kw_only=True)
class PredictionChange:
    """The test images of one label whose prediction changed from one class to another."""

    label: str
    base: str
    head: str
    images: tuple[int, ...]  # indices from 0


@dataclass(frozen=True, kw_only=True)
class Images:
    """Both networks on the same test images."""

    verdict: Literal["better", "worse", "within noise"]
    num_images: int
    base_accuracy: float  # 0 to 1
    head_accuracy: float
    change_pp: float  # head less base, in percentage points
    interval_pp: tuple[float, float]  # of 95 %
    p: float  # of the exact two-sided McNemar test
    fixed: tuple[int, ...]  # indices of the images that head alone gets right
    broken: tuple[int, ...]  # indices of the images that base alone gets right
    classes: tuple[ClassChange, ...]
    changed: tuple[PredictionChange, ...]  # the most frequent first


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric on both sides; None where a side has none."""

    name: str  # dotted key, with its file where several files have the key
    base: Any
    head: Any
    change: float | None  # head less base; None where they are no numbers
    better: Literal["more", "less", ""]  # as far as the name shows


@dataclass(frozen=True, kw_only=True)
class Param:
    """A param that changed; None where a side has none."""

    name: str
    base: Any
    head: Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All differences of two revisions."""

    base: str
    base_commit: str  # full hash; empty for the workspace
    head: str
    head_commit: str
    outcome: Literal["better", "worse", "within noise", "not comparable"]
    reason: str  # why they are not comparable; empty where they are
    images: Images | None  # None where they are not comparable
    metrics: tuple[Metric, ...]
    params: tuple[Param, ...]
    code: tuple[str, ...]  # files, folders and commands that changed, of stages that results depend on
    curves: Mapping[str, tuple[Points, Points]]  # of the training, those that changed, by title
    is_stale: bool  # whether results of a side are not those of its code and params, or were edited
    warnings: tuple[str, ...]  # what a reader must know to trust the rest, a sentence each
    problems: Mapping[str, Mapping[str, str]]  # why something could not be read, by side and file

    def objection(self, *, fail_if: Sequence[str], max_drop: float | None) -> str:
        """Return the reason why head fails the gates; empty if it passes."""
        if "worse" in fail_if and self.outcome == "worse":
            return "head is worse beyond noise"
        if "stale" in fail_if and self.is_stale:
            return "the results are stale or edited: see the warnings"
        if self.images is None:
            is_gate = "not-comparable" in fail_if or max_drop is not None
            return f"not comparable: {self.reason}" if is_gate else ""
        drop = (len(self.images.broken) - len(self.images.fixed)) / self.images.num_images
        if max_drop is not None and not drop <= max_drop:
            return f"the accuracy dropped by {drop:.6g}, more than {max_drop:g}"
        return ""


def compare_revisions(base: Snapshot, head: Snapshot) -> Comparison:
    """Compare two revisions.

    Raises:
        InputError: there is no metric on either side.
    """
    if not base.metrics and not head.metrics:
        reasons = [f"{path}: {reason}" for side in (base, head) for path, reason in side.problems.items()]
        raise InputError(
            f"metrics at {base.name} and {head.name}",
            found="; ".join(["none", *reasons[:3]]),
            expected=f"files under `metrics:` in {paths.PIPELINE}",
        )
    reason = _obstacle(base, head)
    images = None
    if not reason and base.predictions and head.predictions:
        images = compare_images(base.predictions, head.predictions)
    metrics, params = _metrics(base, head), _params(base.params, head.params)
    stale = [*_stale(base), *_stale(head)]
    return Comparison(
        base=base.name,
        base_commit=base.commit,
        head=head.name,
        head_commit=head.commit,
        outcome=images.verdict if images else "not comparable",
        reason=reason,
        images=images,
        metrics=metrics,
        params=params,
        code=_different(base.code, head.code),
        curves={
            title: (base.curves.get(title, ()), head.curves.get(title, ()))
            for title in _different(base.curves, head.curves)
        },
        is_stale=bool(stale),
        warnings=(*_unread(base), *_unread(head), *stale, *_behind(base, head), *_split(metrics, params)),
        problems={"base": base.problems, "head": head.problems},
    )


def _obstacle(base: Snapshot, head: Snapshot) -> str:
    """Return the reason why the two cannot be compared image by image; empty if they can."""
    if base.predictions is None or head.predictions is None:
        without = [side.name for side in (base, head) if side.predictions is None]
        return f"no predictions on the test images at {' and '.join(without)}"
    if base.validation and head.validation and base.validation.test_sha256 != head.validation.test_sha256:
        digests = f"{base.validation.test_sha256[:12]} and {head.validation.test_sha256[:12]}"
        return f"other test data: SHA-256 {digests}"
    if not np.array_equal(base.predictions.labels_N, head.predictions.labels_N):
        counts = f"{base.predictions.num_images:,} and {head.predictions.num_images:,} images"
        return f"other test data: {counts}, with other labels"
    return ""


def compare_images(base: Predictions, head: Predictions) -> Images:
    """Compare two classifiers, whose predictions must be of the same images in the same order."""
    paired, classes = compare(base, head), by_class(base, head)
    adjusted = statistics.holm({label: of_class.p_two_sided for label, of_class in classes.items()})
    changed = defaultdict(list)
    for index in np.flatnonzero(base.predicted_N != head.predicted_N).tolist():
        key = str(base.labels_N[index]), str(base.predicted_N[index]), str(head.predicted_N[index])
        changed[key].append(index)
    return Images(
        verdict=paired.verdict,
        num_images=paired.num_images,
        base_accuracy=base.accuracy,
        head_accuracy=head.accuracy,
        change_pp=paired.change_pp,
        interval_pp=paired.interval_pp,
        p=paired.p_two_sided,
        fixed=tuple(np.flatnonzero(head.right & ~base.right).tolist()),
        broken=tuple(np.flatnonzero(base.right & ~head.right).tolist()),
        classes=tuple(
            ClassChange(
                label=label,
                num_images=of_class.num_images,
                base_recall=float(base.right[base.labels_N == label].mean()),
                head_recall=float(head.right[head.labels_N == label].mean()),
                fixed=of_class.fixed,
                broken=of_class.broken,
                p=adjusted[label],
            )
            for label, of_class in classes.items()
        ),
        changed=tuple(
            PredictionChange(label=label, base=before, head=after, images=tuple(images))
            for (label, before, after), images in sorted(changed.items(), key=lambda one: -len(one[1]))
        ),
    )


def _metrics(base: Snapshot, head: Snapshot) -> tuple[Metric, ...]:
    counts = [Counter(key for values in side.metrics.values() for key in values) for side in (base, head)]
    shared = {key for count in counts for key, num_files in count.items() if num_files > 1}
    sides = [
        {
            f"{path}: {key}" if key in shared else key: value
            for path, values in side.metrics.items()
            for key, value in values.items()
        }
        for side in (base, head)
    ]
    return tuple(
        Metric(
            name=name,
            base=(before := sides[0].get(name)),
            head=(after := sides[1].get(name)),
            change=_change(before, after),
            better=_better(name),
        )
        for name in dict.fromkeys([*sides[0], *sides[1]])
    )


def _change(before: Any, after: Any) -> float | None:
    """Return the difference of two numbers, or None where there is none that a float can hold."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after)):
        with suppress(OverflowError):
            return change if math.isfinite(change := after - before) else None
    return None


def _better(name: str) -> Literal["more", "less", ""]:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & LESS_IS_BETTER:
        return "less"
    return "more" if words & MORE_IS_BETTER else ""


def _params(base: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[Param, ...]:
    """Return the params that changed, those of both sides first."""
    changed = sorted(_different(base, head), key=lambda name: name not in base or name not in head)
    return tuple(Param(name=name, base=base.get(name), head=head.get(name)) for name in changed)


def _different(base: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[str, ...]:
    names = dict.fromkeys([*base, *head])
    return tuple(name for name in names if name not in base or name not in head or base[name] != head[name])


def _stale(side: Snapshot) -> list[str]:
    """Return warnings that the results of a side are not those of its code and params."""
    found = []
    accuracy = side.metrics.get(paths.TEST_METRICS.as_posix(), {}).get("accuracy")
    if side.predictions and abs(_change(side.predictions.accuracy, accuracy) or 0) > PRECISION:
        found.append(
            f"at {side.name} the metric accuracy is {accuracy}, that of the predictions "
            f"{side.predictions.accuracy:.6g}: one of the files was edited"
        )
    if side.stale:
        what = f"these are not as the last run had them: {', '.join(side.stale)}"
        found.append(f"at {side.name} results are stale or edited (run dvc repro), since {what}")
    return found


def _unread(side: Snapshot) -> list[str]:
    """Return a warning for each file that the verdict is to be checked by, and that could not be read."""
    unread = [path.as_posix() for path in (paths.TEST_METRICS, paths.VALIDATION)]
    return [
        f"at {side.name} the verdict could not be checked by {path}: see below"
        for path in unread
        if path in side.problems and side.predictions
    ]


def _behind(base: Snapshot, head: Snapshot) -> list[str]:
    if not head.num_missing:
        return []
    commits = f"{head.num_missing:,} commit{'s' if head.num_missing > 1 else ''} of {base.name}"
    return [f"{commits} not in {head.name}: their changes count as undone. Merge {base.name} first"]


def _split(metrics: Iterable[Metric], params: Iterable[Param]) -> list[str]:
    split = [param.name for param in params if param.name in SPLIT and None not in (param.base, param.head)]
    if not split or not any(HELD_OUT in metric.name for metric in metrics):
        return []
    return [f"{' and '.join(split)} changed, so {HELD_OUT}... is of other held-out images on each side"]
