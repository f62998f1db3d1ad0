"""The report as it is read: by a CommonMark parser with GitHub's tables, by Mermaid, and in a terminal."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from wcwidth import wcswidth

from mnist.comparison import charts, diff, markdown
from mnist.comparison.changes import Changes, Timing
from mnist.comparison.plots import Curve
from mnist.comparison.revision import Snapshot, Stage
from mnist.data import validation
from mnist.data.validation import Verdict
from mnist.evaluation.statistics import Predictions

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
VERDICT = validation.read(Path(__file__).parents[3] / "metrics/validation.json")
HOSTILE = [
    "a|b",
    "\\|",
    "`",
    "``x` `",
    "\\`",
    "<script>alert(1)</script>",
    "<!--",
    "![](http://x/y.png)",
    "[a](http://b)",
    "[a][b]\n\n[b]: http://c",
    "@team",
    "fixes #1",
    "GH-1",
    "www.example.org",
    "https://example.org/@a#2",
    "a@example.org",
    "**b** _c_ ~~d~~ __init__",
    "x\n\n# heading\n\n```mermaid\nclick\n```\n---\n",
    "\u202egpj.exe\u2066",
    "\x1b[31mred\x00\x07\r\n\u2028\u0085",
    "\u200b@team",
    "&lt;b&gt; &#64;team",
    "🎉" * 40,
    "字" * 90,
    "e\u0301" * 50,
    "x" * 5000,
    "`" * 300,
    "|" * 100,
    " ",
    "",
    "\ud800",
    ":",
    "(",
    "1. a",
    "> q",
    "- i",
]


def snapshot(name: str = "base", **fields: Any) -> Snapshot:
    return Snapshot(name=name, commit=fields.pop("commit", ""), **fields)


def between(base: dict[str, Any] | Snapshot, head: dict[str, Any] | Snapshot, **timings: Any) -> Changes:
    sides = [
        side if isinstance(side, Snapshot) else snapshot(name, **side)
        for name, side in (("base", base), ("head", head))
    ]
    return diff.between(*sides, **timings)


def predictions(num_wrong: int = 0, num_images: int = 200) -> Predictions:
    labels_N = np.arange(num_images).astype(np.uint8) % 10
    predicted_N = labels_N.copy()
    predicted_N[:num_wrong] = (labels_N[:num_wrong] + 1) % 10
    return Predictions(labels_N=labels_N.astype(str), predicted_N=predicted_N.astype(str))


def render(base: Any, head: Any, **timings: Any) -> str:
    return markdown.render(between(base, head, **timings))


def flat(tokens: Sequence[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *flat(token.children or []))]


def parsed(text: str) -> list[Token]:
    return flat(PARSER.parse(text))


def headings(text: str) -> list[str]:
    tokens = PARSER.parse(text)
    return [tokens[number + 1].content for number, one in enumerate(tokens) if one.type == "heading_open"]


def section(text: str, title: str) -> str:
    return text.partition(f"### {title}\n")[2].partition("\n### ")[0]


def rows(text: str, title: str = "") -> list[list[str]]:
    """The cells of the first table, head included, of a section."""
    tokens = PARSER.parse(section(text, title) if title else text)
    table: list[list[str]] = []
    for number, token in enumerate(tokens):
        if token.type == "table_close":
            return table
        if token.type == "tr_open":
            table.append([])
        if token.type in ("td_open", "th_open"):
            table[-1].append(tokens[number + 1].content)
    return table


def check_safe(text: str) -> None:
    """Nothing of it pings, links, loads, hides or breaks out, on GitHub."""
    allowed = {"heading", "paragraph", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    for token in parsed(text):
        kind = re.sub("_(open|close)$", "", token.type)
        assert kind in {*allowed, "inline", "text", "softbreak", "code_inline", "fence"}, token
        if kind == "fence":
            assert token.info == "mermaid"
        if kind == "text":
            theirs = token.content.replace("< 0.0001", "")
            assert not re.search(r"[@#<>\[\]`|*\\]|://|www\.|GH-|__|~~|&\w+;", theirs), theirs
        assert kind != "heading" or token.level == 0
    assert all(character.isprintable() or character == "\n" for character in text)
    text.encode()


def check_tables(text: str) -> None:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    num_rows = num_cells = 0
    for token in PARSER.parse(text):
        if token.type == "thead_open":
            num_columns = None
        if token.type == "tr_open":
            num_cells = 0
        if token.type in ("td_open", "th_open"):
            num_cells += 1
        if token.type == "tr_close":
            num_columns = num_cells if num_columns is None else num_columns
            assert num_cells == num_columns
            num_rows += 1
    # No line of a table became text, and none has more cells than its head: a parser drops those.
    assert num_rows + sum(set(line) <= set("|:-") for line in lines) == len(lines)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def stage(**fields: Any) -> Stage:
    return Stage(**{"cmd": "run", "params": frozenset(), "code": {}, "data": {}, **fields})


def full(text: str = "x", number: int = 0) -> dict[str, Any]:
    """A side of all that there can be, with `text` wherever text can be."""
    finding = VERDICT.expectations[0].model_copy(
        update={
            "expectation": f"{text}e",
            "observed": f"{text}{number}",
            "expected": text,
            "success": not number,
        }
    )
    return {
        "commit": str(number) * 40,
        "metrics": {
            f"{text}m.json": {f"{text}k": number, f"{text}t": text, "accuracy": 0.5, "loss": 1.5 + number}
        },
        "params": {f"{text}p": f"{text}{number}", f"{text}l": [text, number], "seed": number},
        "stages": {
            f"{text}s": stage(
                cmd=f"{text}{number}",
                params=frozenset({f"{text}p"}),
                code={f"{text}c{number}": "1"},
                data={f"{text}d": str(number)},
                changed=(f"{text}c",),
            ),
            f"{text}{number}": stage(),
        },
        "curves": [Curve(title=text, x=f"{text}x", y=f"{text}y", points=((0, number), (1, 2), (2, 7)))],
        "num_steps": 10,
        "predictions": predictions(20 * number),
        "validation": VERDICT.model_copy(update={"expectations": [finding]}),
        "problems": {f"{text}f": f"{text} because", f"{text}g": text},
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(HOSTILE), max_size=3).map(" ".join))
@example(text="\n".join(HOSTILE))
def test_whatever_names_hold_the_report_is_text_and_tables(text: str) -> None:
    found = render(
        Snapshot(name=f"{text}base", **full(text, 0)),
        Snapshot(name=f"{text}head", **full(text, 1)),
        base_timing=Timing(1.5, text),
        head_timing=Timing(2.5, f"{text}2"),
    )
    check_safe(found)
    check_tables(found)


def short(text: str) -> str:
    """An id."""
    return ascii(text)[:30]


@pytest.mark.parametrize("text", HOSTILE, ids=short)
def test_hostile_text_is_code_everywhere(text: str) -> None:
    test_whatever_names_hold_the_report_is_text_and_tables.hypothesis.inner_test(text)  # type: ignore[attr-defined]
    # The reason why there is no comparison is a sentence with names in it.
    found = render(snapshot(text), snapshot(f"{text}2"))
    check_safe(found)
    assert "**Not comparable**: no predictions on the test images at " in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a", "`a`"),
        ("", "-"),
        (" a\n b ", "`a b`"),
        ("a`b", "`` a`b ``"),
        ("`", "`` ` ``"),
        ("``", "``` `` ```"),
        ("a\x00\u202eb", "`ab`"),
        ("x" * 60, f"`{'x' * 60}`"),
        ("x" * 61, f"`{'x' * 57}...`"),
        ("é字🎉", "`é字🎉`"),
    ],
)
def test_code_spans(text: str, shown: str) -> None:
    assert markdown.code(text) == shown
    if shown != "-":
        (token,) = PARSER.parseInline(shown)[0].children or []
        assert token.type == "code_inline"
        assert token.content.startswith(re.sub("[\x00\u202e]", "", " ".join(text.split()))[:57])


@given(text=st.text())
def test_a_code_span_is_one_token_whatever_it_holds(text: str) -> None:
    shown = markdown.code(text)
    tokens = PARSER.parseInline(shown)[0].children or []
    assert [token.type for token in tokens] == ["text" if shown == "-" else "code_inline"]


@pytest.mark.parametrize("text", [*(text for text in HOSTILE if text.isascii()), "Größe", "naïve"], ids=short)
def test_tables_are_aligned_for_terminals(text: str) -> None:
    found = render(full(text, 0), full(text, 1))
    tables = re.findall(r"(?:^\|.*\n)+", found, re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        assert len({wcswidth(line) for line in table.splitlines()}) == 1, table
        assert len({len(line) for line in table.splitlines()}) == 1, table


# Sections

SECTIONS = [
    "Could not be read",
    "Metrics",
    "Params",
    "Stages",
    "Test images",
    "Confusion",
    "Learning curves",
    "Data validation",
    "Cost",
]


def test_all_sections_are_there_in_order() -> None:
    found = render(full("x", 0), full("x", 1))
    assert headings(found) == ["`base` (0000000) → `head` (1111111)", *SECTIONS]


PARTS: dict[str, dict[str, Any]] = {
    "Could not be read": {"problems": {"f": "no such file"}},
    "Metrics": {"metrics": {"m.json": {"loss": 1}}},
    "Params": {"params": {"lr": 1}},
    "Stages": {"stages": {"train": stage()}},
    "Learning curves": {"curves": [Curve(title="t", x="x", y="y", points=((0, 1), (1, 2)))]},
    "Cost": {"num_steps": 3},
}


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize(("title", "part"), PARTS.items(), ids=PARTS)
def test_a_section_is_there_when_there_is_something_to_say(
    title: str, part: dict[str, Any], side: str
) -> None:
    found = render(part if side == "base" else {}, part if side == "head" else {})
    assert headings(found)[1:] == [one for one in SECTIONS if one in (title, "Data validation")]


def test_empty_sections_vanish() -> None:
    side = {"metrics": {"m.json": {"loss": 1}}, "params": {"lr": 1}, "predictions": predictions(3)}
    found = render(side, side)
    assert headings(found)[1:] == ["Metrics", "Data validation"]
    assert "Unchanged: `loss`." in found
    assert not rows(found, "Metrics")


def test_warnings_stand_under_the_verdict() -> None:
    side = full("x", 1)
    text = render({"predictions": predictions(7)}, side)
    verdict_line, *warnings = text.splitlines()[2::2][:3]
    assert verdict_line.startswith("**Worse**: accuracy 96.50% → 90.00%, **-6.50 pp** (95 % interval -")
    assert warnings[0].startswith("> ⚠ at head the metric accuracy is 0.5, but the predictions give 0.9")
    assert warnings[1].startswith("> ⚠ at head the results are old")


@pytest.mark.parametrize(
    ("base", "head", "start", "end"),
    [
        (20, 20, "**Within noise**: accuracy 90.00% on both sides, and the same images", "200 test images."),
        (20, 22, "**Within noise**: accuracy 90.00% → 89.00%, **-1.00 pp**", "may well differ so much."),
        (20, 40, "**Worse**: accuracy 90.00% → 80.00%, **-10.00 pp**", "compare several seeds."),
        (40, 20, "**Better**: accuracy 80.00% → 90.00%, **+10.00 pp**", "compare several seeds."),
        (None, 20, "**Not comparable**: no predictions on the test images at base.", ""),
    ],
    ids=["same", "noise", "worse", "better", "not comparable"],
)
def test_the_verdict_is_a_line(base: int | None, head: int, start: str, end: str) -> None:
    sides = [{"predictions": None if wrong is None else predictions(wrong)} for wrong in (base, head)]
    line = render(*sides).splitlines()[2]
    assert line.startswith(start)
    assert line.endswith(end)
    if base == 20 and head == 40:
        assert "exact McNemar p < 0.0001): 0 fixed and 20 broken of the same 200 test images" in line


@pytest.mark.parametrize(
    ("name", "base", "head", "cells"),
    [
        ("loss", 0.141173, 0.1411, ["`loss` ↓", "0.141173", "0.1411", "-7.3e-05", "-", "-"]),
        ("accuracy", 0.9, 0.95, ["`accuracy` ↑", "0.9", "0.95", "+0.05", "-", "-"]),
        ("num_images", 10_000, 12_500, ["`num_images`", "10,000", "12,500", "+2,500", "-", "-"]),
        ("n", 1_234_567, 7, ["`n`", "1,234,567", "7", "-1,234,560", "-", "-"]),
        ("n", 3, 2.5, ["`n`", "3", "2.5", "-0.5", "-", "-"]),
        ("n", None, 2, ["`n`", "-", "2", "-", "-", "-"]),
        ("n", "sgd", True, ["`n`", "`sgd`", "`true`", "-", "-", "-"]),
        ("n", math.nan, -math.inf, ["`n`", "nan", "-inf", "-", "-", "-"]),
        ("n", 10**400, 1, ["`n`", f"`1{'0' * 56}...`", "1", "-", "-", "-"]),
    ],
    ids=["small", "fraction", "count", "large", "mixed", "missing", "no number", "NaN", "very large"],
)
def test_numbers_in_the_metrics(name: str, base: Any, head: Any, cells: list[str]) -> None:
    sides = [{"metrics": {"m.json": {} if value is None else {name: value}}} for value in (base, head)]
    assert rows(render(*sides), "Metrics")[1:] == [cells]


def test_intervals_have_the_decimals_that_count() -> None:
    sides = []
    for wrong in (434, 500):
        said = predictions(wrong, 10_000)
        scores = {"zzz_loss": wrong, "accuracy": said.accuracy, "num_wrong": wrong}
        sides.append({"predictions": said, "metrics": {"metrics/test.json": scores}})
    found = rows(render(*sides), "Metrics")
    assert found[0] == ["metric", "base", "head", "change", "95 % interval", "p"]
    accuracy, num_wrong, loss = found[1:]
    assert accuracy == ["`accuracy` ↑", "0.9566", "0.95", "-0.0066", "-0.0084 to -0.0052", "< 0.0001"]
    assert num_wrong == ["`num_wrong` ↓", "434", "500", "+66", "+52 to +84", "< 0.0001"]
    assert loss[4:] == ["-", "-"]


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (1.0, "1"),
        (0.5, "0.5"),
        (0.04999, "0.05"),
        (0.0312, "0.031"),
        (0.0001, "0.0001"),
        (9e-5, "< 0.0001"),
        (0.0, "< 0.0001"),
    ],
)
def test_p_values(p: float, shown: str) -> None:
    assert markdown._p(p) == shown


def test_params_show_values_and_sides() -> None:
    base = {"params": {"lr": 0.1, "gone": None, "list": [1, "a|b"], "big": "y" * 100_000}}
    head = {"params": {"lr": 1e-05, "new": "", "list": [], "big": "z"}}
    assert rows(render(base, head), "Params") == [
        ["param", "base", "head"],
        ["`lr`", "`0.1`", "`1e-05`"],
        ["`gone`", "`null`", "-"],
        ["`list`", '`[1, "a|b"]`', "`[]`"],
        ["`big`", f"`{'y' * 57}...`", "`z`"],
        ["`new`", "-", "-"],
    ]


def test_stages_show_what_changed_and_no_more_columns() -> None:
    base = {"stages": {"a": stage(), "b": stage(), "gone": stage()}}
    head = {
        "stages": {
            "a": stage(cmd="other"),
            "b": stage(code={f"{number}.py": "1" for number in range(6)}),
            "new": stage(),
        }
    }
    assert rows(render(base, head), "Stages") == [
        ["stage", "command", "code"],
        ["`a`", "changed", ""],
        ["`b`", "", "`0.py`, `1.py`, `2.py`, `3.py` and 2 more"],
        ["`gone` (removed)", "", ""],
        ["`new` (new)", "", ""],
    ]


def test_classes_and_confusion() -> None:
    base, head = predictions(), predictions()
    head.predicted_N[head.labels_N == "3"] = "5"
    found = render({"predictions": base}, {"predictions": head})
    assert "Recall beyond noise: 3 (worse) (exact McNemar" in found
    table = rows(found, "Test images")
    assert table[0] == ["class", "images", "base", "head", "change", "fixed", "broken", "p"]
    assert table[4] == ["3", "20", "100.00%", "0.00%", "-100.00 pp", "0", "20", "< 0.0001"]
    assert table[1] == ["0", "20", "100.00%", "100.00%", "+0.00 pp", "0", "0", "1"]
    confusion = rows(found, "Confusion")
    assert confusion[0] == ["label", *map(str, range(10))]
    assert confusion[4] == ["**3**", "·", "·", "·", "-20", "·", "+20", "·", "·", "·", "·"]
    assert all(set(row[1:]) == {"·"} for row in (*confusion[1:4], *confusion[5:]))
    assert "of no class" in render({"predictions": base}, {"predictions": predictions(1)})


def test_recalls_are_in_the_table_of_classes_alone() -> None:
    scores = {"metrics": {"metrics/test.json": {"recall.3": 0.5, "loss": 1.0}}}
    compared = {**scores, "predictions": predictions()}
    assert "recall" not in section(render(compared, compared), "Metrics")
    assert "`recall.3`" in section(render(scores, scores), "Metrics")


def test_other_held_out_images_are_told_beside_what_is_of_them() -> None:
    base = {"params": {"seed": 0}, "metrics": {"m.json": {"val_loss": 1.0}}}
    head = {"params": {"seed": 1}, "metrics": {"m.json": {"val_loss": 2.0}}}
    told = "`val_...` is of other held-out images on each side, since `seed` changed."
    assert told in render(base, head)
    assert told not in render(base, {**head, "params": {"seed": 0}})
    assert told not in render(base, {**head, "metrics": {"m.json": {"val_loss": 1.0}}})


def broken(verdict: Verdict) -> Verdict:
    first, *others = verdict.expectations
    failed = first.model_copy(update={"success": False})
    return verdict.model_copy(update={"success": False, "expectations": [failed, *others]})


@pytest.mark.parametrize(
    ("base", "head", "said"),
    [
        (VERDICT, VERDICT, "The data are the same; 18 of 18 expectations hold on both sides."),
        (
            VERDICT,
            broken(VERDICT).model_copy(update={"dataset_sha256": "f" * 64}),
            "The data are others; `base`: 18 of 18 expectations hold; `head`: **failed**: 17 of 18",
        ),
        (None, VERDICT, "The data cannot be compared; `base`: unknown; `head`: 18 of 18 expectations hold."),
    ],
    ids=["same", "broken", "unknown"],
)
def test_the_verdict_on_the_data(base: Any, head: Any, said: str) -> None:
    assert said in render({"validation": base}, {"validation": head})


def test_names_that_are_cut_to_one_are_still_two_sides() -> None:
    sides = [
        Snapshot(name=f"{'x' * 80}{number}", commit="", validation=of)
        for number, of in enumerate((broken(VERDICT), VERDICT))
    ]
    found = section(render(*sides), "Data validation")
    assert "17 of 18" in found
    assert "on both sides" not in found


@pytest.mark.parametrize(
    ("base", "head", "cells"),
    [
        (1.25, 2.5, ["1.2", "2.5", "2 x"]),
        (1, 90_000, ["1", "90,000", "9e+04 x"]),
        (None, 3.0, ["-", "3", "-"]),
        (0.0, 3.0, ["0", "3", "-"]),
    ],
)
def test_costs(base: float | None, head: float, cells: list[str]) -> None:
    timings = [
        None if seconds is None else Timing(seconds, device)
        for seconds, device in ((base, "cpu"), (head, "gpu"))
    ]
    found = render({}, {}, base_timing=timings[0], head_timing=timings[1])
    assert rows(found, "Cost")[1] == ["training seconds", *cells]
    assert ("Trained on `cpu` and on `gpu`." in found) == (base is not None)


# Charts


def drawn(base: Any, head: Any, **fields: str) -> list[str]:
    names = {"title": "Loss by step", "x": "step", "y": "loss", **fields}
    sides = [
        {"curves": [Curve(points=tuple((float(x), float(y)) for x, y in points), **names)] if points else []}
        for points in (base, head)
    ]
    return [token.content for token in parsed(render(*sides)) if token.type == "fence"]


NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)"  # of xychart.jison in Mermaid: no exponent


def read(chart: str) -> dict[str, Any]:
    """A chart as Mermaid's grammar has it: title, axes, lines."""
    found = re.fullmatch(
        rf"""---
config: \{{themeVariables: \{{xyChart: \{{plotColorPalette: "(?P<colours>#\w{{6}}(?:, #\w{{6}})?)"\}}\}}\}}
---
xychart-beta
    title "(?P<title>[^"`\n]+)"
    x-axis "(?P<x>[^"`\n]+)" (?P<x_from>{NUMBER}) --> (?P<x_to>{NUMBER})
    y-axis "(?P<y>[^"`\n]+)" (?P<y_from>{NUMBER}) --> (?P<y_to>{NUMBER})
(?P<lines>(?:    line "\w+" \[{NUMBER}(?:, {NUMBER})*\]\n)+)""",
        chart,
    )
    assert found, chart
    lines = re.findall(r'line "(\w+)" \[(.*)\]', found["lines"])
    return {
        **found.groupdict(),
        "x_range": (float(found["x_from"]), float(found["x_to"])),
        "y_range": (float(found["y_from"]), float(found["y_to"])),
        "colours": found["colours"].split(", "),
        "lines": {side: [float(height) for height in heights.split(", ")] for side, heights in lines},
    }


