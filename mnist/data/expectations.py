"""The expectations about the data, as a Great Expectations suite, and their results.

The suite checks one table of both splits, a row an image (see `mnist.data.image_table`).
"""

import os
from typing import Any

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import; else it reports each run over the network

import great_expectations as gx
import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.row_conditions import Column
from numpy.typing import NDArray

from mnist.data import image_table
from mnist.data.catalog import Share, Validation
from mnist.data.image_table import Rows
from mnist.data.store import Description, SplitName
from mnist.data.validation import Duplicates, Finding, Place, Verdict

DIGITS = tuple("0123456789")
WORDS: dict[SplitName, str] = {"train": "training", "test": "test"}
INK = "Share of each image's pixels that are not black"
MAX_OFFENDING = 10  # images named for an expectation: enough to look at, short enough to print


def validate(
    train: Rows, test: Rows, *, description: Description, bounds: Validation, dataset_sha256: str
) -> Verdict:
    """Check both splits against the bounds, and count images, classes and duplicates."""
    splits = (train, test)
    # Whole numbers stand for the digests from here on: 16 bytes as text in a table are 90.
    alike = image_table.first_alike(np.concatenate([train.digest, test.digest]))
    findings = _findings(train, test, alike, description, bounds)
    return Verdict(
        success=all(finding.success for finding in findings),
        dataset_sha256=dataset_sha256,
        # Results on equal test images compare, whatever they were trained on.
        test_sha256=image_table.labelled_digest(test),
        num_images={rows.split: len(rows.index) for rows in splits},
        # Six decimals, since the last ones of a float sum depend on the machine.
        mean={rows.split: round(float(rows.mean.mean()), 6) if len(rows.mean) else None for rows in splits},
        class_counts={rows.split: image_table.class_counts(rows, description) for rows in splits},
        duplicates=Duplicates(
            within_train=int(train.repeats.sum()),
            within_test=int(test.repeats.sum()),
            between_splits=int((alike[len(train.index) :] < len(train.index)).sum()),
        ),
        expectations=findings,
    )


def _findings(
    train: Rows, test: Rows, alike: NDArray[np.int64], description: Description, bounds: Validation
) -> list[Finding]:
    columns = [name for name in vars(train) if name != "digest"]
    table = pd.concat(
        [pd.DataFrame({name: getattr(rows, name) for name in columns}) for rows in (train, test)],
        ignore_index=True,
    ).assign(digest=alike)
    # `alike` is the place of the first that is equal: of a test image, that may be a training image.
    is_test_image, is_training_image = table["split"] == "test", table["digest"] < len(train.index)
    table["in_both"] = (is_test_image & is_training_image & (table["repeats"] == 0)).astype(np.int64)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batches = context.data_sources.add_pandas("data").add_dataframe_asset("images")
    validation = gx.ValidationDefinition(
        name="validate",
        data=batches.add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite(name="data", expectations=suite(description, bounds))),
    )
    outcome = context.validation_definitions.add(validation).run(
        batch_parameters={"dataframe": table},
        # Offending images come as rows of the table: asked for columns of it, Great Expectations
        # looks at each row by itself, which takes ten seconds where all 70,000 offend.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": MAX_OFFENDING},
    )
    return [_finding(result, table, description) for result in outcome.results]


def suite(description: Description, bounds: Validation) -> list[gxe.Expectation]:
    """Return the expectations, each with its name, its split, and its bounds in words.

    The names are a contract: they are in `metrics/validation.json`, on the page and in messages.
    """
    labels = list(range(len(description.classes)))
    in_both = f"{_images(bounds.max_in_both)} in both"
    return [
        _size("train", bounds.num_train),
        _size("test", bounds.num_test),
        gxe.ExpectColumnValuesToBeInSet(
            column="pixel_type",
            value_set=["uint8"],
            description="Number type of the pixels",
            meta={"name": "pixel_type", "expected": "uint8"},
        ),
        _between("darkest_pixel", "Darkest pixel of each image", "darkest", bounds.darkest),
        _between("brightest_pixel", "Brightest pixel of each image", "brightest", bounds.brightest),
        _between("no_blank_image", INK, "ink", (bounds.ink.min, None)),
        _between("no_saturated_image", INK, "ink", (None, bounds.ink.max)),
        _between("image_mean", "Mean brightness of each image", "mean", bounds.image_mean),
        _split_mean("train", bounds.mean),
        _split_mean("test", bounds.mean),
        gxe.ExpectColumnValuesToBeInSet(
            column="label",
            value_set=labels,
            description="Labels of all images",
            meta={"name": "known_labels", "expected": f"0 to {labels[-1]}"},
        ),
        _all_classes("train", description),
        _all_classes("test", description),
        _class_share("train", bounds.class_share),
        _class_share("test", bounds.class_share),
        _few_duplicates("train", bounds.max_duplicates),
        _few_duplicates("test", bounds.max_duplicates),
        # Of images that are the first of their kind in their split.
        gxe.ExpectColumnSumToBeBetween(
            column="in_both",
            min_value=0,
            max_value=bounds.max_in_both,
            description="Test images that are training images too",
            meta={
                "name": "no_image_in_both_splits",
                "expected": f"at most {in_both}" if bounds.max_in_both else in_both,
            },
        ),
    ]


def _size(split: SplitName, num_images: int) -> gxe.Expectation:
    return gxe.ExpectTableRowCountToEqual(
        value=num_images,
        row_condition=Column("split") == split,
        description=f"Size of the {WORDS[split]} split",
        meta={"name": f"{split}_size", "split": split, "expected": f"{num_images:,} images"},
    )


