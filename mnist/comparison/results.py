"""The results of experiments: numbers of a metrics file, and what `dvc.lock` records of their training."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist.core import config, paths
from mnist.core.config import Split
from mnist.core.errors import InputError
from mnist.lineage import experiments, lock
from mnist.lineage.experiments import Revision


@dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of a revision, and what they were trained with.

    Attributes:
        revision: where it is.
        numbers: of its metrics file, by key.
        params: that stage `train` ran with, as `dvc.lock` records them.
        dataset_md5: of the file that all images are from.
        split: how the validation images were cut from it.
    """

    revision: Revision
    numbers: Mapping[str, float]
    params: Mapping[str, Any]
    dataset_md5: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of some commits, of the experiments that started from them, and of the workspace.

    Attributes:
        head: full hash of HEAD.
        num_experiments: that have finished, with or without a result that can be read.
        found: the results.
        notes: lines on what was left out and why, and on what the queue still holds.
    """

    head: str
    num_experiments: int
    found: tuple[Result, ...]
    notes: tuple[str, ...]


def load_results(root: Path, revs: Sequence[str] | None, file: Path, keys: Sequence[str]) -> Results:
    """Load these numbers of the experiments that started from `revs`, of those commits and the workspace.

    Args:
        root: of the checkout.
        revs: commits, as a user names them; None: HEAD and all that experiments started from.
        file: of metrics; no other result is read.
        keys: of the numbers in it.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    head = experiments.commit_of(root, "HEAD")
    finished = [one for one in experiments.every(root) if one.kind == "experiment"]
    commits = {experiments.commit_of(root, rev): rev for rev in (["HEAD"] if revs is None else revs)}
    if revs is None:
        commits = {one.baseline: one.baseline[:7] for one in finished} | commits
    finished = [one for one in finished if one.baseline in commits]
    revisions = [Revision(kind="commit", name=name, commit=commit) for commit, name in commits.items()]
    revisions += finished
    if head in commits:
        revisions.append(Revision(kind="workspace", name="workspace"))
    found, notes, seen = [], [], set()
    contents = (experiments.contents(root, revisions, path) for path in (file, paths.LOCK))
    for revision, metrics, locked in zip(revisions, *contents, strict=True):
        if revision.kind == "workspace" and (metrics, locked) in seen:
            continue  # as committed, or as applied
        seen.add((metrics, locked))
        try:
            found.append(_read(revision, file, metrics, locked, keys))
        except InputError as error:
            notes.append(f"left out: {revision.name}: {error}")
    notes += experiments.queue(root, None if revs is None else set(commits))
    return Results(head=head, num_experiments=len(finished), found=tuple(found), notes=tuple(notes))


def _read(
    revision: Revision, file: Path, metrics: bytes | None, locked: bytes | None, keys: Sequence[str]
) -> Result:
    """Read a result.

    Raises:
        InputError: a file is missing or broken, or the metrics are not those that `dvc.lock` records.
    """
    expected = "what the stages write: `dvc repro`"
    if metrics is None or locked is None:
        missing = file if metrics is None else paths.LOCK
        raise InputError(str(missing), found="no such file", expected=expected)
    try:
        stages = lock.parse(locked)
        md5s: dict[str, str] = {}
        for entry in (stages.get(name, {}) for name in lock.MAKERS):
            md5s |= lock.digests(entry, "deps") | lock.digests(entry, "outs")
        params = dict(stages["train"]["params"][str(paths.PARAMS)])
        dataset_md5 = md5s[paths.DATASET.as_posix()]
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(str(paths.LOCK), found=_reason(error), expected=expected) from None
    if hashlib.md5(metrics, usedforsecurity=False).hexdigest() != md5s.get(file.as_posix()):
        raise InputError(str(file), found="other bytes than dvc.lock records", expected=expected)
    try:
        values = json.loads(metrics)
        numbers = {key: float(values[key]) for key in keys}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(str(file), found=_reason(error), expected=expected) from None
    if not all(map(math.isfinite, numbers.values())):
        raise InputError(str(file), found=str(numbers), expected="finite numbers")
    split = {key: params[key] for key in Split.model_fields if key in params}
    return Result(
        revision=revision,
        numbers=numbers,
        params=params,
        dataset_md5=dataset_md5,
        split=config.check(Split, split, f"{paths.LOCK}: train"),
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