def test_one_range_is_one_chart() -> None:
    (chart,) = drawn([(0, 4), (1, 2), (2, 1)], [(0, 3), (1, 3), (2, 2)])
    found = read(chart)
    assert (found["title"], found["x"], found["y"]) == ("Loss by step", "step", "loss")
    assert found["x_range"] == (0, 2)
    assert found["y_range"] == pytest.approx((0.85, 4.15))
    assert found["lines"] == {"base": [4, 2, 1], "head": [3, 3, 2]}
    assert found["colours"] == [charts.GREY, charts.BLUE]


def test_a_curve_that_goes_on_has_a_chart_more_with_the_same_y_axis() -> None:
    first, second = map(read, drawn([(1, 10), (2, 6)], [(1, 8), (2, 4), (3, 2)]))
    assert (first["title"], second["title"]) == ("Loss by step", "Loss by step, head")
    assert (first["x_range"], second["x_range"]) == ((1, 2), (1, 3))
    assert first["y_range"] == second["y_range"] == pytest.approx((1.6, 10.4))
    assert (first["lines"], second["lines"]) == ({"base": [10, 6], "head": [8, 4]}, {"head": [8, 4, 2]})
    assert (first["colours"], second["colours"]) == ([charts.GREY, charts.BLUE], [charts.BLUE])


