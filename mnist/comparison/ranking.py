"""The results of experiments in git, their order by validation accuracy, and how to apply the best one."""

import hashlib
import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mnist.core import config, files, paths
from mnist.core.config import Split, as_typed
from mnist.core.errors import InputError
from mnist.lineage import experiments, git, lock
from mnist.lineage.experiments import Revision

ACCURACY, LOSS = "val_accuracy", "val_loss"
ROUNDING = 1e-6  # of the accuracies in metrics/train.json


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of a revision, and what they were trained with."""

    revision: Revision
    numbers: Mapping[str, float]  # of its metrics file, by key
    params: Mapping[str, Any]  # that stage `train` ran with, as `dvc.lock` records them
    dataset_md5: str  # of the file that all images are from


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of some commits, of the experiments that started from them, and of the workspace."""

    head: str  # full hash of HEAD
    num_experiments: int  # that have finished, with or without a result that can be read
    found: tuple[Result, ...]
    notes: tuple[str, ...]  # lines on what was left out and why, and on what the queue still holds


def load_results(root: Path, revs: Sequence[str] | None) -> Results:
    """Load training metrics: of experiments that started from `revs`, of those commits and the workspace.

    Args:
        root: of the checkout.
        revs: commits, as a user names them; None: HEAD and all that experiments started from.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    head = git.resolve("HEAD", folder=root)
    finished = [one for one in experiments.every(root) if one.kind == "experiment"]
    commits = {git.resolve(rev, folder=root): rev for rev in (["HEAD"] if revs is None else revs)}
    if revs is None:
        commits = {one.baseline: one.baseline[:7] for one in finished} | commits
    finished = [one for one in finished if one.baseline in commits]
    revisions = [Revision(kind="commit", name=name, commit=commit) for commit, name in commits.items()]
    revisions += finished
    if head in commits:
        revisions.append(Revision(kind="workspace", name="workspace"))
    found, notes, seen = [], [], set()
    files_read = (paths.TRAINING_METRICS, paths.LOCK)
    contents = (experiments.contents(root, revisions, path) for path in files_read)
    for revision, metrics, locked in zip(revisions, *contents, strict=True):
        if revision.kind == "workspace" and (metrics, locked) in seen:
            continue  # as committed, or as applied
        seen.add((metrics, locked))
        try:
            found.append(_read(revision, metrics, locked))
        except InputError as error:
            notes.append(f"left out: {revision.name}: {error}")
    notes += experiments.queue(root, None if revs is None else set(commits))
    return Results(head=head, num_experiments=len(finished), found=tuple(found), notes=tuple(notes))


def _read(revision: Revision, metrics: bytes | None, locked: bytes | None) -> Result:
    """Read a result.

    Raises:
        InputError: a file is missing or broken, or the metrics are not those that `dvc.lock` records.
    """
    file, expected = paths.TRAINING_METRICS, "what the stages write: `dvc repro`"
    if metrics is None or locked is None:
        missing = file if metrics is None else paths.LOCK
        raise InputError(str(missing), found="no such file", expected=expected)
    stages = lock.parse(locked)
    md5s: dict[str, str] = {}
    for entry in (stages.get(name, {}) for name in lock.MAKERS):
        md5s |= lock.digests(entry, "deps") | lock.digests(entry, "outs")
    params = stages.get("train", {}).get("params", {}).get(str(paths.PARAMS))
    dataset_md5 = md5s.get(paths.DATASET.as_posix())
    if not params or not dataset_md5:
        raise InputError(str(paths.LOCK), found="no params or no data set of train", expected=expected)
    if hashlib.md5(metrics, usedforsecurity=False).hexdigest() != md5s.get(file.as_posix()):
        raise InputError(str(file), found="other bytes than dvc.lock records", expected=expected)
    split = {key: params[key] for key in Split.model_fields if key in params}
    config.check(Split, split, f"{paths.LOCK}: train")
    return Result(revision=revision, numbers=_numbers(metrics), params=params, dataset_md5=dataset_md5)


def _numbers(content: bytes) -> dict[str, float]:
    values = files.parse_json(content, str(paths.TRAINING_METRICS))
    numbers = {}
    for key in (ACCURACY, LOSS):
        value = values.get(key) if isinstance(values, dict) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{paths.TRAINING_METRICS}: {key}", found=str(value), expected="a number")
        numbers[key] = float(value)
    return numbers


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Results, the best first."""

    ranked: tuple[Result, ...]  # on the same validation images
    others: tuple[Result, ...]  # on other validation images: their accuracies do not compare

    @property
    def best(self) -> Result | None:
        """Return the best result, or None if no two have the same validation images."""
        return self.ranked[0] if len(self.ranked) > 1 or not self.others else None

    @property
    def close(self) -> tuple[Result, ...]:
        """Return the results that are at most one standard error worse than the best.

        The one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984, 3.4.3.
        """
        best, *others = self.ranked
        least = best.numbers[ACCURACY] - standard_error(best) - ROUNDING
        return tuple(one for one in others if one.numbers[ACCURACY] >= least)


