"""The numbers of a result that its report and its model card show.

Shape suffixes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data import store, validation
from mnist.data.store import Description, Images
from mnist.data.validation import Verdict
from mnist.evaluation import scores
from mnist.evaluation.predictions import read_log_probs, read_table
from mnist.evaluation.scores import Bin, ClassScore, Scores
from mnist.evaluation.statistics import Interval, Rate, Z
from mnist.training import history
from mnist.training.history import Epoch, Window

HIGH_CONFIDENCE = 0.9  # mistakes above it are counted


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """Images of one class for which another one was predicted.

    Attributes:
        label: name of their class.
        predicted: name of the predicted class.
        count: number of them, at least 1.
    """

    label: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A result in numbers.

    Attributes:
        dataset: description of the data set.
        scores: on the test images.
        accuracy: the same as a share of the test images.
        loss_interval: 95 % interval of the mean loss in all images of the kind; None of one image.
        classes: scores of each class.
        confusion_KK: int64, number of images by class (rows) and predicted class (columns).
        mix_ups: all of them, the most frequent first.
        bins: of the reliability diagram.
        test: the test images.
        predicted_N: int64, predicted classes.
        log_probs_NK: float32.
        num_parameters: of the network.
        num_trained_on: number of training images without those that validate.
        validation_accuracy: of the last epoch.
        steps: training loss and accuracy by step.
        epochs: metrics of each epoch, at least one.
        verdict: of the validation of the data.
    """

    dataset: Description
    scores: Scores
    accuracy: Rate
    loss_interval: Interval | None
    classes: tuple[ClassScore, ...]
    confusion_KK: NDArray[np.int64]
    mix_ups: tuple[MixUp, ...]
    bins: tuple[Bin, ...]
    test: Images
    predicted_N: NDArray[np.int64]
    log_probs_NK: NDArray[np.float32]
    num_parameters: int
    num_trained_on: int
    validation_accuracy: Rate
    steps: tuple[Window, ...]
    epochs: tuple[Epoch, ...]
    verdict: Verdict

    @property
    def num_wrong(self) -> int:
        """Return the number of wrong predictions."""
        return self.accuracy.num_images - self.accuracy.hits

    @property
    def num_confident_mistakes(self) -> int:
        """Return the number of wrong predictions with a confidence above `HIGH_CONFIDENCE`."""
        is_wrong_N = self.predicted_N != self.test.labels_N
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
            f"{self.num_wrong:,} wrong{note}, loss {self.scores.loss:.4f}, calibration error"
            f" {self.scores.expected_calibration_error:.2%},"
            f" validation accuracy {self.epochs[-1].val_accuracy:.2%}"
        )


def load_summary(folder: Path, *, data: Path, params: Mapping[str, Any]) -> Summary:
    """Read a result from its files.

    Args:
        folder: of the files, at their paths in a checkout.
        data: the file of the data set.
        params: of the training.

    Raises:
        InputError: a file is missing or malformed, or belongs to another result than the others.
    """
    about, test = store.describe(data), store.load(data, "test")
    predictions = read_table(folder / paths.PREDICTIONS)
    labels_N, predicted_N = (
        _labels(names_N, about) for names_N in (predictions.labels_N, predictions.predicted_N)
    )
    if not np.array_equal(labels_N, test.labels_N):
        raise _mismatch(paths.PREDICTIONS, "labels", paths.DATASET)
    log_probs_NK = read_log_probs(folder / paths.LOG_PROBS)
    if not np.array_equal(log_probs_NK.argmax(1), predicted_N):
        raise _mismatch(paths.LOG_PROBS, "predictions", paths.PREDICTIONS)
    confusion_KK = scores.confusion(labels_N, predicted_N, num_classes=len(about.classes))
    mix_ups = _mix_ups(confusion_KK, about.classes)
    verdict = validation.read(folder / paths.VALIDATION)
    epochs = history.read(folder / paths.HISTORY, Epoch)
    if not epochs:
        raise InputError(str(paths.HISTORY), found="no epoch", expected="a row for each epoch")
    val_size = _count(params, "val_size", paths.PARAMS)
    return Summary(
        dataset=about,
        scores=scores.read(folder / paths.TEST_METRICS),
        accuracy=Rate(hits=int(predictions.right.sum()), num_images=predictions.num_images),
        loss_interval=_loss_interval(log_probs_NK, test),
        classes=tuple(scores.class_scores(confusion_KK, about.classes)),
        confusion_KK=confusion_KK,
        mix_ups=mix_ups,
        bins=tuple(scores.bins(scores.confidence(log_probs_NK), predictions.right)),
        test=test,
        predicted_N=predicted_N,
        log_probs_NK=log_probs_NK,
        num_parameters=_count(
            files.read_json(folder / paths.TRAINING_METRICS), "num_parameters", paths.TRAINING_METRICS
        ),
        num_trained_on=verdict.num_images["train"] - val_size,
        validation_accuracy=Rate(hits=round(epochs[-1].val_accuracy * val_size), num_images=val_size),
        steps=tuple(history.read(folder / paths.STEPS, Window)),
        epochs=tuple(epochs),
        verdict=verdict,
    )


def _count(values: Any, key: str, where: Path) -> int:
    """Return a count from a file, which may be that of another revision, with other keys."""
    count = values.get(key) if isinstance(values, dict) else None
    if not isinstance(count, int):
        raise InputError(f"{where}: {key}", found=repr(count), expected="a whole number")
    return count


def _labels(names_N: NDArray[np.str_], about: Description) -> NDArray[np.int64]:
    """Return the labels, int64 (N,), of classes by their names."""
    place = {name: label for label, name in enumerate(about.classes)}
    labels = [place.get(name) for name in names_N.tolist()]
    if None in labels:
        found = f"the class {names_N[labels.index(None)]}"
        raise InputError(str(paths.PREDICTIONS), found=found, expected=f"one of {', '.join(about.classes)}")
    return np.array(labels, np.int64)


def _mismatch(file: Path, what: str, than: Path) -> InputError:
    return InputError(str(file), found=f"other {what} than in {than}", expected="one result: run `dvc repro`")


def _loss_interval(log_probs_NK: NDArray[np.float32], test: Images) -> Interval | None:
    loss_N = -log_probs_NK.astype(np.float64)[np.arange(len(test)), test.labels_N]
    if len(loss_N) == 1:
        return None
    mean, half = float(loss_N.mean()), Z * float(loss_N.std(ddof=1)) / sqrt(len(loss_N))
    return max(mean - half, 0.0), mean + half


def _mix_ups(counts_KK: NDArray[np.int64], names: tuple[str, ...]) -> tuple[MixUp, ...]:
    found = [
        MixUp(label=names[label], predicted=names[predicted], count=int(counts_KK[label, predicted]))
        for label, predicted in zip(*np.nonzero(counts_KK), strict=True)
        if label != predicted
    ]
    return tuple(sorted(found, key=lambda mix_up: -mix_up.count))
