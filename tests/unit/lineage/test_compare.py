"""Outputs compared: exactly, and within the tolerances."""

from pathlib import Path

import pytest

from mnist.core import custody
from mnist.lineage import compare
from mnist.lineage.compare import EQUAL_WEIGHTS, OTHER_WEIGHTS, Output, Row, Tolerances

SCORES = '{"accuracy": 0.95, "loss": 0.5, "num_images": 500, "recall": {"0": 0.9, "1": null}}'
STEPS = "epoch,step,loss,accuracy\n1,100,2.0,0.5\n1,200,0.1,0.9\n"
PREDICTIONS = "index,label,predicted\n" + "".join(f"{index},7,7\n" for index in range(100))
TEXTS = {"test.json": SCORES, "steps.csv": STEPS, "predictions.csv": PREDICTIONS, "plot.png": "one"}


def compared(
    folder: Path, name: str, before: str | None, after: str | None, tolerances: Tolerances | None
) -> list[Row]:
    sides: list[Output] = []
    for place, text in (("before", before), ("after", after)):
        file = folder / place / name
        file.parent.mkdir(exist_ok=True)
        if text is not None:
            file.write_text(text)
        sides.append(Output(digest=text and f"digest of {text}", file=file))
    return compare.compare(name, sides[0], sides[1], tolerances)


def answers(rows: list[Row], name: str) -> dict[str, str]:
    return {row.what.removeprefix(f"{name}: "): row.text for row in rows}


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("test.json", "0.95", "0.96", {"accuracy": "within 1 point"}),
        ("test.json", "0.95", "0.9601", {"accuracy": "NO, beyond 1 point"}),
        ("test.json", '"loss": 0.5', '"loss": 0.525', {"loss": "within 5 % or 0.01"}),
        ("test.json", '"loss": 0.5', '"loss": 0.526', {"loss": "NO, beyond 5 % or 0.01"}),
        ("test.json", "500", "501", {"num_images": "NO"}),
        ("test.json", "0.9,", "0.85,", {"recall.0": "within 5 points"}),
        ("test.json", "0.9,", "0.84,", {"recall.0": "NO, beyond 5 points"}),
        ("test.json", "null", "0.5", {"recall.1": "NO"}),
        ("test.json", "0.95", "NaN", {"accuracy": "NO"}),
        ("test.json", "0.95", "true", {"accuracy": "NO"}),
        ("test.json", '"loss": 0.5, ', "", {"loss": "NO"}),
        ("test.json", '{"a', '{ "a', {"test.json": "NO"}),  # a space, and no other number
        ("steps.csv", "2.0", "2.1", {"loss, row 1": "within 5 % or 0.01"}),
        ("steps.csv", "2.0,0.5\n1,200,0.1", "2.1,0.5\n1,200,0.2", {"loss, row 2": "NO, beyond 5 % or 0.01"}),
        ("steps.csv", "2.0,0.5\n1,200,0.1", "2.1,0.5\n1,200,0.101", {"loss, row 1": "within 5 % or 0.01"}),
        ("steps.csv", "1,200", "1,201", {"step, row 2": "NO"}),
        ("steps.csv", "0.5\n", "a\n", {"accuracy, row 1": "NO"}),
        ("steps.csv", "\n1,100,2.0,0.5", "", {"steps.csv": "NO"}),
        ("steps.csv", "loss,", "lost,", {"loss, row 1": "NO", "lost, row 1": "NO"}),
        ("predictions.csv", "7,7,7", "7,7,1", {"predicted": "within 3 % of the rows"}),
        ("predictions.csv", "7,7,7", "7,1,7", {"label, row 8": "NO"}),
        ("plot.png", "one", "other", {"plot.png": "other bytes"}),
    ],
)
def test_numbers_of_other_weights_are_held_to_their_tolerance(
    tmp_path: Path, name: str, old: str, new: str, found: dict[str, str]
) -> None:
    text = TEXTS[name]
    assert old in text
    changed = text.replace(old, new, 1)
    assert answers(compared(tmp_path, name, text, text, OTHER_WEIGHTS), name) == {name: "equal"}
    assert answers(compared(tmp_path, name, text, changed, OTHER_WEIGHTS), name) == found
    exact = compared(tmp_path, name, text, changed, None)
    assert {row.text for row in exact} == {"NO"}


