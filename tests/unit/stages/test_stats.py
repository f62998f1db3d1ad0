"""The stage `stats`, and what stops it."""

import json
from pathlib import Path

import pytest

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data import statistics, store, validation
from stages import stats
from tests.conftest import DIGITS, SmallData, digits
from tests.made_result import verdict


def verdict_on(data: Path, *, success: bool = True) -> Path:
    """Write a verdict on the data set `data`, in a file beside it."""
    path = data.with_name("validation.json")
    validation.write(path, verdict(success=success, dataset_sha256=files.sha256(data)))
    return path


def run(data: Path) -> Path:
    """Write and return the statistics of a data set that was found sound."""
    path = data.with_name("stats.json")
    stats.run(params=stats.Params(), dataset=data, validation=verdict_on(data), stats=path)
    return path


def test_all_training_images_count(small_data: SmallData, dataset_path: Path) -> None:
    path = run(dataset_path)

    written = json.loads(path.read_text())
    measured = statistics.measure(small_data.train.images_NHW)
    assert statistics.read(path) == measured  # every digit comes back
    assert written == {"mean": measured.mean, "std": measured.std, "num_images": 1200}


def test_test_images_do_not_count(small_data: SmallData, dataset_path: Path) -> None:
    before = run(dataset_path).read_bytes()
    store.write(dataset_path, train=small_data.train, test=digits(500, seed=9), description=DIGITS)

    assert run(dataset_path).read_bytes() == before


def test_bad_data_stop_it(dataset_path: Path) -> None:
    bad = verdict_on(dataset_path, success=False)
    path = dataset_path.with_name("stats.json")

    with pytest.raises(InputError, match="bad data: test_size: expected"):
        stats.run(params=stats.Params(), dataset=dataset_path, validation=bad, stats=path)

    assert not path.exists()
