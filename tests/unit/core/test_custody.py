"""Custody: what a stage reads is what earlier stages wrote, with these params, from these files."""

import hashlib
import json
import shlex
from contextlib import suppress
from pathlib import Path

import pytest

from mnist.core import custody
from mnist.core.errors import InputError
from tests.checkout import Repository

PIPELINE = """
stages:
  make:
    cmd: make
    params: [lr, other.yaml: [section], whole.json: ]
    deps: [data.yaml, nothing.yaml, code.py]
    outs: [weights, plots, metrics/receipts/make.json: {cache: false}]
  score:
    cmd: score
    deps: [weights, code.py]
    params: [device]
    metrics: [scores, metrics/receipts/score.json]
  publish:
    cmd: publish
    deps: [weights, plots, scores]
"""


FILES = {
    "dvc.yaml": PIPELINE,
    "params.yaml": "lr: 0.1\ndevice: cpu\n",
    "weights": "good",
    "plots/a.png": "picture",
    "scores": "0.95",
    "code.py": "",
    "data.yaml": "classes: 3",
    "other.yaml": "section: {size: 1e-1}\nunused: 1\n",
    "whole.json": '{"depth": 2}',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout whose stages `make` and `score` have run."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Repository(tmp_path).write(FILES)
    for stage in ("make", "score"):
        with custody.held(stage, tmp_path):
            pass
    return tmp_path


def refusal(folder: Path, stage: str = "publish") -> InputError:
    with pytest.raises(InputError) as raised:
        custody.check(stage, folder)
    return raised.value


def test_what_the_stages_wrote_is_accepted(folder: Path) -> None:
    for stage in ("make", "score", "publish", "a_stage_that_dvc_does_not_know"):
        with custody.held(stage, folder):
            pass
    assert [file.name for file in sorted((folder / custody.RECEIPTS).iterdir())] == [
        "make.json",
        "score.json",
    ]


@pytest.mark.parametrize("name", ["weights", "plots/a.png", "scores"])
def test_another_file_than_a_stage_wrote_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("bad")
    assert refusal(folder).where == name.partition("/")[0]


def test_what_a_killed_writer_left_in_a_folder_does_not_count(folder: Path) -> None:
    (folder / "plots/.part.x.a.png").touch()
    custody.check("publish", folder)


def test_weights_made_by_hand_are_refused_beside_the_scores_of_others(folder: Path) -> None:
    (folder / "weights").write_text("other")
    with custody.held("make", folder):
        pass
    assert refusal(folder).where == "metrics/receipts/score.json"
    with custody.held("score", folder):  # it may score them
        pass
    custody.check("publish", folder)


def test_weights_of_other_params_are_refused(folder: Path) -> None:
    (folder / "params.yaml").write_text("lr: 0.2\ndevice: cpu\n")
    for stage in ("score", "publish"):
        error = refusal(folder, stage)
        assert (error.where, error.found, error.expected[:3]) == (
            "metrics/receipts/make.json: lr",
            "0.1",
            "0.2",
        )
    (folder / "params.yaml").write_text("lr: 0.1\ndevice: cuda\n")
    assert refusal(folder).where == "metrics/receipts/score.json: device"


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("data.yaml", "", ""),
        ("data.yaml", None, ""),
        ("nothing.yaml", "", ""),
        ("other.yaml", "section: {size: 2}", ": other.yaml:section.size"),
        ("whole.json", '{"depth": 2, "more": 1}', ": whole.json:more"),
    ],
)
def test_other_files_of_people_than_a_stage_read_are_refused(
    folder: Path, name: str, text: str | None, where: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    for stage in ("score", "publish"):
        assert refusal(folder, stage).where == f"metrics/receipts/make.json{where}"
    with custody.held("make", folder):
        pass
    custody.check("score", folder)


@pytest.mark.parametrize(
    ("name", "text"), [("code.py", "new"), ("other.yaml", "section: {size: 0.1}\nunused: 2\n")]
)
def test_code_and_params_of_other_stages_may_change(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    custody.check("publish", folder)


def test_a_number_is_equal_to_itself_however_it_is_written(folder: Path) -> None:
    (folder / "params.yaml").write_text("lr: 1e-1\ndevice: cpu\n")
    custody.check("publish", folder)


def test_a_receipt_must_name_all_that_its_stage_reads(folder: Path) -> None:
    receipt = folder / custody.receipt_of("score")
    receipt.write_text(receipt.read_text().replace('"weights"', '"heights"'))
    assert refusal(folder).where == str(custody.receipt_of("score"))


def test_templates_of_dvc_are_filled_in(folder: Path) -> None:
    (folder / "dvc.yaml").write_text(PIPELINE.replace("weights", '"${name}"'))
    with (folder / "params.yaml").open("a") as stream:
        stream.write("name: weights\n")
    custody.check("publish", folder)
    (folder / "weights").write_text("bad")
    assert refusal(folder).where == "weights"


def test_a_missing_receipt_is_refused(folder: Path) -> None:
    (folder / custody.receipt_of("make")).unlink()
    assert refusal(folder).where == str(custody.receipt_of("make"))


def test_a_stage_that_fails_leaves_no_receipt(folder: Path) -> None:
    content = ""
    with suppress(KeyboardInterrupt), custody.held("make", folder):
        content = (folder / custody.receipt_of("make")).read_text()
        raise KeyboardInterrupt
    assert json.loads(content) == []  # a metric without a number for DVC
    error = refusal(folder)
    assert (error.where, error.found) == (str(custody.receipt_of("make")), "no receipt")


@pytest.mark.parametrize(
    ("settings", "cache"),
    [
        ({}, ".dvc/cache"),
        ({"config": "[core]\n    autostage = true\n[cache]\n    dir = ../shared\n"}, "shared"),
        ({"config": "[cache]\n    dir = a\n", "config.local": "[cache]\n    dir = '../b c'\n"}, "b c"),
        ({"config": "['remote \"x\"']\n    url = s3://x/%20\n[cache]\n    dir = ../../y\n"}, "../y"),
    ],
)
def test_the_damaged_object_of_dvcs_cache_is_named(
    settings: dict[str, str], cache: str, folder: Path
) -> None:
    Repository(folder).write({f".dvc/{name}": text for name, text in settings.items()})
    name = hashlib.md5(b"good").hexdigest()  # noqa: S324 -- as DVC names it
    cached = (folder / cache).resolve() / "files/md5" / name[:2] / name[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("good")
    (folder / "weights").write_text("evil")
    assert "rm" not in refusal(folder).expected
    cached.write_text("evil")
    shown = cached.relative_to(folder) if cached.is_relative_to(folder) else cached
    assert f"rm {shlex.quote(str(shown))}" in refusal(folder).expected


def test_malformed_settings_of_dvc_are_refused(folder: Path) -> None:
    Repository(folder).write({".dvc/config": "dir = x\n"})
    (folder / "weights").write_text("evil")
    assert refusal(folder).where == ".dvc/config"


@pytest.mark.parametrize(
    "text",
    [
        *("stages: hello", "stages: {make: []}", "stages: {make: {outs: [1]}}", "stages: {make: {deps: a}}"),
        "stages: {make: {outs: [{}]}}",
    ],
)
def test_a_pipeline_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    assert refusal(tmp_path, "make").where.startswith("dvc.yaml: stages")
