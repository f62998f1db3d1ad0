"""Mean and standard deviation, to the last bit, and their file."""

from fractions import Fraction
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from mnist.core.errors import InputError
from mnist.data import statistics
from mnist.data.store import Bytes


def exact(images_NHW: Bytes) -> tuple[float, float]:
    """By the definition, in rational numbers; the root to 40 digits."""
    pixels = [Fraction(int(pixel), 255) for pixel in images_NHW.flat]
    mean = sum(pixels, Fraction(0)) / len(pixels)
    variance = sum(((pixel - mean) ** 2 for pixel in pixels), Fraction(0)) / len(pixels)
    digits = 10**40
    return float(mean), float(Fraction(isqrt(int(variance * digits**2)), digits))


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(4), st.just(5)), elements=st.integers(0, 255)))
def test_it_is_the_definition(images_NHW: Bytes) -> None:
    if images_NHW.min() == images_NHW.max():
        with pytest.raises(InputError):
            statistics.measure(images_NHW)
        return

    measured = statistics.measure(images_NHW)

    # Two roundings of float64 each at most.
    assert (measured.mean, measured.std) == pytest.approx(exact(images_NHW), rel=4e-16, abs=0)
    assert measured.num_images == len(images_NHW)


@pytest.mark.parametrize("value", [0, 254])
def test_one_other_pixel_counts_where_floats_lose_it(value: int) -> None:
    """The pixels are `value` but for one of N, which is 1/255 off: the deviation is sqrt(N - 1) / 255 N."""
    images_NHW = np.full((2000, 28, 28), value, np.uint8)
    images_NHW[-1, -1, -1] ^= 1
    n = images_NHW.size
    off = (value ^ 1) - value

    measured = statistics.measure(images_NHW)

    assert measured.std == pytest.approx((n - 1) ** 0.5 / (255 * n), rel=1e-15)
    assert measured.mean == pytest.approx((value + off / n) / 255, rel=1e-15)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("num_images", [0, 1, 100])
def test_images_without_any_contrast_are_refused(num_images: int, value: int) -> None:
    with pytest.raises(InputError, match="found pixels that are all alike, expected pictures"):
        statistics.measure(np.full((num_images, 28, 28), value, np.uint8))


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text('{"mean": 0.1, "std": 0, "num_images": 7}')

    with pytest.raises(InputError) as caught:
        statistics.read(path)
    assert caught.value.where == f"{path}: std"


def test_each_image_is_measured_by_itself() -> None:
    images_NHW = np.zeros((2, 4, 5), np.uint8)
    images_NHW[1, 0, :2] = 255, 51
    images_NHW[1, 1:] = 17
    measured = {name: values_N.tolist() for name, values_N in statistics.of_images(images_NHW).items()}
    of_second = (255 + 51 + 15 * 17) / (20 * 255)
    assert measured["brightest"] == [0.0, 1.0]
    assert measured["darkest"] == [0.0, 0.0]
    assert measured["ink"] == [0.0, 17 / 20]
    assert measured["image_mean"] == [0.0, of_second]
