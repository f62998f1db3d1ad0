"""What `datasets.yaml` may hold, and that what it says of the known data sets is what torchvision says."""

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


def written(folder: Path, sections: Any) -> Path:
    path = folder / "datasets.yaml"
    YAML(typ="safe").dump(sections, path)
    return path


def fault(path: Path, name: str) -> str:
    """What is said of a bad file; it is one line."""
    with pytest.raises(InputError) as caught:
        catalog.load(path, name)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.mark.parametrize(("name", "theirs"), KNOWN.items())
def test_files_md5_sums_mirrors_and_classes_are_torchvisions(name: str, theirs: Any) -> None:
    known = catalog.load(ROOT / paths.DATASETS, name)

    assert [(file, sums.md5) for file, sums in known.checksums.items()] == theirs.resources
    assert known.mirrors[0] == theirs.mirrors[0]
    # torchvision's classes of MNIST are "7 - seven"; a table wants the 7.
    assert known.classes == [one.partition(" - ")[0] for one in theirs.classes]


def test_a_section_describes_its_data_set(tmp_path: Path, small_data: SmallData) -> None:
    section = small_data.section(title="Three kinds", classes=["a", "b, c", "d/e"])

    read = catalog.load(written(tmp_path, {"three": section}), "three")

    described = read.described("three")
    assert (described.name, described.title) == ("three", "Three kinds")
    assert described.classes == ("a", "b, c", "d/e")
    assert (
        read.checksums["t10k-labels-idx1-ubyte.gz"].model_dump()
        == (small_data.checksums["t10k-labels-idx1-ubyte.gz"])
    )


def test_a_sha256_may_be_left_out(tmp_path: Path, small_data: SmallData) -> None:
    sums = {name: {"md5": both["md5"]} for name, both in small_data.checksums.items()}

    read = catalog.load(written(tmp_path, {"a": small_data.section(checksums=sums)}), "a")

    assert {one.sha256 for one in read.checksums.values()} == {None}


def test_other_sections_may_be_broken(tmp_path: Path, small_data: SmallData) -> None:
    path = written(tmp_path, {"a": small_data.section(), "b": {"title": 3}, "c": None})

    assert catalog.load(path, "a").title == "MNIST"
    assert fault(path, "c") == f"{path}: c: found NoneType, expected keys and values"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"title": ""}, "title: found '', expected String should have at least 1 character"),
        ({"title": "a\nb"}, "title: found 'a\\nb', expected names that print, without spaces around them"),
        ({"classes": ["a", " b"]}, "classes.1: found ' b', expected names that print, without spaces"),
        ({"classes": ["a"]}, "classes: found ['a'], expected List should have at least 2 items"),
        ({"classes": ["a", 1]}, "classes.1: found 1, expected a valid string"),
        ({"classes": ["a", "b", "a"]}, "classes: found ['a', 'b', 'a'], expected other names than a twice"),
        ({"classes": [f"{n}" for n in range(257)]}, "expected List should have at most 256 items"),
        ({"mirrors": None}, "mirrors: found None, expected a valid list"),
        ({"checksums": {}}, "checksums: found {}, expected Dictionary should have at least 4 items"),
        ({"colour": "red"}, "colour: found a key that nothing reads, expected only known keys"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_with_its_key(
    tmp_path: Path, small_data: SmallData, changed: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, {"mine": small_data.section(**changed)})

    message = fault(path, "mine")

    assert message.startswith(f"{path}: mine: ")
    assert said in message


def test_a_checksum_that_is_none_is_told_with_its_archive(tmp_path: Path, small_data: SmallData) -> None:
    name = "train-labels-idx1-ubyte.gz"
    sums = small_data.checksums | {name: {"md5": "0123"}}

    message = fault(written(tmp_path, {"a": small_data.section(checksums=sums)}), "a")

    assert f"a: checksums.{name}.md5: found '0123', expected " in message


@pytest.mark.parametrize(
    ("name", "perhaps"), [("fashon_mnist", " (fashion_mnist, perhaps)"), ("cifar10", "")]
)
def test_an_unknown_name_is_told_with_those_there_are(name: str, perhaps: str) -> None:
    path = ROOT / paths.DATASETS

    assert fault(path, name) == (
        f"params.yaml: dataset: found '{name}', expected one of {path}: mnist, fashion_mnist, kmnist{perhaps}"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "found NoneType, expected data sets by name"),
        ("- mnist\n", "found list, expected data sets by name"),
        ("mnist: [0.5\n", "found no YAML (while parsing a flow sequence"),
        ("a: 1\na: 2\n", "found no YAML (while constructing a mapping"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "datasets.yaml"
    path.write_text(content)

    assert fault(path, "mnist").startswith(f"{path}: {said}")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "datasets.yaml"

    assert fault(path, "mnist") == f"{path}: found no such file, expected data sets by name"
