"""Figures: what is drawn where, and of which weights and outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.image import imread
from numpy.typing import NDArray
from safetensors.torch import save_file

from mnist.core import paths
from mnist.core.config import Architecture
from mnist.data.store import Images
from mnist.evaluation import figures
from mnist.training import model, onnx_export, onnx_model
from mnist.training.model import MLP, Classifier, SimpleCNN
from tests.conftest import DIGITS, digits


def log_probs(predicted_N: NDArray[Any], confidence_N: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return log-probabilities, float32 (N, 10), of predictions with this confidence."""
    is_predicted_NK = predicted_N[:, None] == np.arange(10)
    probs_NK = np.where(is_predicted_NK, confidence_N[:, None], (1 - confidence_N[:, None]) / 9)
    return np.log(probs_NK).astype(np.float32)


def draw(
    path: Path,
    num_images: int,
    *,
    num_wrong: int = 0,
    classes: Sequence[str] = DIGITS.classes,
) -> Path:
    """A gallery in which the first `num_wrong` predictions are wrong."""
    shown = digits(num_images, seed=3)
    wrong_N = np.arange(num_images) < num_wrong
    figures.gallery(
        path,
        "Some digits",
        np.arange(num_images),
        test=shown,
        log_probs_NK=log_probs((shown.labels_N + wrong_N) % 10, np.linspace(0.5, 0.999, num_images)),
        classes=classes,
    )
    return path


def share_of(picture: NDArray[Any], color: str) -> float:
    """Return the share of pixels that have exactly this color."""
    wanted = np.array(mpl.colors.to_rgb(color))
    return float((np.abs(picture[:, :, :3] - wanted).max(2) < 0.01).mean())


@pytest.mark.parametrize(("num_images", "num_rows"), [(0, 1), (6, 2)])
def test_a_gallery_has_rows_of_five(tmp_path: Path, num_images: int, num_rows: int) -> None:
    picture = imread(draw(tmp_path / "gallery.png", num_images))
    assert picture.shape[:2] == (34 + 192 * num_rows, 800)


def test_right_is_green_and_wrong_is_red(tmp_path: Path) -> None:
    right = imread(draw(tmp_path / "right.png", 1))
    wrong = imread(draw(tmp_path / "wrong.png", 1, num_wrong=1))

    assert share_of(right, figures.RIGHT) > 0 == share_of(right, figures.WRONG)
    assert share_of(wrong, figures.WRONG) > 0 == share_of(wrong, figures.RIGHT)


def test_every_pixel_of_an_image_is_on_it(tmp_path: Path) -> None:
    """Black ink on white, each pixel a rectangle: the picture holds the image, larger."""
    image_HW = np.zeros((28, 28), np.uint8)
    image_HW[:14, :14] = 255
    image_HW[14:, 14:] = 128
    figures.gallery(
        tmp_path / "gallery.png",
        " ",
        np.array([0]),
        test=Images(images_NHW=image_HW[None], labels_N=np.array([1], np.uint8)),
        log_probs_NK=log_probs(np.array([1]), np.array([0.999])),
        classes=DIGITS.classes,
    )

    gray = imread(tmp_path / "gallery.png")[64:204, 10:150, 0]
    middle_of = {value: np.argwhere(np.abs(gray - value / 255) < 0.005) for value in (0, 127)}
    black, half = middle_of[0], middle_of[127]
    assert len(half) == len(black) == (14 * 5) ** 2  # each pixel is five by five
    assert (half.mean(0) - black.mean(0)).tolist() == [70, 70]  # down and right


def test_a_caption_of_long_names_stays_in_its_cell_and_off_its_image(tmp_path: Path) -> None:
    """Without that the last column would run over the edge."""
    classes = [f"mammmmmmalian rrrrrrrrrrrrrrrrr {number}" for number in range(10)]
    drawn = imread(draw(tmp_path / "long.png", 5, num_wrong=5, classes=classes))[:, :, 1]
    for column in range(5):
        caption = drawn[34:64, 160 * column : 160 * column + 160]
        assert (caption[:, 5:-5] < 0.5).any()
        assert (caption[:, [0, 1, -2, -1]] > 0.9).all()
        assert (caption[[0, -1]] > 0.9).all()


