"""The stage `stats`, and what stops it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data import statistics, store, validation
from mnist.data.store import Images
from mnist.data.validation import Duplicates, Finding, Verdict
from stages import stats
from tests.conftest import DIGITS, SmallData, digits


def verdict_on(data: Path, *, success: bool = True) -> Path:
    """A verdict on the data set `data`, in a file beside it."""
    finding = Finding(
        expectation="expect_something",
        about="the images",
        success=success,
        expected="much",
        observed="little",
        num_offending=0,
        offending=[],
    )
    path = data.with_name("validation.json")
    validation.write(
        path,
        Verdict(
            success=success,
            dataset_sha256=files.sha256(data),
            test_sha256="1" * 64,
            num_images={"train": 1200, "test": 300},
            mean={"train": 0.2, "test": 0.2},
            class_counts={"train": {"0": 1200}, "test": {"0": 300}},
            duplicates=Duplicates(within_train=0, within_test=0, between_splits=0),
            expectations=[finding],
        ),
    )
    return path


def run(data: Path) -> Path:
    """Write and return the statistics of a data set that was found sound."""
    path = data.with_name("stats.json")
    stats.run(params=stats.Params(), dataset=data, validation=verdict_on(data), stats=path)
    return path


def test_all_training_images_count(
    small_data: SmallData, dataset_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads(run(dataset_path).read_text())

    pixels = small_data.train.images_NHW / 255
    assert written["num_images"] == 1200
    assert written["mean"] == pytest.approx(pixels.mean(), rel=1e-12)
    assert written["std"] == pytest.approx(pixels.std(), rel=1e-12)
    assert capsys.readouterr().out == (
        f"stats: mean {pixels.mean():.4f}, std {pixels.std():.4f} of 1,200 training images\n"
    )


def test_test_images_do_not_count(small_data: SmallData, dataset_path: Path) -> None:
    before = run(dataset_path).read_bytes()
    store.write(dataset_path, train=small_data.train, test=digits(500, seed=9), description=DIGITS)

    assert run(dataset_path).read_bytes() == before


@pytest.mark.parametrize("position", [0, 700, -1])
def test_every_training_image_counts(small_data: SmallData, dataset_path: Path, position: int) -> None:
    before = statistics.read(run(dataset_path))
    images_NHW = small_data.train.images_NHW.copy()
    images_NHW[position, 5, 5] ^= 1
    change = int(images_NHW[position, 5, 5]) - int(small_data.train.images_NHW[position, 5, 5])
    store.write(
        dataset_path,
        train=Images(images_NHW=images_NHW, labels_N=small_data.train.labels_N),
        test=small_data.test,
        description=DIGITS,
    )

    after = statistics.read(run(dataset_path))

    assert after.mean - before.mean == pytest.approx(change / (255 * images_NHW.size), rel=1e-3)


def test_the_same_data_make_the_same_bytes(dataset_path: Path) -> None:
    assert run(dataset_path).read_bytes() == run(dataset_path).read_bytes()


def test_bad_data_stop_it(dataset_path: Path) -> None:
    bad = verdict_on(dataset_path, success=False)
    path = dataset_path.with_name("stats.json")

    with pytest.raises(InputError, match="bad data: expect_something: expected much, observed little"):
        stats.run(params=stats.Params(), dataset=dataset_path, validation=bad, stats=path)

    assert not path.exists()


def test_a_verdict_on_other_data_stops_it(small_data: SmallData, dataset_path: Path) -> None:
    other = verdict_on(dataset_path)
    store.write(dataset_path, train=small_data.train, test=digits(10, seed=9), description=DIGITS)
    path = dataset_path.with_name("stats.json")

    with pytest.raises(InputError, match="a verdict on other data"):
        stats.run(params=stats.Params(), dataset=dataset_path, validation=other, stats=path)

    assert not path.exists()


def test_images_without_contrast_stop_it(dataset_path: Path) -> None:
    gray = Images(images_NHW=np.full((3, 28, 28), 7, np.uint8), labels_N=np.arange(3, dtype=np.uint8))
    store.write(dataset_path, train=gray, test=gray, description=DIGITS)

    with pytest.raises(InputError, match="pixels that are all alike"):
        run(dataset_path)
