"""The experiments and branches of the repository, and their files in git and in DVC's cache."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mnist.core import config, paths
from mnist.core.errors import InputError
from mnist.lineage import fingerprint, git, lock
from mnist.lineage.fingerprint import Source

if TYPE_CHECKING:
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
        """Return the source that a stage would record in a checkout of this experiment or branch."""
        return fingerprint.source_of(self.baseline, revision=self.commit, **{self.kind: self.name})


def every(root: Path) -> list[Revision]:
    """Return all experiments and local branches of the repository at `root`, the newest first.

    Raises:
        InputError: it is no git repository.
    """
    fields = "--format=%(objectname) %(committerdate:unix) %(refname)"
    refs = git.text("for-each-ref", "--sort=-committerdate", fields, BRANCH_REF, "refs/exps/", folder=root)
    found = []
    for commit, seconds, ref in (line.split(" ", 2) for line in refs.splitlines()):
        time_ms = 1000 * int(seconds)
        if experiment := EXPERIMENT_REF.fullmatch(ref):
            name, base = experiment[3], experiment[1] + experiment[2]
            one = Revision(kind="experiment", name=name, commit=commit, baseline=base, time_ms=time_ms)
            found.append(one)
        elif ref.startswith(BRANCH_REF):
            name = ref.removeprefix(BRANCH_REF)
            one = Revision(kind="branch", name=name, commit=commit, baseline=commit, time_ms=time_ms)
            found.append(one)
    return found


def contents(root: Path, revisions: Sequence[Revision], file: Path) -> list[bytes | None]:
    """Return the bytes of a file in each revision; None where it has no such file."""
    names = [f"{one.commit}:./{file.as_posix()}" for one in revisions if one.commit]
    committed = iter(git.blobs(names, folder=root))
    here = (root / file).read_bytes() if (root / file).is_file() else None
    return [next(committed) if one.commit else here for one in revisions]


def queue(root: Path, commits: Container[str] | None) -> list[str]:
    """Return lines on the experiments from `commits` that are in DVC's queue or failed there.

    Args:
        root: of the checkout.
        commits: full hashes; None: any commit.

    Raises:
        InputError: it is no checkout with git and DVC.
    """
    with _repository(root) as repo:
        celery = repo.experiments.celery_queue
        broken = (one.entry for one in celery.iter_failed())
        running, queued, failed = (
            [entry for entry in entries if commits is None or entry.baseline_rev in commits]
            for entries in (celery.iter_active(), celery.iter_queued(), broken)
        )
    finished = {one.name for one in every(root)}
    names = sorted({entry.name or entry.stash_rev[:7] for entry in failed} - finished)
    lines = [f"left out: {name}: it failed, see `dvc queue logs {name}`" for name in names]
    if running:
        lines.append(f"{len(running)} still running: dvc queue status")
    if queued:
        lines.append(f"{len(queued)} still queued: dvc queue start -j 2")
    return lines


def dvc(*arguments: str) -> int:
    """Run DVC in the current folder as in an activated environment; return its exit status."""
    # The stages call `python`: the one of this process comes first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command, environment = [sys.executable, "-m", "dvc", *arguments], {**os.environ, "PATH": path}
    return subprocess.run(command, env=environment, check=False).returncode


def restore(root: Path, revision: Revision, folder: Path, *, kept: Path) -> None:
    """Write the files of a revision into an empty folder: those in git, and those that its stages made.

    Args:
        root: of the repository.
        revision: whose files they are.
        folder: for them.
        kept: a folder on the same disk for what comes out of DVC's cache, by digest: revisions share it.

    Raises:
        InputError: a file is neither in DVC's cache nor on its remote, or `dvc.yaml` or params.yaml is none.
    """
    packed = io.BytesIO(git.output("archive", revision.commit, folder=root))
    try:
        with tarfile.open(fileobj=packed) as archive:
            # As an attribute: Python 3.11.2, which is Debian 12's, has no argument `filter`.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder)  # noqa: S202, with that filter; and it is what git packed
    except tarfile.TarError as error:
        where, expected = f"commit {revision.commit[:12]}", "links to what is in the checkout alone"
        raise InputError(where, found=str(error), expected=expected) from None
    for name in (paths.PARAMS, paths.PIPELINE):  # DVC would read a small file that holds too much for hours
        config.read_keys(folder, name)
    outs = lock.written(lock.read(folder))
    missing = {path: digest for path, digest in outs.items() if not (folder / path).exists()}
    if not missing:
        return
    with _repository(root) as repo, repo.switch(revision.commit):
        # An out that DVC does not keep, such as that of `register`, is left out: no result needs it.
        cached = {out.def_path for out in repo.index.outs if out.use_cache}
        for path in sorted(missing.keys() & cached):
            copy = kept / missing[path]
            if not copy.exists():
                _fetch(repo, path, copy)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if copy.is_dir():
                shutil.copytree(copy, folder / path, copy_function=os.link)
            else:
                os.link(copy, folder / path)


def _fetch(repo: "Repo", path: str, copy: Path) -> None:
    """Copy an out, a file or a folder, from DVC's cache or its remote."""
    from dvc.exceptions import DvcException

    try:
        repo.dvcfs.get(path, str(copy), recursive=True)
    except (FileNotFoundError, DvcException):
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink(missing_ok=True)
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
        expected = "a checkout with git and a pipeline that DVC can read"
        raise InputError(str(folder), found=lock.reason(error), expected=expected) from None
