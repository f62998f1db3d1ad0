"""The page of the validation, and helpers for all pages: templates, pictures, numbers."""

import base64
import io
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from mnist.data.catalog import Validation
from mnist.data.store import Bytes, Description, Images, SplitName
from mnist.data.validation import Verdict

TEMPLATE = Path(__file__).parent / "templates/validation_page.html.jinja"


def render(template: Path, **values: Any) -> str:
    """Fill in a template, escaped for HTML; a name without a value raises."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def picture(image_HW: Bytes) -> str:
    """Return an image, uint8 (H, W), as the data URI of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image_HW).save(stream, format="png", optimize=True)
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def as_yaml(value: object) -> str:
    """Return a param as it is in `params.yaml`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def percent(share: float | None, decimals: int = 2) -> str:
    """Return a share in percent; "none" for None."""
    return "none" if share is None else f"{100 * share:.{decimals}f}\u00a0%"


def span(interval: tuple[float, float] | None, decimals: int = 2, *, factor: float = 100) -> str:
    """Return an interval of shares in percent; of other numbers with a `factor` of 1."""
    if interval is None:
        return "none"
    low, high = (f"{factor * limit:.{decimals}f}" for limit in interval)
    return f"{low} to {high}\u00a0%" if factor == 100 else f"{low} to {high}"  # noqa: PLR2004 -- percent


def time(time_ms: int) -> str:
    """Return a time, in milliseconds since 1970, as text in UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def validation_page(
    verdict: Verdict, train: Images, test: Images, *, description: Description, bounds: Validation
) -> str:
    """Render `data/validation.html`: the verdict on these images, for people.

    Great Expectations renders its results too, but its page loads styles and scripts from the network and
    has times and ids. This one has neither, and shows the images that failed.
    """
    splits: dict[SplitName, Images] = {"train": train, "test": test}
    return render(
        TEMPLATE,
        verdict=verdict,
        bounds=bounds,
        dataset=description.name,
        title=description.title,
        classes=_classes(verdict, splits, description, widest=max(bounds.class_share.max * 1.25, 0.01)),
        widest=max(bounds.class_share.max * 1.25, 0.01),
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
