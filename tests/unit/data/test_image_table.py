"""The table of the data set, one row an image, against slow ways to fill it."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mnist.data import image_table
from mnist.data.image_table import Rows
from mnist.data.store import Images
from tests.conftest import digits


def columns(rows: Rows) -> dict[str, object]:
    """All of the table, with the types of its columns."""
    return {
        name: (values.dtype, values.tolist()) if isinstance(values, np.ndarray) else values
        for name, values in vars(rows).items()
    }


def repeating(num_images: int) -> Images:
    """Digits of which each third one is the one before."""
    images = digits(num_images, seed=3)
    return images.take(np.arange(num_images) - (np.arange(num_images) % 3 == 2))


def test_each_row_is_its_images() -> None:
    images = repeating(20)

    rows = image_table.rows("test", images)

    seen: set[bytes] = set()
    for at, (image_HW, label) in enumerate(zip(images.images_NHW, images.labels_N, strict=True)):
        pixels = image_HW.tobytes()
        assert rows.index[at] == at
        assert rows.label[at] == label
        assert rows.class_share[at] == images.labels_N.tolist().count(label) / 20
        assert (rows.darkest[at], rows.brightest[at]) == (min(pixels) / 255, max(pixels) / 255)
        assert rows.mean[at] == sum(pixels) / (784 * 255)
        assert rows.ink[at] == (784 - pixels.count(0)) / 784
        assert rows.digest[at].tobytes() == hashlib.blake2b(pixels, digest_size=16).digest()
        assert rows.repeats[at] == (pixels in seen)
        seen.add(pixels)
    assert rows.repeats.sum() == 6


@pytest.mark.parametrize("num_images", [0, 1, 20])
@pytest.mark.parametrize("chunk", [1, 7, 19, 20, 21])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_how_many_are_looked_at_a_time_does_not_count(
    monkeypatch: pytest.MonkeyPatch, num_images: int, chunk: int, dtype: type
) -> None:
    images = repeating(num_images)
    images = Images(images_NHW=images.images_NHW.astype(dtype), labels_N=images.labels_N)
    at_once = image_table.rows("train", images)
    monkeypatch.setattr(image_table, "CHUNK", chunk)

    assert columns(image_table.rows("train", images)) == columns(at_once)
    assert len(at_once.digest) == num_images


@given(st.lists(st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\1" * 16, b"\2" * 16])))
def test_the_first_of_those_alike_is_found(digests: list[bytes]) -> None:
    digest = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 16)

    assert image_table.first_alike(digest).tolist() == [digests.index(each) for each in digests]
