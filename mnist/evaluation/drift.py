"""Drift: do some images, and a model's answers to them, differ from the test images and its answers there?

Each measure is compared by a two-sample test, and the p-values are corrected for their number, as Rabanser,
Günnemann and Lipton do for images and classifiers (NeurIPS 2019, https://arxiv.org/abs/1810.11953). Given
enough images, a test finds differences that matter to nobody, such as those between MNIST's training and test
images. So a difference must reach `MIN_DIFFERENCE`, too.

Shape suffixes: N images, M other images, H rows, W columns, K classes.
"""

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from mnist.core.config import Section
from mnist.data import statistics as data
from mnist.data.store import Bytes
from mnist.evaluation import statistics

if TYPE_CHECKING:
    from mnist.training.onnx_model import OnnxModel

# Of the share of images on one side of a limit, or of a class. MNIST's training images differ from its test
# images by 0.02, the first half of these (other writers) from the second by 0.21. It is a choice; Evidently
# takes 0.1, too, for the distances that it uses for large samples.
MIN_DIFFERENCE = 0.1
PREDICTED = "predicted"  # the one measure that is a class

Measures = dict[str, NDArray[Any]]  # (N,) each


class Comparison(Section):
    """One measure of the test images and of others.

    Attributes:
        measure: its name; with the class that changed most, where it is a class.
        test: its mean over the test images; of a class, its share.
        found: the same of the other images.
        difference: largest difference of a share of the images, 0 to 1.
        p_value: adjusted for the number of measures.
        drifted: whether the p-value is below alpha, and the difference reaches `MIN_DIFFERENCE`.
    """

    measure: str
    test: float
    found: float
    difference: float
    p_value: float
    drifted: bool


def measure(classifier: "OnnxModel", images_NHW: Bytes) -> Measures:
    """Measure some images, uint8 (N, 28, 28), and the answers of a classifier."""
    probabilities_NK = classifier.predict(images_NHW)
    predicted_N = np.array(classifier.about.classes)[probabilities_NK.argmax(1)]
    return {**data.of_images(images_NHW), "confidence": probabilities_NK.max(1), PREDICTED: predicted_N}


def compare(test: Measures, found: Measures, *, alpha: float) -> list[Comparison]:
    """Compare the measures of M test images with those of N others, both at least 1.

    Of images of one kind, the chance that any comparison is `drifted` is at most `alpha`.
    """
    tests = {
        name: (chi_square if name == PREDICTED else kolmogorov_smirnov)(test[name], found[name])
        for name in test
    }
    p_values = statistics.holm({name: p_value for name, (_, p_value) in tests.items()})
    return [
        Comparison(
            **_shown(name, test[name], found[name]),
            difference=difference,
            p_value=p_values[name],
            drifted=p_values[name] < alpha and difference >= MIN_DIFFERENCE,
        )
        for name, (difference, _) in tests.items()
    ]


def table(compared: Sequence[Comparison]) -> str:
    """Return the comparisons as a table for a terminal."""
    headers = ("measure", "test images", "these", "difference", "p, corrected", "drift")
    rows = [{**one.model_dump(), "drifted": "yes" if one.drifted else "no"}.values() for one in compared]
    return tabulate(rows, headers, tablefmt="plain", floatfmt=("", ".3f", ".3f", ".3f", ".2g"))


def _shown(name: str, test_M: NDArray[Any], found_N: NDArray[Any]) -> dict[str, Any]:
    """Return what stands for a measure in a table."""
    if name != PREDICTED:
        return {"measure": name, "test": float(test_M.mean()), "found": float(found_N.mean())}
    classes, test_K, found_K = _shares(test_M, found_N)
    most = int(np.abs(test_K - found_K).argmax())
    return {"measure": f"{name} {classes[most]}", "test": float(test_K[most]), "found": float(found_K[most])}


def smallest(num_test: int, num_found: int, *, num_measures: int, alpha: float) -> float:
    """Return the smallest difference of a number that counts among so many images."""
    from scipy.special import kolmogi  # type: ignore[import-untyped]

    by_chance = float(kolmogi(alpha / num_measures)) / sqrt(_effective(num_test, num_found))
    return max(MIN_DIFFERENCE, min(1.0, by_chance))


def kolmogorov_smirnov(test_M: NDArray[Any], found_N: NDArray[Any]) -> tuple[float, float]:
    """Compare two samples of a number by the two-sample test of Kolmogorov and Smirnov.

    Returns:
        The largest difference between their shares of numbers up to some limit, and the p-value for large
        samples (Smirnov, Annals of Mathematical Statistics 19:279-281, 1948). For small samples, and where
        many numbers are equal, it is mostly larger than the exact one: on the safe side.
    """
    from scipy.special import kolmogorov  # scipy.stats takes a second to import

    limits = np.concatenate([test_M, found_N])
    test, found = (
        np.searchsorted(np.sort(sample), limits, side="right") / len(sample) for sample in (test_M, found_N)
    )
    difference = float(np.abs(test - found).max())
    return difference, float(kolmogorov(sqrt(_effective(len(test_M), len(found_N))) * difference))


def chi_square(test_M: NDArray[Any], found_N: NDArray[Any]) -> tuple[float, float]:
    """Compare two samples of classes by Pearson's chi-square test of homogeneity.

    Returns:
        The largest difference between their shares of any set of classes (the total variation distance),
        and the p-value.
    """
    from scipy.special import chdtrc

    classes, test_K, found_K = _shares(test_M, found_N)
    if len(classes) == 1:
        return 0.0, 1.0
    num_test, num_found = len(test_M), len(found_N)
    both_K = (num_test * test_K + num_found * found_K) / (num_test + num_found)
    statistic = _effective(num_test, num_found) * ((test_K - found_K) ** 2 / both_K).sum()
    return float(np.abs(test_K - found_K).sum() / 2), float(chdtrc(len(classes) - 1, statistic))


def _shares(
    test_M: NDArray[Any], found_N: NDArray[Any]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Return the classes in two samples, and the share of each class in each sample, float64 (K,)."""
    classes, index = np.unique(np.concatenate([test_M, found_N]), return_inverse=True)
    parts = index[: len(test_M)], index[len(test_M) :]
    test_K, found_K = (np.bincount(part, minlength=len(classes)) / len(part) for part in parts)
    return classes.tolist(), test_K, found_K


def _effective(num_test: int, num_found: int) -> float:
    """Return the number of images in one sample of which a mean varies as the difference of two."""
    return num_test * num_found / (num_test + num_found)
