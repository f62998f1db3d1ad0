"""The file in `datasets/` for four archives: their checksums, and bounds around what they hold."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist.core import config, files
from mnist.core.config import DatasetParams
from mnist.core.errors import InputError
from mnist.data import catalog, download, image_table
from mnist.data.image_table import Rows
from mnist.data.store import Images

MARGIN = 0.1  # around a measured value, as a share of it
DIGITS = 3  # significant digits of a bound

# By key: a column of the table of images, and the comment of the bound.
COLUMNS = {
    "class_share": ("class_share", "of each class in its split"),
    "image_mean": ("mean", "of one image's pixels"),
    "darkest": ("darkest", "pixel of one image"),
    "brightest": ("brightest", "pixel of one image"),
    "ink": ("ink", "share of one image that is not black"),
}


def measure(name: str, folder: Path, *, title: str, classes: Sequence[str]) -> str:
    """Return the text of `datasets/<name>.yaml` for the archives in a folder.

    Args:
        name: of the data set.
        folder: with the four archives, under MNIST's names.
        title: for people; empty for the name.
        classes: the names of the classes, by label; none for the labels themselves.

    Raises:
        InputError: an archive is missing or broken, a label has no class, or a value is not valid in
            such a file.
    """
    config.check(DatasetParams, {"dataset": name}, "the name")
    checksums, train, test = _read(folder)
    num_labels = 1 + int(max(images.labels_N.max(initial=0) for images in (train, test)))
    names = list(classes) or [str(label) for label in range(num_labels)]
    if num_labels > len(names):
        found = f"{len(names)} names, and a label {num_labels - 1}"
        raise InputError("--classes", found=found, expected=f"{num_labels}: labels count from 0")
    validation, comments = _bounds(image_table.rows("train", train), image_table.rows("test", test))
    known = {"title": title or name, "classes": names, "mirrors": [], "checksums": checksums}
    config.check(catalog.DataSet, {**known, "validation": validation}, name)
    lines = [f"{key}: {json.dumps(known[key])}" for key in ("title", "classes", "mirrors")]  # JSON is YAML
    lines.append("checksums:")
    for archive, sums in checksums.items():
        lines += [f"  {archive}:", *(f"    {kind}: {digest}" for kind, digest in sums.items())]
    lines.append("validation:")
    for key, bound in validation.items():
        shown = f"{{min: {bound['min']}, max: {bound['max']}}}" if isinstance(bound, dict) else bound
        lines.append(f"  {f'{key}: {shown}':<38} # {comments[key]}")
    return "\n".join(lines) + "\n"


def _read(folder: Path) -> tuple[dict[str, dict[str, str]], Images, Images]:
    """Return the checksums of the archives, and the training and test images in them."""
    archives: dict[str, Path] = {name: folder / name for name in catalog.ARCHIVES}
    checksums = {}
    for name, path in archives.items():
        if not path.is_file():
            raise InputError(str(path), found="no such file", expected="an archive")
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        checksums[name] = {"md5": md5, "sha256": files.sha256(path)}
    return checksums, *download.read(archives)


def _bounds(train: Rows, test: Rows) -> tuple[dict[str, Any], dict[str, str]]:
    """Return bounds with a margin around the values of both splits, and a comment for each."""
    if not len(train.index) or not len(test.index):
        raise InputError("the archives", found="a split without images", expected="images in both")
    alike = image_table.first_alike(np.concatenate([train.digest, test.digest]))
    in_both = int((alike[len(train.index) :] < len(train.index)).sum())
    duplicates = max(int(rows.repeats.sum()) for rows in (train, test))
    means = [float(rows.mean.mean()) for rows in (train, test)]
    bounds: dict[str, Any] = {"num_train": len(train.index), "num_test": len(test.index)}
    comments = dict.fromkeys(bounds, "images; counted")
    for key, (column, text) in COLUMNS.items():
        values = np.concatenate([getattr(train, column), getattr(test, column)])
        low, high = float(values.min()), float(values.max())
        bounds[key] = {"min": lower(low), "max": upper(high)}
        comments[key] = f"{text}; measured {low:.3g} to {high:.3g}"
        if key == "class_share":
            bounds["mean"] = {"min": lower(min(means)), "max": upper(max(means))}
            comments["mean"] = f"of all pixels of a split; measured {means[0]:.4f} and {means[1]:.4f}"
    bounds |= {"max_duplicates": duplicates, "max_in_both": in_both}
    comments["max_duplicates"] = f"images equal to an earlier one of their split; found {duplicates}"
    comments["max_in_both"] = f"test images that are training images too; found {in_both}"
    return bounds, comments


def lower(value: float) -> float:
    """Return a bound a margin below a measured value."""
    return _round((1 - MARGIN) * value, math.floor)


def upper(value: float) -> float:
    """Return a bound a margin above a measured value, at most 1."""
    return min(1.0, _round((1 + MARGIN) * value, math.ceil))


def _round(value: float, towards: Callable[[float], int]) -> float:
    """Round to the significant digits, down or up."""
    if value == 0:
        return 0.0
    scale: float = 10 ** (DIGITS - 1 - math.floor(math.log10(value)))
    # 0.1 and a tenth of it are a little more than 0.11 in binary.
    return float(towards(round(value * scale, 6)) / scale)
