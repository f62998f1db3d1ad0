"""The report, which stands alone and can be read without seeing it, and the model card."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from mnist.core import paths
from mnist.core.errors import InputError
from mnist.evaluation import pages, scores
from mnist.lineage.fingerprint import Source
from mnist.lineage.result import TrainingInfo
from tests.made_result import PARAMS, SOURCE, Made

MAX_BYTES = 2_000_000
VOID = {"meta", "link", "img", "br", "wbr"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=y>&amp;"
MARKUP = "<img src=x>|`*_[a](b)"


class Page(HTMLParser):
    """A parser of a page that checks that the page is whole and fetches nothing.

    Attributes:
        text: all text.
        sections: the text of each section by its id.
        tables: cells of the rows of each table, by its caption.
        headings: their levels.
        alts: of the images.
        charts: the title of each SVG.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.sections, self.alts = "", dict[str, str](), list[str]()
        self.tables, self.headings = dict[str, list[list[str]]](), list[int]()
        self.ids, self.references, self.charts = list[str](), list[str](), list[str]()
        self._open, self._rows, self._section = list[str](), list[list[str]](), ""
        self.feed(html)
        self.close()
        assert self._open == []
        assert len(set(self.ids)) == len(self.ids)
        assert set(self.references) <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, dict(attrs))
        self._note(tag, dict(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, dict(attrs))
        assert "svg" in self._open  # elsewhere HTML knows no such tags

    def _check(self, tag: str, attributes: dict[str, str | None]) -> None:
        assert tag not in {"script", "iframe", "object", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href", "action"} & set(attributes):
            target = attributes[name] or ""
            is_citation = tag == "a" and target.startswith("https://arxiv.org/")
            assert target.startswith(("data:", "#")) or is_citation, target
            if target.startswith("#"):
                self.references.append(target.removeprefix("#"))
        if tag == "svg":
            assert attributes["role"] == "img"
        if attributes.get("role") == "region":
            assert attributes["tabindex"] == "0"
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}

    def _note(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.references += (attributes.get("aria-labelledby") or "").split()
        if identifier := attributes.get("id"):
            self.ids.append(identifier)
        if tag == "img":
            self.alts.append(attributes["alt"] or "")
        if tag == "section":
            self._section = attributes["aria-labelledby"] or ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in {"td", "th"}:
            self._rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            assert "url(" not in data
            assert "@import" not in data
            return
        words = data.replace("\u00a0", " ")
        if self._open[-1:] == ["title"] and "svg" in self._open:
            self.charts.append(words)
        self.text += words
        self.sections[self._section] = self.sections.get(self._section, "") + words
        if self._open[-1:] == ["caption"]:
            self.tables[words] = self._rows
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += words.strip()


def page(made: Made, source: Source = SOURCE, **params: object) -> Page:
    return Page(pages.report(made.summary(), made.result(source=source, **params), folder=made.folder))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's trainings and its user's store out of the page."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_report_holds_the_numbers_of_the_files(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    summary, result_scores = made.summary(), scores.read(tmp_path / paths.TEST_METRICS)
    shown = page(made)
    result = shown.sections["result"]
    low, high = summary.accuracy.interval or (0, 0)
    for number in (
        f"{100 * result_scores.accuracy:.2f} %",
        f"{summary.num_wrong} of 300 test images wrong",
        f"{result_scores.loss:.4f}",
        f"{100 * result_scores.expected_calibration_error:.2f} %",
        f"{100 * low:.2f} to {100 * high:.2f} %",
        "6,422",
        "1,000images, 1 epoch",
        "90.50 %",
    ):
        assert number in result
    confusion = shown.tables["Confusion matrix"]
    assert [row[0] for row in confusion[1:]] == list(made.about.classes) == confusion[0][1:]
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == summary.confusion_KK.tolist()
    by_class = {row[0]: row for row in shown.tables["Scores by class"][1:]}
    for one in summary.classes:
        assert by_class[one.name][2] == f"{100 * (one.recall.share or 0):.2f} %"
    assert shown.tables["The most frequent mistakes"][1][2] == str(summary.mix_ups[0].num_images)
    assert "all 1 expectations hold" in shown.sections["data"]
    for key, value in PARAMS.items():
        assert f"{key}{value}" in shown.sections["params"]
    for digest in ("a" * 64, "f" * 64, "e" * 64, "d" * 64, "c" * 40):
        assert digest in shown.sections["lineage"]


def test_the_report_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    made = Made(tmp_path)
    html = pages.report(made.summary(), made.result(), folder=tmp_path)
    shown = Page(html)
    assert len(html.encode()) < MAX_BYTES
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "default-src 'none'" in html
    assert shown.headings[0] == 1
    assert shown.headings.count(1) == 1
    steps = zip(shown.headings, shown.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert len(shown.alts) == 10 + 10 + 10 + 2  # right, wrong, least certain, the figures of the network
    assert all(shown.alts)


def test_charts_come_with_their_numbers(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300, num_epochs=2)
    shown = page(made)
    assert len(shown.charts) == 4
    assert set(shown.charts) <= shown.tables.keys()
    loss, accuracy = shown.tables["Loss by step"], shown.tables["Accuracy by epoch"]
    assert loss[1:] == [["50", "2.0000"], ["100", "1.5000"], ["150", "1.0000"], ["200", "0.7500"]]
    assert [row[:3] for row in accuracy[1:]] == [["1", "75.00 %", "90.50 %"], ["2", "75.00 %", "90.50 %"]]
    counts = shown.tables["Images by confidence, on a logarithmic scale"]
    assert [int(row[1]) for row in counts[1:]] == [one.right.num_images for one in made.summary().bins]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    rows = pages.thinned(range(1, 1001))
    assert len(rows) == pages.MAX_POINTS
    assert rows[-1] == 1000
    assert list(pages.thinned(range(3))) == [0, 1, 2]


def test_empty_galleries_are_announced(tmp_path: Path) -> None:
    right, wrong = (page(Made(tmp_path, labels=[1], predicted=[predicted])) for predicted in (1, 2))
    assert "There is no mistake" in right.sections["confusion"]
    assert "Right: none" in wrong.sections["images"]


def test_classes_are_called_by_their_names(tmp_path: Path) -> None:
    """The last of three classes has no images."""
    made = Made(
        tmp_path,
        title="Birds",
        classes=("auk", "bee-eater", "coot"),
        labels=[0, 0, 1, 1],
        predicted=[0, 1, 1, 2],
    )
    shown = page(made)
    assert shown.text.strip().startswith("Birds")
    assert shown.tables["Confusion matrix"][0] == ["Label", "auk", "bee-eater", "coot"]
    assert shown.tables["Scores by class"][3][:4] == ["coot", "0", "none", "none"]
    assert "is bee-eater" in " ".join(shown.sections["images"].split())


def test_a_result_without_its_figures_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    (tmp_path / paths.FILTERS).unlink()
    with pytest.raises(InputError) as caught:
        page(made)
    assert caught.value.where == str(tmp_path / paths.FILTERS)


def test_names_from_outside_are_no_markup(tmp_path: Path) -> None:
    made = Made(tmp_path, classes=(EVIL, "b"), title=EVIL, labels=[0, 1], predicted=[1, 1])
    patch = f"diff --git a/x b/{EVIL}\n"
    source = replace(SOURCE, branch=EVIL, experiment=EVIL, patch=patch, rerun=EVIL)
    shown = page(made, source, **{EVIL: EVIL})
    # In title, heading, name, confusion, classes, images, params, lineage and commands.
    assert shown.text.count(EVIL) > 15


def test_bad_data_are_named(tmp_path: Path) -> None:
    data = page(Made(tmp_path, failed=True)).sections["data"]
    assert "The data fail: 1 of 1" in data
    assert "test_size" in data


def test_classes_that_are_never_recognised_are_named_in_both_pages(tmp_path: Path) -> None:
    made = Made(tmp_path, labels=[0] * 20 + [1], predicted=[0] * 21, classes=("fish", "ox"))
    rendered = pages.render(made.result(), folder=tmp_path)
    for page in (rendered.report, rendered.card):
        assert "hardly recognised: ox (0 of 1 images)" in page.replace("\\", "")


def test_an_experiment_is_reproduced_by_its_name_and_a_plain_run_is_searched(tmp_path: Path) -> None:
    made = Made(tmp_path)
    shown = page(made, replace(SOURCE, experiment="runny-jibe"))
    assert "mnist reproduce runny-jibe" in shown.sections["again"]
    assert f"tags.weights_sha256 = '{'a' * 64}'" in page(made).sections["again"]


@pytest.mark.parametrize(
    ("patch", "names", "is_shown"),
    [
        ("", "nothing", False),
        ('diff --git "a/mnist/\\303\\251.py" "b/mnist/\\303\\251.py"\n+x\n', "mnist/\\303\\251.py; ", True),
        ("diff --git a/x b/x\n+caf\udce9\n", "x; ", True),
        ("diff --git a/x b/x\n+- https://ada:SECRET@example.org/mnist\n", "x; ", False),
        ("diff --git a/x b/x\nGIT binary patch\nSECRET\n", "x; ", False),
        ("diff --git a/x b/x\n+" + 60_000 * "x", "x; ", False),
    ],
    ids=["none", "odd name", "no UTF-8", "password", "binary", "long"],
)
def test_a_patch_is_shown_unless_it_may_hold_a_secret(
    tmp_path: Path, patch: str, names: str, is_shown: bool
) -> None:
    source = replace(SOURCE, patch=patch, rerun="git apply dirty.patch && dvc repro")
    shown = page(Made(tmp_path), source)
    assert f"Changed since the commit{names}" in shown.sections["lineage"]
    assert "SECRET" not in shown.text
    assert ("Changes since the commit" in shown.sections["again"]) is is_shown


def test_time_device_and_versions_are_those_of_the_training(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert page(made).sections["lineage"].count("not recorded here") == 3
    facts = {"device": "A GPU", "torch": "2.15.0"}
    TrainingInfo(time_ms=1_600_000_000_000, seconds=12.5, facts=facts).write("a" * 64)
    lineage = page(made).sections["lineage"]
    for fact in ("2020-09-13 12:26 UTC, in 12.5 s", "A GPU", "torch 2.15.0"):
        assert fact in lineage


def test_the_stores_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:SECRET@tracking.example.org/mlflow")
    text = page(Made(tmp_path)).text
    assert "https://tracking.example.org/mlflow" in text
    assert "SECRET" not in text


# ---- the model card


def card(made: Made, **params: Any) -> str:
    return pages.card(made.summary(), made.result(**params))


def front_matter(whole: str) -> dict[str, Any]:
    opening, front, _ = whole.split("---\n", 2)
    assert opening == ""
    values: dict[str, Any] = yaml.safe_load(front)
    return values


def test_the_front_matter_of_the_card_has_the_fields_of_the_hub(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    result_scores = scores.read(tmp_path / paths.TEST_METRICS)
    values = front_matter(card(made))
    assert values["pipeline_tag"] == "image-classification"
    assert values["datasets"] == ["ylecun/mnist"]
    assert values["license"] == "mit"
    (result,) = values["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "ylecun/mnist", "name": "MNIST", "split": "test"}
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        "accuracy": result_scores.accuracy,
        "balanced_accuracy": result_scores.balanced_accuracy,
        "loss": result_scores.loss,
        "expected_calibration_error": result_scores.expected_calibration_error,
    }


def test_a_data_set_that_is_not_on_the_hub_has_its_own_name_there(tmp_path: Path) -> None:
    values = front_matter(card(Made(tmp_path, name="birds", title="Birds: a set")))
    assert "datasets" not in values
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"] == {"type": "birds", "name": "Birds: a set", "split": "test"}


def test_the_card_holds_the_numbers_of_the_files(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    summary, result_scores = made.summary(), scores.read(tmp_path / paths.TEST_METRICS)
    body = card(made).replace("\u00a0", " ")
    low, high = summary.accuracy.interval or (0, 0)
    assert f"{100 * result_scores.accuracy:.2f} % of 300 test images" in body
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in body
    assert f"| {result_scores.loss:.4f} |" in body
    assert "6,422 parameters" in body
    assert re.search(r"epochs?; on [0-9,]+ validation images", body)
    assert f"wrong {summary.num_wrong} times, {summary.num_confident_mistakes} of them" in body
    for one in summary.classes:
        assert f"\n| {one.name} | 30 | {100 * (one.recall.share or 0):.2f} % |" in body
    for key in ("f" * 64, "d" * 64, "a" * 64, "c" * 40, "lr 0.01", "dvc repro"):
        assert key in body


def test_the_description_is_the_card_without_front_matter_and_title(tmp_path: Path) -> None:
    whole = card(Made(tmp_path))
    text = pages.description(whole)
    assert whole.endswith(text)
    assert not text.startswith(("---", "#"))
    assert text.partition("\u00a0")[0].replace(".", "").isdecimal()  # a list shows how it begins


def test_a_description_that_is_too_long_for_mlflow_ends_after_a_section(tmp_path: Path) -> None:
    made = Made(tmp_path, classes=tuple(f"{number}" * 250 for number in range(10)))
    text = pages.description(card(made))
    assert len(text) <= pages.MAX_DESCRIPTION < len(card(made))
    assert text.endswith("*The rest is in `README.md`, beside the model.*\n")
    assert "## Evaluation" in text
    assert "## By class" not in text


def test_the_number_in_the_registry_is_filled_in(tmp_path: Path) -> None:
    whole = card(Made(tmp_path))
    assert '"models:/mnist-simplecnn/VERSION"' in whole
    assert '"models:/mnist-simplecnn/12"' in pages.of_version(whole, "mnist-simplecnn", "12")


def test_names_from_outside_are_no_markup_in_the_card(tmp_path: Path) -> None:
    made = Made(tmp_path, title=MARKUP)
    source = replace(SOURCE, rerun="dvc exp run -S 'a=<b>\n```\n# no'")
    body = pages.description(card(made, source=source, model=MARKUP, lr=MARKUP))
    shown = str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    assert "<img" not in shown
    assert "<a " not in shown
    assert "<em>" not in shown
    assert "<h1>" not in shown
    assert "a=&lt;b&gt;" in shown  # once, not twice escaped
