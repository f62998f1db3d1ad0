"""The data set as a table with one row an image: what is expected of it, and measured for a new data set."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnist.core import config, files
from mnist.core.config import DatasetParams
from mnist.core.errors import InputError
from mnist.data import catalog, download, statistics
from mnist.data.store import Images, SplitName

RECIPE = "docs/own-data.md makes them of arrays (.npy) or folders of pictures"
MARGIN = 0.1  # of a bound around a measured value, as a share of it

# The bounds of a data set's file that are intervals, with their comments there.
INTERVALS = {
    "class_share": "of each class in its split",
    "mean": "of all pixels of a split",
    "image_mean": "of one image's pixels",
    "darkest": "pixel of one image",
    "brightest": "pixel of one image",
    "ink": "share of one image that is not black",
}


def table(train: Images, test: Images) -> pd.DataFrame:
    """Return a row for each image, the training images first; there may be none.

    Columns:
        split: its name.
        index: position within its split.
        label: its class.
        class_share: share of the split that has this label.
        pixel_type: of its pixels, in words.
        darkest, brightest, image_mean: of its pixels, black 0 to white 1.
        ink: share of its pixels that are not black.
        digest: equal for equal pixels, and for them alone.
        repeats: 1 where an earlier image of its split is equal, else 0.
        in_both: 1 for a test image, the first of its kind, that is a training image too, else 0.
    """
    rows = pd.concat([_rows("train", train), _rows("test", test)], ignore_index=True)
    repeats = rows.duplicated(["split", "digest"])
    # Equal to an earlier image, but to none of its split: that is a training image.
    in_both = rows.duplicated("digest") & ~repeats
    return rows.assign(repeats=repeats.astype(np.int64), in_both=in_both.astype(np.int64))


def _rows(split: SplitName, images: Images) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": split,
            "index": np.arange(len(images)),
            "label": images.labels_N.astype(np.int64),
            "class_share": np.bincount(images.labels_N)[images.labels_N] / max(len(images), 1),
            "pixel_type": str(images.images_NHW.dtype),
            **statistics.of_images(images.images_NHW),
            # Sixteen bytes: by chance, two of 70,000 different images agree once in 10^29 data sets.
            "digest": [
                hashlib.blake2b(image.data, digest_size=16).hexdigest() for image in images.images_NHW
            ],
        }
    )


def measure(name: str, folder: Path, *, title: str, classes: Sequence[str]) -> str:
    """Return the text of `datasets/<name>.yaml`: checksums of four archives, and bounds around their images.

    Args:
        name: of the data set.
        folder: with the four archives, under MNIST's names.
        title: for people; empty for the name.
        classes: the names of the classes, by label; none for the labels themselves.

    Raises:
        InputError: an archive is missing or broken, a label has no class or no image, or a value is not
            valid in such a file.
    """
    config.check(DatasetParams, {"dataset": name}, "the name")
    archives: dict[str, Path] = {archive: folder / archive for archive in catalog.ARCHIVES}
    for path in archives.values():
        if not path.is_file():
            found, expected = "no such file", f"four archives: {', '.join(archives)}; {RECIPE}"
            if (plain := path.with_suffix("")).is_file():
                found, expected = f"{plain.name}, not compressed", f"run `gzip -k {plain}`"
            raise InputError(str(path), found=found, expected=expected)
    train, test = download.read(archives)
    num_labels = max(1 + int(max(images.labels_N.max(initial=0) for images in (train, test))), len(classes))
    for split, images in (("training", train), ("test", test)):
        seen = set(images.labels_N.tolist())
        if absent := set(range(num_labels)) - seen:
            found = f"none of label {min(absent)}" + (f", of {min(seen)} to {max(seen)}" if seen else "")
            expected = f"each of 0 to {num_labels - 1}: labels count from 0"
            raise InputError(f"the {split} images", found=found, expected=expected)
    names = list(classes) or [str(label) for label in range(num_labels)]
    if num_labels > len(names):
        found = f"{len(names)} names, and a label {num_labels - 1}"
        raise InputError("--classes", found=found, expected=f"{num_labels}: labels count from 0")
    lines = [
        f"title: {json.dumps(title or name, ensure_ascii=False)}",  # JSON is YAML
        f"classes: {json.dumps(names, ensure_ascii=False)}",
        "mirrors: []",
        "checksums:",
    ]
    for archive, path in archives.items():
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        lines += [f"  {archive}:", f"    md5: {md5}", f"    sha256: {files.sha256(path)}"]
    lines.append("validation:")
    lines += [f"  {f'{key}: {bound}':<38} # {comment}" for key, bound, comment in _bounds(table(train, test))]
    text = "\n".join(lines) + "\n"
    config.check(catalog.DataSet, config.parse(text, name), name)
    return text


def _bounds(rows: pd.DataFrame) -> Iterator[tuple[str, Any, str]]:
    """Yield the key, the bound and the comment of each bound around what was measured."""
    splits = rows.groupby("split")
    for split, num_images in splits.size()[["train", "test"]].items():
        yield f"num_{split}", num_images, "images; counted"
    for key, text in INTERVALS.items():
        values = splits["image_mean"].mean() if key == "mean" else rows[key]
        low, high = values.min(), values.max()
        least, most = (float(f"{end:.3g}") for end in ((1 - MARGIN) * low, min(1, (1 + MARGIN) * high)))
        yield key, f"{{min: {least}, max: {most}}}", f"{text}; measured {low:.3g} to {high:.3g}"
    yield (
        "max_duplicates",
        splits["repeats"].sum().max(),
        "images equal to an earlier one of their split; counted",
    )
    yield "max_in_both", rows["in_both"].sum(), "test images that are training images too; counted"
