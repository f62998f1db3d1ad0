"""What `register` is to tell MLflow of a result, set down in the spool with all files that it needs.

An entry is a folder: `result.json`, and under `files/` the result's files at their paths in the
checkout. So it can be told later, and from elsewhere, when the checkout holds something else.
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist.core import config, files, paths
from mnist.core.config import Registration, Section
from mnist.data import validation
from mnist.evaluation import scores
from mnist.lineage import fingerprint
from mnist.lineage.fingerprint import Source, Training
from mnist.tracking import journal
from mnist.training import history
from mnist.training.history import Epoch, Window

if TYPE_CHECKING:
    from mnist.evaluation import summary

ENTRY, FILES = "result.json", "files"
CARD = Path("model-card.md")  # among the files


class Result(Section):
    """The file `result.json`.

    Attributes:
        time_ms: of the result, since 1970.
        training: `identity.Training`, as plain values.
        weights_sha256: of the weights file.
        evaluation_sha256: of the scores and the predictions.
        test_sha256: of the test images and their labels.
        metrics: on the test images.
        registration: where the model goes, and how good it must be.
        challenger: whether it is to be the candidate for promotion.
    """

    time_ms: int
    training: dict[str, Any]
    weights_sha256: str
    evaluation_sha256: str
    test_sha256: str
    metrics: dict[str, float]
    registration: Registration
    challenger: bool

    @property
    def origin(self) -> Training:
        """What it came from."""
        return Training(**{**self.training, "source": Source(**self.training["source"])})

    @property
    def identity(self) -> dict[str, str]:
        """By which it is the same result, whenever and wherever it was made."""
        return {
            "fingerprint": self.origin.fingerprint,
            "weights_sha256": self.weights_sha256,
            "evaluation_sha256": self.evaluation_sha256,
        }

    @property
    def is_good(self) -> bool:
        """Whether its model is registered."""
        return self.accuracy >= self.registration.min_accuracy

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return self.metrics["test_accuracy"]


def gather(
    registration: Registration,
    *,
    challenger: bool,
    folder: Path = Path(),
    where: Source | None = None,
    time_ms: int | None = None,
) -> Result:
    """Look at the result that lies in a checkout.

    Args:
        registration: where its model goes.
        challenger: whether that is to be the candidate for promotion.
        folder: the root of the checkout, or a copy of what is in it.
        where: it came from; without it, the checkout in the current folder is asked.
        time_ms: of the result, since 1970; without it, now.

    Raises:
        InputError: a file is missing or is not what it must be.
    """
    result_scores = scores.read(folder / paths.TEST_METRICS)
    test_sha256 = validation.read(folder / paths.VALIDATION).test_sha256
    training = fingerprint.of_training(folder, where=where)
    return Result(
        time_ms=time_ms or journal.now_ms(),
        training=asdict(training),
        weights_sha256=files.sha256(folder / paths.WEIGHTS),
        evaluation_sha256=evaluation_sha256(
            files.sha256(folder / paths.TEST_METRICS), files.sha256(folder / paths.PREDICTIONS)
        ),
        test_sha256=test_sha256,
        metrics={
            f"test_{name}": value
            for name, value in result_scores
            if isinstance(value, int | float) and name != "num_images"  # a property of the data
        },
        registration=registration.only(Registration).of(fingerprint.dataset_of(training.params)),
        challenger=challenger,
    )


def evaluation_sha256(scores: str, predictions: str) -> str:
    """The digest of what `evaluate` wrote, from those of its two files, in hex."""
    return hashlib.sha256(f"{scores}{predictions}".encode()).hexdigest()


def write(
    entry: Path, result: Result, *, artifacts: Iterable[Path], folder: Path = Path()
) -> "summary.Summary":
    """Set down a result in an empty entry, with its files, which lie in `folder` at the paths `artifacts`.

    Its report and its model card are made of them, and added. Returns what they say, in numbers.

    Raises:
        InputError: a file is missing, or its curves are none, or the files are not of one result.
    """
    from mnist.evaluation import (
        model_card,
        report as page,
        summary,  # templates and pictures: 0.1 s, not for who only reads
    )

    for name in artifacts:
        kept = entry / FILES / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(folder / name, kept)
        except FileNotFoundError:
            raise files.missing(name) from None
    events(entry)
    said = summary.gather(entry / FILES, data=folder / paths.DATASET, params=result.origin.params)
    files.write_text(entry / FILES / paths.REPORT, page.html(said, result, folder=entry / FILES))
    files.write_text(entry / FILES / CARD, model_card.text(said, result))
    files.write_json(entry / ENTRY, result.model_dump())  # last: with it the entry counts
    return said


def read(entry: Path) -> Result:
    """Read an entry back.

    Raises:
        InputError: it is not what `write` wrote.
    """
    return config.check(Result, files.read_json(entry / ENTRY), str(entry / ENTRY))


def report(entry: Path) -> str:
    """Its page for people."""
    return (entry / FILES / paths.REPORT).read_text(encoding="utf-8")


def card(entry: Path) -> str:
    """Its model card; empty in an entry of before there were any."""
    file = entry / FILES / CARD
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def events(entry: Path) -> list[Window | Epoch]:
    """The curves of its training.

    Raises:
        InputError: a table is missing, or is none.
    """
    tables = entry / FILES
    steps = history.read(tables / paths.STEPS, Window)
    return [*steps, *history.read(tables / paths.HISTORY, Epoch)]
