"""The changes between two revisions as Markdown: for a terminal, a job summary, a pull request's comment.

What comes from the repository (names, values, messages) stands in code spans, in which GitHub neither
pings people nor loads pictures nor reads HTML, and is cut to a length.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from mnist.comparison import charts
from mnist.comparison.changes import HELD_OUT, Changes, Images, Metric, Param, StageChange

MAX_BYTES = 60_000  # GitHub takes comments of 65,536 characters
MAX_SHOWN = 60  # characters of a name or value
MAX_REASON = 200  # characters of a message
MAX_READ = 2000  # characters of either, most of which may not print
MAX_SENTENCE = 400  # characters of a warning
MAX_ROWS = 40  # of a table
MAX_FILES = 4  # named in a cell
MAX_CHARTS = 4
MAX_WRITTEN = 10**18  # a whole number that is shown as one
NOTHING = "-"
PLAIN = re.compile(r"[A-Za-z]{1,20}( [A-Za-z]{1,20}){0,3}|[0-9]{1,6}")  # nothing that Markdown knows
SMALLEST_P = 0.0001  # that is written out
ARROWS = {"more": " ↑", "less": " ↓", "": ""}


def render(changes: Changes) -> str:
    """The report, below `MAX_BYTES` in UTF-8 whatever changed, with a line end at its end.

    A section for which there is no room is named instead: the largest, since it would push out others.
    """
    sections = {
        "Could not be read": _unreadable(changes),
        "Metrics": _metrics(changes),
        "Params": _params(changes.params),
        "Stages": _stages(changes.stages),
        "Test images": _classes(changes.images) if changes.images else [],
        "Confusion": _confusion(changes.images) if changes.images else [],
        "Learning curves": _curves(changes),
        "Data validation": _validation(changes),
        "Cost": _costs(changes),
    }
    blocks = _head(changes)
    room = MAX_BYTES - 500 - sum(len(block.encode()) + 2 for block in blocks)  # 500: for the last line
    texts = {title: "\n\n".join([f"### {title}", *section]) for title, section in sections.items() if section}
    sizes = {title: len(text.encode()) + 2 for title, text in texts.items()}
    while sum(sizes.values()) > room:
        sizes.pop(max(sizes, key=sizes.__getitem__))
    blocks += [texts[title] for title in sizes]
    if left_out := [title for title in texts if title not in sizes]:
        blocks.append(f"No room for: {', '.join(left_out)}. `--json` has all of it.")
    return "\n\n".join(blocks) + "\n"


def _head(changes: Changes) -> list[str]:
    names = [
        code(name) + (f" ({commit[:7]})" if commit and not commit.startswith(name) else "")
        for name, commit in ((changes.base, changes.base_commit), (changes.head, changes.head_commit))
    ]
    return [
        f"## {names[0]} → {names[1]}",
        f"**{changes.outcome.capitalize()}**: {_verdict(changes)}",
        *(f"> ⚠ {_plain(warning)}" for warning in changes.warnings[:MAX_ROWS]),
    ]


def _verdict(changes: Changes) -> str:
    images = changes.images
    if images is None:
        return f"{_plain(changes.reason)}."
    paired = images.paired
    if not (paired.fixed or paired.broken):
        return (
            f"accuracy {images.base_accuracy:.2%} on both sides, and the same images right and wrong, "
            f"of {paired.num_images:,} test images."
        )
    low, high = paired.interval_pp
    text = (
        f"accuracy {images.base_accuracy:.2%} → {images.head_accuracy:.2%}, **{paired.change_pp:+.2f} pp** "
        f"(95 % interval {low:+.2f} to {high:+.2f} pp, exact McNemar p {_p(paired.p_two_sided)}): "
        f"{paired.fixed:,} fixed and {paired.broken:,} broken of the same {paired.num_images:,} test images."
    )
    if changes.outcome == "within noise":
        return f"{text} Two equally good networks may well differ so much."
    return f"{text} This is about these two networks: to judge a recipe, compare several seeds."


def _unreadable(changes: Changes) -> list[str]:
    rows = [
        [code(path), code(name), code(reason, MAX_REASON)]
        for side, name in (("base", changes.base), ("head", changes.head))
        for path, reason in changes.problems[side].items()
    ]
    return _table(["file", "at", "because"], rows)


def _metrics(changes: Changes) -> list[str]:
    of_classes = {f"recall.{one.label}" for one in changes.images.classes} if changes.images else set()
    shown = [metric for metric in changes.metrics if metric.name not in of_classes]
    different = [metric for metric in shown if _is_told(metric)]
    different.sort(key=lambda metric: metric.interval is None)  # what the verdict is about comes first
    same = [metric.name for metric in shown if not _is_told(metric)]
    blocks = _table(
        ["metric", "base", "head", "change", "95 % interval", "p"], map(_metric, different), right=5
    )
    if different:
        blocks.append(
            "↑ more is better, ↓ less is better. Interval and p (exact McNemar test) are of test images."
        )
    if changes.other_held_out and any(HELD_OUT in metric.name for metric in different):
        keys = ", ".join(map(code, changes.other_held_out))
        blocks.append(f"`{HELD_OUT}...` is of other held-out images on each side, since {keys} changed.")
    if same:
        blocks.append(f"Unchanged: {_listed(same, MAX_ROWS)}.")
    return blocks


def _is_told(metric: Metric) -> bool:
    return not metric.is_same or metric.interval is not None


def _metric(metric: Metric) -> list[str]:
    interval = NOTHING
    if metric.interval:
        decimals = _decimals(metric.interval)
        interval = " to ".join(f"{bound:+.{decimals}f}" for bound in metric.interval)
    change = metric.change
    if change and isinstance(metric.base, int) and isinstance(metric.head, int):
        shown = _value(metric.head - metric.base)
        shown = shown if shown.startswith(("-", "`")) else f"+{shown}"
    else:
        shown = NOTHING if change is None else f"{change:+.4g}" if change else "0"
    return [
        code(metric.name) + ARROWS[metric.good],
        _value(metric.base),
        _value(metric.head),
        shown,
        interval,
        NOTHING if metric.p is None else _p(metric.p),
    ]


def _decimals(interval: tuple[float, float]) -> int:
    """So many that the width has two digits that count."""
    width = interval[1] - interval[0]
    return max(0, 1 - math.floor(math.log10(width))) if width > 0 else 0


def _params(params: Sequence[Param]) -> list[str]:
    rows = [
        [
            code(param.name),
            NOTHING if param.side == "head" else _literal(param.base),
            NOTHING if param.side == "base" else _literal(param.head),
        ]
        for param in params
    ]
    return _table(["param", "base", "head"], rows)


def _stages(stages: Sequence[StageChange]) -> list[str]:
    rows = []
    for stage in stages:
        what = {"both": "", "base": "removed", "head": "new"}[stage.side]
        rows.append(
            [
                code(stage.name) + (f" ({what})" if what else ""),
                "changed" if stage.is_cmd and not what else "",
                "" if what else _listed(stage.params, MAX_FILES),
                "" if what else _listed(stage.code, MAX_FILES),
                "" if what else _listed(stage.data, MAX_FILES),
            ]
        )
    head = ["stage", "command", "params", "code", "data"]
    told = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    return _table([head[column] for column in told], [[row[column] for column in told] for row in rows])


def _classes(images: Images) -> list[str]:
    if not (images.fixed or images.broken):
        return []
    rows = [
        [
            _name(one.label),
            f"{one.paired.num_images:,}",
            f"{one.base_recall:.2%}",
            f"{one.head_recall:.2%}",
            f"{one.paired.change_pp:+.2f} pp",
            f"{one.paired.fixed:,}",
            f"{one.paired.broken:,}",
            _p(one.p),
        ]
        for one in images.classes
    ]
    beyond = [
        f"{_name(one.label)} ({'better' if one.paired.change_pp > 0 else 'worse'})"
        for one in images.classes
        if one.is_beyond_noise
    ]
    summary = (
        f"{images.paired.fixed:,} fixed, {images.paired.broken:,} broken. Recall beyond noise: "
        f"{', '.join(beyond) or 'of no class'} (exact McNemar test for each class, p adjusted by Holm's "
        f"method for looking at {len(images.classes)})."
    )
    return [
        summary,
        *_table(["class", "images", "base", "head", "change", "fixed", "broken", "p"], rows, right=8),
    ]


def _confusion(images: Images) -> list[str]:
    if not images.confusion.any():
        return []
    names = [_name(name) for name in images.names]
    rows = [
        [f"**{name}**", *(f"{change:+d}" if change else "·" for change in changes)]
        for name, changes in zip(names, images.confusion, strict=True)
    ]
    return [
        "Change of the number of test images: the true class by row, the predicted one by column.",
        *_table(["label", *names], rows, right=len(rows[0])),
    ]


def _curves(changes: Changes) -> list[str]:
    if all(pair.base == pair.head for pair in changes.curves):
        return ["The same on both sides."] if changes.curves else []
    blocks = [f"Grey: base, {code(changes.base)}; blue: head, {code(changes.head)}."]
    for pair in changes.curves[:MAX_CHARTS]:
        blocks += charts.of(pair)
    if left_out := changes.curves[MAX_CHARTS:]:
        blocks.append(f"Left out: {_listed([pair.title for pair in left_out], MAX_ROWS)}.")
    return blocks


def _validation(changes: Changes) -> list[str]:
    validation = changes.validation
    tallies = []
    for name, tally in ((changes.base, validation.base), (changes.head, validation.head)):
        held = f"{tally[1]} of {tally[2]} expectations hold" if tally else "unknown"
        tallies.append((code(name), held if tally is None or tally[0] else f"**failed**: {held}"))
    same = {True: "The data are the same", False: "The data are others", None: "The data cannot be compared"}
    said = {held for _, held in tallies}
    each = "; ".join(f"{name}: {held}" for name, held in tallies)
    if len(said) == 1:
        each = f"{said.pop()} on both sides"
    rows = [
        [
            code(finding.expectation),
            *(NOTHING if side is None else code(side, MAX_REASON) for side in (finding.base, finding.head)),
        ]
        for finding in validation.findings
    ]
    return [f"{same[validation.is_same_data]}; {each}.", *_table(["expectation", "base", "head"], rows)]


def _costs(changes: Changes) -> list[str]:
    rows = []
    for cost in changes.costs:
        ratio = NOTHING
        if cost.base and cost.head is not None:
            ratio = f"{cost.head / cost.base:.3g} x"
        rows.append([cost.name, _cost(cost.base), _cost(cost.head), ratio])
    blocks = _table(["cost", "base", "head", "ratio"], rows, right=3)
    if changes.devices:
        blocks.append(f"Trained on {' and on '.join(map(code, changes.devices))}.")
    return blocks


def _cost(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 0) -> list[str]:
    """A table, aligned for terminals too; without rows, nothing.

    Args:
        head: of the columns.
        rows: of which `MAX_ROWS` are shown.
        right: so many columns after the first are aligned to the right.
    """
    rows = list(rows)
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows[:MAX_ROWS]]
    alignment = ["left", *(["right"] * right)][: len(head)]
    alignment += ["left"] * (len(head) - len(alignment))
    table = tabulate(cells, headers=head, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    more = [f"And {len(rows) - MAX_ROWS:,} more."] if len(rows) > MAX_ROWS else []
    return [table, *more]


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(code, names[:most])) + more


def _value(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _literal(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if abs(value) < MAX_WRITTEN else code(str(value))


def _literal(value: Any) -> str:
    return code(value if isinstance(value, str) else json.dumps(value, default=str))


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P}"


def code(text: str, most: int = MAX_SHOWN) -> str:
    """A code span of any text: in one line, without what does not print, cut to `most` characters."""
    text = " ".join(text[:MAX_READ].split())
    text = "".join(character for character in text if character.isprintable())
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    # A span ends at the first run of as many backticks as it began with.
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else NOTHING


def _name(text: str) -> str:
    """The name of a class: words and numbers as they are, anything else as code."""
    return text if PLAIN.fullmatch(text) else code(text)


def _plain(text: str) -> str:
    """A sentence of ours around names of theirs: what is neither a word nor a number is code.

    GitHub makes a link of `www.` and of `GH-1`, and bold of `__init__`.
    """
    text = " ".join(text.split())
    text = text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 3]}..."
    return re.sub(r"(\(?)(\S+?)([),.:;]*)(?!\S)", _word, text)


def _word(found: re.Match[str]) -> str:
    start, core, end = found.groups()
    return found[0] if re.fullmatch(r"[A-Za-z]+|[0-9]+([.,][0-9]+)*", core) else f"{start}{code(core)}{end}"
