"""The comparison of two revisions as Markdown: for a terminal, a job summary, a comment on a pull request.

Names, values and messages from the repository are in code spans, and are cut to a length. In a code span
GitHub notifies no user, loads no picture and reads no HTML.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from mnist.comparison import charts
from mnist.comparison.diff import Comparison, Metric
from mnist.comparison.images import Images
from mnist.evaluation import statistics

MAX_SHOWN = 60  # characters of a name or value
MAX_REASON = 200  # characters of a message
MAX_READ = 2000  # characters of either, most of which may not print
MAX_SENTENCE = 600  # characters of a warning
MAX_ROWS = 20  # of a table
MAX_GROUPS = 10  # of images whose prediction changed
MAX_ONE_SIDED = 5  # params that one side alone has
MAX_CODE = 6  # files and folders of code
MAX_INDICES = 6  # images in a cell
MAX_INT = 10**18  # a larger whole number is cut as a text
SMALLEST_P = 0.0001  # that is written out
NOTHING = "-"
PLAIN = re.compile(r"[A-Za-z]{1,20}( [A-Za-z]{1,20}){0,3}|[0-9]{1,6}")  # has no meaning in Markdown
ARROWS = {"more": " ↑", "less": " ↓", "": ""}


def render(comparison: Comparison) -> str:
    """Return the report: the verdict first, then warnings, then a section for each kind of change."""
    sections = {
        "Could not be read": _problems(comparison),
        "Metrics": _metrics(comparison),
        "What changed": _changes(comparison),
        "Recall by class": _classes(comparison.images) if comparison.images else [],
        "Images whose prediction changed": _predictions(comparison.images) if comparison.images else [],
        "Training curves": _curves(comparison),
    }
    base = _revision(comparison.base, comparison.base_commit)
    head = _revision(comparison.head, comparison.head_commit)
    blocks = [
        f"## {base} → {head}",
        f"**{comparison.outcome.capitalize()}**: {_verdict(comparison)}",
        *(f"> ⚠ {_sentence(warning)}." for warning in comparison.warnings),
    ]
    for title, section in sections.items():
        blocks += [f"### {title}", *section] if section else []
    return "\n\n".join(blocks) + "\n"


def _revision(name: str, commit: str) -> str:
    return code(name) + (f" ({commit[:7]})" if commit and not commit.startswith(name) else "")


def _verdict(comparison: Comparison) -> str:
    images = comparison.images
    if images is None:
        return f"{_sentence(comparison.reason)}."
    if not images.changed:
        all_images = f"all {images.num_images:,} test images"
        return f"accuracy {images.base_accuracy:.2%}, the same predictions on {all_images}."
    low, high = images.interval_pp
    return (
        f"accuracy {images.base_accuracy:.2%} → {images.head_accuracy:.2%}, **{images.change_pp:+.2f} pp** "
        f"(95 % interval {low:+.2f} to {high:+.2f} pp, p {_p(images.p)}): {len(images.fixed):,} fixed and "
        f"{len(images.broken):,} broken of {images.num_images:,} test images. "
        "It is about these two networks: compare recipes over several seeds."
    )


def _problems(comparison: Comparison) -> list[str]:
    rows = [
        [code(path), code(name), code(reason, MAX_REASON)]
        for side, name in (("base", comparison.base), ("head", comparison.head))
        for path, reason in comparison.problems[side].items()
    ]
    return _table(["file", "at", "reason"], rows)


def _metrics(comparison: Comparison) -> list[str]:
    metrics = comparison.metrics
    blocks = _table(
        ["metric", "base", "head", "change"],
        [_metric(metric) for metric in metrics if metric.base != metric.head],
        right=3,
    )
    if same := [metric.name for metric in metrics if metric.base == metric.head]:
        blocks.append(f"Unchanged: {_names(same)}.")
    return blocks


def _metric(metric: Metric) -> list[str]:
    change = NOTHING if metric.change is None else f"{metric.change:+.4g}"
    if metric.change is not None and isinstance(metric.base, int) and isinstance(metric.head, int):
        change = f"{metric.change:+,}"
    return [code(metric.name) + ARROWS[metric.better], _value(metric.base), _value(metric.head), change]


def _changes(comparison: Comparison) -> list[str]:
    params = comparison.params
    both = [param for param in params if param.base is not None and param.head is not None]
    removed = [param for param in params if param.head is None]
    added = [param for param in params if param.base is None]
    rows = [
        [code(param.name), _literal(param.base), _literal(param.head)]
        for param in [*both, *removed[:MAX_ONE_SIDED], *added[:MAX_ONE_SIDED]]
    ]
    blocks = _table(["param", "base", "head"], rows)
    for side, names in (("base", removed), ("head", added)):
        if len(names) > MAX_ONE_SIDED:
            blocks.append(f"{len(names) - MAX_ONE_SIDED:,} more params are in {side} alone.")
    if comparison.code:
        blocks.append(f"Code: {_names(comparison.code, MAX_CODE)}.")
    if comparison.data:
        blocks.append(f"Data: {_sentence(comparison.data)}.")
    return blocks


def _classes(images: Images) -> list[str]:
    if not (images.fixed or images.broken):
        return []
    rows = [
        [
            _name(one.label),
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
    clear = [one for one in images.classes if one.p < statistics.ALPHA]
    better = [_name(one.label) for one in clear if one.fixed > one.broken]
    worse = [_name(one.label) for one in clear if one.fixed < one.broken]
    beyond = f"Beyond noise: {', '.join(better) or 'none'} better, {', '.join(worse) or 'none'} worse"
    return [
        *_table(["class", "images", "base", "head", "change", "fixed", "broken", "p"], rows, right=7),
        f"{beyond} (exact McNemar test, p adjusted by Holm's method).",
    ]


def _predictions(images: Images) -> list[str]:
    rows = [
        [
            f"{len(one.images):,}",
            _name(one.label),
            _name(one.base),
            _name(one.head),
            {one.base: "broken", one.head: "fixed"}.get(one.label, "wrong twice"),
            ", ".join(map(str, one.images[:MAX_INDICES]))
            + (", ..." if len(one.images) > MAX_INDICES else ""),
        ]
        for one in images.changed
    ]
    head = ["images", "class", "base predicts", "head predicts", "result", "index in the test set"]
    return _table(head, rows, most=MAX_GROUPS)


def _curves(comparison: Comparison) -> list[str]:
    drawn = list(filter(None, map(charts.chart, comparison.curves)))
    return ["Grey: base. Blue: head.", *drawn] if drawn else []


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 0, most: int = MAX_ROWS
) -> list[str]:
    """Return a table, aligned for terminals too; without rows, nothing.

    Args:
        head: names of the columns.
        rows: cells by row.
        right: how many columns after the first are aligned to the right.
        most: rows that are shown.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    if not cells:
        return []
    alignment = ["left", *["right"] * right, *["left"] * (len(head) - 1 - right)]
    table = tabulate(cells[:most], headers=head, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    more = len(cells) - most
    return [table, f"And {more:,} more rows."] if more > 0 else [table]


def _names(names: Sequence[str], most: int = MAX_ROWS) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(code, names[:most])) + more


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    is_count = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INT
    return f"{value:,}" if is_count else _literal(value)


def _literal(value: Any) -> str:
    if value is None:
        return NOTHING
    return code(value if isinstance(value, str) else json.dumps(value, default=str))


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}"


def code(text: str, most: int = MAX_SHOWN) -> str:
    """Return a code span of any text: in one line, without what does not print, cut to `most` characters."""
    text = " ".join(text[:MAX_READ].split())
    text = "".join(character for character in text if character.isprintable())
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    # A span ends at the first run of as many backticks as it began with.
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else NOTHING


def _name(text: str) -> str:
    """Return the name of a class: words and numbers as they are, anything else as code."""
    return text if PLAIN.fullmatch(text) else code(text)


def _sentence(text: str) -> str:
    """Return a sentence of ours with names of theirs: what is neither a word nor a number becomes code.

    GitHub makes a link of `www.` and of `GH-1`, and bold of `__init__`.
    """
    text = " ".join(text.split())
    text = text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 3]}..."
    return re.sub(r"(\(?)(\S+?)([),.:;]*)(?!\S)", _word, text)


def _word(found: re.Match[str]) -> str:
    start, core, end = found.groups()
    is_plain = re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*|[0-9]+([.,][0-9]+)*", core)
    return found[0] if is_plain else f"{start}{code(core)}{end}"
