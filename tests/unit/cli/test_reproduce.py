"""What `mnist verify` concludes, and whom `mnist reproduce` asks."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mnist import cli
from mnist.cli import reproduce
from mnist.core import custody, files
from mnist.core.errors import InputError
from mnist.lineage.compare import Answer, Row
from mnist.lineage.lock import Out, Stage
from mnist.lineage.sandbox import Sandbox
from tests import checkout
from tests.checkout import ROOT


@pytest.mark.parametrize(
    ("answers", "reasons", "start"),
    [
        (["equal"], [], "holds: "),
        (["equal", "close"], [], "holds within the tolerances: 1 "),
        (["equal", "other bytes", "close"], [], "holds within the tolerances: 2 "),
        (["close", "NO"], [], "does not hold: the committed code makes other output; "),
        (["equal"], ["stage train: lr is 2, was 1"], "does not hold: "),
    ],
)
def test_the_last_line_begins_with_the_verdict(answers: list[Answer], reasons: list[str], start: str) -> None:
    rows = [Row(what="output: key", before="", after="", answer=answer) for answer in answers]
    assert reproduce.verdict(reasons, rows).startswith(start)


def stage(name: str, *, reads: list[str], writes: str, params: dict[str, object]) -> Stage:
    outs = {writes: Out(kept_in="git", digest="1")}
    return Stage(
        name=name, cmd=name, deps=dict.fromkeys(reads, "1"), params={"params.yaml": params}, outs=outs
    )


def test_what_follows_a_device_depends_on_the_machine() -> None:
    stages = [
        stage("report", reads=["scores"], writes="page", params={}),  # in no order
        stage("score", reads=["weights"], writes="scores", params={}),
        stage("train", reads=["data"], writes="weights", params={"device": "cpu", "lr": 1}),
        stage("prepare", reads=["raw"], writes="data", params={"lr": 1}),
    ]
    assert reproduce.by_machine(stages) == {"train", "score", "report"}
    assert reproduce.by_machine(stages[-1:]) == set()


@pytest.mark.parametrize(
    ("machine", "answer"),
    [("CPU (x86-64, AVX2), 1 thread", "NO"), ("CPU (Apple M4, DEFAULT), 1 thread", "close")],
    ids=["equal", "another"],
)
def test_numbers_may_differ_on_another_machine_only(machine: str, answer: str, tmp_path: Path) -> None:
    train = stage("train", reads=[], writes="scores.json", params={"device": "cpu"})
    folders = tmp_path / "before", tmp_path / "after"
    for folder, made_on, loss in zip(
        folders, ("CPU (x86-64, AVX2), 1 thread", machine), (0.5, 0.501), strict=True
    ):
        files.write_json(folder / "scores.json", {"loss": loss})
        receipt = custody.Receipt(params={}, deps={}, outs={}, machine=made_on)
        files.write_json(folder / custody.receipt_of("train"), [receipt.model_dump()])
    written = {"scores.json": "2"}
    (row,) = reproduce.outs_compared([train], {}, written, *folders)
    assert (row.what, row.answer) == ("scores.json: loss", answer)


@pytest.fixture
def aside(tmp_path: Path) -> Sandbox:
    """A sandbox whose commit has one stage and one param, and which `recorded` lies beside."""
    folder = tmp_path / "checkout"
    checkout.initialise(folder)
    (folder / "dvc.yaml").write_text("stages: {train: {cmd: 'train ${lr}'}}")
    (folder / "params.yaml").write_text("lr: 1\n")
    checkout.Repository(folder).commit()
    (tmp_path / "recorded").mkdir()
    return Sandbox(folder=tmp_path, repository=folder, checkout=folder)


def record_patch(aside: Sandbox) -> Path:
    """Turn what was changed in the checkout into a recorded patch; return its folder."""
    repository, recorded = checkout.Repository(aside.repository), aside.folder / "recorded"
    repository.git("add", ".")
    (recorded / "dirty.patch").write_text(repository.git("diff", "--cached") + "\n")
    repository.git("reset", "-q", "--hard")
    return recorded


def test_what_will_run_is_listed(aside: Sandbox) -> None:
    (aside.checkout / "new code.py").write_text("new = 1\n")
    recorded = record_patch(aside)
    (recorded / "params.yaml").write_text("lr: '2; touch ran'\n")
    lines = reproduce.restore(aside, recorded)
    assert lines[0].endswith(" t: x")
    assert lines[1:] == [
        "  patch       changes new code.py",
        "  param       lr: 1 -> 2; touch ran",
        '  command     of train: "train 2; touch ran"',
    ]
    assert (aside.checkout / "new code.py").is_file()


def test_a_patch_writes_nothing_outside_the_sandbox(aside: Sandbox) -> None:
    (aside.folder / "mine").write_text("mine")
    (aside.checkout / "params.yaml").unlink()
    (aside.checkout / "params.yaml").symlink_to(aside.folder / "mine")
    recorded = record_patch(aside)
    (recorded / "params.yaml").write_text("lr: 2\n")
    with pytest.raises(InputError, match=r"^dirty\.patch: 'params\.yaml': found a link"):
        reproduce.restore(aside, recorded)
    assert (aside.folder / "mine").read_text() == "mine"


def test_an_empty_name_is_not_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(cli.main, ["reproduce", ""])
    assert done.exit_code == 2
    assert done.stderr.startswith("ERROR: MODEL: found nothing")


@pytest.mark.parametrize("yes", [True, False])
def test_code_of_another_store_runs_with_permission_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, yes: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(click, "confirm", lambda _: yes)
    reproduce.confirm(f"sqlite:///{tmp_path}/mlflow.db", trust=False)
    reproduce.confirm("http://elsewhere.example", trust=True)

    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: is_terminal)  # noqa: B023
        if is_terminal and yes:
            reproduce.confirm("http://elsewhere.example", trust=False)
        else:
            with pytest.raises(InputError, match="--trust"):
                reproduce.confirm("http://elsewhere.example", trust=False)
