import json
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


def refusal(validation: Path, dataset: Path) -> str:
    with pytest.raises(InputError) as caught:
        require_valid(validation, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_data_pass(validation: Path, dataset: Path) -> None:
    files.write_json(validation, verdict(dataset))

    require_valid(validation, dataset)


def test_bad_data_are_stopped_with_what_was_seen_and_where(validation: Path, dataset: Path) -> None:
    bad = [finding("known_labels", success=True), finding("train_size", success=False)]
    files.write_json(validation, {**verdict(dataset), "success": False, "expectations": bad})

    assert (
        "train_size: expected 60,000 images, observed 59,999 images; see train 17, test 4 and 10 more,"
        in refusal(validation, dataset)
    )


def test_a_failed_expectation_stops_whatever_the_summary_says(validation: Path, dataset: Path) -> None:
    bad = [finding(name, success=False) for name in ("train_size", "test_size", "known_labels")]
    files.write_json(validation, {**verdict(dataset), "success": True, "expectations": bad})

    message = refusal(validation, dataset)

    assert "train_size" in message
    assert "(and 2 more expectations)" in message


def test_no_success_stops_without_a_failed_expectation_too(validation: Path, dataset: Path) -> None:
    files.write_json(validation, {**verdict(dataset), "success": False})

    assert "no success and no failed expectation" in refusal(validation, dataset)


def test_a_verdict_on_other_data_is_refused(validation: Path, dataset: Path) -> None:
    files.write_json(validation, verdict(dataset))
    dataset.write_bytes(b"other data")

    message = refusal(validation, dataset)

    assert "other data" in message
    assert files.sha256(dataset)[:12] in message


def test_missing_files_are_named(validation: Path, dataset: Path) -> None:
    assert "validation.json: found no such file" in refusal(validation, dataset)
    files.write_json(validation, verdict(dataset))
    dataset.unlink()
    assert "mnist.safetensors: found no such file" in refusal(validation, dataset)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"passed"', "{}", '{"success": true}'])
def test_what_is_no_verdict_is_refused(validation: Path, dataset: Path, text: str) -> None:
    validation.write_text(text)

    assert str(validation) in refusal(validation, dataset)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("success", "yes"),
        ("dataset_sha256", None),
        ("dataset_sha256", "abc"),
        ("expectations", []),
        ("expectations", {}),
        ("expectations", [None]),
        ("expectations", [{"expectation": "train_size", "success": True}]),
        ("num_images", {"train": -1, "test": 3}),
        ("duplicates", [0, 0, 0]),
        ("surprise", 1),
    ],
)
def test_a_broken_key_is_named(validation: Path, dataset: Path, key: str, value: object) -> None:
    files.write_json(validation, {**verdict(dataset), key: value})

    assert key in refusal(validation, dataset)


def test_a_missing_key_is_named(validation: Path, dataset: Path) -> None:
    for key in verdict(dataset):
        rest = {other: value for other, value in verdict(dataset).items() if other != key}
        validation.write_text(json.dumps(rest))
        assert f"{key}: found nothing" in refusal(validation, dataset)
