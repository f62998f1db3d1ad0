"""Disks that become full: what does not fit is refused in one line, and with more space all goes on."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mnist.core import files
from tests.faults import warm
from tests.faults.case import Case, clone_at, one_line_error

SPARE_KB = (0, 40, 200, 600, 1500, 4000, 10_000)  # beside the clone; an experiment needs 6 MB
ENOUGH_KB = 500_000
COMMANDS = (
    "dvc exp run -S lr=0.03",
    *(
        f"python -m stages.{name}"
        for name in ("download", "validate", "stats", "train", "evaluate", "register")
    ),
    "mnist report",
    "mnist sync",
    "mnist reproduce models:/mnist-simplecnn/1",
    "dvc repro",
)
FULL = "No space left on device", "disk is full", "Out of diskspace"
RUNNING = "SELECT count(*) FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
NUMBER = len(SPARE_KB)  # of cases


@dataclass(frozen=True)
class Full:
    """A disk with so much space beside the clone; $TMPDIR is on it, too."""

    spare_kb: int

    def __call__(self, folder: Path) -> str | None:
        """Return None if each command succeeds or names the full disk, and all is right with more space."""
        disk = folder.parent / "disk"
        with _mounted(disk):
            clone = clone_at(disk / "clone")
            shutil.copytree(folder, clone.folder, symlinks=True)
            (disk / "tmp").mkdir()
            _resize(disk, shutil.disk_usage(disk).used // 1024 + self.spare_kb)
            has_failed = False
            for command in COMMANDS:
                done = warm.run(clone.folder, command, TMPDIR=str(disk / "tmp"))
                lines = done.output.splitlines()
                if "Traceback" in done.output or "c10::" in done.output:
                    return f"{command}: a traceback: {lines[-1]}"
                if done.status is None:
                    return f"{command}: it never ended"
                # DVC has errors of git, "the index is locked", in its place. After a stage that failed half
                # of the results may be of before, which one line says.
                is_named = any(reason in done.output for reason in FULL) or command.startswith("dvc")
                if (
                    done.status
                    and not is_named
                    and (not has_failed or one_line_error(done.output, done.status))
                ):
                    return f"{command}: status {done.status}: {done.output[-300:]}"
                has_failed = has_failed or done.status != 0
            if left := [path for path in disk.rglob(f"{files.PART}*") if ".git" not in path.parts]:
                return f"left over: {left}"
            _resize(disk, ENOUGH_KB)
            return _recovered(clone.folder)


def _recovered(folder: Path) -> str | None:
    """Return what is wrong after a user has made space and run the pipeline again."""
    for command in ("mnist doctor --fix", "dvc repro", "mnist report", "mnist sync", "mnist doctor"):
        done = warm.run(folder, command)
        if done.status and command != "mnist doctor --fix":
            return f"with more space, {command}: {done.output[-300:]}"
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        (state,) = store.execute("PRAGMA integrity_check").fetchone()
        (running,) = store.execute(RUNNING).fetchone()
    return f"mlflow.db: {state}" if state != "ok" else f"{running} runs are running" if running else None


def _resize(disk: Path, size_kb: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_kb}k", disk], check=True)


@contextmanager
def _mounted(disk: Path) -> Iterator[None]:
    """Mount a disk in memory, for which one must be root."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH_KB}k", "tmpfs", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def cases(seed: int) -> Iterator[Case]:  # noqa: ARG001 -- nothing here is random
    """Yield a case for each size."""
    for spare_kb in SPARE_KB if os.geteuid() == 0 else ():
        yield Case("disks", f"{spare_kb}-kB", Full(spare_kb))
