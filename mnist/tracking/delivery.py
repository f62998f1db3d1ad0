"""Tell MLflow what waits in the spool: journals of trainings, and results with their models.

Every entry is told by one process at a time, and is removed once all of it has arrived; telling
it again after a break changes nothing that has arrived.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from mnist.core import files, paths
from mnist.core.errors import AwayError, InputError
from mnist.data import store as data
from mnist.evaluation import results, statistics
from mnist.evaluation.results import Result
from mnist.tracking import client, courier, journal, registry
from mnist.tracking.client import Store
from mnist.training import model
from mnist.training.model import Classifier

T = TypeVar("T")

# Share of the test images that another processor may see otherwise, in the last bits of a tie.
MAX_OTHERS = 0.001
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
    store = client.connect()
    deliver_waiting(store, say=lambda line: print(f"register: {line}"))
    return _persistently(partial(tell, store, entry, dataset=None))


def deliver_waiting(store: Store, *, say: Callable[[str], None]) -> int:
    """Tell MLflow of every entry that nobody else is at, the oldest first; how many could not be told.

    Args:
        store: that is told.
        say: is told a line for each entry that was told, or that is broken.

    Raises:
        AwayError: the store does not answer.
    """
    num_left = 0
    for entry in journal.entries():
        with _claimed(entry) as is_ours:
            try:
                if is_ours and (told := _persistently(partial(_entry, store, entry))):
                    say(told)
            except InputError as error:
                if isinstance(error, AwayError):
                    client.connect()  # raises, unless it is this one entry that the store fails at
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
    has_lines = (entry / journal.LINES).is_file()
    if has_lines:
        courier.send(client.Sender(store), courier.Readers(entry), is_over=True)
    journal.remove_entry(entry)
    return f"told MLflow the training {entry.name}" if has_lines else ""


def _persistently(tell: Callable[[], T]) -> T:
    """Call, and again after a pause where the store was lost in the middle."""
    for pause_seconds in PAUSES_SECONDS:
        try:
            return tell()
        except AwayError:
            time.sleep(pause_seconds)
    return tell()


def tell(store: Store, entry: Path, *, dataset: Path | None = paths.DATASET) -> Delivered:
    """Tell one result, whose lock the caller holds.

    Args:
        store: that is told.
        entry: that holds the result.
        dataset: with its test images; None where this code has just evaluated it.

    Raises:
        AwayError: the store does not answer; nothing is lost, and the entry stays.
        InputError: the store refuses, or the entry is broken, or its weights are of other code.
    """
    result, version, is_new = results.read(entry), None, False
    with client.answering(store.uri):
        run = client.ensure(
            store,
            result.origin,
            events=results.events(entry),
            weights_sha256=result.weights_sha256,
            time_ms=result.time_ms,
        )
        client.log_evaluation(
            store,
            run,
            metrics=result.metrics,
            tags={"test_sha256": result.test_sha256},
            time_ms=result.time_ms,
            files=entry / results.FILES,
            digest=result.evaluation_sha256,
        )
        if result.is_good:
            classifier = model.load(entry / results.FILES / paths.WEIGHTS)
            if dataset:
                _check_code(entry, result, classifier, dataset)
            version, is_new = registry.ensure(
                store,
                run,
                classifier,
                name=result.registration.model_name,
                weights_sha256=result.weights_sha256,
                accuracy=result.accuracy,
                card=results.card(entry),
            )
            if result.challenger:
                registry.set_challenger(store, version, time_ms=result.time_ms)
    journal.remove_entry(entry)
    return Delivered(run=run, version=version, is_new=is_new)


def is_complete(store: Store, result: Result) -> bool:
    """Whether the store has all that `tell` would tell it."""
    with client.answering(store.uri):
        run = client.find(store, result.origin.fingerprint, result.weights_sha256)
        if run is None or run.data.tags.get(client.EVALUATED) != result.evaluation_sha256:
            return False
        if not store.client.list_artifacts(run.info.run_id):
            return False
        client.note(store, run, result.origin.source.experiment)
        if not result.is_good:
            return True
        version = registry.find(store, result.registration.model_name, result.weights_sha256)
        return version is not None and registry.is_whole(store, version)


def _check_code(entry: Path, result: Result, classifier: Classifier, dataset: Path) -> None:
    """Let pass only weights of which this code's network says what the evaluation said.

    They may have waited, or come from another commit, and the code of the network may be another
    one by now: it would be registered under an accuracy that it does not have.

    Raises:
        InputError: it says something else, or there are no test images to tell.
    """
    if not dataset.is_file() or files.sha256(dataset) != result.origin.dataset_sha256:
        found = "other data, or none"
        raise InputError(str(dataset), found=found, expected=f"those that {entry.name} was tested on")
    test = data.load(dataset, "test")
    said = statistics.read(entry / results.FILES / paths.PREDICTIONS)
    log_probs_NK = model.log_probabilities(classifier, test, torch.device("cpu"))
    sees_N = np.array(classifier.classes)[log_probs_NK.argmax(1).numpy()]
    num_others = int((sees_N != said.predicted_N).sum())
    if num_others > MAX_OTHERS * len(test):
        commit = result.origin.source.commit[:12] or "then"
        raise InputError(
            f"{entry.name}: {paths.WEIGHTS}",
            found=f"weights of other code: today's network sees {num_others:,} test images otherwise",
            expected=f"the network of {commit}: reconcile there to register its model",
        )
