"""A result as a page that a person can send to a colleague: `metrics/report.html`.

It stands alone, and holds what a run knows: numbers, curves, mistakes, where it came from. It tells its
commit and its time too, so it is no out of DVC: the same result makes the same page at the same time only.

Shape suffixes: N images, K classes, M of the images.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mnist.core import paths
from mnist.data import page
from mnist.evaluation import scores
from mnist.evaluation.summary import SURE, Rate, Summary
from mnist.lineage.result import Result, training_info

TEMPLATE = Path(__file__).parent / "templates/report.html.jinja"
NUM_PICTURES = 10  # in each gallery
NUM_MIX_UPS = 10  # that are listed
MAX_POINTS = 200  # of a curve, and rows of its table
MAX_PATCH = 50_000  # characters that are shown
MAX_MARKED = 40  # points of a curve that have a mark each

# Of a chart, in its own units: text of 12 is as large on a phone, where it is as wide as the page.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 42

T = TypeVar("T")
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: where, in the chart's units, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend.
        kind: `first` is drawn through, with discs, `second` is dashed, with squares.
        points: in the chart's units.
        marks: of them, those that are marked.
    """

    name: str
    kind: str
    points: Sequence[Point]
    marks: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and its table.

    Attributes:
        name: an id in the page.
        title: for people.
        about: what it shows, in a sentence for who does not see it.
        x: title of the axis.
        x_ticks: on it.
        y_ticks: on the other.
        lines: in the order of the legend.
        header: of the table.
        rows: of the table.
    """

    name: str
    title: str
    about: str
    x: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bin of the reliability diagram, in the chart's units.

    Attributes:
        x: its left side.
        width: of it.
        y: its upper end, at the share that is right.
        low: the lower end of that share's interval.
        high: the upper end.
        middle: where the interval is drawn.
        confidence: where the mean confidence is.
        count_y: the upper end of the bar of its count.
    """

    x: float
    width: float
    y: float
    low: float
    high: float
    middle: float
    confidence: float
    count_y: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A test image and what was said of it.

    Attributes:
        index: position among the test images.
        uri: the image.
        label: name of its class.
        said: names of the likeliest classes, with their probabilities where they are known, the likeliest
            first.
        is_right: whether the first of them is its class.
    """

    index: int
    uri: str
    label: str
    said: Sequence[tuple[str, float | None]]
    is_right: bool


def html(summary: Summary, result: Result, *, folder: Path) -> str:
    """Render the page.

    Args:
        summary: the result in numbers.
        result: the same for programs, with what it came from.
        folder: that holds its files; filters and feature maps that it has not are left out.
    """
    return page.render(
        TEMPLATE,
        s=summary,
        result=result,
        origin=result.origin,
        source=result.origin.source,
        changed=changed_files(result.origin.source.patch),
        patch=_shown(result.origin.source.patch),
        shown=page.as_yaml,
        making=training_info(result.weights_sha256),
        store=paths.shown(paths.store_uri()),
        charts=charts(summary),
        bars=list(_bars(summary)),
        unit_ticks=[Tick(at=_y(share, 0, 1), text=_percent_tick(share)) for share in (0, 0.25, 0.5, 0.75, 1)],
        confidence_ticks=[
            Tick(at=_x(share, 0, 1), text=_percent_tick(share)) for share in (0, 0.25, 0.5, 0.75, 1)
        ],
        count_ticks=_count_ticks(summary),
        most_mixed=max((mix_up.count for mix_up in summary.mix_ups), default=0),
        mix_ups=summary.mix_ups[:NUM_MIX_UPS],
        right=_pictures(summary, _right(summary)[:NUM_PICTURES]),
        wrong=_pictures(summary, _wrong(summary)[:NUM_PICTURES]),
        unsure=_pictures(summary, _unsure(summary)[:NUM_PICTURES]),
        filters=_embedded(folder / paths.FILTERS),
        feature_maps=_embedded(folder / paths.FEATURE_MAPS),
        paths=paths,
        Rate=Rate,
        sure=SURE,
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP}
        | {"bottom": HEIGHT - BOTTOM},
        percent=page.percent,
        span=page.span,
        time=page.time,
    )


def changed_files(patch: str) -> list[str]:
    """The files that a patch of git's changes; one with an odd name as git quotes it."""
    names = re.findall(r'^diff --git "?a/.* (?:b/(.*)|"b/(.*)")$', patch, re.MULTILINE)
    return [plain or quoted for plain, quoted in names]


