"""What `register` is to tell MLflow of a result, set down in the spool with all files that it needs.

An entry is a folder: `result.json`, and under `files/` the result's files at their paths in the
checkout. So it can be told later, and from elsewhere, when the checkout holds something else.
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist import files, history, journal, params, paths, scoring, verdict
from mnist.history import Epoch, Window
from mnist.identity import Source, Training
from mnist.params import Registration, Section

ENTRY, FILES = "result.json", "files"


class Result(Section):
    """The file `result.json`.

    Attributes:
        time_ms: of the result, since 1970.
        training: `identity.Training`, as plain values.
        weights_sha256: of the weights file.
        test_sha256: of the test images and their labels.
        metrics: on the test images.
        registration: where the model goes, and how good it must be.
        challenger: whether it is to be the candidate for promotion.
    """

    time_ms: int
    training: dict[str, Any]
    weights_sha256: str
    test_sha256: str
    metrics: dict[str, float]
    registration: Registration
    challenger: bool

    @property
    def origin(self) -> Training:
        """What it came from."""
        return Training(**{**self.training, "source": Source(**self.training["source"])})

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return self.metrics["test_accuracy"]


def write(
    entry: Path,
    training: Training,
    registration: Registration,
    *,
    artifacts: Iterable[Path],
    challenger: bool,
    folder: Path = Path(),
    time_ms: int | None = None,
) -> Result:
    """Set down the result whose files lie in `folder`, at the paths `artifacts`, in an empty entry.

    Raises:
        InputError: a file is missing or is not what it must be.
    """
    scores = scoring.read(folder / paths.TEST_METRICS)
    result = Result(
        time_ms=time_ms or journal.now_ms(),
        training=asdict(training),
        weights_sha256=files.sha256(folder / paths.WEIGHTS),
        test_sha256=verdict.read(folder / paths.VALIDATION).test_sha256,
        metrics={
            f"test_{name}": value
            for name, value in scores
            if isinstance(value, int | float) and name != "num_images"  # a property of the data
        },
        registration=registration.only(Registration),
        challenger=challenger,
    )
    for name in artifacts:
        kept = entry / FILES / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(folder / name, kept)
        except FileNotFoundError:
            raise files.missing(name) from None
    events(entry)
    files.write_json(entry / ENTRY, result.model_dump())  # last: with it the entry counts
    return result


def read(entry: Path) -> Result:
    """Read an entry back.

    Raises:
        InputError: it is not what `write` wrote.
    """
    return params.check(Result, files.read_json(entry / ENTRY), str(entry / ENTRY))


def events(entry: Path) -> list[Window | Epoch]:
    """The curves of its training.

    Raises:
        InputError: a table is missing, or is none.
    """
    tables = entry / FILES
    steps = history.read(tables / paths.STEPS, Window)
    return [*steps, *history.read(tables / paths.HISTORY, Epoch)]
