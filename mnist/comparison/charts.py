"""Learning curves of two revisions as charts in Mermaid's language, which GitHub draws by itself."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mnist.comparison.changes import CurvePair

FARTHER = 1.1  # times as far as both go, a curve has a chart of its own
FAR = 1e100  # where differences overflow, and nobody draws
MAX_POINTS = 30  # of a line
MAX_LABEL = 60  # characters of a title
GREY, BLUE = "#8c959f", "#2f81f7"  # base and head, to be told apart on white and on black

Points = Sequence[tuple[float, float]]


def of(pair: CurvePair) -> list[str]:
    """Both curves where both are, and where one of them goes on, all of that one; a lone point in words.

    Mermaid spreads each line over the whole axis, so those of one chart cover one range of x.
    """
    sides = {"base": pair.base, "head": pair.head}
    near = {side: [point for point in points if max(map(abs, point)) < FAR] for side, points in sides.items()}
    lines = {side: points for side, points in near.items() if points and points[0][0] < points[-1][0]}
    values = [y for points in lines.values() for _, y in points]
    ranges = {side: (points[0][0], points[-1][0]) for side, points in lines.items()}
    first, last = (
        (pick(ends) for pick, ends in zip((max, min), zip(*ranges.values(), strict=True), strict=True))
        if ranges
        else (0.0, 0.0)
    )
    blocks = []
    if len(lines) > 1 and first < last:
        blocks.append(_chart(pair, pair.title, lines, (first, last), values))
    for side, (start, end) in ranges.items():
        if len(lines) == 1 or first >= last or end - start > FARTHER * (last - first):
            blocks.append(_chart(pair, f"{pair.title}, {side}", {side: lines[side]}, (start, end), values))
    for side, points in near.items():
        if blocks and points and side not in lines:
            x, y = points[-1]
            blocks.append(f"{_label(pair.title)}, {side}: {y:.6g} at {_label(pair.x)} {x:.6g}.")
    return blocks


def _chart(
    pair: CurvePair,
    title: str,
    lines: Mapping[str, Points],
    span: tuple[float, float],
    values: Sequence[float],
) -> str:
    """A chart.

    Args:
        pair: whose axes it has.
        title: above it.
        lines: points by side.
        span: of x that is drawn.
        values: that the y axis is to cover.
    """
    first, last = span
    shown = [[x for x, _ in points if first <= x <= last] for points in lines.values()]
    num_points = min(MAX_POINTS, max(2, *map(len, shown)))
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    # A loss is never below 0, and its axis is not to look as if.
    low, high = max(low - margin, 0) if low >= 0 else low - margin, high + margin
    colours = [{"base": GREY, "head": BLUE}[side] for side in lines]
    drawn = []
    for side, points in lines.items():
        x, y = np.array(points).T
        heights = np.interp(np.linspace(first, last, num_points), x, y)
        drawn.append(f'    line "{side}" [{", ".join(_fixed(height, high - low) for height in heights)}]')
    return "\n".join(
        [
            "```mermaid",
            "---",
            f'config: {{themeVariables: {{xyChart: {{plotColorPalette: "{", ".join(colours)}"}}}}}}',
            "---",
            "xychart-beta",
            f'    title "{_label(title)}"',
            f'    x-axis "{_label(pair.x)}" {_fixed(first, last - first)} --> {_fixed(last, last - first)}',
            f'    y-axis "{_label(pair.y)}" {_fixed(low, high - low)} --> {_fixed(high, high - low)}',
            *drawn,
            "```",
        ]
    )


def _fixed(value: float, span: float) -> str:
    """A number on an axis that spans so much, to a thousandth of it; Mermaid knows no exponents."""
    text = f"{value:.{max(0, 3 - math.floor(math.log10(span)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _label(text: str) -> str:
    """Words in a chart; Mermaid has no way to quote."""
    return re.sub(r"[^\w .,()/-]", " ", text)[:MAX_LABEL].strip() or "-"