@pytest.mark.parametrize(
    ("name", "old", "new", "answer"),
    [
        ("test.json", "0.95", "0.951", "close"),
        ("test.json", "0.95", "0.9511", "NO"),
        ("test.json", "500", "501", "NO"),
        ("predictions.csv", "7,7,7", "7,7,1", "NO"),  # 1 of 100
        ("plot.png", "one", "other", "other bytes"),
    ],
)
def test_numbers_of_equal_weights_differ_by_rounding_alone(
    tmp_path: Path, name: str, old: str, new: str, answer: str
) -> None:
    text = TEXTS[name]
    (row,) = compared(tmp_path, name, text, text.replace(old, new, 1), EQUAL_WEIGHTS)
    assert row.answer == answer


def test_predictions_are_compared_by_their_share(tmp_path: Path) -> None:
    for num_different, answer in ((3, "close"), (4, "NO")):
        after = PREDICTIONS.replace("7,7\n", "7,1\n", num_different)
        (row,) = compared(tmp_path, "predictions.csv", PREDICTIONS, after, OTHER_WEIGHTS)
        assert (row.answer, row.before, row.after) == (answer, "100 rows", f"{num_different} of them differ")


@pytest.mark.parametrize(
    ("name", "before", "shown"),
    [
        ("test.json", "{", "no JSON (Expecting property name"),
        ("steps.csv", "a,b\n1\n", "no CSV (rows of different lengths)"),
        ("steps.csv", "", "no CSV (rows of different lengths)"),
        ("steps.csv", "loss,loss\n1,2\n", "no CSV (several columns of one name)"),
        ("test.json", None, "-"),
    ],
)
@pytest.mark.parametrize("tolerances", [OTHER_WEIGHTS, None])
def test_what_was_committed_may_be_broken_or_missing(
    tmp_path: Path, name: str, before: str | None, shown: str, tolerances: Tolerances | None
) -> None:
    (row,) = compared(tmp_path, name, before, SCORES, tolerances)
    assert row.before.startswith(shown)
    assert row.answer == "NO"


def test_what_only_the_cache_holds_is_compared_by_its_digest(tmp_path: Path) -> None:
    sides = Output(digest="a" * 32, file=tmp_path / "a.csv"), Output(digest="b" * 32, file=tmp_path / "b.csv")
    assert [row.answer for row in compare.compare("x", *sides, OTHER_WEIGHTS)] == ["other bytes"]
    (row,) = compare.compare("x", *sides, None)
    assert (row.before, row.after, row.answer) == ("a" * 12, "b" * 12, "NO")


MACHINE = {"device": "CPU (AVX2), 1 thread", "python": "3.11.9", "torch": "2.15.0", "numpy": "2.4.0"}


def test_equal_bytes_are_guaranteed_on_the_same_machine() -> None:
    assert compare.machine_differences({**MACHINE, "more": "x"}, MACHINE) == []


@pytest.mark.parametrize("name", MACHINE)
def test_equal_bytes_are_not_guaranteed_on_another_machine(name: str) -> None:
    for other, shown in ({**MACHINE, name: "other"}, "other"), ({**MACHINE, name: ""}, "unknown"):
        assert compare.machine_differences(other, MACHINE) == [f"{name} {shown} there, {MACHINE[name]} here"]


def test_a_receipt_of_other_bytes_is_no_difference_where_bytes_may_differ() -> None:
    before, after = (Output(digest=text, file=Path("receipt.json")) for text in ("one", "two"))
    name = custody.receipt_of("train").as_posix()
    for tolerances, answer in ((OTHER_WEIGHTS, "other bytes"), (None, "NO")):
        assert [row.text for row in compare.compare(name, before, after, tolerances)] == [answer]
