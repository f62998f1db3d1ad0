"""`python -m mnist.cli.verify` on fresh, shallow clones: what holds, and each way not to.

Each clone is of one checkout on the small data, with its result committed.
"""

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist.cli import verify
from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.evaluation import scores, statistics
from mnist.lineage import compare, lock
from mnist.lineage.compare import Row, Side
from tests import checkout
from tests.checkout import STAGES, Clone, edit, processes_in
from tests.conftest import DIGITS, SmallData

DEADLINE_SECONDS = 120
# Stages that are no part of the project, out of one of DVC's templates.
ADDED = """
  size:
    foreach: [train, test]
    do:
      cmd: printf '{"${item}":%d}' $(wc -c < metrics/validation.json) > metrics/${item}-size.json
      deps:
        - metrics/validation.json
      metrics:
        - metrics/${item}-size.json:
            cache: false
"""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A checkout with a committed result, and a folder for temporary ones."""

    clone: Clone
    temporary: Path

    def fresh(self, folder: Path, *, cache: bool = False) -> Clone:
        """A shallow clone of one commit, on no branch, as CI has it; by default without DVC's cache."""
        self.clone.run("git", "clone", "-q", "--depth", "1", f"file://{self.clone.folder}", str(folder))
        made = dataclasses.replace(self.clone, folder=folder)
        made.run("git", "checkout", "-q", "--detach")
        if cache:
            shutil.copytree(self.clone.folder / ".dvc/cache", folder / ".dvc/cache")
            made.run("dvc", "checkout", "-q", "--force")
            shutil.copy(self.clone.folder / "models/registered.json", folder / "models")
        return made

    def start(self, clone: Clone, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mnist.cli.verify"],
            cwd=clone.folder,
            env={**clone.environment, "TMPDIR": str(self.temporary), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def verify(self, clone: Clone) -> subprocess.CompletedProcess[str]:
        return ended(self.start(clone))


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def desk(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("verify")
    clone = checkout.clone(folder / "pipeline", small_data)
    # Two epochs are enough for numbers that differ by the machine, and too few for much of a difference.
    edit(clone, "params.yaml", "epochs: 4", "epochs: 2")
    edit(clone, "params.yaml", "min_accuracy: 0.5", "min_accuracy: 1.0")
    edit(clone, "dvc.yaml", "\n\nplots:\n", f"\n{ADDED}\nplots:\n")
    clone.commit("Learn little, register nothing")
    clone.dvc("repro")
    clone.commit("What the pipeline made")
    temporary = folder / "temporary"
    temporary.mkdir()
    yield Desk(clone=clone, temporary=temporary)
    for process in processes_in(temporary):  # where a test failed
        process.kill()
    shutil.rmtree(folder)


def table(output: str) -> dict[str, list[str]]:
    """The other columns of the table, by the first."""
    lines = output.partition("\nwhat ")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [re.split(r" {2,}", line) for line in lines]
    return {row[0]: row[1:] for row in rows}


def answers(output: str) -> dict[str, str]:
    return {what: cells[-1] for what, cells in table(output).items()}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What verifications at once came to, and the clones that they were of."""

    same: subprocess.CompletedProcess[str]
    elsewhere: subprocess.CompletedProcess[str]
    committed: subprocess.CompletedProcess[str]
    edited: subprocess.CompletedProcess[str]
    forged: subprocess.CompletedProcess[str]
    fresh: Clone


@pytest.fixture(scope="module")
def done(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("clones")
    same, elsewhere = desk.fresh(folder / "same"), desk.fresh(folder / "elsewhere")

    # A better number by hand, which DVC was told to take for what `evaluate` made.
    committed = desk.fresh(folder / "committed", cache=True)
    edit(committed, "metrics/test.json", '"loss": 0.0', '"loss": 0.00')
    committed.run("dvc", "commit", "--force")
    committed.commit("A better loss")

    # Other weights, likewise, with all the numbers of the true ones; then code without a run, and a
    # number by hand.
    edited = desk.fresh(folder / "edited", cache=True)
    flip(edited)
    edited.run("dvc", "commit", "--force")
    edit(edited, "mnist/evaluation/scores.py", '"""', '"""Edited. ')
    edit(edited, "metrics/test.json", '"num_wrong": ', '"num_wrong": 1')
    edited.commit("Edited")

    # Other weights once more, and all that is said of them is within its tolerance and fits together.
    forged = desk.fresh(folder / "forged", cache=True)
    flip(forged)
    add(forged, "metrics/train.json", "val_loss", 1e-6)
    correct(forged)
    forged.run("dvc", "commit", "--force")
    forged.commit("Forged")

    # Other instructions for PyTorch and for oneDNN: another machine, as far as rounding goes.
    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    started = {
        "same": desk.start(same),
        "elsewhere": desk.start(elsewhere, **other),
        "committed": desk.start(committed),
        "edited": desk.start(edited),
        "forged": desk.start(forged),
    }
    return Done(**{what: ended(process) for what, process in started.items()}, fresh=same)


def flip(clone: Clone) -> None:
    """Another last bit of the weights."""
    file = clone.folder / paths.WEIGHTS
    stored = file.read_bytes()
    file.unlink()  # DVC's cache may have the same inode
    file.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))


def add(clone: Clone, name: str, key: str, more: float) -> None:
    values = files.read_json(clone.folder / name)
    files.write_json(clone.folder / name, {**values, key: round(values[key] + more, 6)})


def correct(clone: Clone) -> None:
    """Make one wrong prediction right, and the result_scores those of it."""
    table = clone.folder / paths.PREDICTIONS
    predictions = statistics.read(table)
    labels_N, predicted_N = predictions.labels_N.astype(np.uint8), predictions.predicted_N.astype(np.int64)
    wrong = int(np.flatnonzero(predicted_N != labels_N)[0])
    predicted_N[wrong] = labels_N[wrong]
    scores.write_predictions(table, labels_N=labels_N, predicted_N=predicted_N, classes=DIGITS.classes)
    result_scores = scores.read(clone.folder / paths.TEST_METRICS)
    certain_NK = np.eye(10, dtype=np.float32)[predicted_N]
    counted = scores.score(certain_NK, labels_N).model_dump(include={"accuracy", "num_wrong"})
    scores.write_classes(
        clone.folder / paths.CLASSES, labels_N=labels_N, predicted_N=predicted_N, classes=DIGITS.classes
    )
    files.write_json(clone.folder / paths.TEST_METRICS, {**result_scores.model_dump(), **counted})


def test_what_the_code_makes_holds_byte_for_byte(done: Done) -> None:
    assert done.same.returncode == 0, done.same.stderr
    assert set(answers(done.same.stdout).values()) == {"equal"}
    assert {"data/mnist.safetensors", "models/model.safetensors", "metrics/test.json"} < set(
        answers(done.same.stdout)
    )
    last = "holds: the committed code makes every committed output, byte for byte"
    assert done.same.stdout.splitlines()[-1] == last


def test_every_stage_that_keeps_something_computes(done: Done) -> None:
    assert [name for name in STAGES if f"> python -m stages.{name}" in done.same.stderr] == STAGES[:-1]
    assert "size@train, size@test in " in done.same.stdout
    assert answers(done.same.stdout)["metrics/test-size.json"] == "equal"
    assert "but not register: nothing of it is kept" in done.same.stdout


def test_it_leaves_nothing_but_a_filled_cache(desk: Desk, done: Done) -> None:
    fresh = done.fresh
    assert fresh.run("git", "status", "--porcelain").stdout == ""
    assert not (fresh.folder / "mlflow.db").exists()
    assert not (fresh.folder / "mlspool").exists()
    assert list(desk.temporary.iterdir()) == []
    fresh.run("dvc", "checkout")
    assert (fresh.folder / "models/model.safetensors").is_file()


def test_on_other_instructions_numbers_are_held_to_tolerances(done: Done) -> None:
    output = done.elsewhere.stdout
    assert done.elsewhere.returncode == 0, output
    said = answers(output)
    assert (
        said["data/stats.json"] == said["metrics/validation.json"] == said["data/validation.html"] == "equal"
    )
    if said["models/model.safetensors"] != "equal":  # the machine of the tests has other instructions
        assert said["models/model.safetensors"] == "other bytes, not comparable"
        assert set(said.values()) <= {*(tolerance(said)), "equal", "other bytes, not comparable"}
        assert "within 5 % or 0.01" in said.values()
        assert output.splitlines()[-1].startswith("holds within the tolerances: ")


def tolerance(said: dict[str, str]) -> Iterator[str]:
    return (answer for answer in said.values() if answer.startswith("within "))


def test_a_number_by_hand_that_dvc_was_made_to_believe_is_found(done: Done) -> None:
    output = done.committed.stdout
    assert done.committed.returncode == 1, output
    assert {what for what, answer in answers(output).items() if answer != "equal"} == {
        "metrics/test.json: loss"
    }
    committed, made, answer = table(output)["metrics/test.json: loss"]
    assert float(committed) < float(made) / 5
    assert answer == "NO"  # far within the tolerance, but the weights are equal
    assert "other metrics/test.json; run `dvc repro --force`" in output.splitlines()[-1]


def test_what_can_be_seen_without_a_run_is_told_before_it(done: Done) -> None:
    before, _, _ = done.edited.stdout.partition("  running ")
    doubts = [line.removeprefix("  NO  ") for line in before.splitlines()[1:]]
    assert doubts[:2] == [
        "stage evaluate, register: mnist/evaluation/scores.py changed since",
        "stage evaluate: metrics/test.json is not what it wrote",
    ]
    assert len(doubts) == 3
    assert re.fullmatch(
        r"metrics/test.json: num_wrong is 1\d, but metrics/predictions.csv gives \d", doubts[2]
    )


def test_other_weights_that_dvc_was_made_to_believe_are_found(done: Done) -> None:
    said = answers(done.edited.stdout)
    assert said["models/model.safetensors"].startswith("NO, though ")
    assert said["metrics/train.json"] == "equal"


def test_a_forgery_within_all_tolerances_is_found_by_what_was_not_forged(done: Done) -> None:
    output = done.forged.stdout
    assert done.forged.returncode == 1, output
    assert "  NO  " not in output  # nothing is to be seen without a run
    said = answers(output)
    assert said["metrics/train.json: val_loss"] == "within 5 % or 0.01"
    assert said["metrics/test.json: accuracy"] == "within 1 point"
    assert {what: answer for what, answer in said.items() if answer.startswith("NO")} == {
        "models/model.safetensors": "NO, though metrics/history.csv and metrics/steps.csv did not change",
        "metrics/predictions.csv: predicted": "NO, though no gallery changed",
    }
    last = "does not hold: the committed code makes other models/model.safetensors, metrics/predictions.csv; "
    assert output.splitlines()[-1] == f"{last}{verify.REMEDY}"


@pytest.mark.parametrize(
    ("found", "doubts", "start"),
    [
        ([], [], "holds: "),
        (["equal"], [], "holds: "),
        (["equal", "close", "other bytes"], [], "holds within the tolerances: "),
        (["close", "NO"], [], "does not hold: "),
        (["equal"], ["a doubt"], "does not hold: "),
        (["close"], ["a doubt"], "does not hold: "),
    ],
)
def test_how_the_verdict_begins_is_what_workflows_go_by(
    found: list[Any], doubts: list[str], start: str
) -> None:
    rows = [Row(what="", committed="", made="", answer=answer) for answer in found]
    assert verify._verdict(doubts, rows).startswith(start)


def test_a_number_out_of_tolerance_is_told_with_both_values(done: Done) -> None:
    output = done.edited.stdout
    assert done.edited.returncode == 1, output
    committed, made, answer = table(output)["metrics/test.json: num_wrong"]
    assert int(committed) == int(f"1{made}")
    assert answer == "NO, beyond 1 % of the images"
    last = "does not hold: the committed code makes other models/model.safetensors, metrics/test.json; "
    assert output.splitlines()[-1] == f"{last}{verify.REMEDY}"


@pytest.fixture
def fresh(desk: Desk, tmp_path: Path) -> Clone:
    return desk.fresh(tmp_path / "fresh")


def test_an_interrupt_leaves_nothing_behind(desk: Desk, fresh: Clone) -> None:
    process = desk.start(fresh)
    assert process.stderr
    for line in process.stderr:
        if "> python -m stages.download" in line:
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, stdout + stderr
    assert stderr.splitlines()[-1] == "interrupted"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while processes_in(desk.temporary):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(desk.temporary.iterdir()) == []
    assert fresh.run("git", "status", "--porcelain").stdout == ""


def test_changes_that_are_not_committed_are_named(desk: Desk, fresh: Clone) -> None:
    (fresh.folder / "notes.txt").write_text("git does not know it\n")
    edit(fresh, "params.yaml", "lr: 0.02", "lr: 0.05")
    (fresh.folder / "metrics/train.json").unlink()
    done = desk.verify(fresh)
    assert done.returncode == 2
    found = "changes that are not committed: metrics/train.json, params.yaml"
    assert done.stderr == f"ERROR: the checkout: found {found}, expected none: commit them, or `git stash`\n"
    assert done.stdout == ""


def test_code_that_fails_is_an_error(desk: Desk, fresh: Clone) -> None:
    edit(fresh, "stages/download.py", '"""', 'raise SystemExit("broken")\n"""')
    fresh.commit("Broken")
    done = desk.verify(fresh)
    assert done.returncode == 2
    assert "  NO  stage download: stages/download.py changed since" in done.stdout
    last = "ERROR: `dvc repro` in a temporary checkout: found exit status 255, see above, expected "
    assert done.stderr.splitlines()[-1].startswith(last)
    assert list(desk.temporary.iterdir()) == []


def doubts(clone: Clone) -> list[str]:
    made = lock.read(clone.folder)
    return lock.stale_reasons(lock.pipeline(clone.folder), made)


GATE = "      - mnist/data/gate.py\n"  # the first is a dep of stage stats
SHIFT = "      - shift\n"  # the first is a param of stage train
NICE = "nice python -m stages.stats"
TRAINING = "metrics/training.json:"
GONE = "in dvc.lock, not in dvc.yaml: delete its lines"
NOT_WRITTEN = "stage evaluate: metrics/test.json is not what it wrote"


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        (
            "mnist/data/gate.py",
            '"""',
            '"""E',
            "stage stats, train, evaluate, register: mnist/data/gate.py changed since",
        ),
        ("params.yaml", "val_size: 200", "val_size: 9", "stage train, register: val_size is 9, was 200"),
        (
            "datasets/mnist.yaml",
            "num_test: 300",
            "num_test: 9",
            "stage download, validate: datasets/mnist.yaml changed since",
        ),
        ("params.yaml", "lr: 0.02", "other: 0.02", "stage train, register: lr is no param any more"),
        ("dvc.yaml", NICE[5:], NICE, f"stage stats: cmd is `{NICE}`, was `{NICE[5:]}`"),
        ("dvc.yaml", GATE, "", "stage stats: mnist/data/gate.py is no dep any more"),
        ("dvc.yaml", GATE, f"      - README.md\n{GATE}", "stage stats: README.md is a new dep"),
        ("dvc.yaml", SHIFT, "", "stage train: shift is no param any more"),
        ("dvc.yaml", SHIFT, f"      - registry.alpha\n{SHIFT}", "stage train: registry.alpha is a new param"),
        ("dvc.yaml", "  stats:\n", "  statistics:\n", "stage statistics: not in dvc.lock"),
        ("dvc.yaml", "  stats:\n", "  statistics:\n", f"stage stats: {GONE}"),
        ("dvc.yaml", "[train, test]", "[train]", f"stage size@test: {GONE}"),
        ("dvc.yaml", "metrics/train.json:", TRAINING, "stage train: metrics/training.json is a new out"),
        ("dvc.yaml", "metrics/train.json:", TRAINING, "stage train: metrics/train.json is no out any more"),
        ("metrics/test.json", '"accuracy": 0', '"accuracy": 1', NOT_WRITTEN),
        ("metrics/test.json", "{", "", NOT_WRITTEN),
    ],
)
def test_what_changed_without_a_run_is_seen_without_one(
    fresh: Clone, file: str, old: str, new: str, line: str
) -> None:
    edit(fresh, file, old, new)
    assert line in doubts(fresh)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("README.md", "MNIST", "mnist"),
        ("params.yaml", "lr: 0.02", "lr: 2e-2"),
        ("params.yaml", "0.05\n", "0.01\n"),
    ],
    ids=["no dep", "the same number", "no stage's param"],
)
def test_what_makes_no_difference_is_no_doubt(fresh: Clone, file: str, old: str, new: str) -> None:
    edit(fresh, file, old, new)
    assert doubts(fresh) == []