def test_a_little_farther_is_not_worth_a_chart() -> None:
    (chart,) = drawn([(0, 10), (86, 6)], [(0, 8), (92, 4)])
    assert read(chart)["x_range"] == (0, 86)
    assert read(chart)["lines"]["head"] == pytest.approx([8, 8 - 4 * 86 / 92], abs=0.01)


def test_ranges_without_anything_in_common_are_two_charts() -> None:
    first, second = map(read, drawn([(0, 1), (1, 2)], [(5, 1), (6, 2)]))
    assert (first["title"], second["title"]) == ("Loss by step, base", "Loss by step, head")


def test_a_lone_point_is_told_in_words() -> None:
    one = [Curve(title="Loss", x="epoch", y="loss", points=((1.0, 0.25),))]
    many = [Curve(title="Loss", x="epoch", y="loss", points=((1.0, 0.3), (2.0, 0.2)))]
    found = section(render({"curves": one}, {"curves": many}), "Learning curves")
    assert 'title "Loss, head"' in found
    assert "Loss, base: 0.25 at epoch 1." in found


@pytest.mark.parametrize("num_points", [2, 30, 31, 10_000])
@pytest.mark.parametrize(
    ("start", "slope"),
    [(0, 1), (5, -0.5), (1e6, 1e-3), (1e-7, 1e-9), (-3e9, 7e6), (0.9991, 1e-9)],
    ids=["rising", "falling", "far up", "tiny", "huge", "nearly flat"],
)
def test_a_straight_line_stays_one(num_points: int, start: float, slope: float) -> None:
    points = [(x, start + slope * x) for x in range(num_points)]
    (chart,) = drawn(points, [*points[:-1], (num_points - 1, points[-1][1] + slope)])
    found = read(chart)
    heights = found["lines"]["base"]
    assert len(heights) == min(num_points, charts.MAX_POINTS)
    low, high = found["y_range"]
    expected = np.linspace(points[0][1], points[-1][1], len(heights))
    assert np.abs(np.array(heights) - expected).max() <= 0.002 * (high - low)
    assert low <= min(heights) < max(heights) < high
    assert low >= 0 or start < 0 or slope < 0
    assert found["x_range"] == (0, num_points - 1)


