"""The result that lies in a checkout, and its numbers for the report and the model card.

Shape suffixes: N images, K classes.
"""

import hashlib
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist.core import config, files, paths
from mnist.core.config import Count, Fraction, Registration, S, Section
from mnist.core.errors import InputError
from mnist.data import store, validation
from mnist.data.store import Description, Images
from mnist.data.validation import Verdict
from mnist.evaluation import scores
from mnist.evaluation.predictions import Predictions, read_log_probs, read_table
from mnist.evaluation.scores import Bin, ClassScore, Scores
from mnist.evaluation.statistics import Interval, Rate, Z
from mnist.lineage import fingerprint
from mnist.lineage.fingerprint import Source
from mnist.lineage.result import Result, now_ms
from mnist.training import history
from mnist.training.history import Epoch, Window

HIGH_CONFIDENCE = 0.9  # mistakes above it are counted
DIGITS = 1e-5  # of a number, by which two files may differ


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
    verdict = validation.require_valid(folder / paths.VALIDATION, folder / paths.DATASET)
    test_scores = scores.read(folder / paths.TEST_METRICS)
    evaluated = "".join(files.sha256(folder / path) for path in (paths.TEST_METRICS, paths.PREDICTIONS))
    return Result(
        time_ms=time_ms or now_ms(),
        origin=training,
        weights_sha256=files.sha256(folder / paths.WEIGHTS),
        evaluation_sha256=hashlib.sha256(evaluated.encode()).hexdigest(),
        test_sha256=verdict.test_sha256,
        metrics=dict(test_scores),
        registration=registration.only(Registration).of(fingerprint.dataset_of(training.params)),
        challenger=challenger,
    )


class MixUp(NamedTuple):
    """The number of images of one class for which another one was predicted."""

    label: str
    predicted: str
    num_images: int


