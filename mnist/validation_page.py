"""The verdict as a page for people: `data/validation.html`.

Great Expectations renders its results too, but such a page loads its styles and scripts from
the network and carries times and ids. This one stands alone, is the same bytes for the same
verdict, and shows the images that are spoken of.
"""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from mnist.dataset import Bytes, Images, SplitName
from mnist.params import Validation
from mnist.verdict import Verdict

TEMPLATE = Path(__file__).with_suffix(".html.jinja")


def html(verdict: Verdict, train: Images, test: Images, *, bounds: Validation) -> str:
    """Render the page; `train` and `test` are the images that the verdict is about."""
    splits: dict[SplitName, Images] = {"train": train, "test": test}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=verdict,
        bounds=bounds,
        classes=_classes(verdict, splits, widest=max(bounds.class_share.max * 1.25, 0.01)),
        widest=max(bounds.class_share.max * 1.25, 0.01),
        picture=lambda place: _picture(splits[place.split].images_NHW[place.index]),
        label=lambda place: int(splits[place.split].labels_N[place.index]),
    )


def _classes(verdict: Verdict, splits: dict[SplitName, Images], *, widest: float) -> list[dict[str, object]]:
    """A row for each label: how many images of each split have it, and the first of them."""
    labels = sorted({int(label) for counts in verdict.class_counts.values() for label in counts})
    rows = []
    for label in labels:
        cells = []
        for split, images in splits.items():
            count = verdict.class_counts[split].get(str(label), 0)
            share = count / max(len(images), 1)
            first = np.flatnonzero(images.labels_N == label)[:1]
            cells.append(
                {
                    "split": split,
                    "count": count,
                    "share": share,
                    "width": min(share / widest, 1),
                    "picture": _picture(images.images_NHW[first[0]]) if count else None,
                }
            )
        rows.append({"label": label, "cells": cells})
    return rows


def _picture(image_HW: Bytes) -> str:
    """A PNG as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(image_HW).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
