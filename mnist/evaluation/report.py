"""The report of a result, `metrics/report.html`: one page that a person can send to a colleague.

It stands alone and holds numbers, curves, mistakes, and where the result came from. It names commit and
time, so it is no out of DVC: the same result gives the same page at the same time only.

Shape suffixes: N images, K classes, M of the images.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mnist.core import files, paths
from mnist.data import page
from mnist.evaluation import charts, scores
from mnist.evaluation.summary import HIGH_CONFIDENCE, Summary
from mnist.lineage.result import Result, training_info

TEMPLATE = Path(__file__).parent / "templates/report.html.jinja"
NUM_IMAGES = 10  # in each gallery
NUM_MIX_UPS = 10  # that are listed
MAX_POINTS = 200  # of a curve, and rows of its table
MAX_PATCH = 50_000  # characters that are shown

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and its numbers for readers who do not see it.

    Attributes:
        title: of chart and table.
        svg: the chart.
        header: of the table.
        rows: of the table.
    """

    title: str
    svg: Markup
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A test image and its prediction.

    Attributes:
        index: position among the test images.
        uri: the image.
        label: name of its class.
        likeliest: the names of the two likeliest classes with their probabilities, the likeliest first.
        is_right: whether the likeliest is its class.
    """

    index: int
    uri: str
    label: str
    likeliest: Sequence[tuple[str, float]]
    is_right: bool


def html(summary: Summary, result: Result, *, folder: Path) -> str:
    """Render the page.

    Args:
        summary: the numbers of the result.
        result: what it came from.
        folder: of its files.

    Raises:
        InputError: the figures of filters or feature maps are missing.
    """
    right_N = summary.predicted_N == summary.test.labels_N
    mistakes_M = scores.confident_mistakes(summary.log_probs_NK, summary.test.labels_N)
    unsure_N = np.argsort(scores.confidence(summary.log_probs_NK), kind="stable")
    patch = result.origin.source.patch
    return page.render(
        TEMPLATE,
        s=summary,
        result=result,
        origin=result.origin,
        source=result.origin.source,
        changed=changed_files(patch),
        patch=_patch(patch),
        as_yaml=page.as_yaml,
        training=training_info(result.weights_sha256),
        store=paths.shown(paths.store_uri()),
        curves=[_loss(summary), _accuracy(summary)],
        calibration=[_reliability(summary), _counts(summary)],
        most_mixed=max((mix_up.count for mix_up in summary.mix_ups), default=0),
        mix_ups=summary.mix_ups[:NUM_MIX_UPS],
        right=_examples(summary, np.flatnonzero(right_N)),
        wrong=_examples(summary, mistakes_M),
        unsure=_examples(summary, unsure_N),
        filters=_embedded(folder / paths.FILTERS),
        feature_maps=_embedded(folder / paths.FEATURE_MAPS),
        paths=paths,
        high_confidence=HIGH_CONFIDENCE,
        percent=page.percent,
        span=page.span,
        time=page.time,
    )


def changed_files(patch: str) -> list[str]:
    """Return the files that a patch of git's changes; one with an odd name as git quotes it."""
    names = re.findall(r'^diff --git "?a/.* (?:b/(.*)|"b/(.*)")$', patch, re.MULTILINE)
    return [plain or quoted for plain, quoted in names]


def _patch(patch: str) -> str | None:
    """Return a patch as the page shows it; None if it is too long, binary, or may hold a secret."""
    is_readable = len(patch) <= MAX_PATCH and "\nGIT binary patch\n" not in patch
    # A password or a token in a URL; `Source.rerun` does not show them either.
    may_be_secret = re.search(r"://.*[@?#]", patch)
    # Bytes of a file that are not UTF-8 are lone surrogates here, which a page cannot hold.
    return patch.encode(errors="replace").decode() if is_readable and not may_be_secret else None


def _loss(summary: Summary) -> Chart:
    steps, epochs = thinned(summary.steps), thinned(summary.epochs)
    title = "Loss by step"
    svg = charts.curves(
        "loss",
        title,
        "Mean negative log-likelihood of an image, in nats, by optimizer step",
        x="step",
        lines={
            "training images, during the epoch": [(row.step, row.loss) for row in steps],
            "validation images, after each epoch": [(row.step, row.val_loss) for row in epochs],
        },
        percent=False,
    )
    rows = [(f"{row.step:,}", f"{row.loss:.4f}") for row in steps]
    return Chart(title=title, svg=svg, header=("step", "training loss"), rows=rows)


def _accuracy(summary: Summary) -> Chart:
    epochs = thinned(summary.epochs)
    title = "Accuracy by epoch"
    svg = charts.curves(
        "accuracy",
        title,
        "Share of the images that are classified correctly, by epoch",
        x="epoch",
        lines={
            "training images, during the epoch": [(row.epoch, row.train_accuracy) for row in epochs],
            "validation images, after each epoch": [(row.epoch, row.val_accuracy) for row in epochs],
        },
        percent=True,
    )
    rows = [
        (
            str(row.epoch),
            page.percent(row.train_accuracy),
            page.percent(row.val_accuracy),
            f"{row.train_loss:.4f}",
            f"{row.val_loss:.4f}",
        )
        for row in epochs
    ]
    header = ("epoch", "training accuracy", "validation accuracy", "training loss", "validation loss")
    return Chart(title=title, svg=svg, header=header, rows=rows)


def _reliability(summary: Summary) -> Chart:
    title = "Share that is right, by confidence"
    about = "Share of the test images that is right by mean confidence, in bins of confidence"
    rows = []
    for one in summary.bins:
        right = one.right
        numbers = page.percent(one.confidence), page.percent(right.share), page.span(right.interval, 1)
        rows.append((_bin(one), *numbers))
    return Chart(
        title=title,
        svg=charts.reliability(title, about, summary.bins),
        header=("confidence", "mean confidence", "right", "95 % interval"),
        rows=rows,
    )


def _counts(summary: Summary) -> Chart:
    title = "Images by confidence, on a logarithmic scale"
    return Chart(
        title=title,
        svg=charts.counts(title, "Number of test images in bins of confidence", summary.bins),
        header=("confidence", "images"),
        rows=[(_bin(one), f"{one.right.num_images:,}") for one in summary.bins],
    )


def _bin(one: scores.Bin) -> str:
    return f"{page.percent(one.low, 1)} to {page.percent(one.high, 1)}"


def thinned(rows: Sequence[T]) -> Sequence[T]:
    """Return at most `MAX_POINTS` rows at equal distances, the last row among them."""
    every = -(-len(rows) // MAX_POINTS) or 1
    return rows[(len(rows) - 1) % every :: every]


def _examples(summary: Summary, index_M: NDArray[np.int64]) -> list[Example]:
    """Return the first of the images at these positions."""
    names = summary.dataset.classes
    examples = []
    for index in index_M[:NUM_IMAGES].tolist():
        label = int(summary.test.labels_N[index])
        probs_K = np.exp(summary.log_probs_NK[index].astype(np.float64))
        likeliest = np.argsort(-probs_K, kind="stable")[:2].tolist()
        examples.append(
            Example(
                index=index,
                uri=page.picture(summary.test.images_NHW[index]),
                label=names[label],
                likeliest=[(names[number], float(probs_K[number])) for number in likeliest],
                is_right=label == likeliest[0],
            )
        )
    return examples


def _embedded(png: Path) -> str:
    """Return a figure as a data URI."""
    try:
        return page.data_uri(png.read_bytes())
    except FileNotFoundError:
        raise files.missing(png) from None
