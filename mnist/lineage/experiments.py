"""Which experiments and branches there are, and where their files are: in git and in DVC's cache."""

import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnist.core import config, paths
from mnist.core.config import Split
from mnist.core.errors import InputError
from mnist.lineage import fingerprint, git
from mnist.lineage.fingerprint import Source

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem
    from dvc.repo import Repo

# Of a finished experiment: its baseline commit and its name. DVC keeps its queue under refs/exps, too.
EXPERIMENT_REF = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
BRANCH_REF = "refs/heads/"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A place that may hold a result.

    Attributes:
        kind: an experiment of DVC, a local branch, a commit, or the workspace.
        name: of the experiment or branch; of a commit, the name that the user gave, or its short hash.
        commit: full hash; empty for the workspace.
        baseline: the commit that an experiment started from; of a branch, `commit`; empty otherwise.
        time_ms: of the commit of an experiment or branch, since 1970.
    """

    kind: Literal["experiment", "branch", "commit", "workspace"]
    name: str
    commit: str = ""
    baseline: str = ""
    time_ms: int = 0

    @property
    def source(self) -> Source:
        """The source that a stage would record in a checkout of this experiment or branch."""
        return fingerprint.source_of(self.commit, baseline=self.baseline, **{self.kind: self.name})


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


def every(root: Path) -> list[Revision]:
    """Return all experiments and local branches of the repository at `root`, the newest first.

    Raises:
        InputError: it is no git repository.
    """
    fields = "--format=%(objectname) %(committerdate:unix) %(refname)"
    refs = git.text("for-each-ref", "--sort=-committerdate", fields, BRANCH_REF, "refs/exps/", folder=root)
    found = []
    for commit, seconds, ref in (line.split(" ", 2) for line in refs.splitlines()):
        if experiment := EXPERIMENT_REF.fullmatch(ref):
            first, rest, name = experiment.groups()
            kind: Literal["experiment", "branch"] = "experiment"
            baseline = first + rest
        elif ref.startswith(BRANCH_REF):
            kind, name, baseline = "branch", ref.removeprefix(BRANCH_REF), commit
        else:
            continue
        found.append(
            Revision(kind=kind, name=name, commit=commit, baseline=baseline, time_ms=1000 * int(seconds))
        )
    return found


def load(root: Path, revs: Sequence[str] | None, file: Path, keys: Sequence[str]) -> Results:
    """Load these numbers of the experiments that started from `revs`, of those commits and the workspace.

    Args:
        root: of the checkout.
        revs: commits, as a user names them; None: HEAD and all that experiments started from.
        file: of metrics; no other result is read.
        keys: of the numbers in it.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    head = _commit(root, "HEAD")
    experiments = [one for one in every(root) if one.kind == "experiment"]
    commits = {_commit(root, rev): rev for rev in (["HEAD"] if revs is None else revs)}
    if revs is None:
        commits = {one.baseline: one.baseline[:7] for one in experiments} | commits
    experiments = [one for one in experiments if one.baseline in commits]
    revisions = [Revision(kind="commit", name=name, commit=commit) for commit, name in commits.items()]
    revisions += experiments
    if head in commits:
        revisions.append(Revision(kind="workspace", name="workspace"))
    found, notes, seen = [], [], set()
    contents = (_contents(root, revisions, path) for path in (file, paths.LOCK))
    for revision, metrics, lock in zip(revisions, *contents, strict=True):
        if revision.kind == "workspace" and (metrics, lock) in seen:
            continue  # as committed, or as applied
        seen.add((metrics, lock))
        try:
            found.append(_result(revision, file, metrics, lock, keys))
        except InputError as error:
            notes.append(f"left out: {revision.name}: {error}")
    notes += _queue(root, set(commits), finished={one.name for one in experiments})
    return Results(head=head, num_experiments=len(experiments), found=tuple(found), notes=tuple(notes))


def _commit(root: Path, rev: str) -> str:
    """Return the full hash of what a user calls a commit."""
    if commit := git.commit_here(rev, folder=root):
        return commit
    raise InputError(f"{rev} in {root}", found="no such commit", expected="one of a git checkout")


def _contents(root: Path, revisions: Sequence[Revision], file: Path) -> list[bytes | None]:
    """Return the bytes of a file in each revision; None where it has no such file."""
    names = [f"{one.commit}:./{file.as_posix()}" for one in revisions if one.commit]
    committed = iter(git.blobs(names, folder=root))
    here = (root / file).read_bytes() if (root / file).is_file() else None
    return [next(committed) if one.commit else here for one in revisions]


