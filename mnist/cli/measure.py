"""Print a section of datasets.yaml for four archives in a folder: checksums, and bounds of what they hold.

    python -m mnist.cli.measure shapes ../my-data/shapes --classes square,cross,ring >> datasets.yaml

The bounds have some room around what was measured, so these archives keep them. Whether that is what
the data should be is for you to say: read them, and write down where they come from.
"""

import argparse
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist.core import config, files, paths, process
from mnist.core.config import Subject
from mnist.core.errors import InputError
from mnist.data import catalog, download, image_table
from mnist.data.download import Archive
from mnist.data.image_table import Rows
from mnist.data.store import Images

ROOM = 0.1  # around what was measured, as a share of it
DIGITS = 3  # of a bound, that count

# In the order of datasets.yaml: the bounds of what a column holds, image by image.
COLUMNS = {
    "class_share": ("class_share", "of each class in its split"),
    "image_mean": ("mean", "of one image's pixels"),
    "darkest": ("darkest", "pixel of one image"),
    "brightest": ("brightest", "pixel of one image"),
    "ink": ("ink", "share of one image that is not black"),
}


def section(name: str, folder: Path, *, title: str, classes: Sequence[str]) -> str:
    """What datasets.yaml should say of the archives in a folder, with a comment at each bound.

    Args:
        name: of the data set.
        folder: with the four archives, under MNIST's names.
        title: for people.
        classes: the names of the classes, by label; none for the labels themselves.

    Raises:
        InputError: an archive is missing or broken, or holds a label without a class, or what is
            given can be in no such section.
    """
    config.check(Subject, {"dataset": name}, "the name")
    checksums, train, test = _read(folder)
    num_labels = 1 + int(max(images.labels_N.max(initial=0) for images in (train, test)))
    names = list(classes) or [str(label) for label in range(num_labels)]
    if num_labels > len(names):
        found = f"{len(names)} names, and a label {num_labels - 1}"
        raise InputError("--classes", found=found, expected=f"{num_labels}: labels count from 0")
    validation, comments = _bounds(image_table.rows("train", train), image_table.rows("test", test))
    known = {"title": title or name, "classes": names, "mirrors": [], "checksums": checksums}
    config.check(catalog.DataSet, {**known, "validation": validation}, name)
    # JSON is YAML, too.
    lines = [f"\n{name}:", *(f"  {key}: {json.dumps(known[key])}" for key in ("title", "classes", "mirrors"))]
    lines.append("  checksums:")
    for archive, sums in checksums.items():
        lines += [f"    {archive}:", *(f"      {kind}: {digest}" for kind, digest in sums.items())]
    lines.append("  validation:")
    for key, bound in validation.items():
        shown = f"{{min: {bound['min']}, max: {bound['max']}}}" if isinstance(bound, dict) else bound
        lines.append(f"    {f'{key}: {shown}':<38} # {comments[key]}")
    return "\n".join(lines) + "\n"


def _read(folder: Path) -> tuple[dict[str, dict[str, str]], Images, Images]:
    """The checksums of the archives, and the training and test images in them."""
    checksums, archives = dict[str, dict[str, str]](), dict[str, Archive]()
    with tempfile.TemporaryDirectory() as copies:  # the folder may be one that nobody may write to
        for name in catalog.ARCHIVES:
            source, copy = folder / name, Path(copies) / name
            try:
                shutil.copyfile(source, copy)
            except FileNotFoundError:
                raise InputError(str(source), found="no such file", expected="an archive") from None
            md5 = hashlib.md5(copy.read_bytes(), usedforsecurity=False).hexdigest()
            checksums[name] = {"md5": md5, "sha256": files.sha256(copy)}
            archives[name] = Archive(path=copy, origin=str(folder))
        return checksums, *download.read(archives)


def _bounds(train: Rows, test: Rows) -> tuple[dict[str, Any], dict[str, str]]:
    """Bounds with room around what both splits hold, and what to say of each."""
    if not len(train.index) or not len(test.index):
        raise InputError("the archives", found="a split without images", expected="images in both")
    alike = image_table.first_alike(np.concatenate([train.digest, test.digest]))
    in_both = int((alike[len(train.index) :] < len(train.index)).sum())
    duplicates = [int(rows.repeats.sum()) for rows in (train, test)]
    means = [float(rows.mean.mean()) for rows in (train, test)]
    bounds: dict[str, Any] = {"num_train": len(train.index), "num_test": len(test.index)}
    comments = dict.fromkeys(bounds, "images; counted")
    for key, (column, text) in COLUMNS.items():
        values = np.concatenate([getattr(train, column), getattr(test, column)])
        low, high = float(values.min()), float(values.max())
        bounds[key] = {"min": _down(low), "max": _up(high)}
        comments[key] = f"{text}; measured {low:.3g} to {high:.3g}"
        if key == "class_share":
            bounds["mean"] = {"min": _down(min(means)), "max": _up(max(means))}
            comments["mean"] = f"of all pixels of a split; measured {means[0]:.4f} and {means[1]:.4f}"
    bounds |= {"max_duplicates": max(duplicates), "max_in_both": in_both}
    comments["max_duplicates"] = f"images equal to an earlier one of their split; found {max(duplicates)}"
    comments["max_in_both"] = f"test images that are training images too; found {in_both}"
    return bounds, comments


def _down(value: float) -> float:
    return _rounded((1 - ROOM) * value, math.floor)


def _up(value: float) -> float:
    return min(1.0, _rounded((1 + ROOM) * value, math.ceil))


def _rounded(value: float, towards: Any) -> float:
    """To the digits that count, down or up."""
    if value == 0:
        return 0.0
    scale = 10 ** (DIGITS - 1 - math.floor(math.log10(value)))
    return float(
        towards(round(value * scale, 6)) / scale
    )  # 0.1 and a tenth of it are a little more than 0.11


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the section; exits with 1 and one line where there can be none."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.measure", description="Print a section of datasets.yaml."
    )
    parser.add_argument("name", help="of the data set, for `dataset` in params.yaml")
    parser.add_argument("folder", type=Path, help="with the four archives, under MNIST's names")
    parser.add_argument("--title", default="", help="its name for people (default: its name)")
    parser.add_argument(
        "--classes", default="", help="names by label: square,cross,ring (default: the labels)"
    )
    options = parser.parse_args(arguments)
    with process.reported():
        if options.name in (config.read(paths.DATASETS, expected="data sets by name") or {}):
            found = f"a section {options.name} already"
            raise InputError(str(paths.DATASETS), found=found, expected="a new name")
        classes = [one.strip() for one in options.classes.split(",")] if options.classes else []
        print(section(options.name, options.folder, title=options.title, classes=classes), end="")


if __name__ == "__main__":
    main()
