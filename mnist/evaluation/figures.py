"""Figures in PNG: galleries of images, the filters of a network, and its feature maps.

Equal input gives equal bytes. torchvision's grid is not used: its import takes longer than all that
`evaluate` does (3.3 s), and it draws no text.

Shape suffixes: N images, M of them, K classes, C channels, F filters or units, H rows, W columns, D pixels of
an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mnist.core import files
from mnist.data.store import IMAGE_SHAPE, Images
from mnist.evaluation import scores
from mnist.training.onnx_model import Floats, OnnxModel

# Layers that are shown, by their names in the network.
CONVOLUTIONS = {"conv1": "first convolution", "conv2": "second convolution"}
HIDDEN = {"fc1": "first hidden layer", "fc2": "second hidden layer"}

DPI = 100
MAX_IMAGES = 10  # of a gallery, and of the figure of feature maps
TITLE = 34  # all sizes in pixels

# A gallery. An image's side is five times its own 28 pixels, so that all are equally large.
COLUMNS = 5
CELL, CAPTION = 160, 32
SIDE, ABOVE = 140, 30
CAPTION_WIDTH, MAX_NAME = 152, 20  # pixels; characters of a name
SMALLER = (9, 8, 7, 6, 5, 4)  # points, where a caption in letters of 11 is too wide
RIGHT, WRONG = "#1a7f37", "#cf222e"  # green and red of equal weight, readable on white

# Filters and feature maps have a transparent background: they are shown on light and dark pages.
GRAY = "#717b86"  # as far from white as from the dark ground of GitHub: 4.3 to 1
GAP, MARGIN = 4, 16
FILTER, FILTERS_A_ROW, MAX_FILTERS = 85, 8, 32
FILTER_GAP = 12  # wide, since a weight of 0 is as white as a light page
MAP, MAX_MAPS = 48, 8  # side of a channel's map, and how many of a layer are shown
LETTER, LARGE_LETTER = 8, 10  # width of one in a caption, and of one in a name, on the safe side
MIN_WIDTH = 600  # that the title needs


def first_weights(path: Path) -> Floats:
    """Return the first layer of a weights file, float32 (F, H, W): 5x5 of a CNN, 28x28 of an MLP.

    Where the classifier shuffles the pixels, the weights of an MLP are put back in the places of the image.
    """
    tensors = load_file(path)
    if "network.conv1.weight" in tensors:
        return tensors["network.conv1.weight"][:, 0]
    weight_FD = tensors["network.fc1.weight"]
    if "permutation" in tensors:
        in_place_FD = np.empty_like(weight_FD)
        in_place_FD[:, tensors["permutation"]] = weight_FD
        weight_FD = in_place_FD
    return weight_FD.reshape(-1, *IMAGE_SHAPE)


def layers(
    classifier: OnnxModel, test: Images, classes: Sequence[str]
) -> tuple[list[str], Floats, dict[str, Floats]]:
    """Return what a CNN or an MLP makes of the first image of each class, of 10 classes at most.

    Returns:
        The names of the classes; the inputs of the network, float32 (M, H, W); and the outputs of its layers
        but the last, float32 (M, C, H, W) by the name of the layer, after the ReLU. H and W are 1 in a fully
        connected layer.
    """
    labels, first_M = np.unique(test.labels_N, return_index=True)
    names, images_NHW = [classes[label] for label in labels], test.images_NHW[first_M[:MAX_IMAGES]]
    shown = CONVOLUTIONS if "conv1" in classifier.layers else HIDDEN
    tensors = {label: classifier.layers[name] for name, label in shown.items()}
    x, _ = next(iter(tensors.values()))
    # Before pooling, which `SimpleCNN` does before the ReLU: these maps are larger.
    outputs = {label: classifier.tensor(name, images_NHW) for label, (_, name) in tensors.items()}
    maps = {
        label: np.maximum(output, 0).reshape(*output.shape[:2], *(output.shape[2:] or (1, 1)))
        for label, output in outputs.items()
    }
    return names[:MAX_IMAGES], classifier.tensor(x, images_NHW).reshape(-1, *IMAGE_SHAPE), maps


def gallery(
    path: Path,
    title: str,
    index_M: NDArray[np.int64],
    *,
    test: Images,
    log_probs_NK: NDArray[np.floating[Any]],
    classes: Sequence[str],
) -> None:
    """Draw M test images in rows of five, each with its predicted class and confidence, in green or red.

    Args:
        path: a PNG file.
        title: above all images.
        index_M: int64 (M,), positions in the test split; of more than 10 images the first ones are drawn,
            of none the word "none".
        test: all N images of the split, with their labels.
        log_probs_NK: float (N, K), of the test images.
        classes: names of the classes, by label.
    """
    index_M = index_M[:MAX_IMAGES]
    num_rows = max(1, -(-len(index_M) // COLUMNS))
    width, height = COLUMNS * CELL, num_rows * (CELL + CAPTION) + TITLE
    axes = _axes(width, height, ground="white")
    _text(axes, width / 2, TITLE / 2, title, ha="center", fontsize=13, fontweight="bold", color="black")
    if len(index_M) == 0:
        _text(axes, width / 2, (TITLE + height) / 2, "none", ha="center", fontsize=13, color="black")
    confidence_M = scores.confidence(log_probs_NK[index_M])
    for place, (index, confidence) in enumerate(zip(index_M, confidence_M, strict=True)):
        label, predicted = test.labels_N[index], log_probs_NK[index].argmax()
        left, top = place % COLUMNS * CELL, TITLE + place // COLUMNS * (CELL + CAPTION)
        middle, below = left + CELL / 2, top + ABOVE + SIDE
        predicted_name, name = (_shortened(classes[one]) for one in (predicted, label))
        lines, color = [f"{predicted_name}  ({confidence:.1%})"], RIGHT
        if predicted != label:
            lines, color = [*lines, f"is {name}"], WRONG
        caption = _text(
            axes, middle, top + ABOVE / 2, ", ".join(lines), ha="center", fontsize=11, color=color
        )
        _fit(caption, lines)
        image = test.images_NHW[None, None, index].astype(np.float32)
        left += (CELL - SIDE) // 2
        _grid(axes, image, left=left, top=top + ABOVE, side=SIDE, cmap="gray_r", limits=(0, 255), gap=0)
        note = f"test image {index}"
        _text(axes, middle, below + 2, note, ha="center", va="top", fontsize=7, color="black")
    _save(path, axes)


def filters(path: Path, patterns_FHW: Floats) -> None:
    """Draw the filters of a first layer: positive weights orange, negative ones purple.

    Args:
        path: a PNG file.
        patterns_FHW: float32 (F, H, W); of more than 32 filters the first ones.
    """
    num_filters = len(patterns_FHW)
    shown_FHW = patterns_FHW[:MAX_FILTERS]
    some = f"{MAX_FILTERS} of {num_filters}" if num_filters > MAX_FILTERS else f"{num_filters}"
    num_rows = -(-len(shown_FHW) // FILTERS_A_ROW)
    top, width = TITLE + CAPTION, 2 * MARGIN + _extent(FILTERS_A_ROW, FILTER, FILTER_GAP)
    axes = _axes(width, top + _extent(num_rows, FILTER, FILTER_GAP) + MARGIN)
    _title(axes, f"What the first layer looks for: {some} filter{'' if num_filters == 1 else 's'}")
    _text(axes, MARGIN, TITLE + CAPTION / 4, "orange: a bright pixel speaks for it; purple: against it")
    empty_FHW = np.full((num_rows * FILTERS_A_ROW - len(shown_FHW), *shown_FHW.shape[1:]), np.nan, np.float32)
    grid = np.concatenate([shown_FHW, empty_FHW]).reshape(num_rows, FILTERS_A_ROW, *shown_FHW.shape[1:])
    limit = float(np.abs(patterns_FHW).max()) or 1.0
    _grid(
        axes, grid, left=MARGIN, top=top, side=FILTER, cmap="PuOr_r", limits=(-limit, limit), gap=FILTER_GAP
    )
    _save(path, axes)


def feature_maps(path: Path, names: Sequence[str], inputs_NHW: Floats, maps: Mapping[str, Floats]) -> None:
    """Draw a row for each image: the input of the network, and the feature maps of its layers.

    Args:
        path: a PNG file.
        names: of the classes of the N images.
        inputs_NHW: float32 (N, H, W), the inputs of the network.
        maps: float32 (N, C, H, W) by the name of the layer; of more than 8 channels the first ones are
            drawn. All maps of a layer have one scale, black for 0.
    """
    low, high = float(inputs_NHW.min()), float(inputs_NHW.max())
    shown = [("image", inputs_NHW[:, None], "gray_r", (low, high if high > low else low + 1))]
    for layer, maps_NCHW in maps.items():
        num_channels = maps_NCHW.shape[1]
        every = "1" if num_channels == 1 else f"all {num_channels}"
        some = f"{MAX_MAPS} of {num_channels}" if num_channels > MAX_MAPS else every
        limits = (0.0, float(maps_NCHW.max()) or 1.0)
        shown.append((f"{layer} ({some})", maps_NCHW[:, :MAX_MAPS], "magma", limits))

    names = [_shortened(name) for name in names]
    top, left = TITLE + CAPTION, 2 * MARGIN + LARGE_LETTER * max(map(len, names))
    lefts = []
    for caption, maps_NCHW, _, _ in shown:
        lefts.append(left)
        left += max(_extent(maps_NCHW.shape[1], MAP), LETTER * len(caption)) + MARGIN
    axes = _axes(max(left, MIN_WIDTH), top + _extent(len(names), MAP) + MARGIN)
    _title(axes, "What each layer makes of a test image, by class")
    for row, name in enumerate(names):
        middle = top + row * (MAP + GAP) + MAP / 2
        _text(axes, lefts[0] - MARGIN / 2, middle, name, fontsize=12, ha="right")
    for start, (caption, maps_NCHW, cmap, limits) in zip(lefts, shown, strict=True):
        _text(axes, start, top - CAPTION / 2, caption)
        _grid(axes, maps_NCHW, left=start, top=top, side=MAP, cmap=cmap, limits=limits)
    _save(path, axes)


def _axes(width: int, height: int, *, ground: str = "none") -> Axes:
    """Return axes in pixels from the top left; axes for each image would take 3 times as long."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=ground)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)  # an image would change the limits
    return axes


