"""The verdict as a page for people: `data/validation.html`.

Great Expectations renders its results too, but such a page loads its styles and scripts from
the network and carries times and ids. This one stands alone, is the same bytes for the same
verdict, and shows the images that are spoken of.
"""

import itertools
from pathlib import Path

import numpy as np

from mnist.data import page
from mnist.data.catalog import Validation
from mnist.data.store import Description, Images, SplitName
from mnist.data.validation import Verdict

TEMPLATE = Path(__file__).parent / "templates/validation_page.html.jinja"


def html(
    verdict: Verdict, train: Images, test: Images, *, description: Description, bounds: Validation
) -> str:
    """Render the page; `train` and `test` are the images that the verdict is about."""
    splits: dict[SplitName, Images] = {"train": train, "test": test}
    return page.render(
        TEMPLATE,
        verdict=verdict,
        bounds=bounds,
        dataset=description.name,
        title=description.title,
        classes=_classes(verdict, splits, description, widest=max(bounds.class_share.max * 1.25, 0.01)),
        widest=max(bounds.class_share.max * 1.25, 0.01),
        picture=lambda place: page.picture(splits[place.split].images_NHW[place.index]),
        label=lambda place: description.class_of(int(splits[place.split].labels_N[place.index])),
    )


def _classes(
    verdict: Verdict, splits: dict[SplitName, Images], description: Description, *, widest: float
) -> list[dict[str, object]]:
    """A row for each class: how many images of each split are of it, and the first of them."""
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
                    "picture": page.picture(images.images_NHW[first[0]]) if count else None,
                }
            )
        rows.append({"name": name, "cells": cells})
    return rows