def _between(
    name: str,
    description: str,
    column: str,
    bounds: Share | tuple[float | None, float | None],
    split: SplitName | None = None,
) -> gxe.Expectation:
    low, high = bounds if isinstance(bounds, tuple) else (bounds.min, bounds.max)
    return gxe.ExpectColumnValuesToBeBetween(
        column=column,
        min_value=low,
        max_value=high,
        row_condition=Column("split") == split if split else None,
        description=description,
        meta={"name": name, "expected": _interval(low, high)} | ({"split": split} if split else {}),
    )


def _split_mean(split: SplitName, bounds: Share) -> gxe.Expectation:
    return gxe.ExpectColumnMeanToBeBetween(
        column="mean",
        min_value=bounds.min,
        max_value=bounds.max,
        row_condition=Column("split") == split,
        description=f"Mean brightness of the {WORDS[split]} images together",
        meta={"name": f"{split}_mean", "split": split, "expected": _interval(bounds.min, bounds.max)},
    )


def _all_classes(split: SplitName, description: Description) -> gxe.Expectation:
    # MNIST's classes are digits; the name is older than the other data sets.
    name = f"{split}_has_all_{'digits' if description.classes == DIGITS else 'classes'}"
    return gxe.ExpectColumnDistinctValuesToContainSet(
        column="label",
        value_set=list(range(len(description.classes))),
        row_condition=Column("split") == split,
        description=f"Classes among the {WORDS[split]} labels",
        meta={"name": name, "split": split, "expected": _each(description)},
    )


def _class_share(split: SplitName, bounds: Share) -> gxe.Expectation:
    about = f"Share of each label in the {WORDS[split]} split"
    return _between(f"{split}_class_share", about, "class_share", bounds, split)


def _few_duplicates(split: SplitName, max_duplicates: int) -> gxe.Expectation:
    return gxe.ExpectColumnSumToBeBetween(
        column="repeats",
        min_value=0,
        max_value=max_duplicates,
        row_condition=Column("split") == split,
        description=f"{WORDS[split].capitalize()} images equal to an earlier one",
        meta={"name": f"{split}_duplicates", "split": split, "expected": f"at most {max_duplicates:,}"},
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:.5g}"
    if high is None:
        return f"at least {low:.5g}"
    return f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"


def _each(description: Description) -> str:
    return f"each of {description.classes[0]} to {description.classes[-1]}"


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def _finding(result: ExpectationValidationResult, table: pd.DataFrame, description: Description) -> Finding:
    config = result.expectation_config
    assert config is not None
    assert result.result, f"{config.meta['name']} could not be computed: {result.exception_info}"
    rows = table[table["split"] == config.meta["split"]] if "split" in config.meta else table
    num_offending, offending = (0, []) if result.success else _offending(config, result.result, rows)
    return Finding(
        expectation=config.meta["name"],
        about=config.description or "",
        success=bool(result.success),
        expected=config.meta["expected"],
        observed=_observed(config, result.result, rows, description),
        num_offending=num_offending,
        offending=offending,
    )


def _observed(
    config: ExpectationConfiguration, result: dict[str, Any], rows: pd.DataFrame, description: Description
) -> str:
    """Return the observed value, in words."""
    seen: Any = result.get("observed_value")
    match config.type:
        case "expect_table_row_count_to_equal":
            observed = _images(seen)
        case _ if rows.empty:
            observed = "no images"
        case "expect_column_mean_to_be_between":
            observed = f"{seen:.5g}"
        case "expect_column_sum_to_be_between":
            observed = (
                f"{_images(int(seen))} in both" if config.kwargs["column"] == "in_both" else f"{seen:,}"
            )
        case "expect_column_distinct_values_to_contain_set":
            missing = ", ".join(description.class_of(label) for label in result["partial_missing_list"])
            observed = f"no {missing}" if missing else _each(description)
        case _:
            observed = _values(rows, config.kwargs["column"], description)
            if result["unexpected_count"]:
                observed += f", {_images(result['unexpected_count'])} outside"
    return observed


def _values(rows: pd.DataFrame, column: str, description: Description) -> str:
    """Return the range of a column, in words; Great Expectations reports rows outside of the bounds only."""
    values = rows[column]
    if not pd.api.types.is_numeric_dtype(values):
        return ", ".join(sorted(values.unique()))
    if column != "class_share" or values.min() == values.max():
        return _interval(values.min(), values.max())
    rarest, commonest = rows.iloc[values.argmin()], rows.iloc[values.argmax()]
    return (
        f"{rarest.class_share:.5g} (label {description.class_of(rarest.label)}) to "
        f"{commonest.class_share:.5g} (label {description.class_of(commonest.label)})"
    )


def _offending(
    config: ExpectationConfiguration, result: dict[str, Any], rows: pd.DataFrame
) -> tuple[int, list[Place]]:
    """Return the number of images that break an expectation, and the places of the first.

    A mean, a size or a missing class has no such images.
    """
    column = config.kwargs.get("column")
    if column in {"repeats", "in_both"}:  # the originals are named too
        found = _alike(rows if column == "repeats" else rows[rows["repeats"] == 0])
    else:
        found = rows.loc[result.get("partial_unexpected_index_list", [])]
    first = found.head(MAX_OFFENDING)
    places = zip(first["split"], first["index"], strict=True)
    return (
        result.get("unexpected_count", len(found)),
        [Place(split=split, index=int(index)) for split, index in places],
    )


def _alike(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images that are there twice or more, equal ones side by side."""
    alike = rows[rows.duplicated("digest", keep=False)]
    # In the order of the first of them, since the order of the digests has no meaning.
    return alike.sort_values("digest", key=lambda digest: pd.factorize(digest)[0], kind="stable")