def _title(axes: Axes, text: str) -> None:
    _text(axes, MARGIN, TITLE / 2, text, fontsize=13, fontweight="bold")


def _text(axes: Axes, x: float, y: float, text: str, **look: Any) -> Text:
    # A name between dollars would be a formula, and a broken one an error.
    plain: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 10, "color": GRAY, "parse_math": False}
    return axes.text(x, y, text, **(plain | look))


def _extent(count: int, side: int, gap: int = GAP) -> int:
    """Return the width of so many squares with gaps between them."""
    return count * (side + gap) - gap


def _grid(
    axes: Axes,
    maps: NDArray[np.float32],
    *,
    left: int,
    top: int,
    side: int,
    cmap: str,
    limits: tuple[float, float],
    gap: int = GAP,
) -> None:
    """Draw rows of columns of maps, float32 (rows, columns, H, W), as squares, each pixel a rectangle.

    They are one image, since an image for each map would take 5 times as long. NaN is left out.
    """
    num_rows, num_columns, height, width = maps.shape
    squares = maps[:, :, np.arange(side) * height // side][..., np.arange(side) * width // side]
    with_gaps = np.pad(squares, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    image = with_gaps.transpose(0, 2, 1, 3).reshape(num_rows * (side + gap), num_columns * (side + gap))
    axes.imshow(
        np.ma.masked_invalid(image),
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        extent=(left, left + image.shape[1], top + image.shape[0], top),
        aspect="auto",
    )


def _save(path: Path, axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    with files.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})  # no version in the bytes


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _fit(caption: Text, lines: Sequence[str]) -> None:
    """Break a caption that is too wide into lines, in letters that are small enough."""
    for size in SMALLER:
        if caption.get_window_extent().width <= CAPTION_WIDTH:
            return
        caption.set(text="\n".join(lines), fontsize=size, linespacing=1)