def _result(
    revision: Revision, file: Path, metrics: bytes | None, lock: bytes | None, keys: Sequence[str]
) -> Result:
    """Read a result.

    Raises:
        InputError: a file is missing or broken, or the metrics are not those that `dvc.lock` records.
    """
    expected = "what the stages write: `dvc repro`"
    if metrics is None or lock is None:
        missing = file if metrics is None else paths.LOCK
        raise InputError(str(missing), found="no such file", expected=expected)
    try:
        stages = config.parse_keys(lock, str(paths.LOCK))["stages"]
        entries = [stages[name] for name in ("train", "evaluate") if name in stages]
        md5s = {one["path"]: one.get("md5") for entry in entries for one in [*entry["deps"], *entry["outs"]]}
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
    for key, number in numbers.items():
        if not math.isfinite(number):
            raise InputError(f"{file}: {key}", found=str(number), expected="a finite number")
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


def _queue(root: Path, commits: set[str], *, finished: set[str]) -> list[str]:
    """Describe what DVC's queue holds of experiments that started from `commits`, in lines."""
    with _repository(root) as repo:
        queue = repo.experiments.celery_queue
        num_running, num_queued = (
            sum(entry.baseline_rev in commits for entry in entries)
            for entries in (queue.iter_active(), queue.iter_queued())
        )
        ended = [one.entry for one in queue.iter_failed() if one.entry.baseline_rev in commits]
    failed = {entry.name or entry.stash_rev[:7] for entry in ended} - finished
    lines = [f"left out: {name}: it failed, see `dvc queue logs {name}`" for name in sorted(failed)]
    if num_running:
        lines.append(f"{num_running} still running: dvc queue status")
    if num_queued:
        lines.append(f"{num_queued} still queued: dvc queue start -j 2")
    return lines


def dvc(*arguments: str) -> int:
    """Run DVC in this checkout as in an activated environment, and return its exit status."""
    # The stages call `python`: the one of this process comes first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode


def restore(root: Path, revision: Revision, folder: Path, *, kept: Path) -> None:
    """Write the files of a revision into an empty folder: those in git, and those that its stages made.

    Args:
        root: of the repository.
        revision: whose files they are.
        folder: for them.
        kept: a folder on the same disk for what comes out of DVC's cache, by digest: revisions share it.

    Raises:
        InputError: a file is neither in DVC's cache nor on its remote, or DVC cannot read `dvc.yaml`.
    """
    from dvc.api import DVCFileSystem

    from mnist.lineage import lock

    with tarfile.open(fileobj=io.BytesIO(git.output("archive", revision.commit, folder=root))) as archive:
        # As an attribute: Python 3.11.2, which is Debian 12's, has no argument `filter`.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202, with that filter; and it is what git packed
    outs: dict[str, str] = {}
    for stage in lock.read(folder).values():
        outs |= lock.digests(stage, "outs")
    missing = {path: digest for path, digest in outs.items() if not (folder / path).exists()}
    if not missing:
        return
    tracked = DVCFileSystem(str(root), rev=revision.commit)
    # An out that DVC does not keep, such as that of `register`, is left out: no result needs it.
    for path in sorted(missing.keys() & _cached(tracked)):
        copy = kept / missing[path]
        if not copy.exists():
            _fetch(tracked, path, copy)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(copy, folder / path)


def _cached(tracked: "DVCFileSystem") -> set[str]:
    """Return the paths of the outs that DVC keeps in its cache, by the `dvc.yaml` of that revision."""
    from dvc.exceptions import DvcException

    try:
        repo = tracked.repo
        outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    except DvcException as error:
        found = " ".join(str(error).split())
        raise InputError(str(paths.PIPELINE), found=found, expected="one that DVC can read") from None
    return {path.relative_to(repo.root_dir).as_posix() for path in outs}


def _fetch(tracked: "DVCFileSystem", path: str, copy: Path) -> None:
    """Copy an out from DVC's cache or its remote."""
    from dvc.exceptions import DvcException

    try:
        tracked.get_file(path, str(copy))
    except (FileNotFoundError, DvcException):
        copy.unlink(missing_ok=True)
        expected = "it there, or on a DVC remote: `dvc exp gc` and `dvc gc` remove it"
        raise InputError(path, found="nothing in DVC's cache", expected=expected) from None


def cache(folder: Path) -> Path:
    """Return the folder of DVC's cache of a checkout.

    Raises:
        InputError: it is no checkout with git and DVC.
    """
    with _repository(folder) as repo:
        return Path(repo.cache.local_cache_dir)


@contextmanager
def _repository(folder: Path) -> Iterator["Repo"]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        raise InputError(str(folder), found=str(error), expected="a checkout with git and DVC") from None
