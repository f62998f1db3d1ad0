"""The parts that all benchmarks share: fresh clones, measured commands, facts about the machine.

This module imports no heavy library: on Linux the peak memory of a process includes that of the process
that started it.
"""

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from mnist.core import config, paths
from mnist.core.errors import InputError

STAGES = ("download", "validate", "stats", "train", "evaluate", "register")
LIBRARIES = ("torch", "dvc", "mlflow")
NUM_LAST_LINES = 15  # of the output of a command that failed
TIMEOUT_SECONDS = 10  # from the request to end until a process is killed

Measurements = Mapping[str, Sequence[float]]  # one number a round, by name


class FailedError(ValueError):
    """The failure of a measured command, with the last lines of its output."""

    def __init__(self, command: Sequence[str], problem: str, output: str) -> None:
        self.last_lines = output.strip().splitlines()[-NUM_LAST_LINES:]
        super().__init__(f"`{' '.join(command)}` {problem}:\n" + "\n".join(self.last_lines))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The time, memory and output of a command.

    Attributes:
        seconds: from its start to its end.
        peak_bytes: the largest resident set of any of its processes.
        output: stdout and stderr together.
    """

    seconds: float
    peak_bytes: int
    output: str

    @property
    def numbers(self) -> dict[str, float]:
        """Return the numbers of the output, by name: lines with a name and a number."""
        pairs = re.findall(r"^(\w+) (\d+(?:\.\d+)?)$", self.output, re.MULTILINE)
        return {name: float(number) for name, number in pairs}

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages that DVC ran."""
        return tuple(re.findall(r"^Running stage '(.+)':$", self.output, re.MULTILINE))


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A clone, and the environment variables of its commands."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> Outcome:
        """Run and measure a command, without input and without a terminal.

        Raises:
            FailedError: its exit status is not 0.
        """
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
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                _end(process)
                raise
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read()
        if process.returncode:
            raise FailedError(command, f"ended with status {process.returncode}", text)
        peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Outcome(seconds=seconds, peak_bytes=peak_bytes, output=text)

    def dvc(self, *arguments: str, expected: Sequence[str]) -> Outcome:
        """Run DVC, and check that it ran exactly these stages; otherwise its time means nothing.

        Raises:
            FailedError: DVC failed, or ran other stages.
        """
        outcome = self.run("dvc", *arguments)
        if sorted(outcome.stages) != sorted(expected):
            problem = f"ran {', '.join(outcome.stages) or 'no stage'}, not {', '.join(expected) or 'none'}"
            raise FailedError(["dvc", *arguments], problem, outcome.output)
        return outcome

    def python(self, *arguments: str) -> Outcome:
        """Run the Python of this process, as `run` does."""
        return self.run(sys.executable, *arguments)


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
    def checkout(self) -> Iterator[Checkout]:
        """Yield a fresh clone, in which nothing has run and of which DVC has cached nothing."""
        with tempfile.TemporaryDirectory(dir=self.data.parent) as name:
            folder, environment = Path(name) / "checkout", dict(self.source.environment)
            self.source.run("git", "clone", "--quiet", ".", str(folder))
            # With the lock file, DVC would skip stages whose outs are in git.
            (folder / "dvc.lock").unlink(missing_ok=True)
            environment["DVC_SITE_CACHE_DIR"] = str(Path(name) / "dvc")
            yield Checkout(folder=folder, environment=environment)

    def tutorial(self, seed: int = 0, *options: str) -> Outcome:
        """Run the tutorial's script."""
        command = ("-m", "benchmarks.tutorial", "--data", str(self.data), "--seed", str(seed), *options)
        return self.source.python(*command)


def child_environment(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of measured commands: this Python first on PATH, no file outside `folder`."""
    dropped = ("DVC_", "MLFLOW_", "MNIST_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in variables.items() if not name.startswith(dropped)}
    (folder / "tmp").mkdir()
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)]),
        "TMPDIR": str(folder / "tmp"),
        "MNIST_MIRROR": str(folder / "archives"),
        # The user's settings may name a shared cache, which is not empty.
        "DVC_GLOBAL_CONFIG_DIR": str(folder),
        "DVC_SYSTEM_CONFIG_DIR": str(folder),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
        "DVC_NO_ANALYTICS": "true",
    }


@contextmanager
def prepared() -> Iterator[Bench]:
    """Clone the current checkout, and copy the data set for the pipeline and for the tutorial's script.

    Raises:
        InputError: no mirror has the data set.
        FailedError: the current folder is not a git checkout.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as name:
        folder = Path(name)
        here = Checkout(folder=Path.cwd(), environment=os.environ)
        environment = child_environment(os.environ, folder)
        here.run("git", "clone", "--quiet", ".", str(folder / "source"))
        source = Checkout(folder=folder / "source", environment=environment)
        log(f"measuring commit {source.run('git', 'log', '-1', '--format=%h %s').output.strip()}")
        if changed := here.run("git", "status", "--porcelain").output.splitlines():
            log(f"  not measured, since not committed: {len(changed)} files and folders of the checkout")
        try:
            here.python("-c", "from benchmarks import harness; harness.fetch()", str(folder))
        except FailedError as error:
            reason = " ".join(error.last_lines[-1:])
            raise InputError("the data set", found=reason, expected="a mirror that has it") from None
        commit = source.run("git", "rev-parse", "--short", "HEAD").output.strip()
        yield Bench(source=source, data=folder / "torchvision", commit=commit)


def fetch() -> None:
    """Copy the archives, and unpack them for torchvision, in a process of its own."""
    from mnist.data import catalog, download

    folder = Path(sys.argv[1])
    archives, raw = folder / "archives", folder / "torchvision" / "MNIST" / "raw"
    try:
        read = config.load(paths.PARAMS)
        known = catalog.load(paths.DATASETS, read.dataset)
        ahead = read.data.mirrors_of(read.dataset)
        fetched = download.fetch(known, paths.root() / paths.DOWNLOADS, ahead=ahead)
    except InputError as error:
        sys.exit(" ".join(str(error).split()))
    archives.mkdir()
    raw.mkdir(parents=True)
    for name, archive in fetched.archives.items():
        shutil.copyfile(archive, archives / name)
        (raw / name).with_suffix("").write_bytes(gzip.decompress(archive.read_bytes()))


def machine() -> dict[str, str | int | float]:
    """Return facts about this machine and the versions of the libraries."""
    from mnist.training import devices  # with torch: after all measurements of a part

    has_affinity = hasattr(os, "sched_getaffinity")  # a batch system may give this process some of the cores
    return {
        "cpu": devices.processor_name(),
        "num_cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def shown(values: Mapping[str, float], unit: str = "s") -> str:
    """Return two cells of a table: the median, and the range."""
    return f"{values['median']:.2f} {unit} | {values['min']:.2f} to {values['max']:.2f} {unit}"


def verdict(values: Mapping[str, object]) -> str:
    """Return a cell: `yes` or `NO` for a figure with a limit, empty without one."""
    return {True: "yes", False: "NO", None: ""}[values.get("holds")]  # type: ignore[index]


def log(text: str) -> None:
    """Print the progress to stderr."""
    print(text, file=sys.stderr, flush=True)