def test_points_stand_where_their_x_is() -> None:
    # Of unequal steps: Mermaid spreads what it gets equally.
    (chart,) = drawn([(0, 0), (1, 10), (4, 40)], [(0, 0), (2, 20), (4, 0)])
    found = read(chart)
    assert found["lines"] == {"base": [0, 20, 40], "head": [0, 20, 0]}


@pytest.mark.parametrize(
    ("base", "head", "y_range"),
    [
        ([(0, 2), (1, 2)], [], (1.9, 2.1)),
        ([(0, 0), (1, 0)], [], (0, 1)),
        ([(0, -2), (1, -2)], [], (-2.1, -1.9)),
        ([(0, -2), (1, -1)], [], (-2.05, -0.95)),
        ([(0, 1)], [(0, 1), (1, 2)], (0.95, 2.05)),
        ([(0, 1), (0, 9)], [(0, 1), (1, 2)], (0.95, 2.05)),
        ([(0, 1e200), (1, 1e300)], [(0, 1), (1, 2)], (0.95, 2.05)),
        ([(-1e200, 5), (0, 1), (1, 2)], [], (0.95, 2.05)),
    ],
    ids=["flat", "flat at 0", "flat below 0", "negative", "one point", "one place", "far off", "far x"],
)
def test_the_y_axis_holds_the_lines(base: Any, head: Any, y_range: tuple[float, float]) -> None:
    (chart,) = drawn(base, head)
    assert read(chart)["y_range"] == pytest.approx(y_range)