def rank(results: Iterable[Result]) -> Ranking:
    """Sort by accuracy, then loss, then whether it is in the checkout already, then name.

    Results are ranked where most of them have the same validation images.
    """

    def place(one: Result) -> tuple[float, float, bool, str]:
        revision = one.revision
        return -one.numbers[ACCURACY], one.numbers[LOSS], revision.kind == "experiment", revision.name

    ordered = sorted(results, key=place)
    ((images, _),) = Counter(map(_images, ordered)).most_common(1)  # of equals, those of the better one
    return Ranking(
        ranked=tuple(one for one in ordered if _images(one) == images),
        others=tuple(one for one in ordered if _images(one) != images),
    )


def _images(result: Result) -> tuple[str, ...]:
    """Return what determines the validation images."""
    return result.dataset_md5, *(str(result.params[key]) for key in Split.model_fields)


def standard_error(result: Result) -> float:
    """Return the standard error of accuracy p on n images: sqrt(p (1 - p) / n), but at least one image.

    The formula gives 0 where all are right, though n images cannot prove that none will be wrong.
    """
    p, n = result.numbers[ACCURACY], int(result.params["val_size"])
    return max(math.sqrt(p * (1 - p) / n), 1 / n)


def table(ranking: Ranking, top: int | None = None) -> str:
    """Return rank, name, accuracy with its standard error, loss, and the params that differ."""
    everyone = [*ranking.ranked, *ranking.others]
    keys = differing([one.params for one in everyone])
    marked = [(str(number), one) for number, one in enumerate(ranking.ranked, 1)][:top]
    marked += [("*", one) for one in ranking.others][:top]
    rows = [
        [
            mark,
            one.revision.name,
            f"{one.numbers[ACCURACY]:.4f}",
            f"± {standard_error(one):.4f}",
            f"{one.numbers[LOSS]:.4f}",
            *(as_typed(one.params.get(key)) for key in keys),
        ]
        for mark, one in marked
    ]
    text = aligned(rows, ["", "experiment", ACCURACY, "", LOSS, *keys], left={1})
    num_left = len(everyone) - len(rows)
    return f"{text}\n... and {num_left} more" if num_left else text


def differing(all_params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of params that are not equal in all of them."""
    keys = dict.fromkeys(key for params in all_params for key in params)
    return [key for key in keys if len({as_typed(params.get(key)) for params in all_params}) > 1]


def aligned(rows: Sequence[Sequence[str]], headers: Sequence[str], *, left: Container[int] = ()) -> str:
    """Return a table for a terminal: its columns are aligned to the right, but for those in `left`."""
    align = ["left" if column in left else "right" for column in range(len(headers))]
    return tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)


def advice(ranking: Ranking, head: str) -> list[str]:
    """Return the best, what is as good, and how to apply it where HEAD is the commit `head`, in lines."""
    lines = []
    if ranking.others:
        lines.append("* scored on other validation images (data, val_size or seed): no comparison, no rank")
    best = ranking.best
    if best is None:
        return [*lines, "best: none, since no two were scored on the same validation images"]
    revision = best.revision
    is_experiment = revision.kind == "experiment"
    line = f"best: {revision.name}{'' if is_experiment else ', which no experiment beats'}"
    if ranking.close:
        line += (
            f"; {len(ranking.close)} more within one standard error on {best.params['val_size']} images:"
            " prefer the cheaper or simpler"
        )
    lines.append(line)
    if is_experiment:
        # From another commit, `dvc exp apply` would bring that commit's code along.
        start = "" if revision.baseline == head else f"git checkout {revision.baseline[:12]} && "
        lines += [
            f"  apply   {start}dvc exp apply {revision.name}",
            f"  branch  {start}dvc exp branch {revision.name} {revision.name}-branch",
            f"  MLflow  make ui, then the run {revision.name}",
        ]
    elif revision.kind == "commit" and revision.commit != head:
        lines.append(f"  apply   git checkout {revision.commit[:12]} && dvc checkout")
    return lines


def report(root: Path, revs: Sequence[str] | None, top: int | None = None) -> str:
    """Return the ranking of the experiments that started from `revs`; None: from any commit.

    It reads `metrics/train.json` and `dvc.lock` of each, and no test metric: a choice that does not see
    the test images leaves their accuracy an honest estimate.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    known = load_results(root, revs)
    if not known.num_experiments:
        start = f" of {' '.join(revs)}" if revs else ""
        lines = [f"best: no experiment{start} has finished: dvc exp run --queue -S 'lr=0.01,0.05,0.1'"]
    elif known.found:
        ranking = rank(known.found)
        lines = [table(ranking, top), "", *advice(ranking, known.head)]
    else:
        lines = ["best: none has a result"]
    return "\n".join([*lines, *known.notes])
