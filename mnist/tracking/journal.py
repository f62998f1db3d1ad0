"""What MLflow is to be told of a training, written down as it happens and sent by another process.

`train` knows nothing of MLflow: it appends lines to a journal in `paths.spool()`, and starts a
sender (`python -m mnist.cli.sync --follow`) that passes them on while the training runs. A
tracking server that is down, slow or wrong costs the training nothing, and what it was not told
stays in the journal until `register` or `make reconcile` sends it.
"""

import contextlib
import getpass
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from mnist.core import config, files, paths
from mnist.core.config import Section
from mnist.core.errors import InputError
from mnist.lineage.fingerprint import Training
from mnist.training.history import Epoch, Window

LINES, SYSTEM_LINES = "journal.jsonl", "system.jsonl"  # of the training; of the machine meanwhile
WRITER_LOCK, SENDER_LOCK = "writer.lock", "sender.lock"  # held by who writes, and by who sends
SENDER_LOG = "sender.log"

LIBRARIES = ("torch", "numpy", "mlflow", "dvc")
FACTS = ("device", "python", *LIBRARIES)  # tags of a run that tell how its weights were made
# How long a training that is done waits for a sender that is not. One that meets no answer gives
# up by itself, after a request's time-out (10 s, mnist/tracking/client.py); this is for a slow server, and
# for a busy machine that makes a new store.
PATIENCE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run begins.

    Attributes:
        time_ms: since 1970, as MLflow counts.
        name: of the run, for people.
        fingerprint: by which the run is found, with `time_ms`.
        dataset_sha256: of the data set.
        params: of the training.
        tags: all of the run's, the fingerprint aside.
        patch: what was not committed.
    """

    time_ms: int
    name: str
    fingerprint: str
    dataset_sha256: str
    params: dict[str, Any]
    tags: dict[str, str]
    patch: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """Metrics of one moment."""

    time_ms: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class End:
    """The run is over: `FINISHED`, `FAILED` or `KILLED`; finished ones have weights."""

    time_ms: int
    status: str
    weights_sha256: str = ""
    values: dict[str, float] | None = None


class Making(Section):
    """What only the process that trained knows of its weights, and no file of the result holds.

    Attributes:
        time_ms: when the training began, since 1970.
        seconds: that it took.
        facts: `device`, and versions by name.
    """

    time_ms: int
    seconds: float
    facts: dict[str, str]


Event = Start | Point | End
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Start, Point, End)}


def start(training: Training, facts: Mapping[str, str], time_ms: int) -> Start:
    """The first event of a training; `facts` are tags that its source does not tell."""
    source = training.source
    tags = {
        "dataset_sha256": training.dataset_sha256,
        "dvc.experiments": source.experiment,
        "dvc.baseline": source.commit if source.experiment else "",
        "rerun": source.rerun,
        "mlflow.user": user(),
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": "dvc.yaml:train",
        "mlflow.source.git.commit": source.commit,
        "mlflow.source.git.branch": source.branch,
        **facts,
    }
    return Start(
        time_ms=time_ms,
        name=source.name,
        fingerprint=training.fingerprint,
        dataset_sha256=training.dataset_sha256,
        params=dict(training.params),
        tags={key: value for key, value in tags.items() if value},
        patch=source.patch,
    )


def point(event: Window | Epoch, time_ms: int) -> Point:
    """What happened, as metrics: windows over optimizer steps, epochs over epochs."""
    if isinstance(event, Window):
        values = {"train_loss": event.loss, "train_accuracy": event.accuracy}
        return Point(time_ms=time_ms, step=event.step, values=values)
    values = {
        "epoch_train_loss": event.train_loss,
        "epoch_train_accuracy": event.train_accuracy,
        "val_loss": event.val_loss,
        "val_accuracy": event.val_accuracy,
    }
    return Point(time_ms=time_ms, step=event.epoch, values=values)


def user() -> str:
    """Of this process; in a container it may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def versions() -> dict[str, str]:
    """Of Python and the libraries that a result depends on, or that logged it."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def write(stream: IO[str], event: Event) -> None:
    """Append one line, complete and at once: a reader may be at the heels."""
    stream.write(json.dumps({"kind": type(event).__name__, **asdict(event)}) + "\n")
    stream.flush()


class Reader:
    """Reads a journal that grows; a last line that is not complete does not count yet.

    Attributes:
        events: all that were read.
    """

    def __init__(self, path: Path) -> None:
        self.events: list[Event] = []
        self._path, self._offset = path, 0

    def read(self) -> list[Event]:
        """Read what is new, and return all events so far.

        Raises:
            InputError: a line is no event.
        """
        if not self._path.is_file():
            return self.events
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            complete = stream.read().rpartition(b"\n")[0]
        for line in complete.splitlines():
            try:
                values = json.loads(line)
                self.events.append(KINDS[values.pop("kind")](**values))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                where = f"{self._path}, line {len(self.events) + 1}"
                found = f"{type(error).__name__}: {error}"
                raise InputError(where, found=found, expected="an event") from None
        self._offset += len(complete) + bool(complete)
        return self.events


@contextmanager
def new_entry(name: str, lock: str) -> Iterator[Path]:
    """A new folder in the spool, whose name sorts by time; its `lock` is held before others see it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    entry = paths.spool() / f"{stamp}-{name}-{os.getpid()}"
    hidden = entry.with_name(f".{entry.name}")
    hidden.mkdir(parents=True)
    with FileLock(hidden / lock):
        hidden.rename(entry)  # the lock goes by the file, not by its name
        yield entry


