"""Galleries: what is on them, and that they are the same bytes each time."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from mnist import pictures
from tests.conftest import DIGITS, digits

ROOT = Path(__file__).parents[1]


def draw(
    path: Path,
    num_images: int,
    *,
    num_wrong: int = 0,
    title: str = "Some digits",
    classes: Sequence[str] = DIGITS.classes,
) -> Path:
    """A gallery in which the first `num_wrong` predictions are wrong."""
    shown = digits(num_images, seed=3)
    wrong_N = np.arange(num_images) < num_wrong
    pictures.gallery(
        path,
        title=title,
        images_NHW=shown.images_NHW,
        labels_N=shown.labels_N,
        predicted_N=(shown.labels_N.astype(np.int64) + wrong_N) % 10,
        confidence_N=np.linspace(0.5, 1, num_images),
        index_N=np.arange(num_images) * 1111,
        classes=classes,
    )
    return path


def share_of(picture: NDArray[Any], color: str) -> float:
    """Of pixels that have just this colour."""
    wanted = np.array(mpl.colors.to_rgb(color))
    return float((np.abs(picture[:, :, :3] - wanted).max(2) < 0.01).mean())


@pytest.mark.parametrize(("num_images", "num_rows"), [(0, 1), (1, 1), (5, 1), (6, 2), (10, 2)])
def test_it_is_a_picture_of_a_size_to_look_at(tmp_path: Path, num_images: int, num_rows: int) -> None:
    path = draw(tmp_path / "gallery.png", num_images)

    picture = imread(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.shape[:2] == (34 + 192 * num_rows, 800)
    assert path.stat().st_size < 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.png"]


def test_right_is_green_and_wrong_is_red(tmp_path: Path) -> None:
    right = imread(draw(tmp_path / "right.png", 10))
    mixed = imread(draw(tmp_path / "mixed.png", 10, num_wrong=4))
    wrong = imread(draw(tmp_path / "wrong.png", 10, num_wrong=10))

    assert share_of(right, pictures.RIGHT) > share_of(mixed, pictures.RIGHT) > 0
    assert share_of(wrong, pictures.WRONG) > share_of(mixed, pictures.WRONG) > 0
    assert share_of(right, pictures.WRONG) == share_of(wrong, pictures.RIGHT) == 0


def test_every_pixel_of_an_image_is_on_it(tmp_path: Path) -> None:
    """Black ink on white, each pixel a rectangle: the picture holds the image, larger."""
    image_HW = np.zeros((28, 28), np.uint8)
    image_HW[:14, :14] = 255
    image_HW[14:, 14:] = 128
    pictures.gallery(
        tmp_path / "gallery.png",
        title=" ",
        images_NHW=image_HW[None],
        labels_N=np.array([1], np.uint8),
        predicted_N=np.array([1]),
        confidence_N=np.array([1.0]),
        index_N=np.array([0]),
        classes=DIGITS.classes,
    )

    gray = imread(tmp_path / "gallery.png")[64:204, 10:150, 0]
    middle_of = {value: np.argwhere(np.abs(gray - value / 255) < 0.005) for value in (0, 127)}
    black, half = middle_of[0], middle_of[127]
    assert len(half) == len(black) == (14 * 5) ** 2  # each pixel is five by five
    assert (half.mean(0) - black.mean(0)).tolist() == [70, 70]  # down and right


def test_all_images_are_on_it_each_in_its_place(tmp_path: Path) -> None:
    drawn = imread(draw(tmp_path / "ten.png", 10))[:, :, 0]
    seven = imread(draw(tmp_path / "seven.png", 7))[:, :, 0]

    for row in (0, 1):
        for column in range(5):
            cell = np.s_[64 + 192 * row : 204 + 192 * row, 160 * column : 160 * column + 160]
            assert np.mean(drawn[cell] < 0.5) > 0.02
            assert bool(np.mean(seven[cell] < 0.5) > 0.02) is (5 * row + column < 7)


def test_no_image_says_so(tmp_path: Path) -> None:
    """A word in the middle is the only ink."""
    none = imread(draw(tmp_path / "none.png", 0, title=" "))

    rows, columns = np.nonzero(none[:, :, 0] < 0.5)
    assert 380 <= columns.min() <= columns.max() <= 420
    assert 100 < rows.min() <= rows.max() < 200


def test_the_confidence_is_a_share_and_the_label_is_told_where_it_is_wrong(tmp_path: Path) -> None:
    """The caption of a mistake is longer, by what the image is."""
    right = imread(draw(tmp_path / "right.png", 1))[30:60]
    wrong = imread(draw(tmp_path / "wrong.png", 1, num_wrong=1))[30:60]

    def width(caption: NDArray[Any]) -> int:
        columns = np.nonzero(caption[:, :, :3].min(axis=(0, 2)) < 0.5)[0]
        return int(np.ptp(columns))

    assert width(wrong) > width(right) + 30


def test_the_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.test_pictures import draw;"
        "draw(Path(sys.argv[1]), 10, num_wrong=3)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "other name.png"], cwd=ROOT, check=True)

    here = draw(tmp_path / "gallery.png", 10, num_wrong=3)

    assert here.read_bytes() == (tmp_path / "other name.png").read_bytes()


def test_a_caption_of_long_names_stays_in_its_cell_and_off_its_image(tmp_path: Path) -> None:
    """Wherever names are told by words; the last column would else run over the edge."""
    longest = [f"mammmmmmalian rrrrrrrrrrrrrrrrr {number}" for number in range(10)]
    for classes in (longest, ["Ankle boot"] * 5 + ["T-shirt/top"] * 5):
        drawn = imread(draw(tmp_path / "long.png", 10, num_wrong=10, classes=classes))[:, :, 1]
        for row in (0, 1):
            top = 34 + 192 * row
            for column in range(5):
                caption = drawn[top : top + 30, 160 * column : 160 * column + 160]
                assert (caption[:, 5:-5] < 0.5).any()
                assert (caption[:, [0, 1, -2, -1]] > 0.9).all()
                assert (caption[[0, -1]] > 0.9).all()