def test_stages_that_do_not_fit_together_are_seen(fresh: Clone) -> None:
    made = lock.digests(lock.read(fresh.folder)["stats"], "outs")["data/stats.json"]
    text = fresh.read("dvc.lock")
    before, _, after = text.rpartition(made)  # the last is a dep of another stage
    (fresh.folder / "dvc.lock").write_text(f"{before}{'f' * 32}{after}")
    assert doubts(fresh) in (
        [f"stage {stage}: data/stats.json changed since"] for stage in ("train", "register")
    )


def test_a_metric_that_left_git_is_seen(fresh: Clone) -> None:
    (fresh.folder / "metrics/history.csv").unlink()
    assert doubts(fresh) == ["stage train: metrics/history.csv is not in git"]


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("dvc.lock", "<<<<<<< ours\n: [", r"dvc\.lock: found "),
        ("dvc.lock", "stages: {stats: 1}", r"the pipeline: found dvc\.lock validation failed"),
        ("dvc.yaml", "stages: [", r"the pipeline: found unable to read: dvc\.yaml"),
    ],
)
def test_what_dvc_cannot_read_is_a_line(fresh: Clone, file: str, text: str, line: str) -> None:
    (fresh.folder / file).write_text(text)
    with pytest.raises(InputError, match=f"^{line}.*, expected ") as caught:
        doubts(fresh)
    assert "\n" not in str(caught.value)


