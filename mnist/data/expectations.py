"""The expectations about the data, as a Great Expectations suite, and their results.

The suite checks one table of both splits, a row an image (see `mnist.data.image_table`).
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import; else it reports each run over the network

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.row_conditions import Column

from mnist.data import image_table
from mnist.data.catalog import Share, Validation
from mnist.data.store import Description, Images, SplitName
from mnist.data.validation import Duplicates, Finding, Place, Verdict

DIGITS = tuple("0123456789")
WORDS: dict[SplitName, str] = {"train": "training", "test": "test"}
INK = "Share of each image's pixels that are not black"
MAX_OFFENDING = 10  # images named for an expectation: enough to look at, short enough to print


def validate(
    train: Images, test: Images, *, description: Description, bounds: Validation, dataset_sha256: str
) -> Verdict:
    """Check both splits against the bounds, and count images, classes and duplicates."""
    table = image_table.table(train, test)
    findings = _findings(table, suite(description, bounds), description)
    splits: dict[SplitName, pd.DataFrame] = {name: table[table["split"] == name] for name in WORDS}
    known = range(len(description.classes))
    counts = {name: Counter(rows["label"].tolist()) for name, rows in splits.items()}
    in_training = set(splits["train"]["digest"])
    labelled = "".join(f"{row.digest} {row.label}\n" for row in splits["test"].itertuples())
    return Verdict(
        success=all(finding.success for finding in findings),
        dataset_sha256=dataset_sha256,
        # Results on equal test images compare, whatever they were trained on.
        test_sha256=hashlib.sha256(labelled.encode()).hexdigest(),
        num_images={name: len(rows) for name, rows in splits.items()},
        # Six decimals, since the last ones of a float sum depend on the machine.
        mean={
            name: None if rows.empty else round(float(rows["image_mean"].mean()), 6)
            for name, rows in splits.items()
        },
        class_counts={
            name: {description.class_of(label): of[label] for label in sorted({*known, *of})}
            for name, of in counts.items()
        },
        duplicates=Duplicates(
            within_train=int(splits["train"]["repeats"].sum()),
            within_test=int(splits["test"]["repeats"].sum()),
            between_splits=sum(digest in in_training for digest in splits["test"]["digest"]),
        ),
        expectations=findings,
    )


def _findings(
    table: pd.DataFrame, expectations: list[gxe.Expectation], description: Description
) -> list[Finding]:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batches = context.data_sources.add_pandas("data").add_dataframe_asset("images")
    validation = gx.ValidationDefinition(
        name="validate",
        data=batches.add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite(name="data", expectations=expectations)),
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
        _in_set("pixel_type", "Number type of the pixels", "pixel_type", ["uint8"], "uint8"),
        _between("darkest_pixel", "Darkest pixel of each image", "darkest", bounds.darkest),
        _between("brightest_pixel", "Brightest pixel of each image", "brightest", bounds.brightest),
        _between("no_blank_image", INK, "ink", (bounds.ink.min, None)),
        _between("no_saturated_image", INK, "ink", (None, bounds.ink.max)),
        _between("image_mean", "Mean brightness of each image", "image_mean", bounds.image_mean),
        _mean("train", bounds.mean),
        _mean("test", bounds.mean),
        _in_set("known_labels", "Labels of all images", "label", labels, f"0 to {labels[-1]}"),
        _all_classes("train", description),
        _all_classes("test", description),
        _class_share("train", bounds.class_share),
        _class_share("test", bounds.class_share),
        _few_duplicates("train", bounds.max_duplicates),
        _few_duplicates("test", bounds.max_duplicates),
        # Of images that are the first of their kind in their split.
        _expectation(
            gxe.ExpectColumnSumToBeBetween,
            "no_image_in_both_splits",
            "Test images that are training images too",
            f"at most {in_both}" if bounds.max_in_both else in_both,
            column="in_both",
            min_value=0,
            max_value=bounds.max_in_both,
        ),
    ]


def _expectation(
    kind: Callable[..., gxe.Expectation],
    name: str,
    about: str,
    expected: str,
    split: SplitName | None = None,
    **arguments: Any,
) -> gxe.Expectation:
    """Return an expectation of a split, or of both, with its name, its subject and its bounds in words."""
    return kind(
        description=about,
        meta={"name": name, "expected": expected, "split": split},
        row_condition=Column("split") == split if split else None,
        **arguments,
    )


def _in_set(name: str, about: str, column: str, values: Sequence[Any], expected: str) -> gxe.Expectation:
    kind = gxe.ExpectColumnValuesToBeInSet
    return _expectation(kind, name, about, expected, column=column, value_set=values)


def _between(
    name: str,
    about: str,
    column: str,
    bounds: Share | tuple[float | None, float | None],
    split: SplitName | None = None,
    *,
    kind: Callable[..., gxe.Expectation] = gxe.ExpectColumnValuesToBeBetween,
) -> gxe.Expectation:
    low, high = bounds if isinstance(bounds, tuple) else (bounds.min, bounds.max)
    limits = {"min_value": low, "max_value": high}
    return _expectation(kind, name, about, _interval(low, high), split, column=column, **limits)


def _size(split: SplitName, num_images: int) -> gxe.Expectation:
    about, kind = f"Size of the {WORDS[split]} split", gxe.ExpectTableRowCountToEqual
    return _expectation(kind, f"{split}_size", about, f"{num_images:,} images", split, value=num_images)


def _mean(split: SplitName, bounds: Share) -> gxe.Expectation:
    about = f"Mean brightness of the {WORDS[split]} images together"
    kind = gxe.ExpectColumnMeanToBeBetween
    return _between(f"{split}_mean", about, "image_mean", bounds, split, kind=kind)


def _all_classes(split: SplitName, description: Description) -> gxe.Expectation:
    # MNIST's classes are digits; the name is older than the other data sets.
    name = f"{split}_has_all_{'digits' if description.classes == DIGITS else 'classes'}"
    about, kind = f"Classes among the {WORDS[split]} labels", gxe.ExpectColumnDistinctValuesToContainSet
    labels = list(range(len(description.classes)))
    return _expectation(kind, name, about, _each(description), split, column="label", value_set=labels)


def _class_share(split: SplitName, bounds: Share) -> gxe.Expectation:
    about = f"Share of each label in the {WORDS[split]} split"
    return _between(f"{split}_class_share", about, "class_share", bounds, split)


def _few_duplicates(split: SplitName, most: int) -> gxe.Expectation:
    name, about = f"{split}_duplicates", f"{WORDS[split].capitalize()} images equal to an earlier one"
    kind, limits = gxe.ExpectColumnSumToBeBetween, {"column": "repeats", "min_value": 0, "max_value": most}
    return _expectation(kind, name, about, f"at most {most:,}", split, **limits)


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
    rows = table[table["split"] == config.meta["split"]] if config.meta["split"] else table
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
