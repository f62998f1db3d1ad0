"""What all benchmarks share: fresh clones, timed commands, rounds, and rows with their limits."""

import gzip
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal, NamedTuple

from mnist.core import config, paths
from mnist.core.errors import InputError

INPUTS = ("download", "validate", "stats")  # the stages that make what `train` reads
STAGES = (*INPUTS, "train", "evaluate", "register")
LIBRARIES = ("torch", "dvc", "mlflow")
NUM_LAST_LINES = 15  # of the output of a command that failed
TIMEOUT_SECONDS = 10  # from the request to end until a process is killed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The duration of a command, and its stdout and stderr together."""

    seconds: float
    output: str

    @property
    def numbers(self) -> dict[str, float]:
        """Return the numbers of the output, by name: lines with a name and a number."""
        pairs = re.findall(r"^(\w+) (\d+(?:\.\d+)?)$", self.output, re.MULTILINE)
        return {name: float(number) for name, number in pairs}


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A clone, and the environment variables of its commands."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> Outcome:
        """Run and time a command, without input and without a terminal.

        Raises:
            InputError: its exit status is not 0; its last lines are on stderr.
        """
        # A file, not a pipe: the process that logs to MLflow keeps it open after the command's end.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that all of it can be ended
            )
            try:
                process.wait()
            except BaseException:
                _end(process)
                raise
            seconds = time.perf_counter() - start
            output.seek(0)
            outcome = Outcome(seconds=seconds, output=output.read())
        if process.returncode:
            raise _failure(command, f"exit status {process.returncode}", "0", outcome)
        return outcome

    def dvc(self, *arguments: str, expected: Sequence[str]) -> Outcome:
        """Run DVC, and check that it ran exactly these stages; otherwise its time means nothing.

        Raises:
            InputError: DVC failed, or ran other stages.
        """
        outcome = self.run("dvc", *arguments)
        ran = re.findall(r"^Running stage '(.+)':$", outcome.output, re.MULTILINE)
        if sorted(ran) != sorted(expected):
            raise _failure(["dvc", *arguments], f"the stages {ran}", str(list(expected)), outcome)
        return outcome

    def python(self, *arguments: str) -> Outcome:
        """Run the Python of this process, as `run` does."""
        return self.run(sys.executable, *arguments)


def _failure(command: Sequence[str], found: str, expected: str, outcome: Outcome) -> InputError:
    log("\n".join(outcome.output.strip().splitlines()[-NUM_LAST_LINES:]))
    return InputError(f"`{' '.join(command)}`", found=found, expected=expected)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its group. torchrun ends its own processes, which have other sessions."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(TIMEOUT_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A clone of the committed code, and the data set, under one temporary folder.

    Attributes:
        source: the clone.
        data: torchvision's folder.
        commit: short hash of the measured commit.
    """

    source: Checkout
    data: Path
    commit: str

    @contextmanager
    def checkout(self, *, with_inputs: bool = False) -> Iterator[Checkout]:
        """Yield a fresh clone, in which nothing has run and of which DVC has cached nothing.

        Args:
            with_inputs: make what `train` reads.
        """
        with tempfile.TemporaryDirectory(dir=self.data.parent) as name:
            folder, environment = Path(name) / "checkout", dict(self.source.environment)
            self.source.run("git", "clone", "--quiet", ".", str(folder))
            # With the lock file, DVC would skip stages whose outs are in git.
            (folder / "dvc.lock").unlink(missing_ok=True)
            environment["DVC_SITE_CACHE_DIR"] = str(Path(name) / "dvc")
            clone = Checkout(folder=folder, environment=environment)
            if with_inputs:
                clone.dvc("repro", "stats", expected=INPUTS)
            yield clone

    def tutorial(self, *options: str) -> Outcome:
        """Run the tutorial's script."""
        return self.source.python("-m", "benchmarks.tutorial", "--data", str(self.data), *options)


