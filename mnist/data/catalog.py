"""The schema of `datasets/<name>.yaml`, the description of a data set of MNIST's form."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mnist.core import config, paths
from mnist.core.config import Count, Digest, Fraction, Section
from mnist.core.errors import InputError
from mnist.data.store import Description

Archive = Literal[
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
ARCHIVES: tuple[Archive, ...] = get_args(Archive)


def _check_printable(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise PydanticCustomError("unreadable", "names that print, without spaces around them")
    return name


def _check_unique(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PydanticCustomError("ambiguous", f"other names than {', '.join(twice)} twice in classes")
    return names


# A printable line that fits into a table, a picture and a key of a metric.
Line = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_check_printable)]


class Checksums(Section):
    """The checksums of one archive. torchvision publishes MD5 sums only."""

    md5: Annotated[Digest, Field(min_length=32, max_length=32)]
    sha256: Annotated[Digest, Field(min_length=64, max_length=64)] | None = None


class Share(Section):
    """A closed interval of fractions."""

    min: Fraction
    max: Fraction

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise PydanticCustomError("empty_interval", "min at most max")
        return self


class Validation(Section):
    """The bounds of the data."""

    num_train: Count  # images
    num_test: Count  # images
    class_share: Share  # of each class in its split
    mean: Share  # of all pixels of a split, black 0 to white 1
    image_mean: Share  # of one image's pixels
    darkest: Share  # one image's darkest pixel
    brightest: Share  # one image's brightest pixel
    ink: Share  # share of one image's pixels that are not black
    max_duplicates: Annotated[int, Field(ge=0)]  # images equal to an earlier one of their split
    max_in_both: Annotated[int, Field(ge=0)]  # test images that are training images too


class DataSet(Section):
    """The whole file."""

    title: Line
    # Labels are bytes. A classifier needs two classes.
    classes: Annotated[list[Line], Field(min_length=2, max_length=256), AfterValidator(_check_unique)]
    mirrors: list[config.Mirror]
    checksums: Annotated[dict[Archive, Checksums], Field(min_length=4)]
    validation: Validation

    def described(self, name: str) -> Description:
        """Return the description that the data set's file stores."""
        return Description(name=name, title=self.title, classes=tuple(self.classes))


def load(folder: Path, name: str) -> DataSet:
    """Read `<folder>/<name>.yaml`, the file of the data set that `dataset` in `params.yaml` names.

    Raises:
        InputError: there is no such file, or it is broken; every key at fault is named.
    """
    path = folder / f"{name}.yaml"
    if path.exists():
        return config.check(DataSet, config.read(path, expected="a data set"), str(path))
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "there is none"
    raise InputError(f"{paths.PARAMS}: dataset", found=repr(name), expected=f"a file in {folder}/: {names}")
