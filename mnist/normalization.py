"""The mean and standard deviation by which images are normalized."""

from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from mnist import files, params
from mnist.dataset import Bytes
from mnist.errors import InputError
from mnist.params import Count, Fraction, Section


class Stats(Section):
    """Of all pixels of some images, black 0 to white 1.

    Attributes:
        mean: 0 to 1.
        std: population standard deviation, above 0.
        num_images: that were counted.
    """

    mean: Fraction
    std: Annotated[float, Field(gt=0, le=1)]
    num_images: Count


def measure(images_NHW: Bytes) -> Stats:
    """Exact statistics of uint8 images: sums of whole numbers, divided once, in float64.

    Raises:
        InputError: there is no image, or all pixels are equal, so that nothing can be normalized.
    """
    counts = np.bincount(images_NHW.reshape(-1), minlength=256).tolist()
    num_pixels = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    variance_times_n2 = num_pixels * squares - total * total  # a Python integer, so nothing cancels
    if variance_times_n2 == 0:
        raise InputError("training images", found="pixels that are all alike", expected="pictures")
    return Stats(
        mean=total / (255 * num_pixels),
        std=sqrt(variance_times_n2) / (255 * num_pixels),
        num_images=len(images_NHW),
    )


def write(path: Path, stats: Stats) -> None:
    """Write as JSON, every digit of the floats."""
    files.write_json(path, stats.model_dump())


def read(path: Path) -> Stats:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    return params.check(Stats, files.read_json(path), str(path))