def _shown(patch: str) -> str | None:
    """A patch as a page may hold it; None for one that nobody would read, or that may hold a secret."""
    is_readable = len(patch) <= MAX_PATCH and "\nGIT binary patch\n" not in patch
    # A password or a token in a URL; `Source.rerun` does not show them either.
    may_tell = re.search(r"://.*[@?#]", patch)
    # What is not UTF-8 in a file is a lone surrogate here, which no page can hold.
    return patch.encode(errors="replace").decode() if is_readable and not may_tell else None


def charts(summary: Summary) -> list[Chart]:
    """The curves of the training: loss by step, accuracy by epoch."""
    steps, epochs = _thinned(summary.steps), _thinned(summary.epochs)
    loss = _chart(
        "loss",
        "Loss by step",
        "Mean negative log-likelihood of an image, in nats, as the training went on",
        x="step",
        lines={
            "training images, as they came by": [(row.step, row.loss) for row in steps],
            "validation images, after each epoch": [(row.step, row.val_loss) for row in epochs],
        },
        share=False,
        header=("step", "training loss"),
        rows=[(f"{row.step:,}", f"{row.loss:.4f}") for row in steps],
    )
    accuracy = _chart(
        "accuracy",
        "Accuracy by epoch",
        "Share of the images that are classified correctly, in each epoch",
        x="epoch",
        lines={
            "training images, as they came by": [(row.epoch, row.train_accuracy) for row in epochs],
            "validation images, after each epoch": [(row.epoch, row.val_accuracy) for row in epochs],
        },
        share=True,
        header=("epoch", "training accuracy", "validation accuracy", "training loss", "validation loss"),
        rows=[
            (
                str(row.epoch),
                page.percent(row.train_accuracy),
                page.percent(row.val_accuracy),
                f"{row.train_loss:.4f}",
                f"{row.val_loss:.4f}",
            )
            for row in epochs
        ],
    )
    return [loss, accuracy]


