"""`mnist diff` on clones with real results, and on copies whose results were changed."""

import csv
import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from tests.checkout import Clone, edit
from tests.e2e.conftest import Invoke

# pygtrie 2.5, a dependency of DVC, warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

TEST, PREDICTIONS = "metrics/test.json", "metrics/predictions.csv"
N = 300  # test images of the small data


def git(clone: Clone, *arguments: str) -> str:
    return clone.run("git", *arguments).stdout.strip()


def score(clone: Clone, num_wrong: int) -> None:
    """Change the first test images to wrong ones and the rest to right ones, and commit."""
    labels = [int(row["label"]) for row in csv.DictReader(clone.read(PREDICTIONS).splitlines())]
    predicted = [(label + (index < num_wrong)) % 10 for index, label in enumerate(labels)]
    lines = [f"{index},{label},{predicted[index]}\n" for index, label in enumerate(labels)]
    write(clone, PREDICTIONS, "index,label,predicted\n" + "".join(lines))
    scores = json.loads(clone.read(TEST))
    write(clone, TEST, json.dumps({**scores, "accuracy": round(1 - num_wrong / N, 6), "loss": num_wrong}))
    clone.commit(f"{num_wrong} wrong")


def write(clone: Clone, name: str, text: str) -> None:
    (clone.folder / name).write_text(text, encoding="utf-8")


def as_json(done: Result) -> dict[str, Any]:
    assert (done.exit_code, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_result_and_itself(trained_module: Clone, invoke: Invoke) -> None:
    state = git(trained_module, "status", "--short"), git(trained_module, "for-each-ref")
    found = as_json(invoke(trained_module, "diff", "--json", "--fail-if", "stale", "--max-drop", "0"))
    assert (found["base"], found["head"], found["head_commit"]) == ("main", "workspace", "")
    assert found["base_commit"] == git(trained_module, "rev-parse", "main")
    assert (found["outcome"], found["warnings"]) == ("within noise", [])
    assert found["problems"] == {"base": {}, "head": {}}
    assert (found["images"]["changed"], found["params"], found["code"]) == ([], [], [])
    scores = json.loads(trained_module.read(TEST))
    by_name = {metric["name"]: metric["head"] for metric in found["metrics"]}
    assert (by_name["accuracy"], by_name["loss"]) == (scores["accuracy"], scores["loss"])
    assert (git(trained_module, "status", "--short"), git(trained_module, "for-each-ref")) == state


def test_a_worse_network_and_its_gates(trained: Clone, invoke: Invoke) -> None:
    score(trained, 1)
    score(trained, 40)
    rows = [
        list(csv.DictReader(git(trained, "show", f"{name}:{PREDICTIONS}").splitlines()))
        for name in ("HEAD~1", "HEAD")
    ]
    right = [np.array([row["label"] == row["predicted"] for row in side]) for side in rows]

    found = as_json(invoke(trained, "diff", "HEAD~1", "HEAD", "--json"))

    assert found["outcome"] == "worse"
    assert found["images"]["broken"] == np.flatnonzero(right[0] & ~right[1]).tolist()
    assert found["images"]["change_pp"] == pytest.approx(-100 * 39 / N)
    report = invoke(trained, "diff", "HEAD~1", "HEAD")
    assert report.stdout.splitlines()[2].startswith("**Worse**: accuracy 99.67% → 86.67%, **-13.00 pp** (")
    assert re.search(r"\| `loss` ↓ +\| +1 \| +40 \| +\+39 \|", report.stdout)
    assert report.stderr == ""
    for gate in (["--fail-if", "not-comparable", "--fail-if", "worse"], ["--max-drop", "0.12"]):
        done = invoke(trained, "diff", "HEAD~1", "HEAD", *gate)
        assert (done.exit_code, done.stdout) == (1, report.stdout)
        assert done.stderr.startswith("gate: ")
    assert invoke(trained, "diff", "HEAD", "HEAD~1", "--fail-if", "worse", "--max-drop", "0").exit_code == 0


def test_make_diff_writes_the_report_and_stops_at_the_gate(trained: Clone) -> None:
    score(trained, 0)
    score(trained, 40)
    variables = ["BASE=HEAD~1", "HEAD=HEAD", "ARGS=--fail-if worse --output new/diff.md"]
    done = subprocess.run(
        ["make", "diff", *variables],
        cwd=trained.folder,
        env={**trained.environment, "MAKEFLAGS": ""},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2  # of make, whose recipe failed
    assert done.stdout == "new/diff.md: worse\n"
    assert "gate: " in done.stderr
    assert "**Worse**" in trained.read("new/diff.md")


def test_results_of_other_code_are_stale(trained: Clone, invoke: Invoke) -> None:
    edit(trained, "mnist/evaluation/scores.py", '"""', '"""Edited. ')
    (warning,) = as_json(invoke(trained, "diff", "HEAD", "--json"))["warnings"]
    assert "mnist/evaluation" in warning
    assert invoke(trained, "diff", "HEAD", "--fail-if", "stale").exit_code == 1
    assert invoke(trained, "diff", "HEAD", "HEAD", "--fail-if", "stale").exit_code == 0


def test_a_shallow_clone_fetches_its_base(trained: Clone, invoke: Invoke, tmp_path: Path) -> None:
    main = git(trained, "rev-parse", "main")
    git(trained, "checkout", "-qb", "x")
    score(trained, 40)
    shallow = dataclasses.replace(trained, folder=tmp_path / "shallow")
    git(trained, "clone", "-q", "--depth", "1", trained.folder.as_uri(), str(shallow.folder))
    before = git(shallow, "for-each-ref")

    found = as_json(invoke(shallow, "diff", "origin/main", "HEAD", "--json"))

    assert (found["base_commit"], found["outcome"]) == (main, "worse")
    assert (git(shallow, "for-each-ref"), git(shallow, "status", "--short")) == (before, "")
    assert git(shallow, "rev-list", "--count", main) == "1"


@pytest.mark.parametrize(
    "arguments",
    [["main", "--upload-pack=touch owned"], ["main:refs/heads/owned"], ["main", "--output", "metrics"]],
    ids=" ".join,
)
def test_errors(trained_module: Clone, invoke: Invoke, arguments: list[str]) -> None:
    before = git(trained_module, "for-each-ref")
    done = invoke(trained_module, "diff", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sum(line.lower().startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert git(trained_module, "for-each-ref") == before
    assert not (trained_module.folder / "owned").exists()
