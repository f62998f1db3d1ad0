"""The training loop beside the tutorial's, with the default params.

Every training is a process of its own. The tutorial's epoch is 60,000 images. The epoch of `train` is the
training images that the split leaves of them, and the scoring of the validation images.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bench, Checkout, log
from mnist.core import config, paths, process

TITLE = "The training loop"
NUM_IMAGES = 60_000  # of the tutorial's epoch
NUM_WORKERS = 2  # of the DataLoader that prepares images in other processes
MIN_SPEEDUP = 3.5  # times the tutorial's images a second
PEAK_SIZE = 2048  # rows and columns of the matrices whose product is the machine's peak
PEAK_SECONDS = 2.0  # of repeated products; the fastest counts


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to train for an epoch.

    Attributes:
        key: of its measurements.
        label: for people.
        num_threads: of `train`; None for the tutorial's script.
        num_workers: of the tutorial's DataLoader.
        num_busy: number of other processes that compute at the same time.
        min_speedup: required images a second, as a multiple of the tutorial's.
    """

    key: str
    label: str
    num_threads: int | None = None
    num_workers: int = 0
    num_busy: int = 0
    min_speedup: float | None = None


CONTESTANTS = (
    Contestant(key="tutorial", label="the tutorial's loop, a `DataLoader` with transforms"),
    Contestant(
        key="workers", label=f"the same, its images from {NUM_WORKERS} workers", num_workers=NUM_WORKERS
    ),
    Contestant(key="threads_1", label="`train`, 1 thread (default)", num_threads=1, min_speedup=MIN_SPEEDUP),
    Contestant(key="threads_2", label="`train`, 2 threads", num_threads=2),
    Contestant(key="busy_1", label="`train`, 1 thread, beside a busy process", num_threads=1, num_busy=1),
    Contestant(key="busy_2", label="`train`, 1 thread, beside two", num_threads=1, num_busy=2),
)


def time_training() -> None:
    """Train as `train` does, in a process of its own, and print the measurements.

    The argument of the process is a JSON object of params that differ from params.yaml. It prints the
    seconds and images of the whole training and of the epochs after the first, the accuracy on the
    validation and test images, and the number of parameters.
    """
    gc.set_threshold(process.GC_THRESHOLD)
    from mnist.data import statistics, store
    from mnist.evaluation import scores
    from mnist.training import devices, loop, model
    from mnist.training.history import Epoch

    values = {**config.load(paths.PARAMS).model_dump(), **json.loads(sys.argv[1])}
    settings = config.check(config.Params, values, "params")
    measured, seed = statistics.read(paths.STATS), settings.seed
    classes = store.describe(paths.DATASET).classes
    train, val = store.cut(store.load(paths.DATASET, "train"), val_size=settings.val_size, seed=seed)
    device = devices.prepare(settings, precision=settings.precision, deterministic=settings.deterministic)
    classifier = model.build(settings, classes=classes, seed=seed, mean=measured.mean, std=measured.std)
    start = time.perf_counter()
    events = loop.fit(
        classifier,
        train=train,
        val=val,
        recipe=settings,
        seed=seed,
        device=device,
        precision=settings.precision,
    )
    ends = [(time.perf_counter(), event.val_accuracy) for event in events if isinstance(event, Epoch)]
    print(f"seconds {ends[-1][0] - start:.3f}")
    print(f"num_images {settings.epochs * len(train)}")
    print(f"later_seconds {ends[-1][0] - ends[0][0]:.3f}")
    print(f"later_images {(settings.epochs - 1) * len(train)}")
    print(f"val_accuracy {ends[-1][1]:.6f}")
    test = store.load(paths.DATASET, "test")
    log_probs_NK = model.log_probabilities(classifier, test, device).cpu().numpy()
    print(f"test_accuracy {scores.score(log_probs_NK, test.labels_N).accuracy:.6f}")
    print(f"num_parameters {model.num_parameters(classifier)}")


def trained(clone: Checkout, **values: object) -> dict[str, float]:
    """Return the numbers that `time_training` prints with these params.

    Raises:
        FailedError: the training failed.
    """
    script = "from benchmarks import loop; loop.time_training()"
    return clone.python("-c", script, json.dumps(values)).numbers