def test_scores_that_are_not_those_of_the_predictions_are_seen(
    fresh: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.folder)
    assert list(verify._contradictions(Path())) == []
    edit(fresh, "metrics/predictions.csv", "\n0,", "\n1,")
    assert (
        list(verify._contradictions(Path())) == []
    )  # it is no table any more, and said to be none elsewhere
    fresh.run("git", "checkout", "-q", ".")
    label = re.search(r"^0,(\d),", fresh.read("metrics/predictions.csv"), re.MULTILINE)
    assert label
    wrong = (int(label[1]) + 1) % 10
    edit(fresh, "metrics/predictions.csv", f"\n0,{label[1]},{label[1]}\n", f"\n0,{label[1]},{wrong}\n")
    found = list(verify._contradictions(Path()))
    assert [line.partition(" is ")[0] for line in found] == [
        f"metrics/test.json: {key}" for key in ("accuracy", "num_wrong")
    ]


def sides(folder: Path, name: str, committed: str | None, made: str) -> tuple[Side, Side]:
    found = []
    for place, text in (("committed", committed), ("made", made)):
        file = folder / place / name
        file.parent.mkdir(exist_ok=True)
        if text is not None:
            file.write_text(text)
        found.append(Side(digest=text and f"digest of {text}", file=file))
    return found[0], found[1]


