"""Comparisons of two revisions, and of their recipes, as Markdown: for terminals and pull requests.

Names, values and messages from the repository are in code spans, and are cut to a length. In a code span
GitHub notifies no user, loads no picture and reads no HTML.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from mnist.comparison.diff import Comparison, Images, Metric
from mnist.comparison.recipes import FIGURES, figures
from mnist.comparison.revision import Points
from mnist.comparison.verdict import Difference, Report

MAX_SHOWN = 60  # characters of a name or value
MAX_REASON = 200  # characters of a message
MAX_SENTENCE = 600  # characters of a warning
MAX_ROWS = 20  # of a table
MAX_NAMED = 6  # images in a cell, files of code
MAX_POINTS = 30  # of a line in a chart
SMALLEST_P = 0.0001  # that is written out
NOTHING = "-"
ARROWS = {"more": " ↑", "less": " ↓", "": ""}
GREY, BLUE = "#8c959f", "#2f81f7"  # base and head, on white and on black


def render(comparison: Comparison) -> str:
    """Return the report: the verdict first, then warnings, then a section for each kind of change."""
    images = comparison.images
    sections = {
        "Could not be read": _problems(comparison),
        "Metrics": _metrics(comparison.metrics),
        "What changed": _changes(comparison),
        "Recall by class": _classes(images) if images else [],
        "Images whose prediction changed": _predictions(images) if images else [],
        "Training curves": _curves(comparison),
    }
    base = _revision(comparison.base, comparison.base_commit)
    head = _revision(comparison.head, comparison.head_commit)
    blocks = [
        f"## {base} → {head}",
        f"**{comparison.outcome.capitalize()}**: "
        + (_verdict(images) if images else f"{_sentence(comparison.reason)}."),
        *(f"> ⚠ {_sentence(warning)}." for warning in comparison.warnings),
    ]
    for title, section in sections.items():
        blocks += [f"### {title}", *section] if section else []
    return "\n\n".join(blocks) + "\n"


def render_recipes(report: Report) -> str:
    """Return the report on recipes: the verdict, the figures of each side, and its accuracy by seed."""
    names = [code(side.name) for side in report.sides]
    blocks = [f"## {' → '.join(_revision(side.name, side.commit) for side in report.sides)}: recipes"]
    if not report.seeds:
        both = "the same code, data and params, but for the seed"
        blocks.append(f"**One recipe**: {both}. `mnist compare` alone shows its accuracy over seeds.")
    else:
        if report.difference:
            blocks.append(_recipe_verdict(report, report.difference))
        by_side = [[name, *figures(side.accuracies)] for name, side in zip(names, report.sides, strict=True)]
        blocks += _table(["recipe", *FIGURES], by_side, right=len(FIGURES))
        by_seed = zip(report.seeds, *(side.accuracies for side in report.sides), strict=True)
        rows = [[str(seed), *(f"{one:.2%}" for one in accuracies)] for seed, *accuracies in by_seed]
        heads = ["base", "head"] if report.difference else ["test accuracy"]
        blocks += _table(["seed", *heads], rows, right=len(heads))
    return "\n\n".join(blocks) + "\n"


def _recipe_verdict(report: Report, found: Difference) -> str:
    low, high = found.interval_pp
    missed = (
        f" A loss of up to {-low:.2f} pp could have been missed." if found.outcome == "no evidence" else ""
    )
    interval = f"{100 * (1 - report.alpha):g} % interval {low:+.2f} to {high:+.2f} pp, paired by seed"
    return (
        f"**{found.outcome.capitalize()}** after {len(report.seeds)} seeds: accuracy "
        f"**{found.change_pp:+.2f} pp** ({interval}).{missed} It is about code with params, not two networks."
    )


def _revision(name: str, commit: str) -> str:
    return code(name) + (f" ({commit[:7]})" if commit and not commit.startswith(name) else "")


def _verdict(images: Images) -> str:
    if not images.changed:
        all_images = f"all {images.num_images:,} test images"
        return f"accuracy {images.base_accuracy:.2%}, the same predictions on {all_images}."
    low, high = images.interval_pp
    return (
        f"accuracy {images.base_accuracy:.2%} → {images.head_accuracy:.2%}, **{images.change_pp:+.2f} pp** "
        f"(95 % interval {low:+.2f} to {high:+.2f} pp, p {_p(images.p)}): {len(images.fixed):,} fixed and "
        f"{len(images.broken):,} broken of {images.num_images:,} test images. "
        "It is about these two networks: `mnist compare` is about recipes."
    )


def _problems(comparison: Comparison) -> list[str]:
    rows = [
        [code(path), code(name), code(reason, MAX_REASON)]
        for side, name in (("base", comparison.base), ("head", comparison.head))
        for path, reason in comparison.problems[side].items()
    ]
    return _table(["file", "at", "reason"], rows)


def _metrics(metrics: Sequence[Metric]) -> list[str]:
    rows = [
        [code(one.name) + ARROWS[one.better], _value(one.base), _value(one.head), _change(one.change)]
        for one in metrics
        if one.base != one.head
    ]
    blocks = _table(["metric", "base", "head", "change"], rows, right=3)
    if same := [one.name for one in metrics if one.base == one.head]:
        blocks.append(f"Unchanged: {_names(same, MAX_ROWS)}.")
    return blocks


def _change(change: float | None) -> str:
    if change is None:
        return NOTHING
    return f"{change:+,}" if isinstance(change, int) else f"{change:+.4g}"


def _changes(comparison: Comparison) -> list[str]:
    rows = [[code(one.name), _literal(one.base), _literal(one.head)] for one in comparison.params]
    blocks = _table(["param", "base", "head"], rows)
    return [*blocks, f"Code: {_names(comparison.code, MAX_NAMED)}."] if comparison.code else blocks


def _classes(images: Images) -> list[str]:
    if not (images.fixed or images.broken):
        return []
    rows = [
        [
            _sentence(one.label),
            f"{one.num_images:,}",
            f"{one.base_recall:.2%}",
            f"{one.head_recall:.2%}",
            f"{100 * (one.head_recall - one.base_recall):+.2f} pp",
            f"{one.fixed:,}",
            f"{one.broken:,}",
            _p(one.p),
        ]
        for one in images.classes
    ]
    return [
        *_table(["class", "images", "base", "head", "change", "fixed", "broken", "p"], rows, right=7),
        "p is that of the exact McNemar test, adjusted for the number of classes by Holm's method.",
    ]


def _predictions(images: Images) -> list[str]:
    rows = [
        [
            f"{len(one.images):,}",
            *map(_sentence, (one.label, one.base, one.head)),
            {one.base: "broken", one.head: "fixed"}.get(one.label, "wrong twice"),
            ", ".join(map(str, one.images[:MAX_NAMED])) + (", ..." if len(one.images) > MAX_NAMED else ""),
        ]
        for one in images.changed
    ]
    head = ["images", "class", "base predicts", "head predicts", "result", "index in the test set"]
    return _table(head, rows)


def _curves(comparison: Comparison) -> list[str]:
    drawn = [chart(title, *lines) for title, lines in comparison.curves.items()]
    drawn = [one for one in drawn if one]
    return ["Grey: base. Blue: head.", *drawn] if drawn else []


def chart(title: str, base: Points, head: Points) -> str:
    """Return a chart of both lines in Mermaid's language, which GitHub draws; empty if they do not overlap.

    Mermaid stretches each line over the whole x axis, so it ends where the shorter one ends.
    """
    sides = (base, head)
    if not all(sides):
        return ""
    first, last = max(points[0][0] for points in sides), min(points[-1][0] for points in sides)
    if first >= last:
        return ""
    num_points = max(sum(first <= x <= last for x, _ in points) for points in sides)
    x_N = np.linspace(first, last, max(2, min(MAX_POINTS, num_points)))
    lines = [np.interp(x_N, *np.array(points).T) for points in sides]
    return "\n".join(
        [
            "```mermaid",
            "---",
            f'config: {{themeVariables: {{xyChart: {{plotColorPalette: "{GREY}, {BLUE}"}}}}}}',
            "---",
            "xychart-beta",
            f'    title "{title}"',
            f'    x-axis "{title.rpartition(" by ")[2]}" {_number(first)} --> {_number(last)}',
            *(f"    line [{', '.join(map(_number, line))}]" for line in lines),
            "```",
        ]
    )


def _number(value: float) -> str:
    """Return a number of six digits without an exponent, which Mermaid cannot read."""
    return np.format_float_positional(value, precision=6, fractional=False, trim="-")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 0) -> list[str]:
    """Return a table with `right` columns after the first aligned to the right; nothing without rows."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    if not cells:
        return []
    align = ["left", *["right"] * right, *["left"] * (len(head) - 1 - right)]
    table = tabulate(cells[:MAX_ROWS], headers=head, tablefmt="pipe", colalign=align, disable_numparse=True)
    more = len(cells) - MAX_ROWS
    return [table, f"And {more:,} more rows."] if more > 0 else [table]


def _names(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(code, names[:most])) + more


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _literal(value)


def _literal(value: Any) -> str:
    if value is None:
        return NOTHING
    return code(value if isinstance(value, str) else json.dumps(value, default=str))


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}"


def code(text: str, most: int = MAX_SHOWN) -> str:
    """Return a code span of any text: in one line, without what does not print, cut to `most` characters."""
    text = " ".join(text.split())
    text = "".join(character for character in text if character.isprintable())
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    # A span ends at the first run of as many backticks as it began with.
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else NOTHING


def _sentence(text: str) -> str:
    """Return a sentence or name with all that is neither a word nor a number as code.

    GitHub makes a link of `www.` and of `GH-1`, and bold of `__init__`.
    """
    text = " ".join(text.split())
    text = text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 3]}..."
    return re.sub(r"(\(?)(\S+?)([),.:;]*)(?!\S)", _word, text)


def _word(found: re.Match[str]) -> str:
    start, core, end = found.groups()
    is_plain = re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*|[0-9]+([.,][0-9]+)*", core)
    return found[0] if is_plain else f"{start}{code(core)}{end}"
