"""Measure how the stages grow with the data set: the time for an image, and the memory.

A factor's data set is MNIST that many times over, each time moved by other whole pixels, in archives
that `download` fetches from a folder. What a stage takes for a twentieth of MNIST is taken off, as
what it takes before it looks at the first image.

It wants Linux, which tells memory that must be kept (anonymous) from pages of files, which the
system takes back when it needs the room; and about 10 GB of disk for a factor of 50.

Shape suffixes: N images, H rows, W columns.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from benchmarks import harness
from benchmarks.harness import Bench, Checkout, Outcome, tell
from mnist.core import config, files, paths
from mnist.core.errors import InputError

TITLE = "More data"
# Each needs all those before it.
STAGES = ("download", "validate", "stats", "train", "evaluate")
FACTORS = (1, 10, 50)
START_UP = 1 / 20  # of MNIST; more than val_size, which must leave something to train on
MAX_RATIO = 1.5  # of an image's time, to that at the factor before: n log n gives 1.2 and 1.1, n^2 10 and 5
CHUNK = 10_000  # images that are moved and packed at a time
SAMPLE_SECONDS = 0.01
# Rows and columns, the nearest first; a factor takes as many, and the first is to stay in place.
MOVES = sorted(product(range(-4, 5), repeat=2), key=lambda move: (move[0] ** 2 + move[1] ** 2, move))
CACHE = Path(".cache")  # where `download` keeps the archives

# Of the table, with how they are aligned.
COLUMNS = {
    "stage": "---",
    "images": "---:",
    "median": "---:",
    "min to max": "---:",
    "CPU for an image": "---:",
    "of the first's": "---:",
    "linear": "---",
    "memory of its own": "---:",
    "with pages of files": "---:",
    "own for an image": "---:",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A stage that ran once.

    Attributes:
        seconds: of its process, from start to end.
        cpu_seconds: that it, and what it started, kept processors busy.
        anonymous_bytes: the peak of its own memory, which only swap space could take over.
        resident_bytes: the peak of that and the pages of files that it looks at.
    """

    seconds: float
    cpu_seconds: float
    anonymous_bytes: float
    resident_bytes: float


@dataclass(frozen=True, kw_only=True)
class Size:
    """What was measured on one data set; `samples` by stage, one a round."""

    num_images: int
    samples: Mapping[str, Sequence[Sample]]


@contextmanager
def grown(prepared: Bench, factor: float) -> Iterator[tuple[Checkout, int]]:
    """A fresh clone whose datasets.yaml has a data set of `factor` times the images, and their number.

    Raises:
        FailedError: the data set cannot be made.
    """
    with prepared.checkout() as clone, tempfile.TemporaryDirectory(dir=prepared.data.parent) as name:
        code = "from benchmarks import growth; growth.enlarge()"
        made = clone.python("-c", code, str(prepared.data / "MNIST" / "raw"), name, str(factor))
        environment = {**clone.environment, "MNIST_MIRROR": name}
        yield Checkout(folder=clone.folder, environment=environment), int(made.numbers["num_images"])


def enlarge() -> None:
    """Write the archives of the data set that a factor asks for, and a datasets.yaml that expects it.

    Runs in a process of its own, in the clone; its arguments are the folder of the unpacked
    archives, that of the new ones, and the factor.
    """
    from mnist.data import catalog

    raw, target, factor = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    name = config.load(paths.PARAMS).dataset
    known = catalog.load(paths.DATASETS, name).model_dump()
    counts = {}
    for archive in known["checksums"]:
        counts[archive] = pack((raw / archive).with_suffix(""), target / archive, factor)
        known["checksums"][archive] = _checksums(target / archive)
    num_train, num_test = counts["train-images-idx3-ubyte.gz"], counts["t10k-images-idx3-ubyte.gz"]
    known["validation"] |= {
        "num_train": num_train,
        "num_test": num_test,
        # Those of the first images are not those of all.
        "class_share": {"min": 0.0, "max": 1.0},
        "mean": {"min": 0.0, "max": 1.0},
    }
    YAML(typ="safe").dump({name: known}, paths.DATASETS)
    print(f"num_images {num_train + num_test}")


def pack(source: Path, target: Path, factor: float) -> int:
    """Write an IDX file `factor` times over as an archive, and return how many items it has then.

    A factor below 1 takes the first items. What an image loses on one side comes in on the other,
    so that its mean and its ink stay what they are, and with them the work of `validate`.
    """
    import numpy as np

    with source.open("rb") as stream:
        magic = stream.read(4)
        sizes = [int.from_bytes(stream.read(4), "big") for _ in range(magic[3])]
    everything = np.memmap(source, np.uint8, mode="r", offset=4 + 4 * len(sizes), shape=tuple(sizes))
    items = everything[: max(1, round(min(factor, 1) * len(everything)))]
    moves = MOVES[: max(1, round(factor))]
    sizes[0] = len(items) * len(moves)
    with gzip.GzipFile(target, mode="wb", compresslevel=1, mtime=0) as packed:
        packed.write(magic + b"".join(size.to_bytes(4, "big") for size in sizes))
        for move in moves:
            for start in range(0, len(items), CHUNK):
                chunk = items[start : start + CHUNK]
                packed.write((np.roll(chunk, move, axis=(1, 2)) if chunk.ndim > 1 else chunk).tobytes())
    return sizes[0]


def _checksums(path: Path) -> dict[str, str]:
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return {"md5": md5, "sha256": files.sha256(path)}


