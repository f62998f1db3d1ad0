"""What the repository knows of its experiments: which there are, what waits, and their results."""

import hashlib
import io
import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mnist.core import config, paths
from mnist.core.errors import InputError

MAX_LOSS = sys.float_info.max  # any but infinity
MADE = "what the stages wrote: `dvc repro`"

Contents: TypeAlias = tuple[bytes | None, ...]  # of some files of a revision; None: no such file


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Where a result may be.

    Attributes:
        kind: an experiment of DVC, a commit that experiments started from, or the workspace.
        name: of the experiment; for a commit, what the user calls it, or its short hash.
        commit: full hash; empty for the workspace.
        baseline: full hash of the commit that an experiment started from; empty otherwise.
    """

    kind: Literal["experiment", "commit", "workspace"]
    name: str
    commit: str = ""
    baseline: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the repository knows.

    Attributes:
        head: full hash of HEAD.
        revisions: the commits, their experiments, and the workspace where HEAD is one of the commits.
        failed: names of the experiments that the queue ran without success.
        num_queued: experiments that wait in the queue.
        num_running: experiments that the queue runs.
    """

    head: str
    revisions: tuple[Revision, ...]
    failed: tuple[str, ...]
    num_queued: int
    num_running: int


def look(root: Path, revs: Sequence[str] | None) -> Sweep:
    """Find the experiments that started from the commits `revs`; None: from any commit.

    Raises:
        InputError: the folder `root` is no checkout with git and DVC, or has no such commit.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.experiments.utils import exp_refs_by_baseline

    head = _commit(root, "HEAD")
    commits = {_commit(root, rev): rev for rev in (["HEAD"] if revs is None else revs)}
    try:
        with Repo(str(root)) as repo:
            # Not `repo.experiments.ls`, which fails while `dvc repro` holds the lock.
            experiments = [
                Revision(kind="experiment", name=ref.name, commit=repo.scm.get_ref(str(ref)), baseline=start)
                for start, refs in exp_refs_by_baseline(
                    repo.scm, None if revs is None else set(commits)
                ).items()
                for ref in refs
            ]
            queue = repo.experiments.celery_queue
            queued, running = list(queue.iter_queued()), list(queue.iter_active())
            failed = [done.entry for done in queue.iter_failed()]
    except DvcException as error:
        raise InputError(str(root), found=str(error), expected="a checkout with git and DVC") from None
    if revs is None:
        starts = sorted({one.baseline for one in experiments} - set(commits))
        commits |= {start: start[:7] for start in starts}
    else:
        queued, running, failed = (
            [entry for entry in entries if entry.baseline_rev in commits]
            for entries in (queued, running, failed)
        )
    revisions = [Revision(kind="commit", name=name, commit=commit) for commit, name in commits.items()]
    revisions += experiments
    if head in commits:
        revisions.append(Revision(kind="workspace", name="workspace"))
    finished = {one.name for one in experiments}
    return Sweep(
        head=head,
        revisions=tuple(revisions),
        failed=tuple(sorted({entry.name or entry.stash_rev[:7] for entry in failed} - finished)),
        num_queued=len(queued),
        num_running=len(running),
    )


def _commit(root: Path, rev: str) -> str:
    """The full hash of what a user calls a commit."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{rev} in {root}", found="no such commit", expected="one of a git checkout")
    return done.stdout.strip()


def contents(root: Path, revisions: Sequence[Revision], files: Sequence[Path]) -> list[Contents]:
    """These files of each revision, by one git process for all of them."""
    names = [f"{one.commit}:./{file.as_posix()}" for one in revisions if one.commit for file in files]
    command = ["git", "cat-file", "--batch"]
    done = subprocess.run(command, cwd=root, input="\n".join(names).encode(), capture_output=True, check=True)
    stream, found = io.BytesIO(done.stdout), []
    for one in revisions:
        content: list[bytes | None] = []
        for file in files:
            if one.commit:
                *_, size = stream.readline().split()  # "<hash> blob <size>", or "<name> missing"
                content.append(None if size == b"missing" else stream.read(int(size) + 1)[:-1])
            else:
                content.append((root / file).read_bytes() if (root / file).is_file() else None)
        found.append(tuple(content))
    return found


@dataclass(frozen=True, kw_only=True)
class Locked:
    """What `dvc.lock` says of a result.

    Attributes:
        params: that stage `train` ran with.
        md5s: of the files that `train` and `evaluate` read and wrote, by path.
        dataset_md5: that of the file that all images are from.
    """

    params: Mapping[str, Any]
    md5s: Mapping[str, str]
    dataset_md5: str

    def expect(self, path: Path, content: bytes) -> None:
        """Raise `InputError` unless the file is the one that the stages wrote."""
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != self.md5s.get(path.as_posix()):
            raise InputError(str(path), found="not the file that dvc.lock knows", expected=MADE)


def locked(content: bytes | None) -> Locked:
    """Read `dvc.lock`.

    Raises:
        InputError: it is missing or broken.
    """
    if content is None:
        raise InputError(str(paths.LOCK), found="no such file", expected=MADE)
    try:
        stages = config.parse_keys(content, str(paths.LOCK))["stages"]
        entries = [stages[name] for name in ("train", "evaluate") if name in stages]
        md5s = {file["path"]: file["md5"] for entry in entries for file in [*entry["deps"], *entry["outs"]]}
        return Locked(
            params=dict(stages["train"]["params"][str(paths.PARAMS)]),
            md5s=md5s,
            dataset_md5=md5s[paths.DATASET.as_posix()],
        )
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(str(paths.LOCK), found=reason, expected=MADE) from None


def number(path: Path, content: bytes, key: str, *, most: float) -> float:
    """A number of a metrics file, from 0.

    Raises:
        InputError: the file is broken, or the number is missing or out of range.
    """
    try:
        values = json.loads(content)
    except ValueError as error:
        raise InputError(str(path), found=f"no JSON ({error})", expected=MADE) from None
    value = values.get(key) if isinstance(values, dict) else None
    # To Python, true is a number; NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        found = "nothing" if value is None else repr(value)
        raise InputError(f"{path}: {key}", found=found, expected=f"0 to {most:g}")
    return float(value)


def failures(sweep: Sweep) -> list[str]:
    """A line for each experiment that failed."""
    return [f"left out: {name}: it failed, `dvc queue logs {name}` says why" for name in sweep.failed]


def waiting(sweep: Sweep) -> list[str]:
    """What is still to come, in lines."""
    lines = []
    if sweep.num_running:
        lines.append(f"{sweep.num_running} still running: dvc queue status")
    if sweep.num_queued:
        lines.append(f"{sweep.num_queued} still queued: dvc queue start -j 2")
    return lines


def add_options(parser: ArgumentParser) -> None:
    """Let the user say which commits the experiments started from."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--rev", nargs="+", default=["HEAD"], help="started from these commits (default: HEAD)"
    )
    where.add_argument("--all-commits", action="store_true", help="started from any commit")


def revs(options: Namespace) -> Sequence[str] | None:
    """Those commits; None: any."""
    return None if options.all_commits else list(options.rev)


def shown(value: Any) -> str:
    """A param as it is typed after `-S key=`."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def differing(all_params: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of params that are not alike in all of them."""
    keys = dict.fromkeys(key for params in all_params for key in params)
    return [key for key in keys if len({shown(params.get(key)) for params in all_params}) > 1]


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """The lines of a table: numbers to the right, the column `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[left] = row[left].ljust(widths[left])
        lines.append("  ".join(cells).rstrip())
    return lines
