"""What there is to say of a result, in numbers: for its report and for its model card.

Shape suffixes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.data import store, validation
from mnist.data.store import Description, Images
from mnist.data.validation import Verdict
from mnist.evaluation import scores, statistics
from mnist.evaluation.scores import Bin, Scores
from mnist.training import history
from mnist.training.history import Epoch, Window

CONFIDENCE = 0.95  # of all intervals
MNIST = Description(name="mnist", title="MNIST", classes=tuple("0123456789"))
SURE = 0.9  # confidence, above which a mistake is worth a warning
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of images.

    Attributes:
        hits: that count.
        num_images: of all.
    """

    hits: int
    num_images: int

    @property
    def share(self) -> float | None:
        """From 0 to 1; None of no images."""
        return self.hits / self.num_images if self.num_images else None

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the share in all images of the kind; None of no images.

        Wilson's score interval (Journal of the American Statistical Association 22:209-212, 1927),
        which Brown, Cai and DasGupta recommend (Statistical Science 16:101-133, 2001): it stays
        within 0 to 1, and has a width where all or none of the images count.
        """
        n = self.num_images
        if n == 0:
            return None
        p = self.hits / n
        middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        # At either end one limit is 0 or 1, up to the rounding.
        low = 0.0 if self.hits == 0 else middle - half
        return low, 1.0 if self.hits == n else middle + half


@dataclass(frozen=True, kw_only=True)
class MixUp:
    """Images of one class that were taken for another one.

    Attributes:
        label: name of the class that they are of.
        predicted: name of the class that they were taken for.
        count: how many, at least 1.
    """

    label: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class is told from the others.

    Attributes:
        name: of the class.
        recall: share of its images that were taken for it.
        precision: share of the images that were taken for it that are of it.
        f1: the harmonic mean of both; None where the class has no images and nothing was taken for it.
        worst: what its images are taken for most often; None where all are right.
    """

    name: str
    recall: Rate
    precision: Rate
    f1: float | None
    worst: MixUp | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A result in numbers.

    Attributes:
        dataset: what the data set is.
        scores: on the test images.
        accuracy: the same, as a share of the test images.
        loss_interval: the 95 % interval of the mean loss in all images of the kind, mean ± z sd / sqrt(N);
            None without log-probabilities or of one image.
        classes: each class.
        confusion_KK: int64, images by label (rows) and by what was predicted (columns).
        mix_ups: all of them, the commonest first.
        bins: of the reliability diagram; empty without log-probabilities.
        test: the test images.
        predicted_N: int64, what was predicted.
        log_probs_NK: float32; None in results of before they were kept.
        num_parameters: of the network; None where its training did not count them.
        num_trained_on: training images without those that validate; None where the params do not tell.
        validation_accuracy: of the last epoch.
        steps: the curves of the training.
        epochs: the same by epoch, at least one.
        verdict: on the data.
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
    log_probs_NK: NDArray[np.float32] | None
    num_parameters: int | None
    num_trained_on: int | None
    validation_accuracy: Rate | None
    steps: tuple[Window, ...]
    epochs: tuple[Epoch, ...]
    verdict: Verdict

    @property
    def num_wrong(self) -> int:
        """Test images that are taken for another class than theirs."""
        return self.accuracy.num_images - self.accuracy.hits

    @property
    def num_sure_mistakes(self) -> int | None:
        """Of these, those with a confidence above `SURE`; None without log-probabilities."""
        if self.log_probs_NK is None:
            return None
        is_wrong_N = self.predicted_N != self.test.labels_N
        return int((is_wrong_N & (scores.confidence(self.log_probs_NK) > SURE)).sum())

    @property
    def headline(self) -> str:
        """How good it is, in a line."""
        assert self.accuracy.interval  # of no test images nobody gets here
        low, high = self.accuracy.interval
        return (
            f"accuracy {self.scores.accuracy:.2%} on {self.accuracy.num_images:,} test images of"
            f" {self.dataset.title}, 95 % interval {low:.2%} to {high:.2%}"
        )

    @property
    def details(self) -> str:
        """What else tells how good it is, in a line."""
        sure = self.num_sure_mistakes
        return ", ".join(
            [
                f"{self.num_wrong:,} wrong" + (f" ({sure:,} surer than {SURE:.0%})" if sure else ""),
                f"loss {self.scores.loss:.4f}",
                f"calibration error {self.scores.expected_calibration_error:.2%}",
                f"validation accuracy {self.epochs[-1].val_accuracy:.2%}",
            ]
        )


