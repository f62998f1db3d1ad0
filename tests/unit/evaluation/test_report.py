"""The report: it holds the numbers of the files, stands alone, and can be read by whoever it is sent to."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mnist.core import paths
from mnist.evaluation import report, scores
from mnist.lineage.fingerprint import Source
from mnist.lineage.result import TrainingInfo
from tests.made_result import PARAMS, SOURCE, Made

MAX_BYTES = 2_000_000
VOID = {"meta", "link", "img", "br"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=y>&amp;"


class Page(HTMLParser):
    """Parses a page, and holds that it is whole and fetches nothing.

    Attributes:
        text: of all of it, with single spaces.
        sections: the text of each section by its id.
        tables: cells of the rows of each table, by its caption.
        headings: their levels.
        alts: of the pictures.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.sections, self.alts = "", dict[str, str](), list[str]()
        self.tables, self.headings = dict[str, list[list[str]]](), list[int]()
        self.ids, self.references = list[str](), list[str]()
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
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
        if attributes.get("role") == "region":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
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
        self.text += words
        self.sections[self._section] = self.sections.get(self._section, "") + words
        if self._open[-1:] == ["caption"]:
            self.tables[words] = self._rows
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += words.strip()


def page(made: Made, source: Source = SOURCE, **params: object) -> Page:
    return Page(report.html(made.summary(), made.result(source=source, **params), folder=made.folder))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No note of this machine's trainings gets into a page, and no store of its user's."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_page_holds_the_numbers_of_the_files(tmp_path: Path) -> None:
    made = Made(tmp_path, num_images=300)
    said, result_scores = made.summary(), scores.read(tmp_path / paths.TEST_METRICS)
    shown = page(made)
    result = shown.sections["result"]
    assert f"{result_scores.accuracy:.2%}".replace("%", " %") in result
    assert f"{result_scores.num_wrong} of 300 test images wrong" in result
    assert f"{result_scores.loss:.4f}" in result
    assert f"{100 * result_scores.expected_calibration_error:.2f} %" in result
    assert "6,422" in result
    assert "1,000images, 1 epoch" in result
    assert "90.50 %" in result
    low, high = said.accuracy.interval or (0, 0)
    assert f"{100 * low:.2f} to {100 * high:.2f} %" in result
    confusion = shown.tables["Confusion matrix"]
    assert [row[0] for row in confusion[1:]] == list(made.about.classes) == confusion[0][1:]
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == said.confusion_KK.tolist()
    by_class = {row[0]: row for row in shown.tables["Scores by class"][1:]}
    for one in said.classes:
        assert by_class[one.name][2] == f"{100 * (one.recall.share or 0):.2f} %"
    assert shown.tables["The commonest mistakes"][1][2] == str(said.mix_ups[0].count)
    bins = shown.tables["The bins of confidence"][1:]
    assert [int(row[1]) for row in bins] == [one.num_images for one in said.bins]
    assert shown.tables["Loss by step"][1:] == [["50", "2.0000"], ["100", "1.5000"]]
    assert "all 1 expectations hold" in shown.sections["data"]
    for key, value in PARAMS.items():
        assert f"{key}{value}" in shown.sections["params"]
    for digest in "afed":
        assert digest * 64 in shown.sections["lineage"]
    assert "c" * 40 in shown.sections["lineage"]
    assert "dvc repro" in shown.sections["again"]


