"""Training on its own: the loop beside the tutorial's, the presets' claims, a GPU.

Every training is a process of its own. Its time is that of `training.loop.fit`, which trains on what the
split leaves of 60,000 images, and scores the validation images. The tutorial's epoch is all 60,000 images.
"""

import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import Bench, Checkout, Limit, in_rounds, log, row
from mnist.comparison import presets
from mnist.core import config, paths, process

NUM_IMAGES = 60_000  # of the tutorial's epoch
TUTORIAL = "the tutorial's loop, a `DataLoader` with transforms"
DEFAULT = "`train`, 1 thread (default)"
MIN_SPEEDUP = Limit("at least", 3.5)
TRAINING, ACCURACY = ", whole training", ", test accuracy"  # ends of labels
NUM_SEEDS = 5  # that a preset's claims are for

GPU_EPOCHS = 5  # of which the first, with the capture of the CUDA graph, does not count
GPU_MIN_SPEEDUP = Limit("at least", 50)  # the goal on one data-centre card
# By label: params that differ from params.yaml.
GPU_TRAININGS: Mapping[str, Mapping[str, object]] = {
    "float32": {"precision": "float32"},
    "TF32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "TF32, not deterministic": {"precision": "tf32", "deterministic": False},
    "TF32, batch 512": {"precision": "tf32", "batch_size": 512, "lr": 0.08},
}


def time_training() -> None:
    """Train as `train` does, in a process of its own, and print the measurements.

    The argument of the process is a JSON object of params that differ from params.yaml. It prints the
    seconds and images of the whole training and of the epochs after the first, and the accuracy on the
    test images.
    """
    gc.set_threshold(process.GC_THRESHOLD)
    from mnist.data import statistics, store
    from mnist.evaluation import scores
    from mnist.training import devices, loop, model
    from mnist.training.history import Epoch

    values = {**config.load(paths.PARAMS).model_dump(), **json.loads(sys.argv[1])}
    settings = config.check(config.Params, values, "params")
    measured, seed, precision = statistics.read(paths.STATS), settings.seed, settings.precision
    classes = store.describe(paths.DATASET).classes
    train, val = store.cut(store.load(paths.DATASET, "train"), val_size=settings.val_size, seed=seed)
    device = devices.prepare(settings, settings)
    net = model.build(settings, classes=classes, seed=seed, mean=measured.mean, std=measured.std)
    start = time.perf_counter()
    events = loop.fit(
        net, train=train, val=val, recipe=settings, seed=seed, device=device, precision=precision
    )
    ends = [time.perf_counter() for event in events if isinstance(event, Epoch)]
    print(f"seconds {ends[-1] - start:.3f}")
    print(f"num_images {settings.epochs * len(train)}")
    print(f"later_seconds {ends[-1] - ends[0]:.3f}")
    print(f"later_images {(settings.epochs - 1) * len(train)}")
    test = store.load(paths.DATASET, "test")
    log_probs_NK = model.log_probabilities(net, test, device).cpu().numpy()
    print(f"test_accuracy {scores.score(log_probs_NK, test.labels_N).accuracy:.6f}")


def trained(clone: Checkout, **values: object) -> dict[str, float]:
    """Return the numbers that `time_training` prints with these params."""
    script = "from benchmarks import loop; loop.time_training()"
    return clone.python("-c", script, json.dumps(values)).numbers


