"""Each expectation is broken once by data made for it, and is the one that fails."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from mnist.data import expectations
from mnist.data.catalog import Share, Validation
from mnist.data.store import Description, Images
from mnist.data.validation import Finding, Verdict
from tests.conftest import DIGITS, SmallData, digits

BOUNDS = Validation(
    num_train=1200,
    num_test=300,
    class_share=Share(min=0.09, max=0.115),
    mean=Share(min=0.12, max=0.13),
    image_mean=Share(min=0.03, max=0.25),
    darkest=Share(min=0, max=0),
    brightest=Share(min=0.6, max=1),
    ink=Share(min=0.07, max=0.25),
    max_duplicates=0,
    max_in_both=0,
)


def validate(
    train: Images, test: Images, bounds: Validation = BOUNDS, description: Description = DIGITS
) -> Verdict:
    return expectations.validate(train, test, description=description, bounds=bounds, dataset_sha256="0" * 64)


def copies(data: SmallData) -> tuple[Images, Images]:
    train, test = (
        Images(images_NHW=split.images_NHW.copy(), labels_N=split.labels_N.copy())
        for split in (data.train, data.test)
    )
    return train, test


def places(finding: Finding) -> list[tuple[str, int]]:
    return [(place.split, place.index) for place in finding.offending]


Splits = tuple[Images, Images]


def blank(train: Images, test: Images) -> Splits:
    train.images_NHW[17] = 0
    return train, test


def saturated(train: Images, test: Images) -> Splits:
    test.images_NHW[5] = 255
    return train, test


def gray(train: Images, test: Images) -> Splits:
    train.images_NHW[3] = 51  # a fifth of white: its mean alone would pass
    return train, test


def inverted(train: Images, test: Images) -> Splits:
    return (
        Images(images_NHW=255 - train.images_NHW, labels_N=train.labels_N),
        Images(images_NHW=255 - test.images_NHW, labels_N=test.labels_N),
    )


def floats(train: Images, test: Images) -> Splits:
    pixels_NHW = test.images_NHW.astype(np.float32)
    return train, Images(images_NHW=pixels_NHW, labels_N=test.labels_N)  # type: ignore[arg-type]


def one_too_few(train: Images, test: Images) -> Splits:
    return train.take(np.arange(1, len(train))), test


def one_too_many(train: Images, test: Images) -> Splits:
    return train, digits(len(test) + 1, seed=2)


def unknown_label(train: Images, test: Images) -> Splits:
    train.labels_N[100] = 11
    return train, test


def missing_class(train: Images, test: Images) -> Splits:
    train.labels_N[train.labels_N == 3] = 4
    test.labels_N[(test.labels_N == 0) | (test.labels_N == 9)] = 1
    return train, test


def repeated(train: Images, test: Images) -> Splits:
    train.images_NHW[[20, 30]] = train.images_NHW[10]
    test.images_NHW[8] = test.images_NHW[2]
    return train, test


def leaked(train: Images, test: Images) -> Splits:
    test.images_NHW[7] = train.images_NHW[31]
    test.images_NHW[6] = train.images_NHW[900]
    return train, test


# What is broken; what is observed by each expectation that fails; the images that each of these names.
CASES = [
    (
        blank,
        {
            "brightest_pixel": "0 to 1, 1 image outside",
            "no_blank_image": "0 to 0.22194, 1 image outside",
            "image_mean": "0 to 0.19869, 1 image outside",
        },
        [("train", 17)],
    ),
    (
        saturated,
        {
            "darkest_pixel": "0 to 1, 1 image outside",
            "no_saturated_image": "0.076531 to 1, 1 image outside",
            "image_mean": "0.03856 to 1, 1 image outside",
        },
        [("test", 5)],
    ),
    (
        gray,
        {
            "darkest_pixel": "0 to 0.2, 1 image outside",
            "brightest_pixel": "0.2 to 1, 1 image outside",
            "no_saturated_image": "0.076531 to 1, 1 image outside",
        },
        [("train", 3)],
    ),
    (
        inverted,
        {
            "darkest_pixel": "0 to 0.3451, 300 images outside",
            "no_saturated_image": "0.94005 to 1, 1,500 images outside",
            "image_mean": "0.80131 to 0.96144, 1,500 images outside",
            "train_mean": "0.87337",
            "test_mean": "0.87371",
        },
        None,
    ),
    (
        floats,
        {"pixel_type": "float32, uint8, 300 images outside"},
        [("test", index) for index in range(10)],
    ),
    (one_too_few, {"train_size": "1,199 images"}, []),
    (one_too_many, {"test_size": "301 images"}, []),
    (
        unknown_label,
        {
            "known_labels": "0 to 11, 1 image outside",
            "train_class_share": "0.00083333 (label unknown 11) to 0.1 (label 9), 1 image outside",
        },
        [("train", 100)],
    ),
    (
        missing_class,
        {
            "train_has_all_digits": "no 3",
            "test_has_all_digits": "no 0, 9",
            "train_class_share": "0.1 (label 9) to 0.2 (label 4), 240 images outside",
            "test_class_share": "0.1 (label 7) to 0.3 (label 1), 90 images outside",
        },
        None,
    ),
    (repeated, {"train_duplicates": "2", "test_duplicates": "1"}, None),
    (
        leaked,
        {"no_image_in_both_splits": "2 images in both"},
        [("train", 31), ("test", 7), ("train", 900), ("test", 6)],
    ),
]


@pytest.mark.parametrize(("breaks", "observed", "offending"), CASES)
def test_broken_data_break_just_the_right_expectations(
    small_data: SmallData,
    breaks: Callable[[Images, Images], Splits],
    observed: dict[str, str],
    offending: list[tuple[str, int]] | None,
) -> None:
    verdict = validate(*breaks(*copies(small_data)))

    assert not verdict.success
    assert {finding.expectation: finding.observed for finding in verdict.failed} == observed
    if offending is not None:
        for finding in verdict.failed:
            assert places(finding) == offending
            assert finding.num_offending >= len(offending)


def test_every_expectation_is_broken_by_some_case(small_data: SmallData) -> None:
    names = [finding.expectation for finding in validate(small_data.train, small_data.test).expectations]

    assert set().union(*(observed for _, observed, _ in CASES)) == set(names)
    assert len(names) == len(set(names))


def test_good_data_hold_and_are_counted(small_data: SmallData) -> None:
    verdict = validate(small_data.train, small_data.test)

    assert verdict.success
    assert verdict.failed == []
    assert verdict.num_images == {"train": 1200, "test": 300}
    assert verdict.mean == {
        "train": round(float(small_data.train.images_NHW.mean()) / 255, 6),
        "test": round(float(small_data.test.images_NHW.mean()) / 255, 6),
    }
    assert verdict.class_counts["test"] == {str(digit): 30 for digit in range(10)}
    assert verdict.duplicates.model_dump() == {"within_train": 0, "within_test": 0, "between_splits": 0}
    assert all(finding.num_offending == 0 and not finding.offending for finding in verdict.expectations)
    expected = {finding.expectation: finding.expected for finding in verdict.expectations}
    assert expected["known_labels"] == "0 to 9"
    assert expected["no_image_in_both_splits"] == "0 images in both"


def test_equal_test_images_and_labels_make_an_equal_digest(small_data: SmallData) -> None:
    lines = "".join(
        f"{hashlib.blake2b(image_HW.tobytes(), digest_size=16).hexdigest()} {label}\n"
        for image_HW, label in zip(small_data.test.images_NHW, small_data.test.labels_N, strict=True)
    )

    verdict = validate(small_data.train.take(np.arange(5)), small_data.test)

    assert verdict.test_sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_duplicates_are_counted_and_named_with_their_originals(small_data: SmallData) -> None:
    train, test = repeated(*copies(small_data))
    test.images_NHW[[50, 51]] = train.images_NHW[10]  # two test images that are one training image
    verdict = validate(train, test)
    failed = {finding.expectation: finding for finding in verdict.failed}

    assert verdict.duplicates.model_dump() == {"within_train": 2, "within_test": 2, "between_splits": 2}
    assert places(failed["train_duplicates"]) == [("train", 10), ("train", 20), ("train", 30)]
    assert places(failed["test_duplicates"]) == [("test", 2), ("test", 8), ("test", 50), ("test", 51)]
    # It is one picture, however often each split has it.
    assert places(failed["no_image_in_both_splits"]) == [("train", 10), ("test", 50)]


@pytest.mark.parametrize(
    ("breaks", "bound", "line"),
    [
        (repeated, "max_duplicates", "train_duplicates: expected at most 1, observed 2;"),
        (leaked, "max_in_both", "no_image_in_both_splits: expected at most 1 image in both, observed 2 "),
    ],
)
def test_equal_images_up_to_the_bound_are_let_through(
    small_data: SmallData, breaks: Callable[[Images, Images], Splits], bound: str, line: str
) -> None:
    train, test = breaks(*copies(small_data))

    assert validate(train, test, BOUNDS.model_copy(update={bound: 2})).success
    (failed,) = validate(train, test, BOUNDS.model_copy(update={bound: 1})).failed
    assert failed.line.startswith(line)


def test_classes_are_shown_by_their_names(small_data: SmallData) -> None:
    three = Description(name="three", title="Three", classes=("fish", "bird", "frog, a"))
    train, test = (
        Images(images_NHW=split.images_NHW, labels_N=split.labels_N % 3)
        for split in (small_data.train, small_data.test)
    )
    test.labels_N[test.labels_N == 2] = 3
    bounds = BOUNDS.model_copy(update={"class_share": Share(min=0, max=1)})

    verdict = validate(train, test, bounds, three)

    assert verdict.class_counts["train"] == {"fish": 480, "bird": 360, "frog, a": 360}
    assert verdict.class_counts["test"] == {"fish": 120, "bird": 90, "frog, a": 0, "unknown 3": 90}
    assert {finding.expectation: finding.observed for finding in verdict.failed} == {
        "known_labels": "0 to 3, 90 images outside",
        "test_has_all_classes": "no frog, a",
    }
    findings = {finding.expectation: finding for finding in verdict.expectations}
    assert findings["train_has_all_classes"].expected == "each of fish to frog, a"
    assert findings["test_class_share"].observed == "0.3 (label bird) to 0.4 (label fish)"


def test_bounds_include_their_ends(small_data: SmallData) -> None:
    exact = Share(min=0.1, max=0.1)

    assert validate(
        small_data.train, small_data.test, BOUNDS.model_copy(update={"class_share": exact})
    ).success


def test_at_most_ten_images_are_named_but_all_are_counted(small_data: SmallData) -> None:
    failed = {finding.expectation: finding for finding in validate(*inverted(*copies(small_data))).failed}

    assert failed["image_mean"].num_offending == 1500
    assert places(failed["image_mean"]) == [("train", index) for index in range(10)]
    assert failed["image_mean"].line.endswith("train 9 and 1,490 more")


@pytest.mark.parametrize(("num_train", "num_test"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_next_to_no_images_still_get_a_verdict(small_data: SmallData, num_train: int, num_test: int) -> None:
    verdict = validate(
        small_data.train.take(np.arange(num_train)),
        small_data.test.take(np.arange(num_test)),
    )
    failed = {finding.expectation: finding.observed for finding in verdict.failed}

    assert failed["train_size"] == ("1 image" if num_train else "0 images")
    assert {"test_size", "train_has_all_digits", "test_has_all_digits"} <= failed.keys()
    assert (verdict.mean["train"] is None) == (num_train == 0)
    if not num_train:
        assert failed["train_mean"] == failed["train_has_all_digits"] == "no images"
