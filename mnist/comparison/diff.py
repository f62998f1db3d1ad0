"""The comparison of two revisions: what changed, and which network is better.

Accuracy is compared on the same test images, one by one (`mnist.evaluation.predictions`). Other
metrics are one number a side, so their noise is unknown.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from mnist.comparison.images import Images, compare_images
from mnist.comparison.revision import Points, Snapshot
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data.validation import Verdict

# Words in the names of metrics; where both kinds occur (`accuracy_error`), less is better.
MORE_IS_BETTER = {"accuracy", "auc", "f1", "map", "precision", "recall", "score"}
LESS_IS_BETTER = {"error", "loss", "mae", "mse", "nll", "rmse", "wrong"}
HELD_OUT = "val_"  # starts the names of metrics of the held-out images
SPLIT = ("seed", "val_size", "dataset")  # params that choose the held-out images
PRECISION = 1e-6  # metrics are written with six decimals
MAX_NAMED = 5  # files or params in a warning

Outcome = Literal["better", "worse", "within noise", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric on both sides; None where a side has none.

    Attributes:
        name: dotted key, with its file where several files have the key.
        base: its value.
        head: its value.
        change: head less base; None where they are no numbers.
        better: the direction that is better, as far as the name shows.
    """

    name: str
    base: Any
    head: Any
    change: float | None
    better: Literal["more", "less", ""]


@dataclass(frozen=True, kw_only=True)
class Param:
    """A param that changed; None where a side has none."""

    name: str
    base: Any
    head: Any


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve of the training on both sides."""

    title: str
    base: Points
    head: Points


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All differences of two revisions.

    Attributes:
        base: name of the revision.
        base_commit: its full hash; empty for the workspace.
        head: name of the other revision.
        head_commit: its full hash.
        outcome: the verdict on the two networks.
        reason: why they are not comparable; empty where they are.
        images: the test images; None where they are not comparable.
        metrics: all of them.
        params: those that changed.
        code: files, folders and commands that changed, of stages that the results depend on.
        data: what changed of the data; empty where nothing did.
        curves: of the training, those that changed.
        is_stale: whether results of a side are not those of its code and params, or were edited.
        warnings: what a reader must know to trust the rest, a sentence each.
        problems: why something could not be read, by side and file.
    """

    base: str
    base_commit: str
    head: str
    head_commit: str
    outcome: Outcome
    reason: str
    images: Images | None
    metrics: tuple[Metric, ...]
    params: tuple[Param, ...]
    code: tuple[str, ...]
    data: str
    curves: tuple[Curve, ...]
    is_stale: bool
    warnings: tuple[str, ...]
    problems: Mapping[str, Mapping[str, str]]

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
        data=_data(base.validation, head.validation),
        curves=tuple(
            Curve(title=title, base=base.curves.get(title, ()), head=head.curves.get(title, ()))
            for title in _different(base.curves, head.curves)
        ),
        is_stale=bool(stale),
        warnings=(*stale, *_behind(base, head), *_other_split(metrics, params)),
        problems={"base": base.problems, "head": head.problems},
    )


def _obstacle(base: Snapshot, head: Snapshot) -> str:
    """Return the reason why the two cannot be compared image by image; empty if they can."""
    without = [side.name for side in (base, head) if side.predictions is None]
    if base.predictions is None or head.predictions is None:
        return f"no predictions on the test images at {' and '.join(without)}"
    names = [side.params.get("dataset") for side in (base, head)]
    if all(names) and names[0] != names[1]:
        return f"other test data: the data sets are {names[0]} and {names[1]}"
    if base.predictions.num_images != head.predictions.num_images:
        counts = f"{base.predictions.num_images:,} and {head.predictions.num_images:,} images"
        return f"other test data: {counts}"
    if base.validation and head.validation and base.validation.test_sha256 != head.validation.test_sha256:
        digests = f"{base.validation.test_sha256[:12]} and {head.validation.test_sha256[:12]}"
        return f"other test data: SHA-256 {digests}"
    num_others = int((base.predictions.labels_N != head.predictions.labels_N).sum())
    return f"other test data: {num_others:,} images have another label" if num_others else ""


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
            change=after - before if _is_number(before) and _is_number(after) else None,
            better=_better(name),
        )
        for name in dict.fromkeys([*sides[0], *sides[1]])
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


def _data(base: Verdict | None, head: Verdict | None) -> str:
    if base is None or head is None or base.dataset_sha256 == head.dataset_sha256:
        return ""
    return f"digest {base.dataset_sha256[:12]} in base, {head.dataset_sha256[:12]} in head"


def _stale(side: Snapshot) -> list[str]:
    """Return warnings that the results of a side are not those of its code and params."""
    found = []
    at = f"at {side.name}"
    accuracy = side.metrics.get(paths.TEST_METRICS.as_posix(), {}).get("accuracy")
    if side.predictions and _is_number(accuracy) and abs(side.predictions.accuracy - accuracy) > PRECISION:
        by_images = f"the predictions give {side.predictions.accuracy:.6g}"
        found.append(f"{at} the metric accuracy is {accuracy}, but {by_images}: one of the files was edited")
    if side.altered:
        found.append(f"{at} the pipeline did not write these files: {_some(side.altered)}")
    if side.stale:
        found.append(f"{at} the results are stale (run dvc repro), since these changed: {_some(side.stale)}")
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _behind(base: Snapshot, head: Snapshot) -> list[str]:
    if not head.num_missing:
        return []
    commits = f"{head.num_missing:,} commit{'s' if head.num_missing > 1 else ''} of {base.name}"
    return [f"{commits} not in {head.name}: their changes count as undone. Merge {base.name} first"]


def _other_split(metrics: Iterable[Metric], params: Iterable[Param]) -> list[str]:
    split = [param.name for param in params if param.name in SPLIT and None not in (param.base, param.head)]
    if not split or not any(HELD_OUT in metric.name for metric in metrics):
        return []
    return [f"{' and '.join(split)} changed, so {HELD_OUT}... is of other held-out images on each side"]
