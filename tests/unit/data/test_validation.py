from pathlib import Path
from typing import Any

import pytest

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data.validation import require_valid


def finding(name: str, *, success: bool) -> dict[str, Any]:
    return {
        "expectation": name,
        "about": "Size of the training split",
        "success": success,
        "expected": "60,000 images",
        "observed": "59,999 images",
        "num_offending": 12,
        "offending": [{"split": "train", "index": 17}, {"split": "test", "index": 4}],
    }


def verdict(dataset: Path) -> dict[str, Any]:
    return {
        "success": True,
        "dataset_sha256": files.sha256(dataset),
        "test_sha256": "1" * 64,
        "num_images": {"train": 60000, "test": 10000},
        "mean": {"train": 0.13, "test": None},
        "class_counts": {"train": {"0": 60000}, "test": {"0": 10000}},
        "duplicates": {"within_train": 0, "within_test": 0, "between_splits": 0},
        "expectations": [finding("train_size", success=True)],
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "mnist.safetensors"
    path.write_bytes(b"some data")
    return path


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    return tmp_path / "validation.json"


def refusal(validation: Path, dataset: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        require_valid(validation, dataset)
    assert "\n" not in str(caught.value)
    return caught.value


def test_good_data_pass(validation: Path, dataset: Path) -> None:
    files.write_json(validation, verdict(dataset))

    require_valid(validation, dataset)


@pytest.mark.parametrize("success", [False, True], ids=["no success", "whatever the summary says"])
def test_a_failed_expectation_stops(validation: Path, dataset: Path, *, success: bool) -> None:
    bad = [finding(name, success=name == "known_labels") for name in ("known_labels", "train_size", "mean")]
    files.write_json(validation, {**verdict(dataset), "success": success, "expectations": bad})

    found = refusal(validation, dataset).found

    for part in ("train_size", "59,999 images", "see train 17, test 4 and 10 more", "(and 1 more"):
        assert part in found


def test_no_success_stops_without_a_failed_expectation_too(validation: Path, dataset: Path) -> None:
    files.write_json(validation, {**verdict(dataset), "success": False})

    refusal(validation, dataset)


def test_a_verdict_on_other_data_is_refused(validation: Path, dataset: Path) -> None:
    files.write_json(validation, verdict(dataset))
    dataset.write_bytes(b"other data")

    assert files.sha256(dataset)[:12] in str(refusal(validation, dataset))


def test_missing_files_are_named(validation: Path, dataset: Path) -> None:
    assert refusal(validation, dataset).where == str(validation)
    files.write_json(validation, verdict(dataset))
    dataset.unlink()
    assert refusal(validation, dataset).where == str(dataset)


@pytest.mark.parametrize("text", ["", "[]", '{"success": true}'])
def test_what_is_no_verdict_is_refused(validation: Path, dataset: Path, text: str) -> None:
    validation.write_text(text)

    assert str(validation) in refusal(validation, dataset).where


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("success", "yes"),
        ("dataset_sha256", "abc"),
        ("expectations", []),
        ("expectations", [{"expectation": "train_size", "success": True}]),
        ("num_images", {"train": -1, "test": 3}),
        ("surprise", 1),
    ],
)
def test_a_broken_key_is_named(validation: Path, dataset: Path, key: str, value: object) -> None:
    files.write_json(validation, {**verdict(dataset), key: value})

    assert key in str(refusal(validation, dataset))
