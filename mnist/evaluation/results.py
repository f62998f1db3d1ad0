"""The result that lies in a checkout, and the pages that describe it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mnist.core import files, paths
from mnist.core.config import Registration
from mnist.data import validation
from mnist.evaluation import scores
from mnist.evaluation.summary import Summary
from mnist.lineage import fingerprint, result
from mnist.lineage.fingerprint import Source
from mnist.lineage.result import Result


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The pages about a result: its numbers, the report (HTML) and the model card (Markdown)."""

    summary: Summary
    report: str
    card: str


def load(
    registration: Registration,
    *,
    challenger: bool,
    folder: Path = Path(),
    source: Source | None = None,
    time_ms: int | None = None,
) -> Result:
    """Read the result that lies in a checkout.

    Args:
        registration: where its model goes.
        challenger: whether the model becomes the candidate for promotion.
        folder: the root of the checkout.
        source: that it came from; without it, the checkout in the current folder.
        time_ms: of the result, since 1970; without it, now.

    Raises:
        InputError: a file is missing or is not what it must be.
    """
    training = fingerprint.of_training(folder, where=source)
    test_scores = scores.read(folder / paths.TEST_METRICS)
    return Result(
        time_ms=time_ms or result.now_ms(),
        origin=training,
        weights_sha256=files.sha256(folder / paths.WEIGHTS),
        evaluation_sha256=evaluation_sha256(
            files.sha256(folder / paths.TEST_METRICS), files.sha256(folder / paths.PREDICTIONS)
        ),
        test_sha256=validation.read(folder / paths.VALIDATION).test_sha256,
        metrics={
            f"test_{name}": value
            for name, value in test_scores
            if isinstance(value, int | float) and name != "num_images"  # a property of the data
        },
        registration=registration.only(Registration).of(fingerprint.dataset_of(training.params)),
        challenger=challenger,
    )


def evaluation_sha256(scores: str, predictions: str) -> str:
    """Return the digest of an evaluation, in hex, from the digests of its two files."""
    return hashlib.sha256(f"{scores}{predictions}".encode()).hexdigest()


def pages(result: Result, *, folder: Path = Path()) -> Pages:
    """Describe a result whose files lie in a checkout.

    Raises:
        InputError: a file is missing, or the files are not of one result.
    """
    from mnist.evaluation import model_card, report, summary  # templates and matplotlib: 0.4 s

    numbers = summary.load_summary(folder, data=folder / paths.DATASET, params=result.origin.params)
    return Pages(
        summary=numbers,
        report=report.html(numbers, result, folder=folder),
        card=model_card.text(numbers, result),
    )
