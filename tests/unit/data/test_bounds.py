"""The file that is measured from four archives."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mnist.core.errors import InputError
from mnist.data import bounds, catalog
from tests.conftest import SmallData, digits, idx

CLASSES = ("fish, fresh", "bird", "ox/cow")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calculator digits in three classes: 0 to 3, 4 to 6, 7 to 9."""
    folder = tmp_path_factory.mktemp("three")
    for prefix, num_images, seed in (("train", 700, 5), ("t10k", 150, 6)):
        images = digits(num_images, seed=seed)
        labels_N = np.searchsorted([4, 7], images.labels_N, side="right").astype(np.uint8)
        for name, array in (("images-idx3", images.images_NHW), ("labels-idx1", labels_N)):
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    return folder


def test_the_file_is_valid_and_the_archives_are_within_its_bounds(archives: Path, tmp_path: Path) -> None:
    text = bounds.measure("three", archives, title="Three kinds", classes=CLASSES)
    (tmp_path / "three.yaml").write_text(text)

    read = catalog.load(tmp_path, "three")

    assert (read.title, tuple(read.classes), read.mirrors) == ("Three kinds", CLASSES, [])
    assert (read.validation.num_train, read.validation.num_test) == (700, 150)
    # 280 of 700 are in the first class, 210 in each other, and a tenth of it is the margin.
    assert read.validation.class_share.model_dump() == {"min": 0.27, "max": 0.44}
    assert (read.validation.max_duplicates, read.validation.max_in_both) == (0, 0)
    assert "# of each class in its split; measured 0.3 to 0.4\n" in text


def test_duplicates_are_counted_and_title_and_classes_may_be_left_out(
    small_data: SmallData, tmp_path: Path
) -> None:
    train, test = small_data.train, small_data.test
    for prefix, images in (("train", train.take(np.array([0, 1, 1, 2, 2]))), ("t10k", test)):
        pixels = images.images_NHW.copy()
        pixels[-1] = train.images_NHW[0]
        for name, array in (("images-idx3", pixels), ("labels-idx1", images.labels_N)):
            (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    (tmp_path / "mine.yaml").write_text(bounds.measure("mine", tmp_path, title="", classes=()))

    read = catalog.load(tmp_path, "mine")

    assert (read.title, read.classes) == ("mine", list("0123456789"))
    assert (read.validation.max_duplicates, read.validation.max_in_both) == (2, 1)


def test_a_bound_has_three_digits_and_a_margin() -> None:
    for value in (0.000123456, 0.1, 0.5, 1 / 3):
        low, high = bounds.lower(value), bounds.upper(value)
        assert 0.89 * value < low <= 0.9 * value + 1e-12
        assert 1.1 * value - 1e-12 <= high < 1.11 * value
        assert float(f"{low:.3g}") == low
    assert (bounds.lower(0.0), bounds.upper(0.0), bounds.upper(1.0)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("a.b", CLASSES, "the name: dataset: found 'a.b'"),
        ("three", ("fish", "bird"), "--classes: found 2 names, and a label 2, expected 3"),
        ("three", ("a", "a", "b"), "three: classes: found "),
    ],
)
def test_an_invalid_value_is_named(archives: Path, name: str, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        bounds.measure(name, archives, title="", classes=classes)

    assert message in str(caught.value)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz: found no such file"):
        bounds.measure("three", tmp_path, title="", classes=())