def watch() -> None:
    """Run a stage and print a `Sample` of it; runs in a process of its own, in the clone."""
    start, anonymous_bytes = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", f"stages.{sys.argv[1]}"])
    watched = psutil.Process(process.pid)
    while True:
        # A process that has ended, and was not waited for, has no memory and can still be asked.
        memory = watched.memory_info()
        anonymous_bytes = max(anonymous_bytes, memory.rss - memory.shared)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{sys.argv[1]} ended with status {process.returncode}")
    print(f"seconds {seconds:.3f}")
    print(f"cpu_seconds {usage.ru_utime + usage.ru_stime:.3f}")
    print(f"anonymous_bytes {anonymous_bytes}")
    print(f"resident_bytes {usage.ru_maxrss * 1024}")


def measure(
    prepared: Bench, factors: Sequence[float], stages: Sequence[str], num_rounds: int
) -> dict[float, Size]:
    """Every factor's data set, and before them the small one, with as many rounds for each.

    Raises:
        FailedError: something that was to be measured failed.
    """
    tell("warming up")
    _measure_size(prepared, START_UP, stages, num_rounds=1)
    return {factor: _measure_size(prepared, factor, stages, num_rounds) for factor in (START_UP, *factors)}


def _measure_size(prepared: Bench, factor: float, stages: Sequence[str], num_rounds: int) -> Size:
    samples: dict[str, list[Sample]] = {name: [] for name in stages}
    with grown(prepared, factor) as (clone, num_images):
        tell(f"{num_images:,} images")
        for _ in range(num_rounds):
            shutil.rmtree(clone.folder / CACHE, ignore_errors=True)
            for name in STAGES[: 1 + max(map(STAGES.index, stages))]:
                code = "from benchmarks import growth; growth.watch()"
                sample = Sample(**_sample(clone.python("-c", code, name)))
                tell(f"  {name} {sample.seconds:.1f} s, {sample.anonymous_bytes / 2**20:,.0f} MiB anonymous")
                if name in samples:
                    samples[name].append(sample)
    return Size(num_images=num_images, samples=samples)


def _sample(outcome: Outcome) -> dict[str, float]:
    return {field.name: outcome.numbers[field.name] for field in fields(Sample)}


def summary(sizes: Mapping[float, Size]) -> dict[str, Any]:
    """Plain numbers, by stage and factor: what `tables` shows.

    Growth is judged by processor time, since others may keep the machine busy: an image may take
    little more than it does at the factor before, where that is more than the spread of the small
    set explains, which is large beside one second.
    """
    small, *others = sorted(sizes)
    stages: dict[str, Any] = {}
    for name in sizes[small].samples:
        rows = {f"{factor:g}": _row(sizes[factor], sizes[small], name) for factor in others}
        first = before = next(iter(rows.values()))
        for row in rows.values():
            least, most = (
                values["cpu_seconds_per_image"] + sign * values["cpu_seconds_per_image_spread"] / 2
                for sign, values in ((-1, row), (1, before))
            )
            row["ratio"] = row["cpu_seconds_per_image"] / first["cpu_seconds_per_image"]
            row["holds"] = least <= MAX_RATIO * most
            before = row
        start_up = median(sample.seconds for sample in sizes[small].samples[name])
        stages[name] = {"start_up_seconds": start_up, "factors": rows}
    return stages


def _row(size: Size, small: Size, name: str) -> dict[str, Any]:
    samples, num_more = size.samples[name], size.num_images - small.num_images
    seconds = [sample.seconds for sample in samples]
    small_cpu_seconds = [sample.cpu_seconds for sample in small.samples[name]]
    cpu_seconds = median(sample.cpu_seconds for sample in samples)
    # What is too little to be measured counts as the least that is told.
    more_seconds = max(cpu_seconds - median(small_cpu_seconds), 0.001)
    anonymous_bytes, small_bytes = (
        median(sample.anonymous_bytes for sample in each.samples[name]) for each in (size, small)
    )
    return {
        "num_images": size.num_images,
        **harness.spread(seconds),
        "cpu_seconds": cpu_seconds,
        "cpu_seconds_per_image": more_seconds / num_more,
        "cpu_seconds_per_image_spread": (max(small_cpu_seconds) - min(small_cpu_seconds)) / num_more,
        "anonymous_gib": max(sample.anonymous_bytes for sample in samples) / 2**30,
        "resident_gib": max(sample.resident_bytes for sample in samples) / 2**30,
        "anonymous_bytes_per_image": (anonymous_bytes - small_bytes) / num_more,
    }


def tables(result: Mapping[str, Any]) -> str:
    """The Markdown of what `measure_all` returns."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(COLUMNS.values())} |"]
    for name, values in result["stages"].items():
        lines += [_line(name, row) for row in values["factors"].values()]
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any]) -> str:
    return (
        f"| `{name}` | {row['num_images']:,} | {harness.shown(row)}"
        f" | {1e6 * row['cpu_seconds_per_image']:.2f} us | {row['ratio']:.2f} x"
        f" | {harness.verdict(row)} | {row['anonymous_gib']:.2f} GiB"
        f" | {row['resident_gib']:.2f} GiB | {row['anonymous_bytes_per_image']:.0f} B |"
    )


def measure_all(
    bench: Bench, *, num_rounds: int, factors: Sequence[float] = FACTORS, stages: Sequence[str] = STAGES
) -> dict[str, Any]:
    """The whole result, as plain values.

    Raises:
        InputError: this is not Linux.
        FailedError: something that was to be measured failed.
    """
    if sys.platform != "linux":
        raise InputError("this system", found=sys.platform, expected="linux, which tells anonymous memory")
    return {"stages": summary(measure(bench, factors, stages, num_rounds))}