def compare_files(
    folder: Path, name: str, committed: str | None, made: str, *, exact: bool = False
) -> dict[str, str]:
    rows = compare.compare(name, *sides(folder, name, committed, made), exact=exact)
    return {row.what.removeprefix(f"{name}: "): row.text for row in rows}


SCORES = (
    '{"accuracy": 0.95, "loss": 0.5, "num_wrong": 500, "num_images": 10000, "recall": {"0": 0.9, "1": null}}'
)
STEPS = "epoch,step,loss,accuracy\n1,100,2.0,0.5\n1,200,0.1,0.9\n"
PREDICTIONS = "index,label,predicted\n" + "".join(f"{index},7,7\n" for index in range(100))


TEXTS = {"test.json": SCORES, "steps.csv": STEPS, "predictions.csv": PREDICTIONS, "plot.png": "one"}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("test.json", "0.95", "0.96", {"accuracy": "within 1 point"}),
        ("test.json", "0.95", "0.9601", {"accuracy": "NO, beyond 1 point"}),
        ("test.json", '"loss": 0.5', '"loss": 0.525', {"loss": "within 5 % or 0.01"}),
        ("test.json", '"loss": 0.5', '"loss": 0.526', {"loss": "NO, beyond 5 % or 0.01"}),
        ("test.json", "500", "600", {"num_wrong": "within 1 % of the images"}),
        ("test.json", "500", "601", {"num_wrong": "NO, beyond 1 % of the images"}),
        ("test.json", "10000", "10001", {"num_images": "NO"}),
        ("test.json", "0.9,", "0.85,", {"recall.0": "within 5 points"}),
        ("test.json", "null", "0.5", {"recall.1": "NO"}),
        ("test.json", "0.95", "NaN", {"accuracy": "NO"}),
        ("test.json", '"loss": 0.5, ', "", {"loss": "NO"}),
        ("test.json", '{"a', '{ "a', {"test.json": "NO"}),  # a space, and no other number
        ("steps.csv", "2.0", "2.1", {"loss, row 1": "within 5 % or 0.01"}),
        ("steps.csv", "2.0,0.5\n1,200,0.1", "2.1,0.5\n1,200,0.2", {"loss, row 2": "NO, beyond 5 % or 0.01"}),
        ("steps.csv", "1,200", "1,201", {"step, row 2": "NO"}),
        ("steps.csv", "\n1,100,2.0,0.5", "", {"steps.csv": "NO"}),
        ("predictions.csv", "7,7,7", "7,7,1", {"predicted": "within 3 % of the rows"}),
        ("predictions.csv", "7,7,7", "7,1,7", {"label, row 8": "NO"}),
        ("plot.png", "one", "other", {"plot.png": "other bytes, not comparable"}),
    ],
)
def test_numbers_of_another_machine_are_held_to_their_tolerance(
    tmp_path: Path, name: str, old: str, new: str, said: dict[str, str]
) -> None:
    text = TEXTS[name]
    assert old in text
    made = text.replace(old, new, 1)
    assert compare_files(tmp_path, name, text, text) == {name: "equal"}
    assert compare_files(tmp_path, name, text, made) == said
    assert set(compare_files(tmp_path, name, text, made, exact=True).values()) == {"NO"}


