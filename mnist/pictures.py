"""Galleries of images, the same bytes for the same images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from mnist import files
from mnist.dataset import Bytes

COLUMNS = 5
# Of the picture, in pixels. An image's side is five times its own 28 pixels, so that all are equally large.
DPI, CELL, CAPTION, TITLE = 100, 160, 32, 34
SIDE, ABOVE = 140, 30
CAPTION_WIDTH, MAX_NAME = 152, 20  # pixels; characters of a name
SMALLER = (9, 8, 7, 6, 5, 4)  # points, where a caption in letters of 11 is too wide
RIGHT, WRONG = "#1a7f37", "#cf222e"  # green and red of equal weight, readable on white


def gallery(
    path: Path,
    *,
    title: str,
    images_NHW: Bytes,
    labels_N: Bytes,
    predicted_N: NDArray[np.int64],
    confidence_N: NDArray[np.float64],
    index_N: NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    """Draw N images in rows of five, each with what was predicted, how surely, and whether it is right.

    Args:
        path: a PNG file.
        title: over all.
        images_NHW: uint8 (N, 28, 28); N may be 0, which draws the title and says so.
        labels_N: uint8 (N,).
        predicted_N: int64 (N,).
        confidence_N: float64 (N,), the probability of what was predicted.
        index_N: int64 (N,), position in the test split.
        classes: the names of the classes, by label.
    """
    num_rows = max(1, -(-len(images_NHW) // COLUMNS))
    width, height = COLUMNS * CELL, num_rows * (CELL + CAPTION) + TITLE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    # One pair of axes for all, in pixels from the top left: a pair for each image takes 3 times as long.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(width / 2, TITLE / 2, title, ha="center", va="center", fontsize=13, fontweight="bold")
    if len(images_NHW) == 0:
        axes.text(width / 2, (TITLE + height) / 2, "none", ha="center", va="center", fontsize=13)
    rows = zip(images_NHW, labels_N, predicted_N, confidence_N, index_N, strict=True)
    for place, (image_HW, label, predicted, confidence, index) in enumerate(rows):
        right = predicted == label
        left, top = place % COLUMNS * CELL, TITLE + place // COLUMNS * (CELL + CAPTION)
        middle, below = left + CELL / 2, top + ABOVE + SIDE
        seen, true = (_shortened(classes[one]) for one in (predicted, label))
        said = [f"{seen}  ({confidence:.1%})", *([] if right else [f"is {true}"])]
        caption = axes.text(
            middle,
            top + ABOVE / 2,
            ", ".join(said),
            ha="center",
            va="center",
            fontsize=11,
            color=RIGHT if right else WRONG,
        )
        _fit(caption, said, renderer)
        axes.imshow(
            image_HW,
            cmap="gray_r",
            vmin=0,
            vmax=255,
            interpolation="nearest",
            extent=(middle - SIDE / 2, middle + SIDE / 2, below, top + ABOVE),
            aspect="auto",
        )
        axes.text(middle, below + 2, f"test image {index}", ha="center", va="top", fontsize=7)
    axes.set(xlim=(0, width), ylim=(height, 0))  # which the images have changed
    with files.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})  # no version in the bytes


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _fit(caption: Text, lines: Sequence[str], renderer: RendererBase) -> None:
    """Give a caption that is too wide a line for each part, and letters that are small enough."""
    for size in SMALLER:
        if caption.get_window_extent(renderer).width <= CAPTION_WIDTH:
            return
        caption.set(text="\n".join(lines), fontsize=size, linespacing=1)
