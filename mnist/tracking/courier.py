"""The process that tells MLflow of a training while it runs, and what its machine does meanwhile."""

import contextlib
import itertools
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.tracking import client, journal  # tracking first: it sets variables that MLflow reads
from mnist.tracking.client import Sender
from mnist.tracking.journal import End, Point

# isort: split
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0  # between tries to reach a store that was away
LONG_SECONDS = 5.0  # a training from this length on shows what its machine did


def follow(entry: Path) -> None:
    """Send a journal while another process writes it, until stdin ends.

    What the user should know is printed, in one line: that the store holds the training already,
    or why it cannot be told.
    """
    with FileLock(entry / journal.SENDER_LOCK), sampling(entry / journal.SYSTEM_LINES):
        readers = Readers(entry)
        sender, told, next_try = None, False, 0.0
        while True:
            is_over = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
            if time.monotonic() < next_try and not is_over:
                continue
            try:
                sender = sender or Sender(client.connect())
                if send(sender, readers, is_over=is_over):
                    break
            except InputError as error:
                sender, next_try = None, time.monotonic() + RETRY_SECONDS
                if not told:
                    told = True
                    waits = f"what it missed waits in {paths.spool().name}/, `make reconcile` sends it"
                    print(f"train: {error}; {waits}", flush=True)
                if is_over:
                    return
        if sender.known:
            print(f"train: MLflow has this training already, as run {sender.known.info.run_name}", flush=True)
        journal.remove_entry(entry)


class Readers:
    """Of an entry's two journals: of the training, and of its machine."""

    def __init__(self, entry: Path) -> None:
        self.training = journal.Reader(entry / journal.LINES)
        self.machine = journal.Reader(entry / journal.SYSTEM_LINES)


def send(sender: Sender, readers: Readers, *, is_over: bool) -> bool:
    """Send what is new in a journal; True when all of it has arrived, and nothing comes any more."""
    events = readers.training.read()
    if not events:
        return is_over
    if is_over and not isinstance(events[-1], End):  # who wrote it is gone without a word
        events.append(End(time_ms=events[-1].time_ms, status="KILLED"))
    is_long = events[-1].time_ms - events[0].time_ms >= LONG_SECONDS * 1000
    system = readers.machine.read() if is_long else []
    with client.answering(sender.store.uri):
        return sender.send(events, system)


@contextlib.contextmanager
def sampling(path: Path) -> Iterator[None]:
    """Write down what the machine does, for as long as the block runs, with MLflow's own monitors."""
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set() and not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    # Not of disk and network: a training does nothing with them, and two runs would differ in them.
    monitors: list[BaseMetricsMonitor] = [CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # no NVIDIA driver, no such monitor
        monitors.append(GPUMonitor())
    done = threading.Event()

    def sample() -> None:
        begin = time.monotonic()
        _read(monitors)  # the first reading of the CPU is since nothing
        with path.open("a", encoding="utf-8") as stream:
            # Ever less often: a minute gives 60 points, a day about 500.
            for step in itertools.count(1):
                if done.wait(max(1.0, (time.monotonic() - begin) / 60)):
                    return
                journal.write(stream, Point(time_ms=journal.now_ms(), step=step, values=_read(monitors)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    """What the monitors see now, under the names that MLflow's UI groups as system metrics."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values