def _thinned(rows: Sequence[T]) -> Sequence[T]:
    """At most `MAX_POINTS` of them, at equal distances, the last one among them."""
    every = -(-len(rows) // MAX_POINTS) or 1
    return rows[(len(rows) - 1) % every :: every]


def _chart(
    name: str,
    title: str,
    about: str,
    *,
    x: str,
    lines: dict[str, Sequence[Point]],
    share: bool,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Chart:
    """A chart.

    Args:
        name: an id in the page.
        title: for people.
        about: what it shows; its first and last values are added.
        x: title of the axis, on which there are whole numbers.
        lines: points by name.
        share: whether y is in percent, up to 100; otherwise it starts at 0.
        header: of the table.
        rows: of the table.
    """
    every = [point for points in lines.values() for point in points]
    first, last = min(at for at, _ in every), max(at for at, _ in every)
    x_ticks = [at for at in _round_numbers(first, last, least=1) if first <= at <= last]
    if first == last:  # a lone point is in the middle
        x_ticks, first, last = [first], first - 1, last + 1
    low, high = min(value for _, value in every), max(value for _, value in every)
    y_ticks = _round_numbers(min(low, 0.98), 1) if share else _round_numbers(0, high)
    bottom, top = y_ticks[0], y_ticks[-1]
    drawn = []
    for kind, (line, points) in zip(("first", "second"), lines.items(), strict=True):
        placed = [(_x(at, first, last), _y(value, bottom, top)) for at, value in points]
        marked = placed if len(placed) <= MAX_MARKED else []
        drawn.append(Line(name=line, kind=kind, points=placed, marks=marked))
    number = page.percent if share else "{:.3f}".format
    said = "; ".join(
        f"{line}: {number(points[0][1])}" + (f" to {number(points[-1][1])}" if len(points) > 1 else "")
        for line, points in lines.items()
        if points
    )
    return Chart(
        name=name,
        title=title,
        about=f"{about}. {said[0].upper()}{said[1:]}.",
        x=x,
        x_ticks=[Tick(at=_x(at, first, last), text=f"{at:,.0f}") for at in x_ticks],
        y_ticks=[
            Tick(at=_y(value, bottom, top), text=_percent_tick(value) if share else f"{value:g}")
            for value in y_ticks
        ],
        lines=drawn,
        header=header,
        rows=rows,
    )


def _round_numbers(low: float, high: float, *, least: float = 0.0) -> list[float]:
    """Some five round numbers at equal distances of at least `least`, that `low` to `high` lie within."""
    rough = max((high - low) / 4, least, 1e-6)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if least:
        step = max(round(step), 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 9) for number in range(first, max(last, first + 1) + 1)]


def _x(value: float, low: float, high: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)


def _y(value: float, low: float, high: float, *, top: float = TOP) -> float:
    bottom = HEIGHT - BOTTOM
    return round(bottom - (bottom - top) * (value - low) / (high - low), 1)


def _percent_tick(share: float) -> str:
    return f"{100 * share:.4g} %"


def _bars(summary: Summary) -> Iterator[Bar]:
    """The bins that hold images."""
    most = max((one.num_images for one in summary.bins), default=0)
    for one in summary.bins:
        if one.confidence is None:
            continue
        rate = Rate(hits=one.num_right, num_images=one.num_images)
        assert rate.share is not None
        assert rate.interval is not None
        left, right = _x(one.low, 0, 1), _x(one.high, 0, 1)
        yield Bar(
            x=left + 1,
            width=round(right - left - 2, 1),
            y=_y(rate.share, 0, 1),
            low=_y(rate.interval[0], 0, 1),
            high=_y(rate.interval[1], 0, 1),
            middle=round((left + right) / 2, 1),
            confidence=_x(one.confidence, 0, 1),
            count_y=_count_y(one.num_images, most),
        )


def _count_y(count: float, most: int) -> float:
    """The height of a count of images, on an axis of logarithms that starts at 1 / 2."""
    return _y(math.log10(2 * count), 0, math.log10(2 * most))


def _count_ticks(summary: Summary) -> list[Tick]:
    most = max((one.num_images for one in summary.bins), default=0)
    powers: Iterable[int] = range(int(math.log10(most)) + 1) if most else ()
    return [Tick(at=_count_y(10**power, most), text=f"{10**power:,}") for power in powers]


def _right(summary: Summary) -> NDArray[np.int64]:
    return np.flatnonzero(summary.predicted_N == summary.test.labels_N)


def _wrong(summary: Summary) -> NDArray[np.int64]:
    """Positions of the mistakes, the most confident first; without log-probabilities in their order."""
    if summary.log_probs_NK is None:
        return np.flatnonzero(summary.predicted_N != summary.test.labels_N)
    return scores.confident_mistakes(summary.log_probs_NK, summary.test.labels_N)


def _unsure(summary: Summary) -> NDArray[np.int64]:
    """Positions of all images, the least certain first; none without log-probabilities."""
    if summary.log_probs_NK is None:
        return np.array([], np.int64)
    return np.argsort(scores.confidence(summary.log_probs_NK), kind="stable")


def _pictures(summary: Summary, index_M: NDArray[np.int64]) -> list[Picture]:
    names = summary.dataset.classes
    pictures = []
    for index in index_M.tolist():
        label, predicted = int(summary.test.labels_N[index]), int(summary.predicted_N[index])
        said: list[tuple[str, float | None]] = [(names[predicted], None)]
        if summary.log_probs_NK is not None:
            probs_K = np.exp(summary.log_probs_NK[index].astype(np.float64))
            likeliest = np.argsort(-probs_K, kind="stable")[:2].tolist()
            said = [(names[number], float(probs_K[number])) for number in likeliest]
        pictures.append(
            Picture(
                index=index,
                uri=page.picture(summary.test.images_NHW[index]),
                label=names[label],
                said=said,
                is_right=label == predicted,
            )
        )
    return pictures


def _embedded(png: Path) -> str | None:
    """A picture that the result came with, as a data URI; None where it has none."""
    return page.data_uri(png.read_bytes()) if png.is_file() else None
