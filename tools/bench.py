"""Measure the pipeline beside the tutorial's script, in turns, and hold it against its figures.

    python -m tools.bench [--rounds 3] [--seeds 5] [--output FILE]

What is committed is measured, in fresh clones under a temporary folder; the checkout stays as it
is. A round measures everything once. The first round warms up (compiled bytecode, the system's
file cache) and does not count. Progress goes to stderr, the tables go to stdout as Markdown.
"""

import argparse
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
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from mnist import files, params, paths, processor, stage
from mnist.errors import InputError

# No heavy library here: on Linux a process counts the memory of the one that started it as its own peak.

STAGES = ("download", "validate", "stats", "train", "evaluate", "register")
LR_STAGES = ("train", "evaluate", "register")  # what a new learning rate concerns
LIBRARIES = ("torch", "dvc", "mlflow")
MAX_STAGE_GIB = 1.5
NUM_LAST_LINES = 15  # of a command that failed

Measurements = Mapping[str, Sequence[float]]  # one number a round, by name


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of the table.

    Attributes:
        key: of its measurements, in seconds.
        label: for people.
        base: key of what it is divided by.
        max_ratio: of the medians.
        max_seconds: of its median.
    """

    key: str
    label: str
    base: str = "tutorial"
    max_ratio: float | None = None
    max_seconds: float | None = None


# The limits are the project's requirements, for the tutorial's script on the same machine.
FIGURES = (
    Figure(key="tutorial", label="the tutorial's script"),
    Figure(key="tutorial_epoch", label="its epoch alone", base="tutorial_epoch"),
    Figure(key="repro", label="`dvc repro`, nothing cached", max_ratio=3.0),
    Figure(key="idle", label="`dvc repro`, nothing to do", max_seconds=2.5),
    Figure(key="experiment", label="`dvc exp run -S lr=0.05`", max_ratio=1.6),
    Figure(key="epoch", label="an epoch of `train`, with validation", base="tutorial_epoch", max_ratio=0.45),
)


class FailedError(ValueError):
    """A command that was to be measured did not do what it must; its last lines are told."""

    def __init__(self, command: Sequence[str], problem: str, output: str) -> None:
        self.last_lines = output.strip().splitlines()[-NUM_LAST_LINES:]
        super().__init__(f"`{' '.join(command)}` {problem}:\n" + "\n".join(self.last_lines))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command took and wrote.

    Attributes:
        peak_bytes: the largest resident set of any of its processes.
        output: of stdout and stderr together.
    """

    seconds: float
    peak_bytes: int
    output: str

    @property
    def numbers(self) -> dict[str, float]:
        """Of the lines that are a name and a number."""
        pairs = re.findall(r"^(\w+) (\d+(?:\.\d+)?)$", self.output, re.MULTILINE)
        return {name: float(number) for name, number in pairs}

    @property
    def stages(self) -> tuple[str, ...]:
        """That DVC ran."""
        return tuple(re.findall(r"^Running stage '(.+)':$", self.output, re.MULTILINE))


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A clone, and the variables for what runs in it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> Outcome:
        """Run and measure a command, on idle hands: it gets no input and no terminal.

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
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
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
        """Run DVC, and see to it that it ran just these stages, since else the time says nothing.

        Raises:
            FailedError: it failed, or ran other stages.
        """
        outcome = self.run("dvc", *arguments)
        if sorted(outcome.stages) != sorted(expected):
            problem = f"ran {', '.join(outcome.stages) or 'no stage'}, not {', '.join(expected) or 'none'}"
            raise FailedError(["dvc", *arguments], problem, outcome.output)
        return outcome

    def python(self, *arguments: str) -> Outcome:
        """Run our own Python, as `run` does."""
        return self.run(sys.executable, *arguments)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All under one temporary folder: a clone of what is committed, and the data set."""

    source: Checkout
    data: Path

    @contextmanager
    def checkout(self) -> Iterator[Checkout]:
        """A fresh clone in which nothing has run, and of which DVC knows nothing."""
        with tempfile.TemporaryDirectory(dir=self.data.parent) as name:
            folder, environment = Path(name) / "checkout", dict(self.source.environment)
            self.source.run("git", "clone", "--quiet", ".", str(folder))
            # The lock file would let DVC pass over stages whose outs are in git.
            (folder / "dvc.lock").unlink(missing_ok=True)
            environment["DVC_SITE_CACHE_DIR"] = str(Path(name) / "dvc")
            yield Checkout(folder=folder, environment=environment)

    def tutorial(self, seed: int = 0) -> Outcome:
        """Run the tutorial's script."""
        return self.source.python("-m", "tools.tutorial", "--data", str(self.data), "--seed", str(seed))


