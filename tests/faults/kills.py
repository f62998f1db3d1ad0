"""Kills: a command dies at a random moment of its run, and a user runs it again.

What must come out is what comes of the command where nobody kills it: the same bytes in `dvc.lock` and the
outputs, the same runs, points, versions and aliases, the same branch and `git status`, and nothing left over.
"""

import contextlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from filelock import FileLock

from mnist.core import files
from tests import checkout
from tests.checkout import Clone
from tests.e2e.conftest import copy, without_store
from tests.faults import traces
from tests.faults.case import Case, clone_at

NUMBER = 200
END_SECONDS = 120  # for a command to end after a signal, and for what it started
MNIST = ("python", "-m", "mnist")
REPRO = ("dvc", "repro")
HOURS = 2 * files.ABANDONED_SECONDS

Command = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command to kill.

    Attributes:
        prepare: makes the place where it has something to do.
        command: that is killed.
        beside: another command that starts at the same moment, and is not killed.
        after: another one that a user runs when it is done.
        is_once: whether it must not be run again when it has done all.
    """

    command: Command
    prepare: Callable[[Clone], None] | None = None
    beside: Command = ()
    after: Command = ()
    is_once: bool = False


def other_lr(clone: Clone) -> None:
    checkout.edit(clone, "params.yaml", "lr: 0.02", "lr: 0.018")


def nothing_made(clone: Clone) -> None:
    """Leave what is in git alone."""
    clone.run("git", "clean", "-qfdx", "-e", ".venv", "-e", ".dvc/config.local")
    (clone.folder / "dvc.lock").unlink()


def store_lost(clone: Clone) -> None:
    """Lose the store of two experiments and a commit."""
    for lr in ("0.015", "0.016"):
        clone.run("dvc", "exp", "run", "-S", f"lr={lr}")
    clone.reset()
    without_store(clone)


def new_challenger(clone: Clone) -> None:
    clone.run(*MNIST, "promote")
    clone.run("dvc", "exp", "run", "-S", "lr=0.015")


def two_champions(clone: Clone) -> None:
    new_challenger(clone)
    clone.run(*MNIST, "promote")


def by_hand(*stages: str) -> Callable[[Clone], None]:
    """Change a param, and run these stages by hand."""

    def prepare(clone: Clone) -> None:
        other_lr(clone)
        for stage in stages:
            clone.run("python", "-m", f"stages.{stage}")

    return prepare


def damaged(clone: Clone) -> None:
    """Break all that `mnist doctor --fix` repairs."""
    (clone.folder / ".dvc/tmp/rwlock").write_bytes(b"")
    cached = next((clone.folder / ".dvc/cache/files/md5").glob("??/*"))
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes() + b"x")
    for name in ("mnist/training/loop.py", "datasets/mnist.yaml", "README.md"):
        file = clone.folder / name
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    (clone.folder / "metrics/.part.x.test.json").touch()
    grow_old(clone.folder)


SCENARIOS = {
    "repro": Scenario(command=REPRO, prepare=other_lr),
    "exp": Scenario(command=("dvc", "exp", "run", "-S", "lr=0.015")),
    "temp": Scenario(command=("dvc", "exp", "run", "--temp", "-S", "lr=0.016")),
    "sync": Scenario(command=(*MNIST, "sync"), prepare=store_lost),
    "promote": Scenario(command=(*MNIST, "promote"), prepare=new_challenger),
    "first": Scenario(command=REPRO, prepare=nothing_made),
    "rollback": Scenario(command=(*MNIST, "rollback"), prepare=two_champions, is_once=True),
    "train": Scenario(command=("python", "-m", "stages.train"), prepare=other_lr, after=REPRO),
    "reproduce": Scenario(command=(*MNIST, "reproduce", "models:/mnist-simplecnn/1")),
    "evaluate": Scenario(command=("python", "-m", "stages.evaluate"), prepare=by_hand("train"), after=REPRO),
    "doctor": Scenario(command=(*MNIST, "doctor", "--fix"), prepare=damaged, after=REPRO),
    "register": Scenario(
        command=("python", "-m", "stages.register"), prepare=by_hand("train", "evaluate"), after=REPRO
    ),
    "verify": Scenario(command=(*MNIST, "verify")),
    "repro+sync": Scenario(command=REPRO, prepare=other_lr, beside=(*MNIST, "sync")),
    "exp+promote": Scenario(command=("dvc", "exp", "run", "-S", "lr=0.015"), beside=(*MNIST, "promote")),
    "sync+sync": Scenario(command=(*MNIST, "sync"), prepare=store_lost, beside=(*MNIST, "sync")),
    "temp+repro": Scenario(
        command=("dvc", "exp", "run", "--temp", "-S", "lr=0.016"), prepare=other_lr, beside=REPRO
    ),
}
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGINT, signal.SIGTERM]
VICTIMS = ("alone", "group", "one")  # the command; its process group; any one process of its tree


def cases(seed: int) -> Iterator[Case]:
    """Yield kills without end, all scenarios in turn; each draws from a generator of its own."""
    for number in itertools.count():
        name = list(SCENARIOS)[number % len(SCENARIOS)]
        draw = random.Random(f"{seed} {number}")  # noqa: S311 -- no secret
        which, victim, moment = draw.choice(SIGNALS), draw.choice(VICTIMS), draw.random()
        label = f"{number}-{name}-{which.name}-{victim}-{moment:.3f}"
        yield Case("kills", label, Kill(name, which, victim, moment, draw.random()))


@dataclass(frozen=True)
class Kill:
    """One kill: `moment` is the part of the command's usual time, `which` chooses among its processes."""

    scenario: str
    signal: signal.Signals
    victim: str
    moment: float
    which: float

    def __call__(self, folder: Path) -> str | None:
        """Kill, recover, and compare."""
        scenario = SCENARIOS[self.scenario]
        prepared, usual = usual_run(self.scenario, clone_at(folder))
        clone = with_tmp(copy(prepared, folder.parent / "killed"))
        processes = start_all(clone, scenario)
        time.sleep(self.moment * usual["seconds"])
        self._kill(processes[0])
        end_all(processes, clone)
        grow_old(clone.folder.parent)
        if "--temp" in scenario.command:  # DVC writes its params here for a moment, which `git diff` shows
            shutil.copyfile(prepared.folder / "params.yaml", clone.folder / "params.yaml")
        if not (scenario.is_once and traces.query(clone.folder, "aliases") == usual["traces"]["aliases"]):
            recover(clone, scenario)
        if scenario.after:
            run(clone, scenario.after)
        await_nobody(clone)  # what the victim had started may have gone on
        grow_old(clone.folder.parent)
        follow_doctor(clone)
        return traces.difference(usual["traces"], traces.of(clone.folder))

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            return
        if self.victim == "group":
            os.killpg(process.pid, self.signal)
            return
        tree = [psutil.Process(process.pid)]
        if self.victim == "one":
            tree += tree[0].children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended at this moment
            tree[int(self.which * len(tree))].send_signal(self.signal)


