"""Results of the repository's past: of its experiments and branches, out of git and DVC's cache."""

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.utils import exp_refs_by_baseline

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.lineage import fingerprint, git, lock
from mnist.lineage.fingerprint import Source


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
        return fingerprint.source_of(self.commit, baseline=self.baseline, **of_it)


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
    branches = git.text("for-each-ref", "--format=%(objectname) %(refname:short)", "refs/heads", folder=root)
    for commit, _, name in (line.partition(" ") for line in branches.splitlines()):
        found.append(
            Revision(kind="branch", name=name, commit=commit, baseline=commit, time_ms=_time(root, commit))
        )
    return sorted(found, key=lambda revision: revision.time_ms, reverse=True)


def _time(root: Path, commit: str) -> int:
    return 1000 * int(git.text("show", "-s", "--format=%ct", commit, folder=root))


def restore(root: Path, revision: Revision, folder: Path, *, kept: Path) -> None:
    """Lay out a revision in an empty folder: what is in git, and what its stages made.

    Args:
        root: of the repository.
        revision: that is laid out.
        folder: for it.
        kept: a folder on the same disk for what comes out of DVC's cache, by digest: revisions share it.

    Raises:
        InputError: a file is neither in DVC's cache nor on its remote, or DVC cannot read `dvc.yaml`.
    """
    with tarfile.open(fileobj=io.BytesIO(git.output("archive", revision.commit, folder=root))) as archive:
        # As an attribute, since Python 3.11.2, which is Debian 12's, knows no argument `filter`.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202, with that filter; and it is what git packed
    made = lock.locked(folder).values()
    outs = {path: digest for entry in made for path, digest in lock.digests(entry, "outs").items()}
    missing = {path: digest for path, digest in outs.items() if not (folder / path).exists()}
    if not missing:
        return
    tracked = DVCFileSystem(str(root), rev=revision.commit)
    # What DVC does not keep either, as the out of `register`, is nowhere, and nobody needs it.
    for path in sorted(missing.keys() & _cached(tracked)):
        copy = kept / missing[path]
        _fetch(tracked, path, copy)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(copy, folder / path)


def _cached(tracked: DVCFileSystem) -> set[str]:
    """Paths of the outs that are in DVC's cache, as the `dvc.yaml` of that time has it."""
    try:
        repo = tracked.repo
        outs = [Path(out.fs_path) for out in repo.index.outs if out.use_cache]
    except DvcException as error:
        found = " ".join(str(error).split())
        raise InputError(str(paths.PIPELINE), found=found, expected="one that DVC can read") from None
    return {path.relative_to(repo.root_dir).as_posix() for path in outs}


def _fetch(tracked: DVCFileSystem, path: str, copy: Path) -> None:
    """Copy an out from DVC's cache or its remote, unless that was done before."""
    try:
        if not copy.exists():
            tracked.get_file(path, str(copy))
    except (FileNotFoundError, DvcException):
        copy.unlink(missing_ok=True)
        expected = "it there, or on a DVC remote: `dvc exp gc` and `dvc gc` remove it"
        raise InputError(path, found="nothing in DVC's cache", expected=expected) from None


def cache(folder: Path) -> Path:
    """DVC's cache of a checkout.

    Raises:
        InputError: it is no checkout with git and DVC.
    """
    try:
        with Repo(str(folder)) as repo:
            return Path(repo.cache.local_cache_dir)
    except DvcException as error:
        raise InputError(str(folder), found=str(error), expected="a checkout with git and DVC") from None
