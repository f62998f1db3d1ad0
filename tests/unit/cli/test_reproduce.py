"""What `mnist verify` concludes, and whom `mnist reproduce` asks."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mnist import cli
from mnist.cli import reproduce
from mnist.core.errors import InputError
from mnist.lineage.compare import Answer, Row
from mnist.lineage.lock import Out, Stage
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


def test_what_a_store_holds_cannot_control_the_terminal() -> None:
    assert reproduce.printable(["a\x1b[2Jb\r", "é"]) == "a?[2Jb?\né"