def test_a_name_between_dollars_is_no_formula(tmp_path: Path) -> None:
    """It would be an error."""
    draw(tmp_path / "gallery.png", 1, classes=["$\\frac{$"] * 10)
    draw_maps(tmp_path / "maps.png", name="$\\frac{$")


def draw_maps(path: Path, *, name: str = "7") -> NDArray[Any]:
    """Draw three images, and two channels of two layers; the last activation of each is its largest."""
    rng, maps = np.random.default_rng(0), {}
    for layer, side in (("first", 24), ("second", 8)):
        maps[layer] = rng.random((3, 2, side, side), np.float32)
        maps[layer][-1, -1, -1, -1] = 2
    figures.feature_maps(path, [name] * 3, digits(3, seed=1).images_NHW.astype(np.float32), maps)
    return np.asarray(imread(path))


def draw_filters(path: Path, num_filters: int, *, scale: float = 1.0) -> NDArray[Any]:
    patterns_FHW = np.zeros((num_filters, 5, 5), np.float32)
    patterns_FHW[:, 0, 0], patterns_FHW[:, 4, 4] = scale, -scale
    figures.filters(path, patterns_FHW)
    return np.asarray(imread(path))


@pytest.mark.parametrize(("num_filters", "num_rows"), [(8, 1), (9, 2), (40, 4)])
def test_filters_are_in_rows_of_eight_up_to_thirty_two(
    tmp_path: Path, num_filters: int, num_rows: int
) -> None:
    picture = draw_filters(tmp_path / "filters.png", num_filters)

    for place in range(32):
        top, left = 66 + place // 8 * 97, 16 + place % 8 * 97
        cell = picture[top : top + 85, left : left + 85]
        is_drawn = len(cell) == 85 and bool((cell[:, :, 3] == 1).all())
        assert is_drawn is (place < num_filters), place
    assert picture.shape[0] == 66 + num_rows * 97 - 12 + 16


def test_positive_weights_are_orange_and_negative_ones_purple_at_any_scale(tmp_path: Path) -> None:
    picture = draw_filters(tmp_path / "filters.png", 1, scale=1e-3)

    positive, zero, negative = (picture[66 + at, 16 + at, :3] for at in (5, 42, 80))
    assert positive[0] > positive[2] + 0.3  # more red than blue
    assert negative[2] > negative[0] + 0.1
    assert zero.min() > 0.95
    draw_filters(tmp_path / "zero.png", 2, scale=0)  # nothing to divide by


def test_maps_are_beside_their_image_black_for_zero_and_bright_for_the_largest(tmp_path: Path) -> None:
    picture = draw_maps(tmp_path / "maps.png")

    columns = np.nonzero((picture[66:114, :, 3] == 1).all(axis=0))[0]
    starts = columns[np.insert(np.diff(columns) > 1, 0, True)].tolist()
    assert len(starts) == 1 + 2 + 2  # the image, and two channels of two layers
    bottom, right = 66 + 2 * 52 + 48, starts[4] + 48
    assert picture[bottom - 3, right - 3, :3].min() > 0.7  # the largest of the layer
    assert picture[66:114, starts[3] : starts[3] + 48, :3].mean() < 0.6
    assert (picture[:, :, 3] == 0).mean() > 0.3  # transparent, since it is shown on light and dark pages


# ---- weights and outputs of the network


def classifier(kind: str, *, permute_pixels: bool = False) -> Classifier:
    architecture = Architecture.model_validate(
        {"model": kind, "n_features": 3, "permute_pixels": permute_pixels}
    )
    return model.build(architecture, classes=DIGITS.classes, seed=2, mean=0.2, std=0.4).eval()


