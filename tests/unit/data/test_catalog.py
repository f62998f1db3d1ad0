"""The files in `datasets/`: their form, and that the known ones agree with torchvision."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from torchvision import datasets  # type: ignore[import-untyped]

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data import catalog
from tests.conftest import BOUNDS, SmallData

ROOT = Path(__file__).parents[3]
KNOWN = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}


def error(folder: Path, name: str) -> str:
    with pytest.raises(InputError) as caught:
        catalog.load(folder, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "theirs"), KNOWN.items())
def test_files_md5_sums_mirrors_and_classes_are_torchvisions(name: str, theirs: Any) -> None:
    known = catalog.load(ROOT / paths.DATASETS, name)

    assert [(file, sums.md5) for file, sums in known.checksums.items()] == theirs.resources
    assert known.mirrors[0] == theirs.mirrors[0]
    # torchvision's classes of MNIST are "7 - seven"; a table needs the 7.
    assert known.classes == [one.partition(" - ")[0] for one in theirs.classes]


def test_a_file_describes_its_data_set(tmp_path: Path, small_data: SmallData) -> None:
    sums = {name: {"md5": both["md5"]} for name, both in small_data.checksums.items()}  # no SHA-256
    content = small_data.section(title="Three kinds", classes=["a", "b, c", "d/e"], checksums=sums)
    YAML(typ="safe").dump(content, tmp_path / "three.yaml")

    read = catalog.load(tmp_path, "three")

    described = read.described("three")
    assert (described.name, described.title) == ("three", "Three kinds")
    assert described.classes == ("a", "b, c", "d/e")
    assert {one.sha256 for one in read.checksums.values()} == {None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("title", ""),
        ("title", "a\nb"),
        ("classes.1", ["a", " b"]),
        ("classes", ["a"]),
        ("classes", ["a", "b", "a"]),
        ("classes", [f"{n}" for n in range(257)]),
        ("mirrors.1", ["/a", "https://user:secret@host/x"]),
        ("checksums", {}),
        ("checksums.train-labels-idx1-ubyte.gz.md5", {"train-labels-idx1-ubyte.gz": {"md5": "0123"}}),
        ("validation.class_share", BOUNDS | {"class_share": {"min": 0.6, "max": 0.5}}),
        ("validation.max_in_both", BOUNDS | {"max_in_both": -1}),
        ("colour", "red"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(tmp_path: Path, small_data: SmallData, key: str, value: object) -> None:
    YAML(typ="safe").dump(small_data.section(**{key.partition(".")[0]: value}), tmp_path / "mine.yaml")

    assert f"{key}: found " in error(tmp_path, "mine")


def test_an_unknown_name_is_listed_with_the_known_ones() -> None:
    folder = ROOT / paths.DATASETS

    assert error(folder, "cifar10").endswith(f"{folder}/: fashion_mnist, kmnist, mnist")