def measure(bench: Bench, num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the loops on a CPU, in images a second, at the default params."""

    def tutorial(*options: str) -> float:
        return NUM_IMAGES / bench.tutorial("--device", "cpu", *options).numbers["epoch_seconds"]

    with bench.checkout(with_inputs=True) as clone:

        def train(num_threads: int, *, num_busy: int = 0) -> float:
            with _busy(num_busy):
                numbers = trained(clone, epochs=1, device="cpu", num_threads=num_threads)
            return numbers["num_images"] / numbers["seconds"]

        def once(_: int) -> dict[str, float]:
            return {
                TUTORIAL: tutorial(),
                "the same, its images from 2 workers": tutorial("--workers", "2"),
                DEFAULT: train(1),
                "`train`, 2 threads": train(2),
                "`train`, 1 thread, beside a busy process": train(1, num_busy=1),
                "`train`, 1 thread, beside two": train(1, num_busy=2),
            }

        measured = in_rounds(num_rounds, once)
    limits = {DEFAULT: MIN_SPEEDUP}
    return [
        row(label, speeds, unit="images/s", tutorial=measured[TUTORIAL], limit=limits.get(label))
        for label, speeds in measured.items()
    ]


@contextmanager
def _busy(num_processes: int) -> Iterator[None]:
    """Run processes that compute as long as the block lasts."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def measure_presets(bench: Bench, num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the tutorial's epoch and of each preset's time and accuracy.

    Its rounds are `NUM_SEEDS` seeds. The times need an idle machine, the accuracies do not.
    """
    del num_rounds
    epoch = "the tutorial's epoch"
    with bench.checkout(with_inputs=True) as clone:
        known = presets.load(clone.folder / presets.PRESETS)

        def once(seed: int) -> dict[str, float]:
            tutorial = bench.tutorial("--device", "cpu", "--seed", str(seed))
            numbers = {epoch: tutorial.numbers["epoch_seconds"]}
            for name, preset in known.items():
                found = trained(clone, seed=seed, device="cpu", **preset.params.model_dump())
                numbers[f"`{name}`{TRAINING}"] = found["seconds"]
                numbers[f"`{name}`{ACCURACY}"] = 100 * found["test_accuracy"]
            return numbers

        measured = in_rounds(NUM_SEEDS, once, warm_up=False)
    rows = [row(epoch, measured[epoch], tutorial=measured[epoch])]
    for name, preset in known.items():
        limit = Limit("at most", preset.max_seconds, "s")
        training, accuracy = f"`{name}`{TRAINING}", f"`{name}`{ACCURACY}"
        at_least = Limit("at least", 100 * preset.accuracy, "%")
        rows += [
            row(training, measured[training], tutorial=measured[epoch], limit=limit),
            row(accuracy, measured[accuracy], unit="%", limit=at_least),
        ]
    return rows


def measure_gpu(bench: Bench, num_rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the tutorial's loop and of `train` on a GPU, by precision; none without a GPU."""
    code = "import torch; torch.cuda.is_available() and print('gpu:', torch.cuda.get_device_name())"
    found = re.search(r"^gpu: (.+)$", bench.source.python("-c", code).output, re.MULTILINE)
    if not found:
        log("  no GPU on this machine")
        return []
    tutorial = f"the tutorial's loop on {found[1]}"
    accurate = presets.load(bench.source.folder / presets.PRESETS)["accurate"].params.model_dump()
    trainings = {**GPU_TRAININGS, "TF32, preset `accurate`": {"precision": "tf32", **accurate}}
    with bench.checkout(with_inputs=True) as clone:

        def once(seed: int) -> dict[str, float]:
            measured = {tutorial: NUM_IMAGES / bench.tutorial().numbers["epoch_seconds"]}
            for label, values in trainings.items():
                numbers = trained(clone, **{"device": "cuda", "epochs": GPU_EPOCHS, "seed": seed, **values})
                measured[label] = numbers["later_images"] / numbers["later_seconds"]
                measured[label + TRAINING] = numbers["seconds"]
                measured[label + ACCURACY] = 100 * numbers["test_accuracy"]
            return measured

        measured = in_rounds(num_rounds, once)
    base = measured[tutorial]
    rows = [row(tutorial, base, unit="images/s", tutorial=base)]
    for label in trainings:
        rows += [
            row(label, measured[label], unit="images/s", tutorial=base, limit=GPU_MIN_SPEEDUP),
            row(label + TRAINING, measured[label + TRAINING]),
            row(label + ACCURACY, measured[label + ACCURACY], unit="%"),
        ]
    return rows