def test_whoever_gets_it_can_read_it(tmp_path: Path) -> None:
    made = Made(tmp_path)
    html = report.html(made.summary(), made.result(), folder=tmp_path)
    shown = Page(html)
    assert len(html.encode()) < MAX_BYTES
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "default-src 'none'" in html
    assert shown.headings[0] == 1
    assert shown.headings.count(1) == 1
    steps = zip(shown.headings, shown.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert len(shown.alts) == 10 + 10 + 10 + 1  # right, wrong, least certain, filters
    assert all(shown.alts)


def test_one_epoch_is_a_point_in_the_middle_and_three_are_a_line(tmp_path: Path) -> None:
    _, accuracy = report.charts(Made(tmp_path / "one").summary())
    (tick,) = accuracy.x_ticks
    assert tick.text == "1"
    assert [line.points[0][0] for line in accuracy.lines] == [tick.at, tick.at]
    loss, accuracy = report.charts(Made(tmp_path / "three", num_epochs=3).summary())
    assert [tick.text for tick in accuracy.x_ticks] == ["1", "2", "3"]
    assert [len(line.points) for line in loss.lines] == [6, 3]
    for chart in (loss, accuracy):
        for line in chart.lines:
            assert all(report.LEFT <= x <= report.WIDTH - report.RIGHT for x, _ in line.points)
            assert all(report.TOP <= y <= report.HEIGHT - report.BOTTOM for _, y in line.points)


def test_long_curves_are_thinned_and_end_where_they_ended(tmp_path: Path) -> None:
    loss, _ = report.charts(Made(tmp_path, num_epochs=500).summary())
    assert len(loss.rows) <= report.MAX_POINTS
    assert loss.rows[-1][0] == "50,000"


def test_no_mistake_is_said_to_be_none(tmp_path: Path) -> None:
    shown = page(Made(tmp_path, labels=[1, 2, 3], predicted=[1, 2, 3]))
    assert "There is no mistake" in shown.sections["confusion"]
    assert "Wrong: none" in shown.sections["pictures"]
    assert "100.00 %" in shown.sections["result"]


def test_nothing_but_mistakes(tmp_path: Path) -> None:
    shown = page(Made(tmp_path, labels=[1, 2, 3], predicted=[2, 3, 1]))
    assert "Right: none" in shown.sections["pictures"]
    assert "0.00 %" in shown.sections["result"]


def test_other_classes_than_digits_are_called_by_their_names(tmp_path: Path) -> None:
    """Three of them, of which the last has no images."""
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
    coot = shown.tables["Scores by class"][3]
    assert coot[:4] == ["coot", "0", "none", "none"]
    assert "is bee-eater" in " ".join(shown.sections["pictures"].split())


def test_a_result_of_before_says_what_it_does_not_hold(tmp_path: Path) -> None:
    made = Made(tmp_path)
    for name in (paths.LOG_PROBS, paths.FILTERS):
        (tmp_path / name).unlink()
    shown = page(made)
    assert "does not hold the probabilities" in shown.sections["calibration"]
    assert "does not hold pictures of its network" in shown.sections["network"]
    assert "Least certain" not in shown.text
    assert len(shown.alts) == 10 + 10


def test_what_was_named_by_others_is_shown_as_it_is(tmp_path: Path) -> None:
    made = Made(tmp_path, classes=(EVIL, "b"), title=EVIL, labels=[0, 1], predicted=[1, 1])
    patch = f"diff --git a/x b/{EVIL}\n"
    source = replace(SOURCE, branch=EVIL, experiment=EVIL, patch=patch, rerun=EVIL)
    shown = page(made, source, **{EVIL: EVIL})
    # In title, heading, name, confusion, classes, pictures, params, lineage and commands.
    assert shown.text.count(EVIL) > 15


def test_bad_data_are_named(tmp_path: Path) -> None:
    shown = page(Made(tmp_path, failed=True))
    assert "The data fail: 1 of 1" in shown.sections["data"]
    assert "test_size" in shown.sections["data"]


def test_an_experiment_can_be_reproduced_by_name_and_a_plain_run_be_found(tmp_path: Path) -> None:
    made = Made(tmp_path)
    source = replace(SOURCE, experiment="runny-jibe", patch="diff --git a/params.yaml b/params.yaml\n")
    shown = page(made, source)
    assert "mnist reproduce runny-jibe" in shown.sections["again"]
    assert "params.yaml; the patch is below" in shown.sections["lineage"]
    assert "diff --git a/params.yaml b/params.yaml" in shown.sections["again"]
    plain = page(made)
    assert f"tags.weights_sha256 = '{'a' * 64}'" in plain.sections["again"]
    assert "Changed since the commitnothing" in plain.sections["lineage"]


@pytest.mark.parametrize(
    ("patch", "names", "is_shown"),
    [
        ("diff --git a/mnist/model.py b/mnist/model.py\n+x\n", "mnist/model.py; ", True),
        ('diff --git "a/mnist/\\303\\251.py" "b/mnist/\\303\\251.py"\n+x\n', "mnist/\\303\\251.py; ", True),
        ("diff --git a/x b/x\n+caf\udce9\n", "x; ", True),
        ("no names in it\n", "something; ", True),
        ("diff --git a/x b/x\n+- https://ada:SECRET@example.org/mnist\n", "x; ", False),
        ("diff --git a/x b/x\n+- https://example.org/mnist?token=SECRET\n", "x; ", False),
        ("diff --git a/x b/x\nGIT binary patch\nSECRET\n", "x; ", False),
        ("diff --git a/x b/x\n+" + 60_000 * "x", "x; ", False),
    ],
    ids=["one file", "an odd name", "no UTF-8", "no name", "a password", "a token", "binary", "long"],
)
def test_what_was_changed_is_shown_unless_it_may_hold_a_secret(
    tmp_path: Path, patch: str, names: str, is_shown: bool
) -> None:
    source = replace(SOURCE, patch=patch, rerun="git apply dirty.patch && dvc repro")
    shown = page(Made(tmp_path), source)
    assert f"Changed since the commit{names}the patch is" in shown.sections["lineage"]
    assert "SECRET" not in shown.text
    told = "an artifact of the MLflow run, and here" if is_shown else "an artifact of the MLflow run."
    assert told in shown.sections["again"]
    assert ("What was changed since the commit" in shown.sections["again"]) is is_shown


def test_params_are_as_the_file_has_them(tmp_path: Path) -> None:
    shown = page(Made(tmp_path), permute_pixels=True, deterministic=False)
    assert "permute_pixelstrue" in shown.sections["params"]
    assert "deterministicfalse" in shown.sections["params"]


def test_where_it_was_made_is_told_by_the_machine_that_made_it(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert page(made).sections["lineage"].count("not recorded here") == 3  # time, device, versions
    facts = {"device": "A GPU", "torch": "2.15.0"}
    TrainingInfo(time_ms=1_600_000_000_000, seconds=12.5, facts=facts).write("a" * 64)
    lineage = page(made).sections["lineage"]
    assert "2020-09-13 12:26 UTC, in 12.5 s" in lineage
    assert "A GPU" in lineage
    assert "torch 2.15.0" in lineage


def test_no_password_gets_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:SECRET@tracking.example.org/mlflow")
    made = Made(tmp_path)
    html = report.html(made.summary(), made.result(), folder=tmp_path)
    assert "https://tracking.example.org/mlflow" in html
    assert "SECRET" not in html


@pytest.mark.parametrize(
    "note",
    ['{"time_ms": "x", "seconds": 1.0, "facts": {}}', '{"time_ms": 1, "seconds": 1.0, "facts": []}', "{"],
)
def test_a_broken_note_of_a_making_is_none(tmp_path: Path, note: str) -> None:
    made = Made(tmp_path)
    file = paths.root() / ".cache" / "trainings" / f"{made.result().weights_sha256}.json"
    file.parent.mkdir(parents=True)
    file.write_text(note, encoding="utf-8")

    assert "Trainednot recorded here" in page(made).sections["lineage"]