def test_nothing_to_draw_is_no_chart() -> None:
    assert drawn([(0, 1e300), (1, -1e308)], [(0, 1)]) == []
    assert drawn([(0, 1), (1, 2)], [(0, 1), (1, 2)]) == []


def test_large_steps_are_written_out() -> None:
    (chart,) = drawn([(0, 1), (1_234_567, 2)], [])
    assert read(chart)["x_range"] == (0, 1_234_567)


@pytest.mark.parametrize("text", HOSTILE, ids=short)
def test_hostile_names_of_axes_are_words(text: str) -> None:
    (chart,) = drawn([(0, 1), (1, 2)], [], title=text, x=text, y=text)
    found = read(chart)
    for part in ("title", "x", "y"):
        assert not re.search(r"[@#<>\[\]\\|&;:%]", found[part])
        assert len(found[part]) <= markdown.MAX_SHOWN


def test_charts_are_few_and_the_rest_is_named() -> None:
    curves = [
        [Curve(title=f"t{number}", x="x", y=f"y{number}", points=((0, 1), (1, end))) for number in range(7)]
        for end in (2, 3)
    ]
    found = render({"curves": curves[0]}, {"curves": curves[1]})
    assert found.count("```mermaid") == markdown.MAX_CHARTS
    assert "Left out: `t4`, `t5`, `t6`." in found
    same = section(render({"curves": curves[0]}, {"curves": curves[0]}), "Learning curves")
    assert same.strip().startswith("The same on both sides.")


