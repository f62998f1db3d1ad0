"""Galleries of digits, the same bytes for the same digits."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mnist import files
from mnist.dataset import Bytes

COLUMNS = 5
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
    """
    num_rows = max(1, -(-len(images_NHW) // COLUMNS))
    figure = Figure(figsize=(8, 2.05 * num_rows + 0.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes = list(figure.subplots(num_rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    if len(images_NHW) == 0:
        figure.text(0.5, 0.4, "none", ha="center", fontsize=13)
    rows = zip(axes, images_NHW, labels_N, predicted_N, confidence_N, index_N, strict=False)
    for axis, image_HW, label, predicted, confidence, index in rows:
        right = predicted == label
        axis.imshow(image_HW, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        said = f"{predicted}  ({confidence:.1%})" if right else f"{predicted}  ({confidence:.1%}), is {label}"
        axis.set_title(said, fontsize=11, color=RIGHT if right else WRONG)
        axis.text(
            0.5, -0.02, f"test image {index}", ha="center", va="top", fontsize=7, transform=axis.transAxes
        )
    with files.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})  # no version in the bytes