def gather(folder: Path, *, data: Path, params: Mapping[str, Any]) -> Summary:
    """Read a result.

    Args:
        folder: that holds its files, at their paths in a checkout.
        data: the file of its data set.
        params: of its training.

    Raises:
        InputError: a file is missing or broken, or is not of the same result as the others.
    """
    about, test = _about(data), store.load(data, "test")
    said = statistics.read(folder / paths.PREDICTIONS)
    labels_N, predicted_N = (_labels(names_N, about) for names_N in (said.labels_N, said.predicted_N))
    if not np.array_equal(labels_N, test.labels_N):
        raise _other(paths.PREDICTIONS, "labels", paths.DATASET)
    log_probs_NK = None
    if (folder / paths.LOG_PROBS).is_file():
        log_probs_NK = scores.read_log_probs(folder / paths.LOG_PROBS)
        if not np.array_equal(log_probs_NK.argmax(1), predicted_N):
            raise _other(paths.LOG_PROBS, "predictions", paths.PREDICTIONS)
    confusion_KK = scores.confusion(labels_N, predicted_N, num_classes=len(about.classes))
    trained, checked = (
        files.read_json(folder / paths.TRAINING_METRICS),
        validation.read(folder / paths.VALIDATION),
    )
    epochs = history.read(folder / paths.HISTORY, Epoch)
    if not epochs:
        raise InputError(str(paths.HISTORY), found="no epoch", expected="a row for each epoch")
    val_size = params.get("val_size")
    return Summary(
        dataset=about,
        scores=scores.read(folder / paths.TEST_METRICS),
        accuracy=Rate(hits=int(said.right.sum()), num_images=said.num_images),
        loss_interval=None if log_probs_NK is None else _loss_interval(log_probs_NK, test),
        classes=_class_scores(confusion_KK, about.classes),
        confusion_KK=confusion_KK,
        mix_ups=_mix_ups(confusion_KK, about.classes),
        bins=() if log_probs_NK is None else tuple(scores.bins(scores.confidence(log_probs_NK), said.right)),
        test=test,
        predicted_N=predicted_N,
        log_probs_NK=log_probs_NK,
        num_parameters=trained.get("num_parameters"),
        num_trained_on=None if val_size is None else checked.num_images["train"] - val_size,
        validation_accuracy=None
        if val_size is None
        else Rate(hits=round(epochs[-1].val_accuracy * val_size), num_images=val_size),
        steps=tuple(history.read(folder / paths.STEPS, Window)),
        epochs=tuple(epochs),
        verdict=checked,
    )


def _about(data: Path) -> Description:
    """What the data set of a file is; one that does not say is of before there was another than MNIST."""
    try:
        return store.describe(data)
    except InputError:  # a broken one fails to load
        return MNIST


def _labels(names_N: NDArray[np.str_], about: Description) -> NDArray[np.int64]:
    """The labels, int64 (N,), of classes by their names."""
    place = {name: label for label, name in enumerate(about.classes)}
    labels = [place.get(name) for name in names_N.tolist()]
    if None in labels:
        found = f"the class {names_N[labels.index(None)]}"
        raise InputError(str(paths.PREDICTIONS), found=found, expected=f"one of {', '.join(about.classes)}")
    return np.array(labels, np.int64)


def _other(file: Path, what: str, than: Path) -> InputError:
    return InputError(str(file), found=f"other {what} than in {than}", expected="one result: run `dvc repro`")


def _loss_interval(log_probs_NK: NDArray[np.float32], test: Images) -> Interval | None:
    num_images = len(test)
    if num_images == 1:
        return None
    loss_N = -log_probs_NK.astype(np.float64)[np.arange(num_images), test.labels_N]
    mean, half = float(loss_N.mean()), Z * float(loss_N.std(ddof=1)) / sqrt(num_images)
    return max(mean - half, 0.0), mean + half


def _mix_ups(counts_KK: NDArray[np.int64], names: tuple[str, ...]) -> tuple[MixUp, ...]:
    found = [
        MixUp(label=names[label], predicted=names[predicted], count=int(counts_KK[label, predicted]))
        for label, predicted in zip(*np.nonzero(counts_KK), strict=True)
        if label != predicted
    ]
    return tuple(sorted(found, key=lambda mix_up: -mix_up.count))


def _class_scores(counts_KK: NDArray[np.int64], names: tuple[str, ...]) -> tuple[ClassScore, ...]:
    worst: dict[str, MixUp] = {}
    for mix_up in _mix_ups(counts_KK, names):
        worst.setdefault(mix_up.label, mix_up)
    scores = []
    for number, name in enumerate(names):
        hits = int(counts_KK[number, number])
        num_images, num_predicted = int(counts_KK[number].sum()), int(counts_KK[:, number].sum())
        scores.append(
            ClassScore(
                name=name,
                recall=Rate(hits=hits, num_images=num_images),
                precision=Rate(hits=hits, num_images=num_predicted),
                f1=2 * hits / (num_images + num_predicted) if num_images + num_predicted else None,
                worst=worst.get(name),
            )
        )
    return tuple(scores)
