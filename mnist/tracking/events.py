"""Live logging in `train`: events for another process, which logs them to MLflow.

Each event is a line of JSON on the stdin of that process (`mnist.tracking.live`). `train` never waits for it:
a point is dropped if the pipe fills, and `register` logs it later. This module does not import mlflow.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from mnist.lineage.fingerprint import Training
from mnist.lineage.result import Result, TrainingInfo, now_ms, user, versions
from mnist.training.history import Epoch, Window

# Tags of a run: the digests of its data, weights and evaluation; its code; what led to it.
DATASET, WEIGHTS, EVALUATED = "dataset_sha256", "weights_sha256", "evaluation_sha256"
ONNX = "onnx_sha256"  # of a version: the digest of its ONNX file
FINGERPRINT, COMMIT = "fingerprint", "mlflow.source.git.commit"
EXPERIMENTS, COMMITS = "dvc.experiments", "git.commits"
# Metrics of a run; MLflow groups charts by what is before the slash.
SECONDS, TEST_ACCURACY = "train/seconds", "test/accuracy"
VIEW = "mnist"
# Tags of our experiment for MLflow's UI: it is about training models; and a view of its list of runs.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "searchFilter": "",
            "orderByKey": "metrics.`val/accuracy`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": [
                "attributes.`Created`",
                "attributes.`Models`",
                *(f"metrics.`{name}`" for name in ("val/accuracy", "val/loss", "test/accuracy")),
                *(f"params.`{name}`" for name in ("lr", "epochs", "batch_size", "seed")),
            ],
        }
    ),
}

MAX_WAITING = 1 << 15  # bytes of points in the pipe, which holds twice as many: the end always finds room


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a run: time in milliseconds since 1970, name, params and tags."""

    time_ms: int
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Point:
    """The metrics of one optimizer step."""

    time_ms: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a run: status `FINISHED`, `FAILED` or `KILLED`; a finished run has weights."""

    time_ms: int
    status: str
    weights_sha256: str = ""
    values: Mapping[str, float] | None = None


Event = Start | Point | End
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Start, Point, End)}


def parse(line: bytes) -> Event:
    """Read an event back from its line."""
    values = json.loads(line)
    return KINDS[values.pop("kind")](**values)


def start(training: Training, facts: Mapping[str, str], time_ms: int) -> Start:
    """Return the start of a training; `facts` are further tags of its run."""
    source = training.source
    tags = {
        FINGERPRINT: training.fingerprint,
        DATASET: training.dataset_sha256,
        EXPERIMENTS: source.experiment,
        "rerun": source.rerun,
        "mlflow.user": user(),
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "dvc.yaml:train",
        COMMIT: source.commit,
        "mlflow.source.git.branch": source.branch,
        **facts,
    }
    return Start(
        time_ms=time_ms,
        name=source.name,
        params=dict(training.params),
        tags={key: value for key, value in tags.items() if value},
    )


def point(event: Window | Epoch, time_ms: int) -> Point:
    """Return what happened as metrics; an epoch has the step at which it ended."""
    if isinstance(event, Window):
        values = {"train/loss": event.loss, "train/accuracy": event.accuracy}
    else:
        values = {
            "train/epoch_loss": event.train_loss,
            "train/epoch_accuracy": event.train_accuracy,
            "val/loss": event.val_loss,
            "val/accuracy": event.val_accuracy,
        }
    # As in the tables, from which `register` logs what is missing.
    values = {name: float(f"{value:.6g}") for name, value in values.items()}
    return Point(time_ms=time_ms, step=event.step, values=values)


def scores(result: Result) -> Point:
    """Return the scores on the test images; single values, which MLflow draws as bars if their step is 0."""
    values = {f"test/{name}": value for name, value in result.metrics.items()}
    return Point(time_ms=result.time_ms, step=0, values=values)


class Recorder:
    """The sender of the events of one training to the logging process.

    Args:
        begin: of the training.
        pipe: file descriptor of the process's stdin, which does not block.
    """

    def __init__(self, begin: Start, pipe: int) -> None:
        self._begin, self._pipe = begin, pipe
        self.send(begin)

    def log(self, event: Window | Epoch) -> None:
        """Send the metrics of a window or an epoch."""
        self.send(point(event, now_ms()))

    def finish(self, weights_sha256: str, seconds: float) -> None:
        """Send the end of a training that succeeded, and keep what its report shows of it."""
        facts = {name: self._begin.tags[name] for name in ("device", *versions())}
        with contextlib.suppress(OSError):  # without it a report has "not recorded"
            TrainingInfo(time_ms=self._begin.time_ms, seconds=seconds, facts=facts).write(weights_sha256)
        self.end("FINISHED", weights_sha256=weights_sha256, values={SECONDS: seconds})

    def end(self, status: str, **result: Any) -> None:
        """Send the end of a training."""
        self.send(End(time_ms=now_ms(), status=status, **result))

    def send(self, event: Event) -> None:
        """Write an event, or drop it: a point if too many wait, any event if the process is gone."""
        line = json.dumps({"kind": type(event).__name__, **asdict(event)}).encode() + b"\n"
        with contextlib.suppress(OSError):
            num_waiting = int.from_bytes(fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
            if num_waiting < MAX_WAITING or not isinstance(event, Point):
                os.write(self._pipe, line)


@contextmanager
def recorded(training: Training, *, device: str, time_ms: int) -> Iterator[Recorder]:
    """Log a training while it runs; one that does not finish ends as FAILED or, for an interrupt, KILLED.

    `time_ms` is its start; a training with that of an earlier one resumes it, and its run.
    """
    begin, pipe = start(training, {"device": device, **versions()}, time_ms), _logging_process()
    recorder = Recorder(begin, pipe)
    try:
        yield recorder
    except BaseException as error:
        recorder.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finally:
        os.close(pipe)


def _logging_process() -> int:
    """Start the process, and return its stdin; where it cannot start, that drops what is sent."""
    reader, writer = os.pipe()  # no child inherits the writing end, so it closes with this process
    os.set_blocking(writer, False)
    with contextlib.suppress(OSError):  # the system has no room for another process
        process = subprocess.Popen(
            [sys.executable, "-m", "mnist.tracking.live"],
            stdin=reader,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is for the training: it ends, and sends its end
        )
        threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay a zombie
    os.close(reader)
    return writer