# Size


def huge(text: str, number: int) -> dict[str, Any]:
    many = range(1000)
    return {
        "metrics": {
            f"{text}{one}.json": {f"{text}{one}": one + number, f"s{one}{text}": one} for one in many
        },
        "params": {f"{text}{one}": f"{number}{text}" * 1000 for one in range(100)},
        "stages": {
            f"{text}{one}": stage(
                code={f"{text}{number}{file}": "" for file in range(30)}, data={text: str(number)}
            )
            for one in range(500)
        },
        "problems": {f"{one}{text}" * 20: text * 200 for one in many},
        "validation": VERDICT.model_copy(
            update={
                "expectations": [
                    VERDICT.expectations[0].model_copy(
                        update={"expectation": f"{one}{text}", "observed": f"{number}{text}" * 300}
                    )
                    for one in many
                ]
            }
        ),
        "predictions": predictions(50 * number, 10_000),
        "num_steps": number,
    }


@pytest.mark.parametrize(
    "text", ["x", "🎉" * 60, "字" * 60, "`" * 60, "`🎉" * 30, "e" + "\u0301" * 59, "\ud800"], ids=short
)
def test_the_report_is_small_whatever_changed(text: str) -> None:
    points = [tuple((float(x), 1e99 * side) for x in range(100_000)) for side in (1, 2)]
    curves = [
        [Curve(title=text, x=text, y=f"{one}{text}", points=side) for one in range(200)] for side in points
    ]
    found = render(
        Snapshot(name=text, commit="", **huge(text, 0), curves=curves[0]),
        Snapshot(name=f"{text}2", commit="", **huge(text, 1), curves=curves[1]),
    )
    assert len(found.encode()) < 60_000
    check_safe(found)
    check_tables(found)
    left_out = found.rpartition("No room for: ")[2].partition(". `--json`")[0].split(", ")
    assert sorted([*headings(found)[1:], *filter(lambda title: title in SECTIONS, left_out)]) == sorted(
        SECTIONS
    )
    if text == "🎉" * 60:
        assert "Stages" in left_out
    assert "Test images" in headings(found)


def test_rows_that_are_left_out_are_counted() -> None:
    side = {"params": {f"p{number:04}": number for number in range(1000)}}
    found = section(render({}, side), "Params")
    assert len(rows(found)) == 1 + markdown.MAX_ROWS
    assert found.strip().endswith("And 960 more.")