def usual_run(name: str, trained: Clone) -> tuple[Clone, dict[str, Any]]:
    """Return the prepared clone of a scenario, and what its command leaves if nobody kills it; made once."""
    shared = trained.folder.parent.parent / f"kills-{name}"
    clone, done = clone_at(shared / "clone"), shared.with_suffix(".json")
    with FileLock(shared.with_suffix(".lock")):
        if not done.exists():
            scenario = SCENARIOS[name]
            made = copy(trained, shared)
            if scenario.prepare:
                scenario.prepare(made)
            run_clone = with_tmp(copy(clone, shared / "usual"))
            start = time.monotonic()
            end_all(start_all(run_clone, scenario), run_clone)
            seconds = time.monotonic() - start
            if scenario.beside:  # of two commands at once DVC may have refused one
                recover(run_clone, scenario)
            if scenario.after:
                run(run_clone, scenario.after)
            follow_doctor(run_clone)
            await_nobody(run_clone)
            done.write_text(json.dumps({"seconds": seconds, "traces": traces.of(run_clone.folder)}))
    return clone, json.loads(done.read_text())


def with_tmp(clone: Clone) -> Clone:
    """Give a clone's commands a folder of their own for temporary files."""
    folder = clone.folder.parent / "tmp"
    folder.mkdir()
    clone.environment["TMPDIR"] = str(folder)
    return clone


def start_all(clone: Clone, scenario: Scenario) -> list[subprocess.Popen[bytes]]:
    """Start the command of a scenario in a session of its own, and the other one."""
    started = []
    for number, command in enumerate(filter(None, (scenario.command, scenario.beside))):
        # A file: nobody need read it, and it does not end with the process.
        with (clone.folder.parent / f"output-{number}").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=clone.folder,
                env=clone.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            started.append(process)
    return started


def end_all(processes: Sequence[subprocess.Popen[bytes]], clone: Clone) -> None:
    """Wait until commands end."""
    for number, process in enumerate(processes):
        process.wait(END_SECONDS)
        output = (clone.folder.parent / f"output-{number}").read_text(errors="replace")
        assert number == 0 or "Traceback" not in output, f"beside it: {output[-300:]}"


def await_nobody(clone: Clone) -> None:
    """Wait until no process of the clone is left."""
    deadline = time.monotonic() + END_SECONDS
    while left := checkout.processes_in(clone.folder):
        assert time.monotonic() < deadline, f"left running: {left[0].cmdline()}"
        time.sleep(0.2)


def grow_old(folder: Path) -> None:
    """Make hidden files of writers as old as they would be in some hours."""
    then = time.time() - HOURS
    for pattern in (f"{files.PART}*", ".mlflow.db.*", f"{files.TEMPORARY}*"):
        for path in folder.rglob(pattern):
            os.utime(path, (then, then), follow_symlinks=False)


def recover(clone: Clone, scenario: Scenario) -> None:
    """Run commands again; where that fails, do what `mnist doctor` says, and run them once more."""
    for command in filter(None, (scenario.command, scenario.beside)):
        if run(clone, command, check=False).returncode:
            follow_doctor(clone)
            run(clone, command)


def run(clone: Clone, command: Command, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command, which must not take a fault of the user's for one of its own."""
    done = clone.run(*command, check=False)
    assert "Traceback" not in done.stdout, f"{shlex.join(command)}: {done.stdout[-300:]}"
    assert not check or done.returncode == 0, f"{shlex.join(command)} again: {done.stdout[-300:]}"
    return done


def follow_doctor(clone: Clone) -> None:
    """Run `mnist doctor --fix`, and the commands that it names; then it finds nothing."""
    told = clone.run(*MNIST, "doctor", "--fix", check=False)
    for line in told.stdout.splitlines():
        # After one more experiment a HEAD that a kill left looks like one that the user detached.
        is_wrong = line.startswith(("WRONG", "fine   HEAD: no branch; "))
        for command in re.findall("`(.+?)`", line) if is_wrong else []:
            clone.run("bash", "-c", command, check=False)
    if told.returncode:
        run(clone, (*MNIST, "doctor"))