def test_too_many_other_predictions_are_too_many(tmp_path: Path) -> None:
    made = PREDICTIONS.replace("7,7\n", "7,1\n", 4)
    assert compare_files(tmp_path, "predictions.csv", PREDICTIONS, made) == {
        "predicted": "NO, beyond 3 % of the rows"
    }


@pytest.mark.parametrize(
    ("name", "committed", "said"),
    [
        (
            "test.json",
            "{",
            "no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        ("steps.csv", "a,b\n1\n", "no CSV (rows of different lengths)"),
        ("steps.csv", "", "no CSV (rows of different lengths)"),
        ("steps.csv", "loss,loss\n1,2\n", "no CSV (several columns of one name)"),
        ("test.json", None, "-"),
    ],
)
def test_what_was_committed_may_be_broken_or_missing(
    tmp_path: Path, name: str, committed: str | None, said: str
) -> None:
    (row,) = compare.compare(name, *sides(tmp_path, name, committed, SCORES), exact=False)
    assert (row.committed, row.answer) == (said, "NO")


STEPS_ROW, WEIGHTS = "metrics/steps.csv: loss, row 2", "models/model.safetensors"
ACCURACY, PREDICTED = "metrics/test.json: accuracy", "metrics/predictions.csv: predicted"
PICTURES = "metrics/plots/predictions.png", "metrics/plots/errors.png"


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        ({WEIGHTS: "other bytes", "metrics/train.json": "equal"}, WEIGHTS),
        ({WEIGHTS: "other bytes", "metrics/train.json: val_loss": "close"}, None),
        ({WEIGHTS: "other bytes", "metrics/train.json: val_loss": "close", STEPS_ROW: "close"}, None),
        ({WEIGHTS: "other bytes", STEPS_ROW: "close", "metrics/history.csv": "equal"}, WEIGHTS),
        ({ACCURACY: "close", PREDICTED: "close"}, None),
        ({ACCURACY: "close", PREDICTED: "close", PICTURES[0]: "equal", PICTURES[1]: "equal"}, PREDICTED),
        ({ACCURACY: "close", PREDICTED: "close", PICTURES[0]: "equal", PICTURES[1]: "other bytes"}, None),
        (
            {
                PREDICTED: "close",
                **dict.fromkeys(PICTURES, "equal"),
                "metrics/plots/filters.png": "other bytes",
            },
            PREDICTED,
        ),
        ({ACCURACY: "close", "metrics/predictions.csv": "equal", PICTURES[0]: "equal"}, None),
    ],
)
def test_only_what_shows_everywhere_is_another_machine(found: dict[str, Any], refused: str | None) -> None:
    rows = [Row(what=what, committed="", made="", answer=answer) for what, answer in found.items()]
    settled = {row.what: row.answer for row in compare.settle(rows)}
    assert settled == {**found, **({refused: "NO"} if refused else {})}