class Trained(Section, extra="ignore"):
    """The part of `metrics/train.json` that `train` writes."""

    num_parameters: Count
    train_loss: float
    train_accuracy: Fraction
    val_loss: float
    val_accuracy: Fraction


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A result in numbers.

    Attributes:
        dataset: description of the data set.
        test: the test images.
        log_probs_NK: float32, of the test images.
        scores: on the test images.
        confusion_KK: int64, number of images by class (rows) and predicted class (columns).
        bins: of the reliability diagram.
        num_parameters: of the network.
        num_trained_on: number of training images without those that validate.
        validation_accuracy: after the last epoch.
        steps: training loss and accuracy by step.
        epochs: metrics of each epoch, at least one.
        verdict: of the validation of the data.
        warnings: classes that the network hardly recognises, and rare ones.
    """

    dataset: Description
    test: Images
    log_probs_NK: NDArray[np.float32]
    scores: Scores
    confusion_KK: NDArray[np.int64]
    bins: list[Bin]
    num_parameters: int
    num_trained_on: int
    validation_accuracy: Rate
    steps: list[Window]
    epochs: list[Epoch]
    verdict: Verdict
    warnings: list[str]

    @property
    def accuracy(self) -> Rate:
        """Return the share of the test images that are classified correctly."""
        return Rate(hits=int(self.confusion_KK.trace()), num_images=len(self.test))

    @property
    def num_wrong(self) -> int:
        """Return the number of test images that are classified wrongly."""
        return len(self.test) - self.accuracy.hits

    @property
    def loss_interval(self) -> Interval | None:
        """Return the 95 % interval of the mean loss in all images of the kind; None of one image."""
        num_images = len(self.test)
        if num_images == 1:
            return None
        loss_N = -self.log_probs_NK.astype(np.float64)[np.arange(num_images), self.test.labels_N]
        mean, half = float(loss_N.mean()), Z * float(loss_N.std(ddof=1)) / sqrt(num_images)
        return max(mean - half, 0.0), mean + half

    @property
    def classes(self) -> list[ClassScore]:
        """Return the scores of each class."""
        return scores.class_scores(self.confusion_KK, self.dataset.classes)

    @property
    def mix_ups(self) -> list[MixUp]:
        """Return all pairs of classes that were mixed up, the most frequent first."""
        names, counts_KK = self.dataset.classes, self.confusion_KK
        found = [
            MixUp(names[label], names[predicted], int(counts_KK[label, predicted]))
            for label, predicted in zip(*np.nonzero(counts_KK), strict=True)
            if label != predicted
        ]
        return sorted(found, key=lambda mix_up: -mix_up.num_images)

    @property
    def num_confident_mistakes(self) -> int:
        """Return the number of wrong predictions with a confidence above `HIGH_CONFIDENCE`."""
        is_wrong_N = self.log_probs_NK.argmax(1) != self.test.labels_N
        return int((is_wrong_N & (scores.confidence(self.log_probs_NK) > HIGH_CONFIDENCE)).sum())

    @property
    def headline(self) -> str:
        """Return a line with the accuracy and its interval."""
        low, high = self.accuracy.interval or (0, 1)
        return (
            f"accuracy {self.scores.accuracy:.2%} on {self.accuracy.num_images:,} test images of"
            f" {self.dataset.title}, 95 % interval {low:.2%} to {high:.2%}"
        )

    @property
    def details(self) -> str:
        """Return a line with the other scores."""
        confident = self.num_confident_mistakes
        note = f" ({confident:,} with a confidence above {HIGH_CONFIDENCE:.0%})" if confident else ""
        return (
            f"{self.num_wrong:,} wrong{note}, balanced accuracy {self.scores.balanced_accuracy:.2%},"
            f" loss {self.scores.loss:.4f}, calibration error"
            f" {self.scores.expected_calibration_error:.2%},"
            f" validation accuracy {self.epochs[-1].val_accuracy:.2%}"
        )


def load_summary(folder: Path) -> Summary:
    """Read the numbers of the result that lies in a checkout.

    Raises:
        InputError: a file is missing or malformed, or belongs to another result than the others.
    """
    for png in sorted((folder / paths.PLOTS).glob("*.png")):
        _check_picture(png)
    about, test = store.describe(folder / paths.DATASET), store.load(folder / paths.DATASET, "test")
    predictions, log_probs_NK = _load_predictions(folder, test, about)
    predicted_N = log_probs_NK.argmax(1)
    confusion_KK = scores.confusion(test.labels_N, predicted_N, num_classes=len(about.classes))
    test_scores = scores.read(folder / paths.TEST_METRICS)
    if not _is_close(test_scores, scores.score(log_probs_NK, test.labels_N)):
        raise _mismatch(paths.TEST_METRICS, "scores", paths.LOG_PROBS)
    by_class, class_table = folder / paths.CLASSES, scores.class_table(confusion_KK, about.classes)
    if by_class.exists() and by_class.read_bytes() != class_table.encode():  # another revision may lack it
        raise _mismatch(paths.CLASSES, "scores", paths.PREDICTIONS)
    verdict = validation.read(folder / paths.VALIDATION)
    steps, epochs, trained = _load_training(folder)
    num_trained_on = sum(window.num_images for window in steps if window.epoch == 1)
    num_validating = verdict.num_images["train"] - num_trained_on
    if num_validating < 1:
        raise _mismatch(paths.STEPS, "images", paths.VALIDATION)
    return Summary(
        dataset=about,
        test=test,
        log_probs_NK=log_probs_NK,
        scores=test_scores,
        confusion_KK=confusion_KK,
        bins=scores.bins(scores.confidence(log_probs_NK), predictions.right),
        num_parameters=trained.num_parameters,
        num_trained_on=num_trained_on,
        validation_accuracy=Rate(
            hits=round(epochs[-1].val_accuracy * num_validating), num_images=num_validating
        ),
        steps=steps,
        epochs=epochs,
        verdict=verdict,
        warnings=[warning for warning in (predictions.warning, verdict.warning) if warning],
    )


def _load_predictions(
    folder: Path, test: Images, about: Description
) -> tuple[Predictions, NDArray[np.float32]]:
    """Read the predictions and the log-probabilities, float32 (N, K), which must be of these images."""
    predictions = read_table(folder / paths.PREDICTIONS)
    log_probs_NK = read_log_probs(folder / paths.LOG_PROBS)
    names_K = np.array(about.classes)
    if not np.array_equal(predictions.labels_N, names_K[test.labels_N]):
        raise _mismatch(paths.PREDICTIONS, "labels", paths.DATASET)
    if log_probs_NK.shape != (len(test), len(names_K)):
        raise _mismatch(paths.LOG_PROBS, "images or classes", paths.DATASET)
    if not np.array_equal(predictions.predicted_N, names_K[log_probs_NK.argmax(1)]):
        raise _mismatch(paths.LOG_PROBS, "predictions", paths.PREDICTIONS)
    return predictions, log_probs_NK


def _load_training(folder: Path) -> tuple[list[Window], list[Epoch], Trained]:
    """Read the curves and the metrics of the training, which must be of one training."""
    steps, epochs = history.read(folder / paths.STEPS, Window), history.read(folder / paths.HISTORY, Epoch)
    numbers = [row.epoch for row in epochs]
    is_whole = numbers == sorted({row.epoch for row in steps}) == [*range(1, len(numbers) + 1)]
    order = [row.step for row in steps]
    if not is_whole or order != sorted(set(order)) or order[-1] != epochs[-1].step:
        raise _mismatch(paths.STEPS, "epochs or steps", paths.HISTORY)
    values = files.read_json(folder / paths.TRAINING_METRICS)
    trained = config.check(Trained, values, str(paths.TRAINING_METRICS))
    if not _is_close(trained, Trained(num_parameters=trained.num_parameters, **epochs[-1].scores)):
        raise _mismatch(paths.TRAINING_METRICS, "numbers", paths.HISTORY)
    return steps, epochs, trained


def _check_picture(png: Path) -> None:
    from PIL import Image

    try:
        with files.reading(png), Image.open(png, formats=["PNG"]) as picture:
            picture.verify()
    except SyntaxError as error:  # a broken chunk of the file
        raise InputError(str(png), found=f"{error}", expected="a PNG: run `dvc repro`") from None


def _is_close(one: S, other: S) -> bool:
    """Return whether two sets of numbers are equal, up to the digits that files keep."""
    pairs = zip(one.model_dump().values(), other.model_dump().values(), strict=True)
    return all(abs(value - another) <= DIGITS * max(1, abs(value)) for value, another in pairs)


def _mismatch(file: Path, what: str, than: Path) -> InputError:
    return InputError(str(file), found=f"other {what} than in {than}", expected="one result: run `dvc repro`")