def time_peak() -> None:
    """Print the GFLOP/s of a float32 matrix product with one thread, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
    fastest, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while (start := time.perf_counter()) < end:
        a @ b
        fastest = min(fastest, time.perf_counter() - start)
    print(f"peak_gflops {2 * PEAK_SIZE**3 / fastest / 1e9:.1f}")


def arithmetic(n_features: int) -> int:
    """Return the number of floating-point operations of SimpleCNN for one image, forward and backward.

    These are the multiplications and additions of the convolutions and linear layers for 28x28 pixels:
    once forward, once for the gradient of the weights, and once for the gradient of the inputs, which
    the first layer does not need.
    """
    conv1 = 2 * 24 * 24 * n_features * 25
    others = 2 * (8 * 8 * n_features * n_features * 25 + n_features * 16 * 50 + 50 * 10)
    return 2 * conv1 + 3 * others


def measure(bench: Bench, num_rounds: int) -> dict[str, list[float]]:
    """Measure images a second by contestant, and the peak in GFLOP/s, once a round.

    Raises:
        FailedError: a measured command failed.
    """
    measured: dict[str, list[float]] = {key: [] for key in ["peak", *(one.key for one in CONTESTANTS)]}
    with bench.checkout() as clone:
        clone.dvc("repro", "stats", expected=("download", "validate", "stats"))
        for number in range(num_rounds + 1):
            log(f"round {number} of {num_rounds}" if number else "warming up")
            peak = clone.python("-c", "from benchmarks import loop; loop.time_peak()")
            measured["peak"].append(peak.numbers["peak_gflops"])
            for contestant in CONTESTANTS:
                speed = _images_a_second(bench, clone, contestant)
                log(f"  {contestant.label}: {speed:,.0f} images/s")
                measured[contestant.key].append(speed)
    return {key: values[1:] for key, values in measured.items()}


def _images_a_second(bench: Bench, clone: Checkout, contestant: Contestant) -> float:
    with _busy(contestant.num_busy):
        if contestant.num_threads is None:
            options = ("--workers", str(contestant.num_workers), "--device", "cpu")
            numbers = bench.tutorial(0, *options).numbers
            return NUM_IMAGES / numbers["epoch_seconds"]
        numbers = trained(clone, epochs=1, device="cpu", num_threads=contestant.num_threads)
        return numbers["num_images"] / numbers["seconds"]


@contextmanager
def _busy(num_processes: int) -> Iterator[None]:
    """Run processes that compute as long as the block lasts."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def summary(measured: Mapping[str, Sequence[float]], n_features: int) -> dict[str, Any]:
    """Return images a second by contestant, and the share of the peak that the default reaches."""
    base = median(measured["tutorial"])
    contestants = {}
    for contestant in CONTESTANTS:
        speeds = measured[contestant.key]
        ratio = median(speeds) / base
        holds = {} if contestant.min_speedup is None else {"holds": ratio >= contestant.min_speedup}
        contestants[contestant.key] = {**harness.spread(speeds), "ratio": ratio, **holds}
    peak_gflops = median(measured["peak"])
    flop = arithmetic(n_features)
    return {
        "images_a_second": contestants,
        "roofline": {
            "flop_an_image": flop,
            "peak_gflops": peak_gflops,
            "share": flop * contestants["threads_1"]["median"] / (peak_gflops * 1e9),
            "tutorial_share": flop * contestants["tutorial"]["median"] / (peak_gflops * 1e9),
        },
    }


def tables(result: Mapping[str, Any]) -> str:
    """Return the result of `measure_all` as Markdown."""
    lines = [
        "| an epoch at batch 64 | images/s | min to max | x the tutorial's | limit | holds |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for contestant in CONTESTANTS:
        values = result["images_a_second"][contestant.key]
        limit = "" if contestant.min_speedup is None else f"at least {contestant.min_speedup:g} x"
        lines.append(
            f"| {contestant.label} | {values['median']:,.0f} | {values['min']:,.0f} to {values['max']:,.0f}"
            f" | {values['ratio']:.2f} x | {limit} | {harness.verdict(values)} |"
        )
    roofline = result["roofline"]
    return "\n".join(lines) + (
        f"\n\nRoofline: an image takes {roofline['flop_an_image']:,} floating-point operations, one core does"
        f" {roofline['peak_gflops']:.0f} GFLOP/s in a matrix product; `train` with 1 thread reaches"
        f" {roofline['share']:.0%} of that, the tutorial's loop on all cores"
        f" {roofline['tutorial_share']:.0%} of one core's."
    )


def measure_all(bench: Bench, *, num_rounds: int) -> dict[str, Any]:
    """Return the whole result, as plain values.

    Raises:
        FailedError: a measured command failed.
    """
    defaults = config.load(bench.source.folder / paths.PARAMS)
    return summary(measure(bench, num_rounds), defaults.n_features)
