"""Tell MLflow what waits in the spool: journals of trainings, and results with their models.

Every entry is told by one process at a time, and is removed once all of it has arrived; telling
it again after a break changes nothing that has arrived.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from mnist import courier, journal, model, paths, registry, results, tracking
from mnist.errors import AwayError, InputError
from mnist.tracking import Store

T = TypeVar("T")

PAUSES_SECONDS = (1.0, 3.0)  # before another try, where a store was lost in the middle


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A result that MLflow has been told.

    Attributes:
        run: its run.
        version: of its model; None below the floor.
        is_new: whether the version was made just now.
    """

    run: Run
    version: ModelVersion | None
    is_new: bool


def deliver(entry: Path) -> Delivered:
    """Tell MLflow of the result in `entry`, whose lock the caller holds, after all that waited before.

    Raises:
        AwayError: the store does not answer; nothing is lost, and the entry stays.
        InputError: the store refuses, or the entry is broken.
    """
    store = tracking.connect()
    deliver_waiting(store, say=lambda line: print(f"register: {line}"))
    return _persistently(partial(tell, store, entry))


def deliver_waiting(store: Store, *, say: Callable[[str], None]) -> int:
    """Tell MLflow of every entry that nobody else is at, the oldest first; how many could not be told.

    Args:
        store: that is told.
        say: is told a line for each entry that was told, or that is broken.

    Raises:
        AwayError: the store does not answer.
    """
    num_left = 0
    for entry in sorted(paths.spool().glob("*/")):
        with _claimed(entry) as is_ours:
            try:
                if is_ours and (told := _persistently(partial(_entry, store, entry))):
                    say(told)
            except AwayError:
                raise
            except InputError as error:
                num_left += 1
                say(f"left in the spool: {error}")
    return num_left


@contextlib.contextmanager
def _claimed(entry: Path) -> Iterator[bool]:
    """Whether this process may tell the entry: nobody writes it, and nobody else tells it."""
    with contextlib.ExitStack() as stack:
        try:
            for name in (journal.SENDER_LOCK, journal.WRITER_LOCK):
                stack.enter_context(FileLock(entry / name, timeout=0))
        except Timeout:
            yield False
        else:
            yield True


def _entry(store: Store, entry: Path) -> str:
    """Tell one entry of either kind, and say so; one that was never finished is swept away."""
    if (entry / results.ENTRY).is_file():
        run = tell(store, entry).run
        return f"told MLflow the result of run {run.info.run_name}"
    is_told = (entry / journal.LINES).is_file() and courier.send(tracking.Sender(store), entry, is_over=True)
    shutil.rmtree(entry)
    return f"told MLflow the training {entry.name}" if is_told else ""


def _persistently(tell: Callable[[], T]) -> T:
    """Call, and again after a pause where the store was lost in the middle."""
    for pause_seconds in PAUSES_SECONDS:
        try:
            return tell()
        except AwayError:
            time.sleep(pause_seconds)
    return tell()


def tell(store: Store, entry: Path) -> Delivered:
    """Tell one result, whose lock the caller holds.

    Raises:
        AwayError: the store does not answer; nothing is lost, and the entry stays.
        InputError: the store refuses, or the entry is broken.
    """
    result, version, is_new = results.read(entry), None, False
    with tracking.answering(store.uri):
        run = tracking.ensure(
            store,
            result.origin,
            events=results.events(entry),
            weights_sha256=result.weights_sha256,
            time_ms=result.time_ms,
        )
        tracking.log_evaluation(
            store,
            run,
            metrics=result.metrics,
            tags={"test_sha256": result.test_sha256},
            time_ms=result.time_ms,
            files=entry / results.FILES,
        )
        if result.accuracy >= result.registration.min_accuracy:
            version, is_new = registry.ensure(
                store,
                run,
                model.load(entry / results.FILES / paths.WEIGHTS),
                name=result.registration.model_name,
                weights_sha256=result.weights_sha256,
                accuracy=result.accuracy,
            )
            if result.challenger:
                registry.set_challenger(store, version)
    shutil.rmtree(entry)
    return Delivered(run=run, version=version, is_new=is_new)
