"""Results of the repository's past: of its experiments and branches, out of git and DVC's cache."""

import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.utils import exp_refs_by_baseline

from mnist import identity, paths
from mnist.errors import InputError
from mnist.identity import Source

MAKERS = ("train", "evaluate")  # the stages that make a result


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A commit that may hold a result.

    Attributes:
        kind: `experiment` of DVC, or local `branch`.
        name: of the experiment or branch.
        commit: full hash.
        baseline: the commit that an experiment started from; of a branch, `commit`.
        time_ms: of the commit, since 1970.
    """

    kind: Literal["experiment", "branch"]
    name: str
    commit: str
    baseline: str
    time_ms: int

    @property
    def source(self) -> Source:
        """What a stage would have said of its checkout."""
        of_it = {"experiment": self.name} if self.kind == "experiment" else {"branch": self.name}
        return identity.source_of(self.commit, baseline=self.baseline, **of_it)


def every(root: Path) -> list[Revision]:
    """All experiments and local branches of the repository at `root`, the newest first.

    Raises:
        InputError: it is no checkout with git and DVC.
    """
    try:
        with Repo(str(root)) as repo:
            # Not `repo.experiments.ls`, which fails while another command of DVC holds the lock.
            experiments = {
                baseline: [(ref.name, repo.scm.get_ref(str(ref))) for ref in refs]
                for baseline, refs in exp_refs_by_baseline(repo.scm).items()
            }
    except DvcException as error:
        raise InputError(str(root), found=str(error), expected="a checkout with git and DVC") from None
    found = [
        Revision(kind="experiment", name=name, commit=commit, baseline=baseline, time_ms=_time(root, commit))
        for baseline, named in experiments.items()
        for name, commit in named
    ]
    branches = _git(root, "for-each-ref", "--format=%(objectname) %(refname:short)", "refs/heads").decode()
    for commit, _, name in (line.partition(" ") for line in branches.splitlines()):
        found.append(
            Revision(kind="branch", name=name, commit=commit, baseline=commit, time_ms=_time(root, commit))
        )
    return sorted(found, key=lambda revision: revision.time_ms, reverse=True)


def _time(root: Path, commit: str) -> int:
    return 1000 * int(_git(root, "show", "-s", "--format=%ct", commit))


def restore(root: Path, revision: Revision, folder: Path, *, kept: Path) -> None:
    """Lay out a revision in an empty folder: what is in git, and what its stages made.

    Args:
        root: of the repository.
        revision: that is laid out.
        folder: for it.
        kept: a folder on the same disk for what comes out of DVC's cache, by digest: revisions share it.

    Raises:
        InputError: a file is neither in DVC's cache nor on its remote.
    """
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", revision.commit))) as archive:
        archive.extractall(folder, filter="data")
    tracked = DVCFileSystem(str(root), rev=revision.commit)
    for name, stage in _stages(folder).items():
        if name == "register":
            continue  # its out is nowhere, and nobody needs it
        for entry in stage.get("outs", []):
            path, copy = folder / entry["path"], kept / entry["md5"]
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if not copy.exists():
                    tracked.get_file(entry["path"], str(copy))
            except (FileNotFoundError, DvcException):
                copy.unlink(missing_ok=True)
                expected = "it there, or on a DVC remote: `dvc exp gc` and `dvc gc` remove it"
                raise InputError(entry["path"], found="nothing in DVC's cache", expected=expected) from None
            os.link(copy, path)


def check(folder: Path) -> None:
    """Let pass only a checkout whose results are those of its code, data and params, as `dvc.lock` has it.

    Raises:
        InputError: it has no results, or something was changed since.
    """
    stages, pipeline = _stages(folder), identity.read_yaml(folder / paths.PIPELINE)["stages"]
    values = identity.flat(identity.read_yaml(folder / paths.PARAMS))
    for stage in MAKERS:
        if stage not in stages:
            raise _stale(f"no stage {stage}")
        made, now = stages[stage], pipeline.get(stage, {})
        ran = made["cmd"], {entry["path"] for entry in made["deps"]}, set(_params(made))
        if ran != (now.get("cmd"), set(now.get("deps", [])), set(now.get("params", []))):
            raise _stale(f"another cmd, other deps or params of stage {stage} than {paths.PIPELINE} has")
        for entry in [*made["deps"], *made["outs"]]:
            path = folder / entry["path"]
            if not path.is_file() or _md5(path) != entry["md5"]:
                raise _stale(f"{entry['path']} is not what stage {stage} read or wrote")
        for key, value in _params(made).items():
            if values.get(key) != value:
                raise _stale(f"{key}: {values.get(key)} (stage {stage} ran with {value})")


def _params(made: dict[str, Any]) -> dict[str, Any]:
    """That a stage ran with, by dvc.lock."""
    params: dict[str, Any] = made.get("params", {}).get(str(paths.PARAMS), {})
    return params


def _stages(folder: Path) -> dict[str, Any]:
    path = folder / paths.LOCK
    stages: dict[str, Any] = identity.read_yaml(path).get("stages", {}) if path.is_file() else {}
    return stages


def _stale(found: str) -> InputError:
    return InputError(str(paths.LOCK), found=found, expected="a result of what is there: `dvc repro`")


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
