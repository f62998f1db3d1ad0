"""Measure how training speeds up with processes, beside threads, at the default size and at a larger one.

On a machine with GPUs a process takes a GPU, else a core. Images are random pixels, since speed does not
depend on what they show; an epoch has 10,000. The second epoch of a training is what counts: starting
processes takes seconds that a longer training does not notice.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bench, Checkout, tell
from mnist.core import config, paths, process
from mnist.training import processor

TITLE = "More processes"
NUM_IMAGES = 10_000
TIMER = "from benchmarks import scaling; scaling.time_epoch()"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a training: channels of the network, images a step."""

    n_features: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Team:
    """Who trains: processes, of so many threads each."""

    processes: int
    num_threads: int

    @property
    def label(self) -> str:
        """For people."""
        ends = ["es" if self.processes > 1 else "", "s" if self.num_threads > 1 else ""]
        return f"{self.processes} process{ends[0]} of {self.num_threads} thread{ends[1]}"


# The default one, and one at which each of two processes has a tenth of a second's work in a step.
SIZES = (Size(n_features=6, batch_size=64), Size(n_features=32, batch_size=512))


def teams(num_cores: int, num_gpus: int) -> list[Team]:
    """One process, 2, 4 and so on up to one a GPU or a core; on CPUs also one of as many threads."""
    most = num_gpus or num_cores
    counts = [count for count in (2**power for power in range(13)) if count < most] + [most]
    found = [Team(processes=count, num_threads=1) for count in counts]
    if num_gpus == 0 and num_cores > 1:
        found.insert(1, Team(processes=1, num_threads=num_cores))
    return found


def time_epoch() -> None:
    """Train for two epochs, and print how long the second one took; runs in a process of its own."""
    settings = json.loads(sys.argv[1])
    with process.heavy_imports():
        import numpy as np

        from mnist.data.store import Images
        from mnist.training import devices, distributed, loop, model

    defaults = config.load(paths.PARAMS)
    used = defaults.model_copy(
        update={"epochs": 2, "shift": 0, "lr": 1e-6, "schedule": "constant", **settings}
    )
    rng = np.random.default_rng(0)
    pixels_NHW = rng.integers(0, 256, (NUM_IMAGES + 1, 28, 28), np.uint8)
    classes = tuple("0123456789")
    labels_N = rng.integers(0, len(classes), NUM_IMAGES + 1).astype(np.uint8)
    train = Images(images_NHW=pixels_NHW[1:], labels_N=labels_N[1:])
    val = Images(images_NHW=pixels_NHW[:1], labels_N=labels_N[:1])
    with distributed.joined(used.processes) as us:
        device = devices.prepare(
            used, precision=used.precision, deterministic=used.deterministic, local_rank=us.local_rank
        )
        fitting = loop.fit(
            model.build(used, classes=classes, seed=0, mean=0.5, std=0.3),
            train=train,
            val=val,
            recipe=used,
            seed=0,
            device=device,
            precision=used.precision,
            team=us,
        )
        ends = [time.perf_counter() for event in fitting if hasattr(event, "val_loss")]
    if us.leads:
        print(f"epoch_seconds {ends[1] - ends[0]:.4f}")


def count_gpus(here: Checkout) -> int:
    """That torch sees, asked in a process of its own."""
    asked = here.python("-c", "import torch; print('num_gpus', torch.cuda.device_count())")
    return int(asked.numbers["num_gpus"])


def measure(here: Checkout, size: Size, team: Team) -> float:
    """Images a second."""
    settings = json.dumps(asdict(size) | asdict(team))
    command = [sys.executable, "-c", TIMER, settings]
    if team.processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={team.processes}"]
        command = [sys.executable, *torchrun, "--no-python", *command]
    rate = NUM_IMAGES / here.run(*command).numbers["epoch_seconds"]
    tell(f"  n_features {size.n_features}, batch {size.batch_size}, {team.label}: {rate:,.0f} images/s")
    return rate


def measure_all(bench: Bench, *, num_rounds: int) -> dict[str, Any]:
    """The whole result, as plain values.

    Raises:
        FailedError: something that was to be measured failed.
    """
    environment = {"OMP_NUM_THREADS": "1", **bench.source.environment}
    here = Checkout(folder=bench.source.folder, environment=environment)
    num_gpus = count_gpus(here)
    measured = [(size, team) for size in SIZES for team in teams(processor.num_cores(), num_gpus)]
    rates: dict[tuple[Size, Team], list[float]] = {which: [] for which in measured}
    for number in range(num_rounds + 1):
        tell(f"round {number} of {num_rounds}" if number else "warming up")
        for which in measured:
            rates[which].append(measure(here, *which))
    counted = {which: values[1:] for which, values in rates.items()}
    rows = [
        {
            **asdict(size),
            **asdict(team),
            **harness.spread(counted[size, team]),
            "speedup": median(counted[size, team]) / median(counted[size, Team(processes=1, num_threads=1)]),
        }
        for size, team in measured
    ]
    return {"num_gpus": num_gpus, "trainings": rows}


def tables(result: Mapping[str, Any]) -> str:
    """The Markdown of what `measure_all` gives."""
    lines = [
        "| `n_features` | `batch_size` | who trains | images/s | min to max | speed |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["trainings"]:
        who = Team(processes=row["processes"], num_threads=row["num_threads"]).label
        lines.append(
            f"| {row['n_features']} | {row['batch_size']} | {who} | {row['median']:,.0f} |"
            f" {row['min']:,.0f} to {row['max']:,.0f} | {row['speedup']:.2f} x |"
        )
    return "\n".join(lines)
