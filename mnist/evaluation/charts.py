"""Charts of the report, as SVG inside of an HTML page: equal input gives equal text.

matplotlib draws them in placeholder colors, which then become the variables of the page's style sheet, so
that the charts follow its light and dark mode.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from mnist.evaluation.scores import Bin

WIDTH, HEIGHT = 400, 280  # points, which are the units of the SVG
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 10, 82  # margins, with room for the legend
MAX_MARKERS = 40  # a longer curve is drawn without markers

# By placeholder; no chart uses them as colors.
VARIABLES = {
    "#000001": "var(--dim)",
    "#000002": "var(--line)",
    "#000003": "var(--ink)",
    "#000004": "var(--first)",
    "#000005": "var(--second)",
}
DIM, LINE, INK, FIRST, SECOND = VARIABLES
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "mnist",  # otherwise the ids are random
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans"],  # the widths of the page's font are about the same
    "text.color": DIM,
    "axes.labelcolor": DIM,
    "axes.edgecolor": LINE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": DIM,
    "ytick.labelcolor": DIM,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 12,
}

Curve = Sequence[tuple[float, float]]


def curves(name: str, *, x: str, train: Curve, val: Curve, percent: bool) -> Markup:
    """Draw the curves of the training and of the validation images.

    Args:
        name: of the chart, the first part of its ids in the page.
        x: label of the axis, which has whole numbers.
        train: points (x, y).
        val: points (x, y).
        percent: whether y is a share, shown in percent up to 100; otherwise it starts at 0.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        for points, color, marker, line, label in (
            (train, FIRST, "o", "-", "training images, during the epoch"),
            (val, SECOND, "s", "--", "validation images, after each epoch"),
        ):
            has_markers = len(points) <= MAX_MARKERS
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, f"{marker}{line}" if has_markers else line, color=color, label=label)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(_count))
        if percent:
            axes.set_ylim(top=1)
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        else:
            axes.set_ylim(bottom=0)
        return _svg(figure, name)


def reliability(bins: Sequence[Bin]) -> Markup:
    """Draw the share of right predictions by confidence; empty bins are left out."""
    filled = [(one, one.confidence) for one in bins if one.confidence is not None]
    shares = [one.right.share or 0 for one, _ in filled]
    intervals = [one.right.interval or (0, 0) for one, _ in filled]
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        _bars(axes, [one for one, _ in filled], shares, label="share that is right")
        axes.plot((0, 1), (0, 1), color=DIM, linestyle="--", linewidth=1, label="perfect")
        middles = [(one.low + one.high) / 2 for one, _ in filled]
        axes.vlines(middles, *zip(*intervals, strict=True), color=INK, label="95 % interval")
        confidences = [confidence for _, confidence in filled]
        axes.plot(confidences, shares, color=SECOND, marker="s", linestyle="", label="mean confidence")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        return _svg(figure, "reliability", columns=2)


def counts(bins: Sequence[Bin]) -> Markup:
    """Draw the number of images by confidence, on a logarithmic scale."""
    filled = [one for one in bins if one.right.num_images]
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        axes.set_yscale("log")
        _bars(axes, filled, [one.right.num_images for one in filled])
        axes.set_ylim(bottom=0.5)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_count))
        return _svg(figure, "counts", columns=0)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="none")
    FigureCanvasSVG(figure)
    # A layout that matplotlib finds takes 0.1 s.
    left, bottom = LEFT / WIDTH, BOTTOM / HEIGHT
    area = (left, bottom, 1 - left - RIGHT / WIDTH, 1 - bottom - TOP / HEIGHT)
    return figure, figure.add_axes(area, facecolor="none")


def _bars(axes: Axes, bins: Sequence[Bin], heights: Sequence[float], *, label: str = "") -> None:
    widths = [0.9 * (one.high - one.low) for one in bins]
    middles = [(one.low + one.high) / 2 for one in bins]
    axes.bar(middles, heights, widths, color=FIRST, alpha=0.45, label=label)
    axes.set_xlim(0, 1.01)
    axes.set_xlabel("confidence")
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(share: float, _position: int | None) -> str:
    return f"{100 * share:.4g} %"


def _count(value: float, _position: int | None) -> str:
    return f"{value:,.0f}"


def _svg(figure: Figure, name: str, *, columns: int = 1) -> Markup:
    """Return the inside of an SVG element, with ids that are its own in the page.

    Args:
        figure: the chart.
        name: its name in the page.
        columns: of the legend; 0 for none.
    """
    if columns:
        figure.legend(loc="lower left", ncols=columns, borderaxespad=0.2)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    _, _, body = stream.getvalue().partition("<svg")
    body = body.partition(">")[2].rpartition("</svg>")[0]
    # A style sheet in it would be one of the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;]*; ", "", body)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    return Markup(body)  # noqa: S704 -- matplotlib escapes what it draws
