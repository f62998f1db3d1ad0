"""The report as it is read: by a CommonMark parser with GitHub's tables, by Mermaid, and in a terminal."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from wcwidth import wcswidth

from mnist.comparison import markdown
from mnist.comparison.diff import compare_revisions
from mnist.comparison.revision import Points, Snapshot
from mnist.comparison.verdict import Difference, Report, Side
from mnist.evaluation.predictions import Predictions

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ALLOWED = {"heading", "paragraph", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "strong"}
HOSTILE = [
    "a|b",
    "\\|",
    "``x` `",
    "<script>alert(1)</script>",
    "<!--",
    "![](http://x/y.png)",
    "[a](http://b)",
    "@team",
    "fixes #1 GH-1 www.example.org a@example.org",
    "**b** _c_ ~~d~~ __init__",
    "x\n\n# heading\n\n```mermaid\nclick\n```\n---\n",
    "\u202egpj.exe\u2066\x1b[31mred\x00\r\n\u2028",
    "&lt;b&gt; &#64;team",
    "x" * 5000,
    "\ud800",
    ":(1. a",
    "",
]


def side(text: str = "x", number: int = 0, **fields: Any) -> Snapshot:
    """Return a snapshot that has everything, with `text` wherever the repository could have any."""
    labels = np.array([f"{text}{index % 3}" for index in range(60)])
    predicted = np.where(np.arange(60) < 20 * number, f"{text}1", labels)
    given: dict[str, Any] = {
        "name": f"{text}{number}",
        "commit": str(number) * 40,
        "metrics": {f"{text}m.json": {f"{text}k": number, f"{text}t": f"{text}{number}", "loss": 1.5}},
        "params": {f"{text}p": f"{text}{number}", f"{text}{number}": [text], "seed": number},
        "code": {f"{text}c{number}": "1", f"{text}d": str(number)},
        "predictions": Predictions(labels_N=labels, predicted_N=predicted),
        "curves": {"Training loss by step": ((0.0, 1.0), (1.0, float(number)))},
        "stale": (f"{text}s",) * number,
        "problems": {f"{text}f": f"{text} because"},
    }
    return Snapshot(**{**given, **fields})


def render(base: Snapshot, head: Snapshot) -> str:
    return markdown.render(compare_revisions(base, head))


def recipes(*names: str, outcome: Literal["better", "no evidence"] = "no evidence") -> str:
    """Return the report on recipes of revisions with these names, over three seeds."""
    sides = [Side(name=name, commit="", accuracies=(0.9, 0.95, 0.94)) for name in names]
    found = Difference(outcome=outcome, change_pp=0.1, interval_pp=(-0.25, 0.45)) if names[1:] else None
    return markdown.render_recipes(Report(sides=tuple(sides), seeds=(7, 8, 9), alpha=0.1, difference=found))


def tokens(text: str) -> Iterator[Token]:
    for token in PARSER.parse(text):
        yield token
        yield from token.children or []


def headings(text: str) -> list[str]:
    parsed = PARSER.parse(text)
    return [parsed[index + 1].content for index, one in enumerate(parsed) if one.type == "heading_open"]


def tables(text: str) -> list[list[str]]:
    """Return the lines of each table."""
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def rows(text: str, title: str) -> list[list[str]]:
    """Return the cells of the first table of a section, its head included."""
    head, _, *lines = tables(text.partition(f"### {title}\n")[2])[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines)]


@settings(max_examples=30)
@given(text=st.text(max_size=80))
@example(text="\n".join(HOSTILE))
def test_text_of_the_repository_can_neither_act_nor_break_out(text: str) -> None:
    no_predictions = side(text, 1, predictions=None)
    reports = render(side(text, 0), side(text, 1)), render(side(text, 0), no_predictions)
    for found in (*reports, recipes(text, text), recipes(text)):
        for token in tokens(found):
            kind = re.sub("_(open|close)$", "", token.type)
            assert kind in {*ALLOWED, "inline", "text", "softbreak", "code_inline", "fence"}, token
            assert kind != "fence" or token.info == "mermaid"
            if kind == "text":
                ours = token.content.replace("< 0.0001", "")
                assert not re.search(r"[@#<>\[\]`|*\\]|://|www\.|GH-|__|~~|&\w+;", ours), ours
        assert all(character.isprintable() or character == "\n" for character in found)
        found.encode()
        # No row has more or fewer cells than its head: a parser drops them.
        for table in tables(found):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
        assert len(headings(found)) == found.count("\n### ") + 1


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text(text: str) -> None:
    test_text_of_the_repository_can_neither_act_nor_break_out.hypothesis.inner_test(text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["a|b", "字"])
def test_tables_are_aligned_in_a_terminal(text: str) -> None:
    found = tables(render(side(text, 0), side(text, 1)))
    assert len(found) == 5
    for table in found:
        assert len({wcswidth(line) for line in table}) == 1, table


def test_the_sections_in_order() -> None:
    assert headings(render(side(number=0), side(number=1))) == [
        "`x0` (0000000) → `x1` (1111111)",
        "Could not be read",
        "Metrics",
        "What changed",
        "Recall by class",
        "Images whose prediction changed",
        "Training curves",
    ]
    same = side(problems={})
    assert headings(render(same, same))[1:] == ["Metrics"]


@pytest.mark.parametrize(
    ("name", "base", "head", "cells"),
    [
        ("accuracy", 0.95, 0.975, ["`accuracy` ↑", "0.95", "0.975", "+0.025"]),
        ("loss", 0.25, 0.125, ["`loss` ↓", "0.25", "0.125", "-0.125"]),
        ("n", 1000, 2500, ["`n`", "1,000", "2,500", "+1,500"]),
        ("n", None, 2, ["`n`", "-", "2", "-"]),
        ("t", "a", True, ["`t`", "`a`", "`true`", "-"]),
    ],
)
def test_rows_of_metrics(name: str, base: Any, head: Any, cells: list[str]) -> None:
    sides = [
        side(metrics={"m.json": {"same": 1, **({} if value is None else {name: value})}})
        for value in (base, head)
    ]
    text = render(*sides)
    assert rows(text, "Metrics") == [["metric", "base", "head", "change"], cells]
    assert "Unchanged: `same`." in text


def test_params_and_code_that_changed_are_cut() -> None:
    base = side(params={"lr": 0.1, **{f"old{n}": n for n in range(9)}}, code={})
    head = side(
        params={"lr": 0.2, **{f"new{n}": "x" for n in range(12)}}, code={f"{n}.py": "1" for n in range(40)}
    )
    text = render(base, head)
    assert rows(text, "What changed")[1:] == [
        ["`lr`", "`0.1`", "`0.2`"],
        *([f"`old{n}`", f"`{n}`", "-"] for n in range(9)),
        *([f"`new{n}`", "-", "`x`"] for n in range(10)),
    ]
    assert "And 2 more rows." in text
    assert "`5.py` and 34 more" in text


def test_classes_and_predictions() -> None:
    text = render(side(text="c", number=0), side(text="c", number=1))
    head, *classes = rows(text, "Recall by class")
    assert head == ["class", "images", "base", "head", "change", "fixed", "broken", "p"]
    assert [row[0] for row in classes] == ["`c0`", "`c1`", "`c2`"]
    assert classes[0][1:7] == ["20", "100.00%", "65.00%", "-35.00 pp", "0", "7"]
    _, *changed = rows(text, "Images whose prediction changed")
    assert changed[0] == ["7", "`c0`", "`c0`", "`c1`", "broken", "0, 3, 6, 9, 12, 15, ..."]


@pytest.mark.parametrize(
    ("base", "head", "axis", "lines"),
    [
        (((0, 1), (10, 0.5)), ((0, 2), (10, 1)), "0 --> 10", [[1, 0.5], [2, 1]]),
        (((1, 1), (10, 0.5)), ((0, 2), (5, 1)), "1 --> 5", [[1, 0.777778], [1.8, 1]]),  # what both have
        (((0, 1),), ((0, 2), (10, 1)), None, None),
        (((0, 1), (1, 1)), ((2, 2), (3, 1)), None, None),
    ],
)
def test_charts(base: Points, head: Points, axis: str | None, lines: list[list[float]] | None) -> None:
    chart = markdown.chart("Loss by step", base, head)
    if lines is None:
        assert chart == ""
        return
    assert f'x-axis "step" {axis}\n' in chart
    assert [json.loads(line) for line in re.findall(r"line (\[.*\])", chart)] == lines


def test_a_chart_has_at_most_so_many_points() -> None:
    line = tuple((float(x), 1.0 / (x + 1)) for x in range(1000))
    chart = markdown.chart("Loss by step", line, line)
    assert all(found.count(",") == 29 for found in re.findall(r"line \[(.*)\]", chart))
    assert "e-" not in chart


def test_no_evidence_has_the_loss_that_could_have_been_missed() -> None:
    assert "A loss of up to 0.25 pp" in recipes("a", "b")
    assert "A loss" not in recipes("a", "b", outcome="better")


def test_recipes_have_their_figures_and_a_row_a_seed() -> None:
    found = recipes("base", "head")

    figures, by_seed = tables(found)
    assert "90 % interval -0.25 to +0.45 pp" in found
    assert [cell.strip() for cell in figures[2].split("|")[1:4]] == ["`base`", "3", "93.00%"]
    assert [cell.strip() for cell in by_seed[3].split("|")[1:-1]] == ["8", "95.00%", "95.00%"]
