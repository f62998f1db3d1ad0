"""The data set as a table, one row an image: what the expectations are about.

Shape suffixes: N images, P pixels of an image.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnist.dataset import Images, SplitName

NUM_PIXELS = 28 * 28
WHITE = 255


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One split, a row an image; every array is (N,).

    Attributes:
        split: the name of the split.
        index: int64, the image's position within its split.
        label: int64.
        class_share: float64, the share of the split that has this label, 0 to 1.
        pixel_type: the pixels' dtype, in words.
        darkest, brightest, mean: float64, of the image's pixels, black 0 to white 1.
        ink: float64, the share of the image's pixels that are not black.
        digest: 32 hex digits that are equal for equal pixels, and for them alone.
        repeats: int64, 1 where an earlier image of the split is equal, else 0.
    """

    split: SplitName
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    class_share: NDArray[np.float64]
    pixel_type: str
    darkest: NDArray[np.float64]
    brightest: NDArray[np.float64]
    mean: NDArray[np.float64]
    ink: NDArray[np.float64]
    digest: list[str]
    repeats: NDArray[np.int64]


def rows(split: SplitName, images: Images) -> Rows:
    """Summarize every image of a split; works for none and for one too."""
    num_images = len(images)
    # The number of pixels is spelled out: of no images, -1 could not be worked out.
    pixels_NP = np.ascontiguousarray(images.images_NHW).reshape(num_images, NUM_PIXELS)
    _, class_N, counts = np.unique(images.labels_N, return_inverse=True, return_counts=True)
    # Sixteen bytes: by chance, two of 70,000 different images agree once in 10^29 data sets.
    digest = [hashlib.blake2b(pixels_P.data, digest_size=16).hexdigest() for pixels_P in pixels_NP]
    return Rows(
        split=split,
        index=np.arange(num_images),
        label=images.labels_N.astype(np.int64),
        class_share=counts[class_N] / max(num_images, 1),
        pixel_type=str(pixels_NP.dtype),
        darkest=pixels_NP.min(axis=1) / WHITE,
        brightest=pixels_NP.max(axis=1) / WHITE,
        # A sum of whole numbers is exact, whatever the order; a float one depends on the machine.
        mean=pixels_NP.sum(axis=1) / (NUM_PIXELS * WHITE),
        ink=np.count_nonzero(pixels_NP, axis=1) / NUM_PIXELS,
        digest=digest,
        repeats=_repeats(digest),
    )


def _repeats(digest: list[str]) -> NDArray[np.int64]:
    first: dict[str, int] = {}
    return np.array([first.setdefault(key, at) != at for at, key in enumerate(digest)], np.int64)