def child_environment(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The variables for what is measured: this Python's programs first, and no trace outside `folder`."""
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
    """Clone the current checkout and lay the data set out for both sides.

    Raises:
        InputError: there is no data set to be had.
        FailedError: this is no git checkout.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-bench-") as name:
        folder = Path(name)
        here = Checkout(folder=Path.cwd(), environment=os.environ)
        environment = child_environment(os.environ, folder)
        here.run("git", "clone", "--quiet", ".", str(folder / "source"))
        source = Checkout(folder=folder / "source", environment=environment)
        _tell_commit(source, changed=here.run("git", "status", "--porcelain").output.splitlines())
        try:
            here.python("-c", "from tools import bench; bench.fetch()", str(folder))
        except FailedError as error:
            reason = " ".join(error.last_lines[-1:])
            raise InputError("the data set", found=reason, expected="a mirror that has it") from None
        yield Bench(source=source, data=folder / "torchvision")


def _tell_commit(source: Checkout, changed: Sequence[str]) -> None:
    commit = source.run("git", "log", "-1", "--format=%h %s").output.strip()
    tell(f"measuring commit {commit}")
    if changed:
        tell(f"  left out, since not committed: {len(changed)} of the checkout's files and folders")


def fetch() -> None:
    """Lay out the archives, and unpacked as torchvision wants them; runs in a process of its own."""
    with stage.heavy_imports():
        from mnist import mirrors

    folder = Path(sys.argv[1])
    archives, raw = folder / "archives", folder / "torchvision" / "MNIST" / "raw"
    try:
        fetched = mirrors.fetch(params.load(paths.PARAMS).data, paths.root() / mirrors.CACHE)
    except InputError as error:
        sys.exit(" ".join(str(error).split()))
    archives.mkdir()
    raw.mkdir(parents=True)
    for name, archive in fetched.archives.items():
        shutil.copyfile(archive.path, archives / name)
        (raw / name).with_suffix("").write_bytes(gzip.decompress(archive.path.read_bytes()))


def time_epoch() -> None:
    """Train for one epoch as `train` does, and print the seconds; runs in a process of its own.

    The 5,000 images that are held out are scored within it: 60,000 images pass through the
    network, as in the tutorial's epoch.
    """
    with stage.heavy_imports():
        from mnist import dataset, devices, model, normalization, training

    settings = params.load(paths.PARAMS)
    seed = settings.seed
    measured = normalization.read(paths.STATS)
    train, val = dataset.cut(dataset.load(paths.DATASET, "train"), val_size=settings.val_size, seed=seed)
    device = devices.prepare(settings)
    classifier = model.build(settings, seed=seed, mean=measured.mean, std=measured.std)
    recipe = settings.model_copy(update={"epochs": 1})
    start = time.perf_counter()
    for _ in training.fit(
        classifier,
        train=train,
        val=val,
        recipe=recipe,
        seed=seed,
        device=device,
        precision=settings.precision,
    ):
        pass
    print(f"epoch_seconds {time.perf_counter() - start:.3f}")


def measure(bench: Bench, num_rounds: int) -> Measurements:
    """Everything once a round, after a round that does not count."""
    rounds = []
    for number in range(num_rounds + 1):
        tell(f"round {number} of {num_rounds}" if number else "warming up")
        rounds.append(_tutorial(bench) | _pipeline(bench) | _stages(bench))
    return {key: [values[key] for values in rounds[1:]] for key in rounds[0]}


def _tutorial(bench: Bench) -> dict[str, float]:
    outcome = bench.tutorial()
    epoch_seconds = outcome.numbers["epoch_seconds"]
    tell(f"  tutorial {outcome.seconds:.1f} s, its epoch {epoch_seconds:.1f} s")
    return {"tutorial": outcome.seconds, "tutorial_epoch": epoch_seconds}


def _pipeline(bench: Bench) -> dict[str, float]:
    with bench.checkout() as clone:
        repro = clone.dvc("repro", expected=STAGES).seconds
        tell(f"  dvc repro {repro:.1f} s")
        idle = clone.dvc("repro", expected=()).seconds
        tell(f"  dvc repro with nothing to do {idle:.1f} s")
        outcome = clone.python("-c", "from tools import bench; bench.time_epoch()")
        epoch = outcome.numbers["epoch_seconds"]
        tell(f"  epoch of train {epoch:.1f} s")
        experiment = clone.dvc("exp", "run", "-S", "lr=0.05", expected=LR_STAGES).seconds
        tell(f"  dvc exp run {experiment:.1f} s")
    return {"repro": repro, "idle": idle, "epoch": epoch, "experiment": experiment}


def _stages(bench: Bench) -> dict[str, float]:
    """Each stage without DVC, in its turn, from a fresh clone on."""
    measured = {}
    with bench.checkout() as clone:
        for name in STAGES:
            outcome = clone.python("-m", f"stages.{name}")
            measured[f"{name}_seconds"] = outcome.seconds
            measured[f"{name}_gib"] = outcome.peak_bytes / 2**30
            tell(f"  {name} {outcome.seconds:.1f} s, {outcome.peak_bytes / 2**30:.2f} GiB")
    return measured


def accuracies(bench: Bench, num_seeds: int) -> Measurements:
    """Test accuracy, one for each seed, of the tutorial's script and of the pipeline."""
    measured: dict[str, list[float]] = {"tutorial": [], "pipeline": []}
    with bench.checkout() as clone:
        for seed in range(num_seeds):
            clone.run("dvc", "exp", "run", "-S", f"seed={seed}")
            ours = files.read_json(clone.folder / paths.TEST_METRICS)["accuracy"]
            theirs = bench.tutorial(seed).numbers["accuracy"]
            tell(f"seed {seed}: tutorial {theirs:.2%}, pipeline {ours:.2%}")
            measured["tutorial"].append(theirs)
            measured["pipeline"].append(ours)
    return measured


def machine() -> dict[str, str | int | float]:
    """What it was measured on."""
    return {
        "cpu": processor.name(),
        "num_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def summary(measured: Measurements) -> dict[str, Any]:
    """Plain numbers, by figure and by stage: what `--output` writes and the tables show."""
    figures = {}
    for figure in FIGURES:
        ratio = median(measured[figure.key]) / median(measured[figure.base])
        figures[figure.key] = {**_spread(measured[figure.key]), "ratio": ratio, **_held(figure, measured)}
    stages = {
        name: {
            **_spread(measured[f"{name}_seconds"]),
            "peak_gib": max(measured[f"{name}_gib"]),
            "holds": max(measured[f"{name}_gib"]) <= MAX_STAGE_GIB,
        }
        for name in STAGES
    }
    return {"figures": figures, "stages": stages}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median_seconds": median(values), "min_seconds": min(values), "max_seconds": max(values)}


def _held(figure: Figure, measured: Measurements) -> dict[str, bool]:
    """Whether the figure holds, for one that is held against something."""
    seconds = median(measured[figure.key])
    if figure.max_ratio is not None:
        return {"holds": seconds <= figure.max_ratio * median(measured[figure.base])}
    if figure.max_seconds is not None:
        return {"holds": seconds <= figure.max_seconds}
    return {}


def tables(result: Mapping[str, Any]) -> str:
    """The Markdown of what `main` puts together."""
    facts = result["machine"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *LIBRARIES))
    hardware = f"{facts['cpu']}, {facts['num_cores']} cores, {facts['memory_gib']:g} GiB"
    lines = [
        f"{hardware}; {versions}; {result['num_rounds']} rounds",
        "",
        "| measured | median | min to max | of the tutorial's | held against | holds |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(_figure_line(figure, result["figures"][figure.key]) for figure in FIGURES),
        "",
        "| stage on its own | median | min to max | peak memory | held against | holds |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(_stage_line(name, values) for name, values in result["stages"].items()),
    ]
    if "accuracy" in result:
        num_seeds = result["num_seeds"]
        lines += ["", f"| test accuracy over {num_seeds} seeds | mean ± sd |", "| --- | ---: |"]
        for name, values in result["accuracy"].items():
            lines.append(f"| {name} | {100 * values['mean']:.2f} ± {100 * values['sd']:.2f} % |")
    return "\n".join(lines)


def _figure_line(figure: Figure, values: Mapping[str, Any]) -> str:
    limit = ""
    if figure.max_ratio is not None:
        limit = f"at most {figure.max_ratio:g} x"
    elif figure.max_seconds is not None:
        limit = f"at most {figure.max_seconds:g} s"
    ratio = "" if figure.key == figure.base else f"{values['ratio']:.2f} x"
    return f"| {figure.label} | {_seconds(values)} | {ratio} | {limit} | {_holds(values)} |"


def _stage_line(name: str, values: Mapping[str, Any]) -> str:
    limit = f"at most {MAX_STAGE_GIB:g} GiB"
    return f"| `{name}` | {_seconds(values)} | {values['peak_gib']:.2f} GiB | {limit} | {_holds(values)} |"


def _seconds(values: Mapping[str, Any]) -> str:
    spread = f"{values['min_seconds']:.2f} to {values['max_seconds']:.2f} s"
    return f"{values['median_seconds']:.2f} s | {spread}"


def _holds(values: Mapping[str, Any]) -> str:
    return {True: "yes", False: "NO", None: ""}[values.get("holds")]


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write.

    Exits with 1 and a message where something that was to be measured fails, with 130 for an
    interrupt. A figure that does not hold is told in the table and is no error: it may be
    the machine that was busy.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Measure beside the tutorial.")
    parser.add_argument("--rounds", type=int, default=3, help="that count (default: 3)")
    parser.add_argument(
        "--seeds", type=int, default=0, help="to compare accuracies over, from 2 (default: none)"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.seeds < 0 or options.seeds == 1:
        parser.error("--seeds: at least 2, for a standard deviation")

    with stage.reported():
        try:
            result = measure_all(num_rounds=options.rounds, num_seeds=options.seeds)
        except FailedError as error:
            sys.exit(f"ERROR: {error}")
        print(tables(result))
        if options.output:
            files.write_json(options.output, result)


def measure_all(*, num_rounds: int, num_seeds: int) -> dict[str, Any]:
    """The whole result, as plain values.

    Raises:
        InputError: there is no data set to be had.
        FailedError: something that was to be measured failed.
    """
    with prepared() as bench:
        result: dict[str, Any] = {"machine": machine(), "num_rounds": num_rounds}
        result |= summary(measure(bench, num_rounds))
        if num_seeds:
            result["num_seeds"] = num_seeds
            result["accuracy"] = {
                name: {"mean": mean(values), "sd": stdev(values)}
                for name, values in accuracies(bench, num_seeds).items()
            }
    return result


if __name__ == "__main__":
    main()
