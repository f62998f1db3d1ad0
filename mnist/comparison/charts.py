"""Training curves of two revisions as charts in Mermaid's language, which GitHub draws."""

import math

import numpy as np

from mnist.comparison.diff import Curve

MAX_POINTS = 30  # of a line
GREY, BLUE = "#8c959f", "#2f81f7"  # base and head, on white and on black


def chart(curve: Curve) -> str:
    """Return a chart of both lines; empty where they do not overlap.

    Mermaid stretches each line over the whole x axis, so it ends where the shorter one ends.
    """
    sides = (curve.base, curve.head)
    if not all(sides):
        return ""
    first, last = max(points[0][0] for points in sides), min(points[-1][0] for points in sides)
    if first >= last:
        return ""
    num_points = min(MAX_POINTS, max(sum(first <= x <= last for x, _ in points) for points in sides))
    x_N = np.linspace(first, last, max(2, num_points))
    lines = [np.interp(x_N, *np.array(points).T) for points in sides]
    low, high = min(line.min() for line in lines), max(line.max() for line in lines)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    low, high = max(low - margin, 0) if low >= 0 else low - margin, high + margin
    axis = curve.title.rpartition(" by ")[2]
    return "\n".join(
        [
            "```mermaid",
            "---",
            f'config: {{themeVariables: {{xyChart: {{plotColorPalette: "{GREY}, {BLUE}"}}}}}}',
            "---",
            "xychart-beta",
            f'    title "{curve.title}"',
            f'    x-axis "{axis}" {_number(first, last - first)} --> {_number(last, last - first)}',
            f"    y-axis {_number(low, high - low)} --> {_number(high, high - low)}",
            *(f"    line [{', '.join(_number(y, high - low) for y in line)}]" for line in lines),
            "```",
        ]
    )


def _number(value: float, span: float) -> str:
    """Return a number to a thousandth of the axis's span, without an exponent, which Mermaid cannot read."""
    text = f"{value:.{max(0, 3 - math.floor(math.log10(span)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
