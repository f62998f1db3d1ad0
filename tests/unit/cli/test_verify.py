"""What `mnist verify` concludes."""

import pytest

from mnist.cli import verify
from mnist.core.errors import InputError
from mnist.lineage.compare import Answer, Row
from mnist.lineage.lock import Out, Stage


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
    assert verify.verdict(reasons, rows).startswith(start)


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
    assert verify.by_machine(stages) == {"train", "score", "report"}
    assert verify.by_machine(stages[-1:]) == set()


def test_only_a_clean_checkout_is_verified() -> None:
    verify._check_clean("")
    with pytest.raises(
        InputError, match=r"found changes that are not committed: a b\.py, new, expected none"
    ):
        verify._check_clean(" M a b.py\nA  new")
    with pytest.raises(InputError, match=r"f7 and 2 more, expected"):
        verify._check_clean("\n".join(f" M f{number}" for number in range(10)))
