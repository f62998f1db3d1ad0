"""The data set's file, and its cut into training and validation images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save, save_file
from safetensors.torch import save as torch_save

from mnist.core.errors import InputError
from mnist.data import store
from mnist.data.store import Images
from tests.conftest import DIGITS, SmallData


def numbered(num_images: int) -> Images:
    """Images that hold their own position, in their first two pixels."""
    images_NHW = np.zeros((num_images, 28, 28), np.uint8)
    images_NHW[:, 0, 0], images_NHW[:, 0, 1] = np.divmod(np.arange(num_images), 256)
    return Images(images_NHW=images_NHW, labels_N=(np.arange(num_images) % 10).astype(np.uint8))


def numbers(images: Images) -> list[int]:
    """The positions that `numbered` gave these images; their labels must fit."""
    number_N = images.images_NHW[:, 0, 0].astype(int) * 256 + images.images_NHW[:, 0, 1]
    assert (images.labels_N == number_N % 10).all()
    return [int(number) for number in number_N]


# ---- the file


def test_both_splits_come_back(small_data: SmallData, dataset_path: Path) -> None:
    for split, written in (("train", small_data.train), ("test", small_data.test)):
        read = store.load(dataset_path, split)  # type: ignore[arg-type]

        assert {read.images_NHW.dtype, read.labels_N.dtype} == {np.dtype(np.uint8)}
        np.testing.assert_array_equal(read.images_NHW, written.images_NHW)
        np.testing.assert_array_equal(read.labels_N, written.labels_N)
        assert len(read) == len(written)


def test_equal_images_make_equal_bytes(small_data: SmallData, dataset_path: Path, tmp_path: Path) -> None:
    columns_first = Images(
        images_NHW=np.asfortranarray(small_data.train.images_NHW), labels_N=small_data.train.labels_N.copy()
    )

    store.write(tmp_path / "other name", train=columns_first, test=small_data.test, description=DIGITS)

    assert (tmp_path / "other name").read_bytes() == dataset_path.read_bytes()


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (np.zeros((2, 28, 28), np.float32), np.zeros(2, np.uint8), "float32 (2, 28, 28), uint8 (2,)"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int64), "uint8 (2, 28, 28), int64 (2,)"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8), "uint8 (2, 28, 28), uint8 (3,)"),
        (np.zeros((2, 32, 32), np.uint8), np.zeros(2, np.uint8), "uint8 (2, 32, 32), uint8 (2,)"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros((), np.uint8), "uint8 (2, 28, 28), uint8 ()"),
    ],
    ids=["float images", "int64 labels", "more labels", "32 pixels", "a scalar label"],
)
def test_other_tensors_are_refused(
    tmp_path: Path, images: NDArray[Any], labels: NDArray[Any], found: str
) -> None:
    path = tmp_path / "file"
    save_file({"test_images": images, "test_labels": labels}, path)

    with pytest.raises(InputError) as caught:
        store.load(path, "test")

    assert (caught.value.where, caught.value.found) == (f"{path}: test_images, test_labels", found)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        save({"train_images": np.zeros((1, 28, 28), np.uint8)})[:-1],
        b"<!doctype html><title>Log in to the hotel's network</title>" * 20,
        torch_save({f"train_{name}": torch.zeros(1, dtype=torch.bfloat16) for name in ("images", "labels")}),
        save({}, {"dataset": "no JSON"}),
        save({}, {"dataset": '{"name": "a", "title": "A", "classes": [0, 1]}'}),
    ],
    ids=["empty", "cut off", "a web page", "bfloat16", "no JSON", "classes that are numbers"],
)
def test_a_broken_file_is_an_error_of_one_line(dataset_path: Path, content: bytes) -> None:
    dataset_path.write_bytes(content)

    for read in (lambda: store.load(dataset_path, "train"), lambda: store.describe(dataset_path)):
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.where.startswith(str(dataset_path))
        assert len(str(caught.value).splitlines()) == 1


def test_the_file_says_which_data_set_it_is(dataset_path: Path) -> None:
    assert store.describe(dataset_path) == DIGITS


# ---- the cut


@given(num_images=st.integers(2, 700), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_each_image_is_in_one_part_in_the_files_order(num_images: int, share: float, seed: int) -> None:
    val_size = 1 + round(share * (num_images - 2))

    train, val = store.cut(numbered(num_images), val_size=val_size, seed=seed)

    assert (len(train), len(val)) == (num_images - val_size, val_size)
    assert numbers(train) == sorted(numbers(train))
    assert numbers(val) == sorted(numbers(val))
    assert sorted(numbers(train) + numbers(val)) == list(range(num_images))


def test_the_cut_is_the_seeds() -> None:
    np.random.seed(1)  # noqa: NPY002 -- the global state that must not count
    first = numbers(store.cut(numbered(1000), val_size=100, seed=3)[1])
    np.random.seed(2)  # noqa: NPY002
    again = numbers(store.cut(numbered(1000), val_size=100, seed=3)[1])
    other = numbers(store.cut(numbered(1000), val_size=100, seed=4)[1])

    assert first == again
    # Two draws of 100 from 1,000 share 10 +- 3.
    assert len(set(first) & set(other)) < 30


def test_a_missing_file_or_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        store.load(tmp_path / "file", "train")
    save_file({"train_images": np.zeros((2, 28, 28), np.uint8)}, tmp_path / "file")
    with pytest.raises(InputError, match="train_labels"):
        store.load(tmp_path / "file", "train")


@pytest.mark.parametrize("val_size", [10, 59_999])
def test_a_cut_that_leaves_nothing_to_train_on_is_refused(val_size: int) -> None:
    with pytest.raises(InputError, match=f"val_size: found {val_size}, .* 10 training images"):
        store.cut(numbered(10), val_size=val_size, seed=0)
