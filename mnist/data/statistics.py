"""The mean and standard deviation by which images are normalized."""

from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from mnist.core import config, files
from mnist.core.config import Count, Fraction, Section
from mnist.core.errors import InputError
from mnist.data.store import Bytes


class Stats(Section):
    """Statistics of all pixels of some images, black 0 to white 1.

    Attributes:
        mean: 0 to 1.
        std: population standard deviation, above 0.
        num_images: that were counted.
    """

    mean: Fraction
    std: Annotated[float, Field(gt=0, le=1)]
    num_images: Count


def measure(images_NHW: Bytes) -> Stats:
    """Return exact statistics of uint8 images: sums of whole numbers, divided once, in float64.

    Raises:
        InputError: there is no image, or all pixels are equal, so that nothing can be normalized.
    """
    num_pixels, total = images_NHW.size, int(images_NHW.sum(dtype=np.int64))
    squares = int(np.square(images_NHW, dtype=np.uint16).sum(dtype=np.int64))
    variance_times_n2 = num_pixels * squares - total * total  # a Python integer, so nothing cancels
    if variance_times_n2 == 0:
        raise InputError("training images", found="pixels that are all alike", expected="pictures")
    return Stats(
        mean=total / (255 * num_pixels),
        std=sqrt(variance_times_n2) / (255 * num_pixels),
        num_images=len(images_NHW),
    )


def read(path: Path) -> Stats:
    """Read the statistics that the stage `stats` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    return config.check(Stats, files.read_json(path), str(path))