def remove_entry(entry: Path) -> None:
    """Take an entry out of the spool in one step, and then delete it."""
    gone = entry.with_name(f".gone-{entry.name}")
    entry.rename(gone)
    shutil.rmtree(gone)


def entries() -> list[Path]:
    """All entries of the spool, the oldest first."""
    return sorted(paths.spool().glob("[0-9]*/"))


class Recorder:
    """Writes down what happens in one training.

    Args:
        stream: that it is written to; None where there is no place.
        say: prints a line for the user.
        relay: prints what the sender has had to say.
        begin: of the training; None leaves no note of how its weights were made.
    """

    def __init__(
        self,
        stream: IO[str] | None,
        say: Callable[[str], None],
        relay: Callable[[], None] = lambda: None,
        begin: Start | None = None,
    ) -> None:
        self._stream, self._say, self._relay, self._begin = stream, say, relay, begin
        self._result: dict[str, Any] = {}

    def log(self, *events: Window | Epoch) -> None:
        """Add what happened to the curves."""
        for event in events:
            self.write(point(event, now_ms()))
        self._relay()

    def finish(self, weights_sha256: str, seconds: float) -> None:
        """Say which weights came out, and how long the training took."""
        self._result = {"weights_sha256": weights_sha256, "values": {"training_seconds": seconds}}
        if self._begin:
            facts = {name: self._begin.tags[name] for name in FACTS if name in self._begin.tags}
            made = Making(time_ms=self._begin.time_ms, seconds=seconds, facts=facts)
            with contextlib.suppress(OSError):  # without it a report says "not recorded"
                files.write_json(_note(weights_sha256), made.model_dump())

    def end(self, status: str) -> None:
        """Write the last line."""
        self.write(End(time_ms=now_ms(), status=status, **self._result))

    def write(self, event: Event) -> None:
        """Write one line; a disk that is full is no reason to end a training."""
        try:
            if self._stream:
                write(self._stream, event)
        except OSError as error:
            self._stream = None
            self._say(_unwritten(error))


def _unwritten(error: OSError) -> str:
    return f"train: what happens is not written down for MLflow ({error}); `register` makes its run"


def _note(weights_sha256: str) -> Path:
    """Where it is kept how some weights were made; their result must not change with the time of day."""
    return paths.root() / ".cache" / "trainings" / f"{weights_sha256}.json"


def making(weights_sha256: str) -> Making | None:
    """How these weights were made; None where that was on another machine, or the note is gone or broken."""
    note = _note(weights_sha256)
    try:
        return config.check(Making, files.read_json(note), str(note))
    except (OSError, InputError):
        return None


@contextmanager
def recorded(training: Training, facts: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Recorder]:
    """Record a training while it runs; it ends as FINISHED, FAILED or, for an interrupt, KILLED.

    Args:
        training: that is to run.
        facts: tags of the run that only the stage knows, such as its device.
        say: prints a line for the user: of the sender, or of what cannot be written.
    """
    begin = start(training, {**facts, **versions()}, now_ms())
    with contextlib.ExitStack() as stack:
        try:
            entry = stack.enter_context(new_entry(f"train-{training.fingerprint[:8]}", WRITER_LOCK))
            stream = (entry / LINES).open("w", encoding="utf-8")
        except OSError as error:
            say(_unwritten(error))
            yield Recorder(None, say, begin=begin)
            return
        recorder = Recorder(stream, say, stack.enter_context(_sender(entry, say)), begin)
        recorder.write(begin)
        status = "FAILED"
        try:
            yield recorder
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            recorder.end(status)
            with contextlib.suppress(OSError):  # what it could not write before, it cannot write now
                stream.close()


@contextmanager
def _sender(folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """A process that sends the journal in `folder`, up to the end of the block and a little longer.

    Yields a function that relays what it has had to say so far. The end of its stdin, which comes
    whatever becomes of this process, tells it that nobody writes any more.
    """
    with (folder / SENDER_LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mnist.cli.sync", "--follow", str(folder)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "DVC_ROOT": str(paths.checkout())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # an interrupt is for the training: it ends, and says so
        )
    stdin, stdout = process.stdin, process.stdout
    assert stdin
    assert stdout
    said = False

    def relay() -> None:
        nonlocal said
        while select.select([stdout], [], [], 0)[0] and (line := stdout.readline()):
            say(line.rstrip())
            said = True

    try:
        yield relay
    finally:
        stdin.close()
        trouble = f"was not told, for a fault that {folder / SENDER_LOG} tells"
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            trouble = "does not answer in time"
            process.kill()
            process.wait()
        relay()
        stdout.close()
        if folder.exists() and not said:
            where = f"train: MLflow at {paths.shown(paths.store_uri())}"
            say(
                f"{where} {trouble}; what it missed waits in {paths.spool().name}/, `make reconcile` sends it"
            )
