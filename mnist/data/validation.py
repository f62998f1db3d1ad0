"""The verdict of `validate`: `metrics/validation.json` for the stages after it, and a page for people."""

import base64
import io
import itertools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mnist.core import config, files
from mnist.core.errors import InputError
from mnist.data.catalog import Validation
from mnist.data.store import Bytes, Description, Images, SplitName

TEMPLATE = Path(__file__).parent / "templates/validation_page.html.jinja"

RARE = 10  # times less than an equal share of the images: a class is rare
MAX_NAMED = 5  # classes in a warning

Number = Annotated[int, Field(ge=0)]


class Place(config.Section):
    """The place of an image."""

    split: SplitName
    index: Number  # its position within the split


class Finding(config.Section):
    """The result of one expectation."""

    expectation: Annotated[str, Field(min_length=1)]
    about: str  # what was checked, in a few words
    success: bool
    expected: str
    observed: str
    num_offending: Number  # images; 0 too where a whole split offends, as by its size
    offending: list[Place]  # the first few of them

    @property
    def line(self) -> str:
        """Return the finding in one line, with the places of some offending images."""
        seen = f"{self.expectation}: expected {self.expected}, observed {self.observed}"
        if not self.offending:
            return seen
        places = ", ".join(f"{place.split} {place.index}" for place in self.offending)
        more = self.num_offending - len(self.offending)
        return f"{seen}; see {places}" + (f" and {more:,} more" if more else "")


class Duplicates(config.Section):
    """Numbers of images that equal another one, pixel for pixel."""

    within_train: Number  # equal to an earlier training image
    within_test: Number  # equal to an earlier test image
    between_splits: Number  # test images that are training images too


class Verdict(config.Section):
    """The whole file: equal for equal data and bounds, without times, paths or versions."""

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
        """Return the expectations that failed."""
        return [finding for finding in self.expectations if not finding.success]

    @property
    def warning(self) -> str:
        """Return a line that names classes with less than a tenth of an equal share; empty without any."""
        rare = [
            f"{name} ({count:,} of {self.num_images[split]:,} {split} images)"
            for split, counts in self.class_counts.items()
            for name, count in counts.items()
            if count * len(counts) * RARE < self.num_images[split]
        ]
        return f"{len(rare)} rare classes: {', '.join(rare[:MAX_NAMED])}" if rare else ""


def read(path: Path) -> Verdict:
    """Read and check a verdict.

    Raises:
        InputError: the file is missing, is not JSON, or has another form: each fault is named.
    """
    return config.check(Verdict, files.read_json(path), str(path))


def write(path: Path, verdict: Verdict) -> None:
    """Write a verdict; equal ones make equal bytes."""
    files.write_json(path, verdict.model_dump())


def require_valid(path: Path, dataset: Path) -> Verdict:
    """Return the verdict at `path`, which must be a success for exactly this data set.

    Raises:
        InputError: the verdict is missing, broken, negative or for other data; a negative one is reported
            by the first expectation that failed.
    """
    verdict = read(path)
    if verdict.failed:
        more = f" (and {len(verdict.failed) - 1} more expectations)" if len(verdict.failed) > 1 else ""
        found = f"bad data: {verdict.failed[0].line}{more}"
        raise InputError(str(path), found=found, expected="data that pass: see data/validation.html")
    if not verdict.success:
        expected = "the file that `validate` writes: run `dvc repro --force validate`"
        raise InputError(str(path), found="no success and no failed expectation", expected=expected)
    digest = files.sha256(dataset)
    if verdict.dataset_sha256 != digest:
        found = f"a verdict on other data ({verdict.dataset_sha256[:12]})"
        expected = f"one on {dataset} ({digest[:12]}): run `dvc repro validate`"
        raise InputError(str(path), found=found, expected=expected)
    return verdict


# ---- the page


def page(
    verdict: Verdict, train: Images, test: Images, *, description: Description, bounds: Validation
) -> str:
    """Render `data/validation.html`: the verdict on these images, for people.

    Great Expectations renders its results too, but its page loads styles and scripts from the network and
    has times and ids. This one has neither, and shows the images that failed.
    """
    splits: dict[SplitName, Images] = {"train": train, "test": test}
    widest = max(bounds.class_share.max * 1.25, 0.01)
    return render(
        TEMPLATE,
        verdict=verdict,
        bounds=bounds,
        dataset=description.name,
        title=description.title,
        classes=_classes(verdict, splits, description, widest=widest),
        widest=widest,
        picture=lambda place: picture(splits[place.split].images_NHW[place.index]),
        label=lambda place: description.class_of(int(splits[place.split].labels_N[place.index])),
    )


def _classes(
    verdict: Verdict, splits: dict[SplitName, Images], description: Description, *, widest: float
) -> list[dict[str, object]]:
    """Return a row for each class: its number of images in each split, and the first of them."""
    known = range(len(description.classes))
    seen = (np.unique(images.labels_N).tolist() for images in splits.values())
    rows: list[dict[str, object]] = []
    for label in sorted({*known, *itertools.chain(*seen)}):
        name = description.class_of(label)
        cells: list[dict[str, object]] = []
        for split, images in splits.items():
            count = verdict.class_counts[split].get(name, 0)
            share = count / max(len(images), 1)
            first = np.flatnonzero(images.labels_N == label)[:1]
            cells.append(
                {
                    "split": split,
                    "count": count,
                    "share": share,
                    "width": min(share / widest, 1),
                    "picture": picture(images.images_NHW[first[0]]) if count else None,
                }
            )
        rows.append({"name": name, "cells": cells})
    return rows


def render(template: Path, **values: Any) -> str:
    """Fill in a template, escaped for HTML; a name without a value raises."""
    import jinja2  # here: most stages read the verdict alone

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def picture(image_HW: Bytes) -> str:
    """Return an image, uint8 (H, W), as the data URI of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image_HW).save(stream, format="png", optimize=True)
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