@contextmanager
def prepared() -> Iterator[Bench]:
    """Clone the current checkout, and copy the data set for the pipeline and for the tutorial's script.

    Raises:
        InputError: no mirror has the data set, or the current folder is not a git checkout.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as name:
        folder = Path(name)
        here = Checkout(folder=Path.cwd(), environment=os.environ)
        source = Checkout(folder=folder / "source", environment=_environment(folder))
        here.run("git", "clone", "--quiet", ".", str(source.folder))
        log(f"measuring commit {source.run('git', 'log', '-1', '--format=%h %s').output.strip()}")
        if changed := here.run("git", "status", "--porcelain").output.splitlines():
            log(f"  not measured, since not committed: {len(changed)} files and folders of the checkout")
        _copy_data(folder)
        commit = source.run("git", "rev-parse", "--short", "HEAD").output.strip()
        yield Bench(source=source, data=folder / "torchvision", commit=commit)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of measured commands: this Python first on PATH, no file outside `folder`."""
    dropped = ("DVC_", "MLFLOW_", "MNIST_", "ATEN_", "ONEDNN_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    (folder / "tmp").mkdir()
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(folder / "tmp"),
        "MNIST_MIRROR": str(folder / "archives"),
        # The user's settings may name a shared cache, which is not empty.
        "DVC_GLOBAL_CONFIG_DIR": str(folder),
        "DVC_SYSTEM_CONFIG_DIR": str(folder),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "DVC_NO_ANALYTICS": "true",
    }


def _copy_data(folder: Path) -> None:
    """Copy the archives for the pipeline, and unpack them for torchvision."""
    from mnist.data import catalog, download

    archives, raw = folder / "archives", folder / "torchvision" / "MNIST" / "raw"
    params = config.load(paths.PARAMS)
    known, ahead = catalog.load(paths.DATASETS, params.dataset), params.data.mirrors_of(params.dataset)
    fetched = download.fetch(known, paths.root() / paths.DOWNLOADS, ahead=ahead)
    archives.mkdir()
    raw.mkdir(parents=True)
    for name, archive in fetched.archives.items():
        shutil.copyfile(archive, archives / name)
        (raw / name).with_suffix("").write_bytes(gzip.decompress(archive.read_bytes()))


def in_rounds(
    num_rounds: int, measure: Callable[[int], Mapping[str, float]], *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure everything once a round, in turns, and return the numbers of each label.

    Args:
        num_rounds: how often.
        measure: a function of the round's number, from 1.
        warm_up: measure a round 0 first, which does not count: it compiles bytecode and fills the system's
            file cache.
    """
    rounds = []
    for number in range(0 if warm_up else 1, num_rounds + 1):
        log(f"round {number} of {num_rounds}" if number else "warming up")
        rounds.append(measure(number))
        for label, value in rounds[-1].items():
            log(f"  {label}: {value:,.2f}")
    return {label: [each[label] for each in rounds[-num_rounds:]] for label in rounds[0]}


class Limit(NamedTuple):
    """The limit of a row, in its unit; in `x` it is one of the ratio to the tutorial's number."""

    word: Literal["at most", "at least"]
    number: float
    unit: str = "x"


def row(
    label: str,
    values: Sequence[float],
    *,
    unit: str = "s",
    tutorial: Sequence[float] = (),
    limit: Limit | None = None,
) -> dict[str, Any]:
    """Return a row of a part's result, as plain values.

    Args:
        label: of what was measured.
        values: one of each round; their median and range count, of accuracies in % their mean and deviation.
        unit: of the values.
        tutorial: those of the tutorial's script that they are compared with.
        limit: of the median, or of the ratio.
    """
    result: dict[str, Any] = {"label": label, "unit": unit, "num_rounds": len(values)}
    middle = result["middle"] = mean(values) if unit == "%" else median(values)
    if unit == "%":
        result["sd"] = stdev(values) if len(values) > 1 else 0.0
    else:
        result |= {"min": min(values), "max": max(values)}
    if tutorial:
        result["ratio"] = middle / median(tutorial)
    if limit:
        judged = result["ratio"] if limit.unit == "x" else middle
        result["limit"] = f"{limit.word} {limit.number:g} {limit.unit}"
        result["holds"] = judged <= limit.number if limit.word == "at most" else judged >= limit.number
    return result


def machine() -> dict[str, str | int | float]:
    """Return facts about this machine and the versions of the libraries."""
    from mnist.training import devices  # with torch

    has_affinity = hasattr(os, "sched_getaffinity")  # a batch system may give this process some of the cores
    return {
        "cpu": devices.processor_name(),
        "num_cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def log(text: str) -> None:
    """Print the progress to stderr."""
    print(text, file=sys.stderr, flush=True)
