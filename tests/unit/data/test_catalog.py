"""The files in `datasets/`: their form, and that the known ones agree with torchvision."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from torchvision import datasets  # type: ignore[import-untyped]

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data import catalog
from tests.conftest import SmallData

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
    ("changed", "key"),
    [
        ({"title": ""}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"classes": ["a", " b"]}, "classes.1"),
        ({"classes": ["a"]}, "classes"),
        ({"classes": ["a", "b", "a"]}, "classes"),
        ({"classes": [f"{n}" for n in range(257)]}, "classes"),
        ({"checksums": {}}, "checksums"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(
    tmp_path: Path, small_data: SmallData, changed: dict[str, Any], key: str
) -> None:
    YAML(typ="safe").dump(small_data.section(**changed), tmp_path / "mine.yaml")

    assert error(tmp_path, "mine").startswith(f"{tmp_path}/mine.yaml: {key}: found ")


@pytest.mark.parametrize("key", ["class_share", "ink"])
def test_an_empty_interval_is_named(tmp_path: Path, small_data: SmallData, key: str) -> None:
    values = {**small_data.section()["validation"], key: {"min": 0.6, "max": 0.5}}
    YAML(typ="safe").dump(small_data.section(validation=values), tmp_path / "mine.yaml")

    assert f"validation.{key}: found " in error(tmp_path, "mine")


def test_a_wrong_checksum_is_named_with_its_archive(tmp_path: Path, small_data: SmallData) -> None:
    name = "train-labels-idx1-ubyte.gz"
    sums = small_data.checksums | {name: {"md5": "0123"}}
    YAML(typ="safe").dump(small_data.section(checksums=sums), tmp_path / "mine.yaml")

    assert f"checksums.{name}.md5: found '0123', expected " in error(tmp_path, "mine")


def test_an_unknown_name_is_listed_with_the_known_ones() -> None:
    folder = ROOT / paths.DATASETS

    assert error(folder, "cifar10").endswith(f"{folder}/: fashion_mnist, kmnist, mnist")


@pytest.mark.parametrize("content", ["- mnist\n", "title: [0.5\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)

    assert error(tmp_path, "mine").startswith(f"{tmp_path}/mine.yaml: found ")
