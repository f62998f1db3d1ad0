"""The mean and standard deviation by which images are normalized, and measures of each image.

Shape suffixes: N images, H rows, W columns.
"""

from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mnist.core import config, files
from mnist.core.config import Count, Fraction, Section
from mnist.core.errors import InputError
from mnist.data.store import Bytes

WHITE = 255


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
        mean=total / (WHITE * num_pixels),
        std=sqrt(variance_times_n2) / (WHITE * num_pixels),
        num_images=len(images_NHW),
    )


def of_images(images_NHW: Bytes) -> dict[str, NDArray[np.float64]]:
    """Return measures of each image, float64 (N,).

    They are the `darkest` and `brightest` pixel and the mean of all, `image_mean`, black 0 to white 1; and
    `ink`, the share of pixels that are not black.
    """
    pixels = (1, 2)
    num_pixels = images_NHW.shape[1] * images_NHW.shape[2]
    return {
        "darkest": images_NHW.min(axis=pixels) / WHITE,
        "brightest": images_NHW.max(axis=pixels) / WHITE,
        # A sum of whole numbers is exact, whatever the order; a float one depends on the machine.
        "image_mean": images_NHW.sum(axis=pixels) / (num_pixels * WHITE),
        "ink": np.count_nonzero(images_NHW, axis=pixels) / num_pixels,
    }


def read(path: Path) -> Stats:
    """Read the statistics that the stage `stats` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    return config.check(Stats, files.read_json(path), str(path))
