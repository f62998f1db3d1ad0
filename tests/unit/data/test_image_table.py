"""The table of the data set against a slow way to fill it, and the file that is measured from archives."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist.core.errors import InputError
from mnist.data import catalog, download, image_table
from mnist.data.store import Images
from tests.conftest import digits, three_classes, write_archives

CLASSES = ("fish, fresh", "bird", "ox/cow")


def test_each_row_is_its_images() -> None:
    train, test = digits(20, seed=3), digits(10, seed=4)
    train = train.take(np.arange(20) - (np.arange(20) % 3 == 2))  # each third image is the one before
    test.images_NHW[[4, 5, 9]] = train.images_NHW[[7, 7, 9]]

    rows = image_table.table(train, test)

    seen: dict[str, set[bytes]] = {"train": set(), "test": set()}
    assert list(zip(rows["split"], rows["index"], strict=True)) == [
        *(("train", index) for index in range(20)),
        *(("test", index) for index in range(10)),
    ]
    for row in rows.to_dict("records"):
        split, images = row["split"], train if row["split"] == "train" else test
        pixels, label = images.images_NHW[row["index"]].tobytes(), images.labels_N[row["index"]]
        assert row["label"] == label
        assert row["class_share"] == images.labels_N.tolist().count(label) / len(images)
        assert (row["darkest"], row["brightest"]) == (min(pixels) / 255, max(pixels) / 255)
        assert row["image_mean"] == sum(pixels) / (784 * 255)
        assert row["ink"] == (784 - pixels.count(0)) / 784
        assert row["digest"] == hashlib.blake2b(pixels, digest_size=16).hexdigest()
        repeats = pixels in seen[split]
        assert row["repeats"] == repeats
        assert row["in_both"] == (split == "test" and pixels in seen["train"] and not repeats)
        seen[split].add(pixels)
    assert (rows["repeats"].sum(), rows["in_both"].sum()) == (7, 2)


# ---- the file of a data set


@pytest.fixture
def three(tmp_path: Path) -> Path:
    write_archives(tmp_path, three_classes(700, seed=5), three_classes(150, seed=6))
    return tmp_path


def measured(folder: Path, name: str, *, title: str = "", classes: tuple[str, ...] = ()) -> catalog.DataSet:
    """Return what the measured file holds, read as the pipeline reads it."""
    text = image_table.measure(name, folder, title=title, classes=classes)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return catalog.load(folder, name)


def test_the_file_has_the_names_and_bounds_with_a_margin(three: Path) -> None:
    read = measured(three, "three", title="Three “kinds”", classes=CLASSES)

    assert (read.title, tuple(read.classes), read.mirrors) == ("Three “kinds”", CLASSES, [])
    assert (read.validation.num_train, read.validation.num_test) == (700, 150)
    # 280 of 700 are in the first class, 210 in each other, and a tenth of it is the margin.
    assert read.validation.class_share.model_dump() == {"min": 0.27, "max": 0.44}
    assert read.validation.brightest.max == 1.0
    assert (read.validation.max_duplicates, read.validation.max_in_both) == (0, 0)


def test_duplicates_are_counted_and_title_and_classes_may_be_left_out(tmp_path: Path) -> None:
    train, test = digits(30, seed=1), digits(20, seed=2)
    train.images_NHW[[20, 21]] = train.images_NHW[3]
    test.images_NHW[7] = train.images_NHW[3]

    write_archives(tmp_path, train, test)

    read = measured(tmp_path, "mine")

    assert (read.title, read.classes) == ("mine", list("0123456789"))
    assert (read.validation.max_duplicates, read.validation.max_in_both) == (2, 1)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("a.b", CLASSES, "the name: dataset: found 'a.b'"),
        ("three", ("fish", "bird"), "--classes: found 2 names, and a label 2, expected 3"),
        ("three", ("a", "a", "b"), "three: classes: found "),
        ("three", ("a", "b", "c", "d"), "the training images: found none of label 3"),
    ],
)
def test_an_invalid_value_is_named(three: Path, name: str, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        image_table.measure(name, three, title="", classes=classes)

    assert message in str(caught.value)


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_labels_that_count_from_1_are_named_by_the_one_that_is_not_there(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    data = three_classes(30, seed=0)
    shifted = Images(images_NHW=data.images_NHW, labels_N=data.labels_N + np.uint8(1))
    write_archives(tmp_path, shifted, shifted)

    with pytest.raises(InputError) as caught:
        image_table.measure("letters", tmp_path, title="", classes=classes)

    assert (caught.value.where, caught.value.found) == (
        "the training images",
        "none of label 0, of 1 to 3",
    )


def test_the_recipe_of_the_docs_makes_archives_of_pictures_and_arrays(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/own-data.md").read_text()
    recipe: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], recipe)  # noqa: S102 -- what a reader does
    data = three_classes(30, seed=0)
    for number, (image_HW, label) in enumerate(zip(data.images_NHW, data.labels_N, strict=True)):
        folder = tmp_path / "pictures" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_HW).save(folder / f"{number:02}.png")
    recipe["write"](tmp_path, "train", *recipe["pictures"](tmp_path / "pictures"))
    recipe["write"](tmp_path, "t10k", data.images_NHW, data.labels_N.astype(np.int64))

    train, test = download.read({name: tmp_path / name for name in catalog.ARCHIVES})

    by_class = data.take(np.argsort(data.labels_N, kind="stable"))
    for read, expected in ((train, by_class), (test, data)):
        assert (read.images_NHW == expected.images_NHW).all()
        assert (read.labels_N == expected.labels_N).all()
    with pytest.raises(AssertionError, match="not scaled"):
        recipe["write"](tmp_path, "t10k", data.images_NHW / 255, data.labels_N)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz: found no such file"):
        image_table.measure("three", tmp_path, title="", classes=())


def test_an_archive_that_is_not_compressed_is_named_with_the_command(tmp_path: Path) -> None:
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.touch()
    with pytest.raises(InputError) as caught:
        image_table.measure("mine", tmp_path, title="", classes=[])
    assert (caught.value.where, caught.value.expected) == (f"{plain}.gz", f"run `gzip -k {plain}`")
