from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data import store, validation
from mnist.data.store import Images
from stages import validate
from tests.conftest import DIGITS, SmallData
from tests.made_result import verdict
from tests.unit.data.test_expectations import BOUNDS
from tests.unit.evaluation.test_pages import Page

PARAMS = validate.Params(dataset="mnist")


@pytest.fixture
def bad_dataset(small_data: SmallData, tmp_path: Path) -> Path:
    """With a blank training image 17 and training image 31 as test image 7."""
    train_NHW, test_NHW = small_data.train.images_NHW.copy(), small_data.test.images_NHW.copy()
    train_NHW[17] = 0
    test_NHW[7] = train_NHW[31]
    path = tmp_path / "bad.safetensors"
    store.write(
        path,
        train=Images(images_NHW=train_NHW, labels_N=small_data.train.labels_N),
        test=Images(images_NHW=test_NHW, labels_N=small_data.test.labels_N),
        description=DIGITS,
    )
    return path


@pytest.fixture
def datasets(small_data: SmallData, tmp_path: Path) -> Path:
    """A folder of data sets whose MNIST has these bounds."""
    folder = tmp_path / paths.DATASETS
    folder.mkdir()
    YAML(typ="safe").dump(small_data.section(validation=BOUNDS.model_dump()), folder / "mnist.yaml")
    return folder


def run(datasets: Path, data: Path, folder: Path) -> tuple[Path, Path]:
    verdict, page = folder / "validation.json", folder / "validation.html"
    validate.run(params=PARAMS, datasets=datasets, dataset=data, verdict=verdict, page=page)
    return verdict, page


def test_good_data_pass_in_one_line(
    datasets: Path, dataset_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verdict, page = run(datasets, dataset_path, tmp_path)

    out, err = capfd.readouterr()
    assert out == f"validate: 18 of 18 expectations hold for 1,200 + 300 images of MNIST; page: {page}\n"
    assert err == ""  # neither progress bars nor log lines
    assert validation.read(verdict).success
    shown = Page(page.read_text())
    assert "all 18 expectations hold" in shown.text
    assert "What failed" not in shown.text
    assert len(shown.alts) == 20  # the first of each digit in each split


def test_bad_data_are_written_down_before_they_stop_the_pipeline(
    datasets: Path, bad_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(datasets, bad_dataset, tmp_path)

    failed = validation.read(tmp_path / "validation.json").failed
    names = [finding.expectation for finding in failed]
    assert sorted(names) == ["brightest_pixel", "image_mean", "no_blank_image", "no_image_in_both_splits"]
    for finding in failed:
        assert finding.line in str(caught.value)
    shown = Page((tmp_path / "validation.html").read_text())
    assert "train 17" in shown.text
    assert len(shown.alts) == 20 + 3 + 2


@pytest.mark.parametrize("num_images", [0, 1])
def test_next_to_no_images_have_a_page(
    datasets: Path, small_data: SmallData, tmp_path: Path, num_images: int
) -> None:
    few = Images(
        images_NHW=small_data.train.images_NHW[:num_images],
        labels_N=small_data.train.labels_N[:num_images],
    )
    path = tmp_path / "few.safetensors"
    store.write(path, train=few, test=few, description=DIGITS)

    with pytest.raises(InputError, match="train_size: expected 1,200 images, observed"):
        run(datasets, path, tmp_path)

    assert "do not hold" in Page((tmp_path / "validation.html").read_text()).text


def test_what_the_page_shows_is_escaped(small_data: SmallData) -> None:
    evil = "<script>alert('&')</script>"
    found = verdict(success=False, text=evil)

    html = validation.page(found, small_data.train, small_data.test, description=DIGITS, bounds=BOUNDS)

    assert "<script" not in html
    assert Page(html).text.count(evil) == 8  # its four texts, in what failed and in the table
