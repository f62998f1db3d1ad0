"""The form of `metrics/validation.json`: what `validate` writes, and the gate and the tools read."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mnist.core import config, files
from mnist.data.store import SplitName

Number = Annotated[int, Field(ge=0)]


class Place(config.Section):
    """Where an image is."""

    split: SplitName
    index: Number  # its position within the split


class Finding(config.Section):
    """What became of one expectation."""

    expectation: Annotated[str, Field(min_length=1)]
    about: str  # what is looked at, in a few words
    success: bool
    expected: str
    observed: str
    num_offending: Number  # images; 0 too where a whole split offends, as by its size
    offending: list[Place]  # the first few of them

    @property
    def line(self) -> str:
        """The finding in one line, with the places of some offending images."""
        seen = f"{self.expectation}: expected {self.expected}, observed {self.observed}"
        if not self.offending:
            return seen
        places = ", ".join(f"{place.split} {place.index}" for place in self.offending)
        more = self.num_offending - len(self.offending)
        return f"{seen}; see {places}" + (f" and {more:,} more" if more else "")


class Duplicates(config.Section):
    """How many images equal another one, pixel for pixel."""

    within_train: Number  # equal to an earlier training image
    within_test: Number  # equal to an earlier test image
    between_splits: Number  # test images that are training images too


class Verdict(config.Section):
    """The whole file. Equal data and bounds make an equal one: no times, paths or versions."""

    success: bool
    dataset_sha256: Annotated[config.Digest, Field(min_length=64, max_length=64)]
    test_sha256: Annotated[config.Digest, Field(min_length=64, max_length=64)]  # test images and labels
    num_images: dict[SplitName, Number]
    mean: dict[SplitName, float | None]  # of all pixels, 0 to 1; none of no images
    class_counts: dict[SplitName, dict[str, Number]]  # images of each label
    duplicates: Duplicates
    expectations: Annotated[list[Finding], Field(min_length=1)]

    @property
    def failed(self) -> list[Finding]:
        """The expectations that the data broke."""
        return [finding for finding in self.expectations if not finding.success]


def read(path: Path) -> Verdict:
    """Read and check a verdict.

    Raises:
        InputError: the file is missing, is not JSON, or has another form: each fault is named.
    """
    return config.check(Verdict, files.read_json(path), str(path))


def write(path: Path, verdict: Verdict) -> None:
    """Write a verdict; equal ones make equal bytes."""
    files.write_json(path, verdict.model_dump())