@pytest.mark.parametrize("permute_pixels", [False, True], ids=["in place", "shuffled"])
def test_filters_of_an_mlp_lie_where_the_pixels_are(tmp_path: Path, permute_pixels: bool) -> None:
    """Held over the image as it is, a pattern gives what the unit gives."""
    net = classifier("mlp", permute_pixels=permute_pixels)
    images_NHW = digits(4, seed=0).images_NHW
    save_file(net.state_dict(), tmp_path / "weights")

    patterns_FHW = figures.first_weights(tmp_path / "weights")

    assert isinstance(net.network, MLP)
    assert patterns_FHW.shape == (8, 28, 28)
    x_NHW = (images_NHW / 255 - 0.2) / 0.4
    by_hand_NF = np.einsum("nhw,fhw->nf", x_NHW, patterns_FHW) + net.network.fc1.bias.detach().numpy()
    x_NCHW = net.preprocess(torch.from_numpy(images_NHW))
    assert np.allclose(by_hand_NF, net.network.fc1(x_NCHW.flatten(1)).detach().numpy(), atol=1e-4)


def of_classes(num_classes: int) -> Images:
    """An image of each class, in order."""
    labels_N = np.arange(num_classes, dtype=np.uint8)
    return Images(images_NHW=digits(num_classes, seed=1).images_NHW, labels_N=labels_N)


def test_of_many_classes_the_first_ten_are_shown(scored: Path) -> None:
    names, inputs_NHW, maps = figures.layers(
        onnx_model.load(scored / paths.ONNX), of_classes(12), "abcdefghijkl"
    )
    assert (names, len(inputs_NHW)) == (list("abcdefghij"), 10)
    assert {len(maps_NCHW) for maps_NCHW in maps.values()} == {10}


def test_filters_of_a_cnn_are_its_first_kernels_and_maps_its_rectified_convolutions(scored: Path) -> None:
    net, images = model.load(scored / paths.WEIGHTS), of_classes(4)

    names, inputs_NHW, maps = figures.layers(onnx_model.load(scored / paths.ONNX), images, "abcd")

    assert names == ["a", "b", "c", "d"]
    assert isinstance(net.network, SimpleCNN)
    kernels_FHW = net.network.conv1.weight[:, 0].detach().numpy()
    assert np.array_equal(figures.first_weights(scored / paths.WEIGHTS), kernels_FHW)
    x_NCHW = net.preprocess(torch.from_numpy(images.images_NHW))
    with torch.no_grad():
        first_NCHW = F.relu(net.network.conv1(x_NCHW))
        second_NCHW = F.relu(net.network.conv2(F.max_pool2d(first_NCHW, 2)))
    assert np.allclose(inputs_NHW, x_NCHW[:, 0].numpy(), atol=1e-6)
    assert list(maps) == ["first convolution", "second convolution"]
    assert np.allclose(maps["first convolution"], first_NCHW.numpy(), atol=1e-5)
    assert np.allclose(maps["second convolution"], second_NCHW.numpy(), atol=1e-5)


def test_maps_of_an_mlp_are_its_units_and_its_inputs_are_shuffled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    net, images = classifier("mlp", permute_pixels=True), of_classes(3)
    onnx_export.export(tmp_path / "model.onnx", net, weights_sha256="d" * 64, images=images)

    _, inputs_NHW, maps = figures.layers(onnx_model.load(tmp_path / "model.onnx"), images, "abc")

    assert isinstance(net.network, MLP)
    with torch.no_grad():
        x_NCHW = net.preprocess(torch.from_numpy(images.images_NHW))
        first_NF = F.relu(net.network.fc1(x_NCHW.flatten(1)))
        second_NF = F.relu(net.network.fc2(first_NF))
    assert np.allclose(inputs_NHW, x_NCHW[:, 0].numpy(), atol=1e-6)
    assert maps["first hidden layer"].shape == (3, 8, 1, 1)
    assert np.allclose(maps["first hidden layer"][:, :, 0, 0], first_NF.numpy(), atol=1e-5)
    assert np.allclose(maps["second hidden layer"][:, :, 0, 0], second_NF.numpy(), atol=1e-5)
