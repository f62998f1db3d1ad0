"""The data set as a table with one row an image, which the expectations check.

Shape suffixes: N images, P pixels of an image.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist.data.store import Bytes, Description, Images, SplitName

NUM_PIXELS = 28 * 28
WHITE = 255
CHUNK = 1024  # images summarized at a time: their pixels stay in a CPU's cache


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One split, a row an image; every array is (N,) unless another shape is given.

    Attributes:
        split: the name of the split.
        index: int64, the image's position within its split.
        label: int64.
        class_share: float64, the share of the split that has this label, 0 to 1.
        pixel_type: the pixels' dtype, in words.
        darkest, brightest, mean: float64, of the image's pixels, black 0 to white 1.
        ink: float64, the share of the image's pixels that are not black.
        digest: uint8 (N, 16), bytes that are equal for equal pixels, and for them alone.
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
    digest: Bytes
    repeats: NDArray[np.int64]


def rows(split: SplitName, images: Images) -> Rows:
    """Summarize every image of a split; works for none and for one too.

    It works on some images at a time, and keeps 80 bytes of each.
    """
    num_images = len(images)
    _, class_N, counts = np.unique(images.labels_N, return_inverse=True, return_counts=True)
    # A split without images has one empty summary, which gives the columns their types.
    starts = range(0, max(num_images, 1), CHUNK)
    summaries = [_summary(images.images_NHW[start : start + CHUNK]) for start in starts]
    darkest, brightest, mean, ink, digest = (np.concatenate(parts) for parts in zip(*summaries, strict=True))
    return Rows(
        split=split,
        index=np.arange(num_images),
        label=images.labels_N.astype(np.int64),
        class_share=counts[class_N] / max(num_images, 1),
        pixel_type=str(images.images_NHW.dtype),
        darkest=darkest,
        brightest=brightest,
        mean=mean,
        ink=ink,
        digest=digest,
        repeats=(first_alike(digest) != np.arange(num_images)).astype(np.int64),
    )


def _summary(images_NHW: Bytes) -> tuple[NDArray[Any], ...]:
    """Return the columns `darkest`, `brightest`, `mean`, `ink` and `digest` of some images."""
    # The number of pixels is written out: numpy cannot derive -1 from an empty array.
    pixels_NP = np.ascontiguousarray(images_NHW).reshape(len(images_NHW), NUM_PIXELS)
    # Sixteen bytes: by chance, two of 70,000 different images agree once in 10^29 data sets.
    digest = b"".join([hashlib.blake2b(pixels_P.data, digest_size=16).digest() for pixels_P in pixels_NP])
    return (
        pixels_NP.min(axis=1) / WHITE,
        pixels_NP.max(axis=1) / WHITE,
        # A sum of whole numbers is exact, whatever the order; a float one depends on the machine.
        pixels_NP.sum(axis=1) / (NUM_PIXELS * WHITE),
        np.count_nonzero(pixels_NP, axis=1) / NUM_PIXELS,
        np.frombuffer(digest, np.uint8).reshape(len(pixels_NP), 16),
    )


def first_alike(digest: Bytes) -> NDArray[np.int64]:
    """Return for each of N digests, uint8 (N, 16), the position of the first equal one; int64 (N,)."""
    halves = np.ascontiguousarray(digest).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal ones, the first stays first
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1]
    return first


def labelled_digest(rows: Rows) -> str:
    """Return the SHA-256 digest of all images with their labels, in their order."""
    sha256 = hashlib.sha256()
    for digest, label in zip(rows.digest, rows.label, strict=True):
        sha256.update(f"{digest.tobytes().hex()} {label}\n".encode())
    return sha256.hexdigest()


def class_counts(rows: Rows, description: Description) -> dict[str, int]:
    """Return the number of images of each class, and of each label without a class."""
    counts = Counter(rows.label.tolist())
    known = range(len(description.classes))
    return {description.class_of(label): counts[label] for label in sorted({*known, *counts})}
