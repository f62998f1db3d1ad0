"""The predictions for the test images: their files, and the comparison of two classifiers.

Shape suffixes: N images, K classes.
"""

import csv
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data.store import Bytes
from mnist.data.validation import MAX_NAMED
from mnist.evaluation.statistics import Paired

COLUMNS = ["index", "label", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of one classifier for N test images, N at least 1.

    Attributes:
        labels_N: str (N,), names of the classes of the images.
        predicted_N: str (N,), names of the predicted classes.
    """

    labels_N: NDArray[np.str_]
    predicted_N: NDArray[np.str_]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return whether each prediction is right, bool (N,)."""
        return np.equal(self.predicted_N, self.labels_N)

    @property
    def num_images(self) -> int:
        """Return the number of images, N."""
        return len(self.labels_N)

    @property
    def accuracy(self) -> float:
        """Return the share of right predictions, 0 to 1."""
        return int(self.right.sum()) / self.num_images

    @property
    def warning(self) -> str:
        """Return a line that names the classes that are hardly recognised; empty where there are none.

        Their recall is below half of the accuracy, which does not show how rare classes fare.
        """
        names, class_N = np.unique(self.labels_N, return_inverse=True)
        counts = zip(names.tolist(), np.bincount(class_N), np.bincount(class_N, self.right), strict=True)
        weak = sorted((hits / num, name, num) for name, num, hits in counts if hits / num < self.accuracy / 2)
        shown = [f"{name} ({recall * num:.0f} of {num:,} images)" for recall, name, num in weak]
        return f"{len(weak)} classes are hardly recognised: {', '.join(shown[:MAX_NAMED])}" if weak else ""


def compare(base: Predictions, other: Predictions) -> Paired:
    """Compare `other` with `base`; both must be of the same images in the same order."""
    assert np.array_equal(base.labels_N, other.labels_N)
    return _paired(base.right, other.right)


def by_class(base: Predictions, other: Predictions) -> dict[str, Paired]:
    """Compare `other` with `base` on the images of each class, by name: the changes of recall.

    Both must be of the same images in the same order. To look for a class that changed, adjust the
    p-values by `statistics.holm` first; each interval is of one class, and is not widened for the number
    of classes. Numbers come first, in their order.
    """
    assert np.array_equal(base.labels_N, other.labels_N)
    names = sorted(
        np.unique(base.labels_N).tolist(),
        key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name),
    )
    of_class = {name: base.labels_N == name for name in names}
    return {name: _paired(base.right[of_N], other.right[of_N]) for name, of_N in of_class.items()}


def _paired(base_N: NDArray[np.bool_], other_N: NDArray[np.bool_]) -> Paired:
    """Count the images, bool (N,) whether each classifier is right."""
    fixed, broken = int((other_N & ~base_N).sum()), int((base_N & ~other_N).sum())
    return Paired(num_images=len(base_N), fixed=fixed, broken=broken)


def write_table(
    path: Path, *, labels_N: Bytes, predicted_N: NDArray[np.int64], classes: Sequence[str]
) -> Predictions:
    """Write a row for each image: its position in the split, the names of its class and the predicted one."""
    names_K = np.array(classes)
    named = Predictions(labels_N=names_K[labels_N], predicted_N=names_K[predicted_N])
    columns = range(named.num_images), named.labels_N.tolist(), named.predicted_N.tolist()
    files.write_text(path, files.csv_text(COLUMNS, zip(*columns, strict=True)))
    return named


def read_table(path: Path) -> Predictions:
    """Read the table that `write_table` wrote.

    Raises:
        InputError: the file cannot be read or is malformed; the line is named.
    """
    with files.reading(path):
        return parse_table(path.read_text(encoding="utf-8"), str(path))


def parse_table(text: str, where: str) -> Predictions:
    """Parse the text of that table; `where` names its source in an error.

    Raises:
        InputError: as `read_table`.
    """
    table, names = csv.reader(text.splitlines() or [""], strict=True), list[list[str]]()

    def fault(found: str, expected: str) -> InputError:
        return InputError(f"{where}, line {table.line_num}", found=reprlib.repr(found), expected=expected)

    try:
        if (header := next(table)) != COLUMNS:
            raise fault(",".join(header), ",".join(COLUMNS))
        for row in table:
            if len(row) != len(COLUMNS) or row[0] != str(len(names)) or not all(row):
                raise fault(",".join(row), f"{len(names)},class,class")
            names.append(row[1:])
    except csv.Error as error:
        raise fault(str(error), "a table in CSV") from None
    if not names:
        raise InputError(where, found="no predictions", expected="a line for each test image")
    labels_N, predicted_N = np.array(names).T
    return Predictions(labels_N=labels_N, predicted_N=predicted_N)


def write_log_probs(path: Path, log_probs_NK: NDArray[np.float32]) -> None:
    """Write the log-probabilities of all test images, float32 (N, K), in the order of the split."""
    with files.replacing(path) as part:
        save_file({"log_probs": log_probs_NK}, part)


def read_log_probs(path: Path) -> NDArray[np.float32]:
    """Read the log-probabilities that `evaluate` wrote, float32 (N, K).

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    try:
        with files.reading(path):
            log_probs_NK = load_file(path)["log_probs"]
    except (SafetensorError, KeyError) as error:
        raise InputError(str(path), found=f"{error}", expected="what `evaluate` writes") from None
    check_log_probs(log_probs_NK, path)
    return log_probs_NK


def check_log_probs(log_probs_NK: NDArray[np.float32], path: Path) -> None:
    """Check log-probabilities that come from a file.

    Raises:
        InputError: they are not float32 (N, K), all finite; `path` names the file.
    """
    num_bad = int((~np.isfinite(log_probs_NK)).sum())
    if log_probs_NK.dtype != np.float32 or log_probs_NK.ndim != 2 or num_bad:  # noqa: PLR2004
        found = f"log-probabilities {log_probs_NK.dtype} {log_probs_NK.shape}, {num_bad:,} of them not finite"
        raise InputError(str(path), found=found, expected="finite ones, float32 (N, K): run `dvc repro`")
