from pathlib import Path
from typing import Any

import pytest

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data.validation import Finding, Place, require_valid
from tests.made_result import verdict


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "mnist.safetensors"
    path.write_bytes(b"some data")
    return path


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    return tmp_path / "validation.json"


def write(validation: Path, dataset: Path, **fields: Any) -> None:
    """Write a good verdict on this data set, but for these fields."""
    good = verdict(dataset_sha256=files.sha256(dataset)).model_dump()
    files.write_json(validation, {**good, **fields})


def refusal(validation: Path, dataset: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        require_valid(validation, dataset)
    assert "\n" not in str(caught.value)
    return caught.value


def test_good_data_pass(validation: Path, dataset: Path) -> None:
    write(validation, dataset)

    require_valid(validation, dataset)


@pytest.mark.parametrize("success", [False, True], ids=["no success", "whatever the summary says"])
def test_a_failed_expectation_stops(validation: Path, dataset: Path, *, success: bool) -> None:
    findings = [
        Finding(
            expectation=name,
            about="Size of the training split",
            success=name == "known_labels",
            expected="60,000 images",
            observed="59,999 images",
            num_offending=12,
            offending=[Place(split="train", index=17), Place(split="test", index=4)],
        ).model_dump()
        for name in ("known_labels", "train_size", "mean")
    ]
    write(validation, dataset, success=success, expectations=findings)

    found = refusal(validation, dataset).found

    for part in ("train_size", "59,999 images", "see train 17, test 4 and 10 more", "(and 1 more"):
        assert part in found


def test_no_success_stops_without_a_failed_expectation_too(validation: Path, dataset: Path) -> None:
    write(validation, dataset, success=False)

    refusal(validation, dataset)


def test_a_verdict_on_other_data_is_refused(validation: Path, dataset: Path) -> None:
    write(validation, dataset)
    dataset.write_bytes(b"other data")

    assert files.sha256(dataset)[:12] in str(refusal(validation, dataset))


def test_rare_classes_are_named() -> None:
    counts = {"train": {"a": 2000, "b": 73, "c": 71}, "test": {"a": 200, "b": 0, "c": 200}}
    num_images = {split: sum(of_class.values()) for split, of_class in counts.items()}
    found = verdict(class_counts=counts, num_images=num_images).warning
    assert found == "2 rare classes: c (71 of 2,144 train images), b (0 of 400 test images)"


def test_missing_files_are_named(validation: Path, dataset: Path) -> None:
    assert refusal(validation, dataset).where == str(validation)
    write(validation, dataset)
    dataset.unlink()
    assert refusal(validation, dataset).where == str(dataset)


@pytest.mark.parametrize(
    ("key", "value"), [("success", "yes"), ("dataset_sha256", "abc"), ("expectations", []), ("surprise", 1)]
)
def test_a_broken_key_is_named(validation: Path, dataset: Path, key: str, value: object) -> None:
    write(validation, dataset, **{key: value})

    assert key in str(refusal(validation, dataset))
