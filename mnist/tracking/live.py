"""The process that logs a training to MLflow while it runs: `python -m mnist.tracking.live`.

It reads events from stdin (`mnist.tracking.events`) and ends the run with the status of the last event, or
as KILLED if stdin closes without one. If MLflow does not answer, it prints one line and tries again.
"""

import os
import select
import socket
import sys
import time

from mnist.core import paths, process
from mnist.core.errors import InputError
from mnist.lineage.result import now_ms
from mnist.tracking import client, events, metrics, runs  # client first: it sets variables that MLflow reads
from mnist.tracking.client import Store
from mnist.tracking.events import End, Event, Point, Start

# isort: split
import psutil  # type: ignore[import-untyped]
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

END_SECONDS = 30.0  # that the process which logged a training that was killed may need to end
RETRY_SECONDS = 5.0  # between tries to reach a store that did not answer
NUM_READ = 1 << 16  # bytes at a time


def follow(stdin: int) -> None:
    """Log the events that come from a file descriptor, until it ends."""
    logger, rest, next_try = Logger(), b"", 0.0
    is_over = is_reported = False
    while not is_over:
        if select.select([stdin], [], [], 1.0)[0]:
            data = os.read(stdin, NUM_READ)
            is_over = not data
            *lines, rest = (rest + data).split(b"\n")
            logger.events += [events.parse(line) for line in lines]
        if is_over and logger.events and not isinstance(logger.events[-1], End):
            logger.events.append(End(time_ms=now_ms(), status="KILLED"))  # it was killed, and sent none
        if time.monotonic() < next_try and not is_over:
            continue
        try:
            logger.log()
        except InputError as error:
            next_try = time.monotonic() + RETRY_SECONDS
            # After the training it would be a line of another stage, and `register` reports it.
            if not is_reported and not _is_closed(stdin):
                is_reported = True
                complain(f"{error}; `register` logs what is missing, or `mnist sync`")


def _is_closed(stdin: int) -> bool:
    """Return whether the other end is closed, though not all may have been read."""
    poll = select.poll()
    poll.register(stdin, 0)
    return any(flags & select.POLLHUP for _, flags in poll.poll(0))


def complain(message: str) -> None:
    """Print a line, in the place of a progress bar that may stand there."""
    clear = "\r\033[K" if sys.stdout.isatty() else ""
    print(f"{clear}train: {message}", flush=True)


class Logger:
    """Logs the events of one training; what could not be logged is logged again the next time.

    Attributes:
        events: of the training so far.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._store: Store | None = None
        self._run_id = ""
        self._num_logged = 0
        # Points that the run has, of a killed training, say; None where that must be asked.
        self._known: set[tuple[str, int]] | None = None
        self._machine: SystemMetricsMonitor | None = None

    def log(self) -> None:
        """Log what is new.

        Raises:
            ServiceUnavailableError: MLflow does not answer.
            InputError: it refuses.
        """
        fresh = self.events[self._num_logged :]
        if not fresh:
            return
        begin = self.events[0]
        assert isinstance(begin, Start)
        self._store = self._store or client.connect()
        with client.answering(self._store.uri):
            if not self._run_id:
                # The same run, where the next line fails.
                is_killed = isinstance(fresh[-1], End) and fresh[-1].status == "KILLED"
                run = begun(self._store, begin, is_killed=is_killed)
                if run is None:
                    self._num_logged = len(self.events)
                    return
                run_id = str(run.info.run_id)
                runs.describe(self._store, run_id, begin)
                self._run_id, self._machine = run_id, watched(self._store, run_id)
            known, self._known = self._known, None  # whoever fails may have logged some points
            if known is None:
                known = metrics.known_points(self._store, self._store.client.get_run(self._run_id))
            points = [event for event in fresh if isinstance(event, Point)]
            metrics.log_points(self._store, self._run_id, points, known)
            if isinstance(fresh[-1], End):
                self._end(self._store, begin, fresh[-1])
            self._known = known
        self._num_logged = len(self.events)

    def _end(self, store: Store, begin: Start, end: End) -> None:
        """End the run; where its result has one already, that one stays alone."""
        if self._machine:
            self._machine.finish()
        with client.lock("runs"):
            known = end.weights_sha256 and runs.find(store, begin, end.weights_sha256)
            if known and known.info.run_id != self._run_id:
                runs.add_origin(store, known, begin.tags)
                store.client.delete_run(self._run_id)
                return
            values = Point(time_ms=end.time_ms, step=0, values=end.values or {})
            metrics.log_points(store, self._run_id, [values])
            if end.weights_sha256:
                store.client.set_tag(self._run_id, events.WEIGHTS, end.weights_sha256)
            store.client.set_terminated(self._run_id, end.status, end_time=end.time_ms)


def begun(store: Store, start: Start, *, is_killed: bool) -> Run | None:
    """Return the run that this process logs: that of a killed training which goes on, or a new one.

    Args:
        store: that it is in.
        start: of the training.
        is_killed: whether the training is over. Then the one that goes on may have begun its run, and there
            is nothing to log: None.
    """
    logged_by, deadline = this_process(), time.monotonic() + END_SECONDS
    while True:
        with client.lock("runs"):
            found = runs.unfinished(store, start)
            for run in found:
                if run.data.tags.get(runs.LOGGED_BY) == logged_by:
                    return run  # of an earlier try
            if is_killed and runs.started(store, start):
                return None
            if not found:
                return runs.begin(store, start, {runs.LOGGED_BY: logged_by})
            if not any(runs.is_logged(run) for run in found) or time.monotonic() > deadline:
                run_id = found[0].info.run_id
                store.client.set_tag(run_id, runs.LOGGED_BY, logged_by)
                store.client.update_run(run_id, "RUNNING")
                runs.add_origin(store, found[0], start.tags)
                return store.client.get_run(run_id)
        time.sleep(0.2)


def this_process() -> str:
    """Return the value of the tag `runs.LOGGED_BY` for this process: its host, its id and its start."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def watched(store: Store, run_id: str) -> SystemMetricsMonitor | None:
    """Let MLflow log what the machine does every 10 s, unless its own variable forbids it."""
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set() and not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    monitor = SystemMetricsMonitor(run_id, tracking_uri=store.uri, resume_logging=True)
    monitor.start()
    return monitor


if __name__ == "__main__":
    os.chdir(paths.checkout())  # DVC removes the tree of an experiment, perhaps before this process ends
    try:
        follow(sys.stdin.fileno())
    except Exception as error:  # noqa: BLE001 -- a fault of ours: it must cost the training a line at most
        complain(f"MLflow: {type(error).__name__}: {error}; `register` logs what is missing")
    process.leave()
