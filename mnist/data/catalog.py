"""What `datasets.yaml` may hold: what is known of each data set of MNIST's form, a section by name."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mnist.core import config, paths
from mnist.core.config import DATASET_NAME, Count, Digest, Fraction, Section
from mnist.core.errors import InputError
from mnist.data.store import Description

Archive = Literal[
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]
ARCHIVES: tuple[Archive, ...] = get_args(Archive)


def _prints(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise PydanticCustomError("unreadable", "names that print, without spaces around them")
    return name


def _are_different(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PydanticCustomError("ambiguous", f"other names than {', '.join(twice)} twice in classes")
    return names


# A line that prints, and that a table, a picture and a key of a metric can hold.
Line = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_prints)]


class Checksums(Section):
    """Of one downloaded archive. torchvision publishes MD5 sums only."""

    md5: Annotated[Digest, Field(min_length=32, max_length=32)]
    sha256: Annotated[Digest, Field(min_length=64, max_length=64)] | None = None


class Share(Section):
    """A closed interval of fractions."""

    min: Fraction
    max: Fraction

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.min > self.max:
            raise PydanticCustomError("empty_interval", "min at most max")
        return self


class Validation(Section):
    """The bounds that the data must keep."""

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
    """A section of the file."""

    title: Line
    # Labels are bytes. Fewer than two classes are nothing to tell apart.
    classes: Annotated[list[Line], Field(min_length=2, max_length=256), AfterValidator(_are_different)]
    mirrors: list[str]
    checksums: Annotated[dict[Archive, Checksums], Field(min_length=4)]
    validation: Validation

    def described(self, name: str) -> Description:
        """What the data set's file says of itself."""
        return Description(name=name, title=self.title, classes=tuple(self.classes))


def load(path: Path, name: str) -> DataSet:
    """What `datasets.yaml` says of the data set that `dataset` in `params.yaml` names.

    The other sections are not looked at: who works on one data set does not stumble over another.

    Raises:
        InputError: the file is missing or broken, has no such section, or says something in it that
            cannot be; every key at fault is named.
    """
    values = config.read(path, expected="data sets by name")
    if not isinstance(values, dict):
        raise InputError(str(path), found=type(values).__name__, expected="data sets by name")
    if name not in values:
        raise _unknown(path, name, values)
    return config.check(DataSet, values[name], f"{path}: {name}")


def _unknown(path: Path, name: str, known: Mapping[Any, Any]) -> InputError:
    names = [str(one) for one in known if re.fullmatch(DATASET_NAME, str(one))]
    close = difflib.get_close_matches(name, names, n=1)
    perhaps = f" ({close[0]}, perhaps)" if close else ""
    return InputError(
        f"{paths.PARAMS}: dataset",
        found=repr(name),
        expected=f"one of {path}: {', '.join(names) or 'which is empty'}{perhaps}",
    )
