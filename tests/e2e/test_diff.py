"""The command, as people type it: on a clone with real results, and on copies that were tampered with."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.repo import Repo
from dvc.rwlock import rwlock
from mlflow.entities import Run
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]

from mnist.cli import diff
from mnist.evaluation import results
from tests import checkout
from tests.checkout import Clone
from tests.conftest import SmallData

# pygtrie 2.5, of DVC, says so of itself; DVC then has no plots.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

TEST, PREDICTIONS = "metrics/test.json", "metrics/predictions.csv"
VALIDATION = "metrics/validation.json"
MODULE = [sys.executable, "-m", "mnist.cli.diff"]
N = 300  # test images of the small data


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    out: str
    err: str

    @property
    def verdict(self) -> str:
        return self.out.partition("\n\n**")[2].partition("**")[0]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("> ⚠ ")]

    @property
    def error(self) -> str:
        """The one line of an error, after it was seen that there is nothing else."""
        assert (self.status, self.out) == (2, "")
        (line,) = self.err.splitlines()
        assert line.startswith("ERROR: ")
        return line


def command(clone: Clone, *arguments: str, **environment: str) -> Done:
    """As a user runs it: in a process of its own."""
    done = subprocess.run(
        [*MODULE, *arguments],
        cwd=clone.folder,
        env={**clone.environment, **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def git(clone: Clone, *arguments: str) -> str:
    return clone.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments).stdout.strip()


def refs(clone: Clone) -> str:
    return git(clone, "for-each-ref")


def rows(clone: Clone, revision: str) -> np.ndarray[Any, Any]:
    """Label and prediction of each test image, int (N, 2), by means of git and csv alone."""
    table = list(csv.DictReader(git(clone, "show", f"{revision}:{PREDICTIONS}").splitlines()))
    return np.array([(int(row["label"]), int(row["predicted"])) for row in table])


def score(clone: Clone, num_wrong: int, *, first: int = 0) -> None:
    """Let so many of the test images be wrong, from the first on, in predictions and scores."""
    labels = rows(clone, "main")[:, 0]
    right = np.ones(N, bool)
    right[first : first + num_wrong] = False
    predicted = np.where(right, labels, (labels + 1) % 10)
    lines = [
        f"{index},{label},{seen}\n" for index, (label, seen) in enumerate(zip(labels, predicted, strict=True))
    ]
    write(clone, PREDICTIONS, "index,label,predicted\n" + "".join(lines))
    scores = json.loads(clone.read(TEST))
    scores |= {"accuracy": round(float(right.mean()), 6), "num_wrong": num_wrong}
    write(clone, TEST, json.dumps(scores))


def write(clone: Clone, name: str, text: str) -> None:
    path = clone.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def replace(clone: Clone, name: str, old: str, new: str) -> None:
    text = clone.read(name)
    assert old in text
    write(clone, name, text.replace(old, new, 1))


def branch(clone: Clone, name: str, change: Callable[[Clone], None]) -> None:
    """A branch of main with a change; main is checked out again."""
    git(clone, "checkout", "-qb", name, "main")
    change(clone)
    clone.commit(name)
    git(clone, "checkout", "-q", "main")


@pytest.fixture(scope="module")
def trained(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout with a good network on main, and a bad one on branch `worse`, from experiment `slow`.

    It is left as it is; MLflow's store, which knows both, lies beside it.
    """
    folder = tmp_path_factory.mktemp("trained") / "pipeline"
    made = checkout.clone(folder, small_data)
    made.dvc("repro")
    made.commit("What the pipeline made")
    made.dvc("exp", "run", "-n", "slow", "-S", "lr=0.001", "-S", "epochs=2")
    made.reset()
    made.dvc("exp", "branch", "slow", "worse")
    git(made, "tag", "v1", "main")
    (folder / "mlflow.db").rename(folder.parent / "mlflow.db")
    shutil.rmtree(folder / "mlartifacts")
    yield made
    shutil.rmtree(folder.parent)


@pytest.fixture
def clone(trained: Clone, tmp_path: Path) -> Clone:
    """A copy of it for one test, without store and cache."""
    made = dataclasses.replace(trained, folder=tmp_path / "pipeline")
    without = shutil.ignore_patterns("cache", "__pycache__", "mlspool", ".cache")
    shutil.copytree(trained.folder, made.folder, ignore=without)
    return made


Told = Callable[..., Done]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """The command within this process, which is faster by the time of its imports."""
    for variable in [name for name in os.environ if name.startswith(("DVC", "MLFLOW", "MNIST"))]:
        monkeypatch.delenv(variable)

    def run(clone: Clone, *arguments: str) -> Done:
        monkeypatch.chdir(clone.folder)
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", clone.environment["DVC_SITE_CACHE_DIR"])
        capsys.readouterr()
        status = 0
        try:
            diff.main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


# Verdict and numbers, with networks that were really trained


def test_a_revision_and_itself(trained: Clone, told: Told) -> None:
    done = told(trained, "main", "--head", "main", "--fail-if", "worse", "not-comparable", "--max-drop", "0")
    assert (done.status, done.err) == (0, "")
    assert done.verdict == "Within noise"
    assert "on both sides, and the same images right and wrong, of 300 test images." in done.out
    assert done.warnings == []
    assert not re.search("^### (Params|Stages|Confusion|Could not be read)", done.out, re.MULTILINE)
    assert "The same on both sides." in done.out
    images = json.loads(told(trained, "main", "--json").out)["images"]
    assert not any(one["is_beyond_noise"] for one in images["classes"])
    assert (images["fixed"], images["broken"], images["drop"]) == ([], [], 0)


def test_a_worse_network(trained: Clone) -> None:
    before = git(trained, "status", "--short", "--ignored"), refs(trained)

    done = command(trained, "main", "--head", "worse")

    assert (done.status, done.err) == (0, "")
    assert done.verdict == "Worse"
    assert "| `lr` " in done.out
    assert "`train`" in done.out
    assert "```mermaid" in done.out
    assert "The data are the same; 18 of 18 expectations hold on both sides." in done.out
    assert (git(trained, "status", "--short", "--ignored"), refs(trained)) == before


def test_the_numbers_are_those_of_the_files(trained: Clone, told: Told) -> None:
    done = told(trained, "main", "--head", "worse", "--json")
    found = json.loads(done.out)
    base, head = (rows(trained, name) for name in ("main", "worse"))
    right = [side[:, 0] == side[:, 1] for side in (base, head)]
    scores = [json.loads(git(trained, "show", f"{name}:{TEST}")) for name in ("main", "worse")]
    test = mcnemar([[0, (right[0] & ~right[1]).sum()], [(right[1] & ~right[0]).sum(), 0]], exact=True)

    assert (found["base_commit"], found["head_commit"]) == tuple(
        git(trained, "rev-parse", name) for name in ("main", "worse")
    )
    assert (found["outcome"], found["reason"]) == ("worse", "")
    images = found["images"]
    assert images["fixed"] == np.flatnonzero(right[1] & ~right[0]).tolist()
    assert images["broken"] == np.flatnonzero(right[0] & ~right[1]).tolist()
    assert images["paired"]["num_images"] == N
    assert (images["paired"]["fixed"], images["paired"]["broken"]) == tuple(
        len(images[name]) for name in ("fixed", "broken")
    )
    assert images["drop"] == pytest.approx(scores[0]["accuracy"] - scores[1]["accuracy"], abs=1e-6)
    assert images["paired"]["change_pp"] == pytest.approx(-100 * images["drop"])
    low, high = images["paired"]["interval_pp"]
    assert low < images["paired"]["change_pp"] < high < 0
    assert images["paired"]["p_two_sided"] == pytest.approx(test.pvalue)
    confusions = [np.zeros((10, 10), int) for _ in range(2)]
    for counts, side in zip(confusions, (base, head), strict=True):
        np.add.at(counts, tuple(side.T), 1)
    assert images["confusion"] == (confusions[1] - confusions[0]).tolist()
    assert [one["label"] for one in images["classes"]] == images["names"] == list("0123456789")
    for one in images["classes"]:
        recalls = [of["recall"][one["label"]] for of in scores]
        assert [one["base_recall"], one["head_recall"]] == pytest.approx(recalls, abs=1e-6)
        assert one["is_beyond_noise"] == (one["p"] < 0.05)
    by_name = {metric["name"]: metric for metric in found["metrics"]}
    for name in ("accuracy", "loss", "num_wrong", "expected_calibration_error"):
        assert (by_name[name]["base"], by_name[name]["head"]) == (scores[0][name], scores[1][name])
        assert by_name[name]["change"] == pytest.approx(scores[1][name] - scores[0][name])
    assert by_name["accuracy"]["interval"] == pytest.approx([low / 100, high / 100])
    assert by_name["loss"]["interval"] is None
    assert [(one["name"], one["base"], one["head"]) for one in found["params"]] == [
        ("epochs", 4, 2),
        ("lr", 0.02, 0.001),
    ]
    steps = next(cost for cost in found["costs"] if cost["name"] == "optimizer steps")
    assert (steps["base"], steps["head"]) == (252, 126)


def test_the_other_way_round_it_is_better(trained: Clone, told: Told) -> None:
    done = told(trained, "worse", "--head", "main", "--fail-if", "worse", "--max-drop", "0")
    assert (done.status, done.verdict) == (0, "Better")


def test_make_diff(clone: Clone) -> None:
    (clone.folder / ".venv").mkdir()
    (clone.folder / ".venv/installed").touch()  # or else it would set one up
    environment = {**clone.environment, "MAKEFLAGS": ""}
    variables = ["BASE=main", "HEAD=worse", "ARGS=--fail-if worse"]
    done = subprocess.run(
        ["make", "diff", *variables],
        cwd=clone.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2  # of make, whose recipe failed
    assert "gate: head is worse beyond noise" in done.stderr
    assert done.stdout.startswith("## `main` (")
    assert "**Worse**" in done.stdout


# Gates


@pytest.mark.parametrize(
    ("revisions", "gates", "reason"),
    [
        (("main", "worse"), ["--fail-if", "worse"], "head is worse beyond noise"),
        (
            ("main", "worse"),
            ["--fail-if", "worse", "--fail-if", "not-comparable"],
            "head is worse beyond noise",
        ),
        (("main", "worse"), ["--fail-if", "not-comparable"], None),
        (("main", "noise"), ["--fail-if", "worse"], None),
        # Of 300 images one was wrong and four are: 0.01.
        (("main", "noise"), ["--max-drop", "0.01"], None),
        (("main", "noise"), ["--max-drop", "0.0100001"], None),
        (("main", "noise"), ["--max-drop", "0.0099999"], "the accuracy dropped by 0.01, more than 0.0099999"),
        (
            ("main", "noise"),
            ["--fail-if", "worse", "--max-drop", "0"],
            "the accuracy dropped by 0.01, more than 0",
        ),
        (("noise", "main"), ["--max-drop", "0"], None),
        (("main", "silent"), ["--fail-if", "not-comparable"], "not comparable: no predictions"),
        (("silent", "main"), ["--fail-if", "not-comparable", "worse"], "not comparable: no predictions"),
        (("main", "silent"), ["--fail-if", "worse", "--max-drop", "0"], None),
    ],
    ids=lambda value: " ".join(value).replace("--", "") if isinstance(value, list | tuple) else "",
)
def test_gates(
    clone: Clone, told: Told, revisions: tuple[str, str], gates: list[str], reason: str | None
) -> None:
    score(clone, 1)
    clone.commit("one is wrong")
    if "noise" in revisions:
        branch(clone, "noise", lambda one: score(one, 4))
    if "silent" in revisions:
        branch(clone, "silent", lambda one: (one.folder / PREDICTIONS).unlink())

    done = told(clone, revisions[0], "--head", revisions[1], *gates)

    assert done.out.rstrip().endswith("|")  # the table of costs: the report is whole
    assert "### Metrics" in done.out
    if reason is None:
        assert (done.status, done.err) == (0, "")
    else:
        assert done.status == 1
        (line,) = done.err.splitlines()
        assert line.startswith(f"gate: {reason}")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--max-drop", value] for value in ("nan", "-1", "2", "a bit", "", "inf")),
        ["--fail-if", "better"],
        ["--fail-if"],
        ["--upload-pack=owned"],
        ["main", "worse"],
        ["--head"],
    ],
    ids=" ".join,
)
def test_options_that_are_none_are_a_usage_message(trained: Clone, told: Told, arguments: list[str]) -> None:
    done = told(trained, *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("usage: python -m mnist.cli.diff ")
    assert done.err.count("python -m mnist.cli.diff: error: ") == 1
    assert "_drop" not in done.err.splitlines()[-1].replace("max-drop", "")
    assert not (trained.folder / "owned").exists()


# Revisions


def test_names_of_revisions(trained: Clone, told: Told) -> None:
    full = git(trained, "rev-parse", "worse")
    before = refs(trained)
    for name in ("worse", "slow", full, full[:7], "HEAD"):
        done = told(trained, "v1", "--head", name)
        assert done.verdict == ("Within noise" if name == "HEAD" else "Worse"), name
        assert done.out.startswith("## `v1` (")
        assert done.warnings == []
    assert refs(trained) == before


def test_the_commit_before(clone: Clone, told: Told) -> None:
    score(clone, 40)
    clone.commit("worse")
    assert told(clone, "HEAD~1").verdict == "Worse"
    assert told(clone).verdict == "Within noise"  # main is what is checked out


def test_the_workspace_with_what_is_not_committed(clone: Clone, told: Told) -> None:
    score(clone, 40)
    done = told(clone, "main")
    assert done.verdict == "Worse"
    assert done.out.startswith("## `main` (")
    assert done.out.splitlines()[0].endswith(" → `workspace`")
    assert told(clone, "main", "--head", "HEAD").verdict == "Within noise"
    assert told(clone, "workspace", "--head", "main").verdict == "Better"


@pytest.mark.parametrize(
    "name", ["nowhere", "--upload-pack=touch owned", "-x", "a b", "main:refs/heads/owned", ""]
)
def test_a_name_of_nothing(trained: Clone, told: Told, name: str) -> None:
    before = refs(trained)
    for arguments in (["main", f"--head={name}"], ["--", name]):
        error = told(trained, *arguments).error
        assert error.startswith(f"ERROR: revision {name}".rstrip())
        assert error.endswith(", expected one that git or DVC knows")
    assert refs(trained) == before
    assert not (trained.folder / "owned").exists()


def test_a_branch_with_an_odd_name(clone: Clone, told: Told) -> None:
    name = 'it\'s-"größer"|`@team`-<b>#1'
    branch(clone, name, lambda one: score(one, 40))
    done = told(clone, "main", "--head", name)
    assert done.verdict == "Worse"
    assert done.out.splitlines()[0].endswith(f" → `` {name} `` ({git(clone, 'rev-parse', name)[:7]})")
    git(clone, "rm", "-q", PREDICTIONS)
    clone.commit("silent")
    reason = told(clone, "main", "--head", name).out.splitlines()[2]
    assert reason == "**Not comparable**: no predictions on the test images at main (no such file)."


@pytest.fixture
def origin(clone: Clone, tmp_path: Path) -> Clone:
    """A bare repository with the branches main, and `x`, which is 40 images worse and two commits ahead."""
    branch(clone, "x", lambda one: score(one, 20))
    git(clone, "checkout", "-q", "x")
    score(clone, 40)
    clone.commit("x")
    git(clone, "checkout", "-q", "main")
    bare = dataclasses.replace(clone, folder=tmp_path / "origin.git")
    git(clone, "clone", "-q", "--bare", str(clone.folder), str(bare.folder))
    return bare


def cloned(origin: Clone, *options: str) -> Clone:
    made = dataclasses.replace(origin, folder=origin.folder.parent / "cloned")
    git(origin, "clone", "-q", *options, origin.folder.as_uri(), str(made.folder))
    return made


@pytest.mark.parametrize("name", ["main", "origin/main", "by hash", "v1"])
def test_in_a_shallow_clone_the_base_is_fetched(origin: Clone, told: Told, name: str) -> None:
    made = cloned(origin, "--depth", "1", "--branch", "x")
    git(made, "config", "fetch.unpackLimit", "1")  # a pack, as of what is larger
    before, head = refs(made), git(made, "rev-parse", "HEAD")
    base = git(origin, "rev-parse", "main") if name == "by hash" else name

    done = told(made, base, "--head", "HEAD")

    assert (done.status, done.err) == (0, "")
    assert done.verdict == "Worse"
    assert "### Could not be read" not in done.out
    assert (refs(made), git(made, "rev-parse", "HEAD")) == (before, head)
    assert git(made, "status", "--short") == ""
    assert (
        git(made, "rev-list", "--count", base if name == "by hash" else git(origin, "rev-parse", "main"))
        == "1"
    )


def test_a_shallow_clone_that_has_the_base_keeps_its_history(origin: Clone, told: Told) -> None:
    made = cloned(origin, "--depth", "10", "--branch", "x")
    before = git(made, "rev-list", "--count", "HEAD")
    assert told(made, "main").verdict == "Worse"
    assert git(made, "rev-list", "--count", "HEAD") == before != "1"


def test_a_base_that_went_on_is_told(clone: Clone, told: Told) -> None:
    branch(clone, "behind", lambda one: write(one, "note.md", "x"))
    score(clone, 20)
    clone.commit("main goes on")
    done = told(clone, "main", "--head", "behind")
    assert any("1 commit of main not in behind" in warning for warning in done.warnings)
    assert not any("commit of" in warning for warning in told(clone, "behind~1", "--head", "behind").warnings)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda one: replace(one, TEST, '"loss": ', '"loss": 0.5, "other": '), "not what the pipeline wrote"),
        (lambda one: replace(one, "params.yaml", "momentum: 0.9", "momentum: 0.8"), "the results are old"),
    ],
    ids=["altered", "old"],
)
def test_a_gate_for_results_that_are_not_of_the_code(
    clone: Clone, told: Told, change: Callable[[Clone], None], warning: str
) -> None:
    assert told(clone, "HEAD", "--fail-if", "stale").status == 0
    change(clone)
    done = told(clone, "HEAD", "--fail-if", "stale")
    assert done.status == 1
    assert any(warning in line for line in done.warnings)


def test_a_pack_that_arrives_while_the_other_side_is_open(origin: Clone, told: Told) -> None:
    made = cloned(origin, "--depth", "1", "--branch", "x")
    git(made, "config", "fetch.unpackLimit", "1")
    assert told(made, "HEAD", "--head", "main").verdict == "Better"


def test_a_clone_of_one_branch_keeps_its_history(origin: Clone, told: Told) -> None:
    made = cloned(origin, "--single-branch", "--branch", "x")
    before = refs(made), git(made, "rev-list", "--count", "HEAD")
    assert told(made, "main").verdict == "Worse"
    assert (refs(made), git(made, "rev-list", "--count", "HEAD")) == before
    assert git(made, "rev-parse", "--is-shallow-repository") == "false"
    # What is at origin only, and not a branch:
    error = told(made, "nowhere").error
    assert "`git ls-remote origin nowhere`: no such branch or tag" in error


def test_without_a_remote_it_is_a_line(clone: Clone, told: Told) -> None:
    assert "'origin' does not appear to be a git repository" in told(clone, "nowhere").error


# Metrics that cannot be read, or are elsewhere

BROKEN = {
    "missing": (None, "no such file"),
    "no JSON": ('{"accuracy": 0.', "JSON file structure is corrupted"),
    "empty": ("", "JSON file structure is corrupted"),
    "a list": ("[1, 2]", "it holds no metric"),
}


def spoil(clone: Clone, name: str, text: str | None) -> None:
    if text is None:
        (clone.folder / name).unlink()
    else:
        write(clone, name, text)


@pytest.mark.parametrize("side", ["base", "head"])
@pytest.mark.parametrize(("text", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_metric_file_that_is_broken_on_one_side(
    clone: Clone, told: Told, text: str | None, reason: str, side: str
) -> None:
    branch(clone, "broken", lambda one: spoil(one, TEST, text))
    revisions = ["broken", "--head", "main"] if side == "base" else ["main", "--head", "broken"]
    done = told(clone, *revisions)
    assert (done.status, done.err) == (0, "")
    unreadable = done.out.partition("### Could not be read")[2].partition("###")[0]
    assert re.search(rf"\| `{TEST}` +\| `broken` +\| `.*{reason}", unreadable)
    assert unreadable.count(f"`{TEST}`") == 1
    metrics = done.out.partition("### Metrics")[2].partition("###")[0]
    accuracy = json.loads(clone.read(TEST))["accuracy"]
    values = [" - ", f" {accuracy:g} "] if side == "base" else [f" {accuracy:g} ", " - "]
    assert re.search(rf"\| `accuracy` ↑ +\| +{values[0].strip()} \| +{values[1].strip()} \| +- \|", metrics)
    assert "`val_loss`" in metrics
    assert done.verdict == "Within noise"  # the predictions are there


def test_a_metric_that_is_no_number(clone: Clone, told: Told) -> None:
    replace(clone, TEST, '"loss": ', '"loss": NaN, "other": ')
    done = told(clone, "main")
    assert (done.status, done.verdict) == (0, "Within noise")
    assert re.search(r"\| `loss` ↓ +\| +[0-9.e-]+ \| +nan \| +- \| +- \| +- \|", done.out)
    assert '"nan"' in told(clone, "main", "--json").out


def test_nothing_left_is_an_error(clone: Clone, told: Told) -> None:
    for name in (TEST, "metrics/train.json"):
        spoil(clone, name, "{}")
    clone.commit("nothing left")
    error = told(clone, "HEAD", "--output", "diff.md").error
    assert error.startswith("ERROR: metrics at HEAD and workspace: found none; ")
    assert f"{TEST} at HEAD: it holds no metric" in error
    assert not (clone.folder / "diff.md").exists()
    assert told(clone, "HEAD~1").status == 0


@pytest.mark.parametrize("where", ["commit", "workspace"])
def test_a_pipeline_that_is_broken_is_a_line(clone: Clone, told: Told, where: str) -> None:
    write(clone, "dvc.yaml", "stages:\n  train: [\n")
    if where == "commit":
        clone.commit("broken")
        git(clone, "checkout", "-q", "HEAD~1")
    error = told(clone, *(["v1", "--head", "main"] if where == "commit" else ["v1"])).error
    name = "main" if where == "commit" else "workspace"
    assert error.startswith(f"ERROR: dvc.yaml at {name}: found unable to read: 'dvc.yaml'")


def test_files_that_were_renamed_and_metrics_of_others(clone: Clone, told: Told) -> None:
    git(clone, "mv", TEST, "metrics/scores.json")
    git(clone, "mv", PREDICTIONS, "metrics/said.csv")
    for name in ("dvc.yaml", "dvc.lock"):
        text = clone.read(name).replace(TEST, "metrics/scores.json").replace(PREDICTIONS, "metrics/said.csv")
        write(clone, name, text)
    write(
        clone, "dvc.yaml", clone.read("dvc.yaml") + "metrics:\n  - mine/latency.yaml\n  - mine/other.json\n"
    )
    write(clone, "mine/latency.yaml", "gpu:\n  p99: 12.5\nbatch: 64\n")
    write(clone, "mine/other.json", '{"accuracy": 0.5, "deep": {"f1": 0.75}}')
    clone.commit("renamed")

    done = told(clone, "v1", "--head", "main", "--json")

    found = json.loads(done.out)
    assert found["outcome"] == "within noise"
    assert found["images"]["paired"]["num_images"] == N
    assert found["problems"] == {"base": {}, "head": {}}
    assert found["warnings"] == []
    by_name = {one["name"]: (one["base"], one["head"]) for one in found["metrics"]}
    accuracy = json.loads(clone.read("metrics/scores.json"))["accuracy"]
    # `accuracy` is in two files of head, so it is named with its file; the rest pairs by key.
    assert by_name[f"{TEST}: accuracy"] == (accuracy, None)
    assert by_name["metrics/scores.json: accuracy"] == (None, accuracy)
    assert by_name["mine/other.json: accuracy"] == (None, 0.5)
    assert by_name["gpu.p99"] == (None, 12.5)
    assert by_name["deep.f1"] == (None, 0.75)
    assert by_name["num_wrong"][0] == by_name["num_wrong"][1] is not None


# What cannot be compared


def other_images(clone: Clone) -> None:
    digest = json.loads(clone.read(VALIDATION))["test_sha256"]
    replace(clone, VALIDATION, digest, digest[::-1])


OBSTACLES: dict[str, tuple[Callable[[Clone], None], str]] = {
    "other images": (other_images, r"different test data: digest `\w{12}` at main, `\w{12}` at other\."),
    "fewer images": (
        lambda clone: write(clone, PREDICTIONS, clone.read(PREDICTIONS).rpartition("299,")[0]),
        "another split: 300 test images at main, 299 at other.",
    ),
    "other labels": (
        lambda clone: write(
            clone,
            PREDICTIONS,
            re.sub(
                r"^0,(\d),\d$",
                lambda row: f"0,{(int(row[1]) + 1) % 10},1",
                clone.read(PREDICTIONS),
                flags=re.MULTILINE,
            ),
        ),
        "different test data: 1 test images have another label.",
    ),
    "no predictions": (
        lambda clone: (clone.folder / PREDICTIONS).unlink(),
        r"no predictions on the test images at other \(no such file\).",
    ),
    "broken predictions": (
        lambda clone: write(
            clone, PREDICTIONS, re.sub("^7,.*$", "7,x", clone.read(PREDICTIONS), flags=re.MULTILINE)
        ),
        r"no predictions on the test images at other \(.*, line 9: found `'7,x'`, expected .*\).",
    ),
}


@pytest.mark.parametrize(("change", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_cannot_be_compared(
    clone: Clone, told: Told, change: Callable[[Clone], None], reason: str
) -> None:
    branch(clone, "other", change)
    done = told(clone, "main", "--head", "other")
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(rf"\*\*Not comparable\*\*: {reason}", done.out.splitlines()[2])
    assert "### Metrics" in done.out
    assert "### Test images" not in done.out
    if change is OBSTACLES["broken predictions"][0]:
        assert f"`{PREDICTIONS}, line 9: found '7,x', expected 7,class,class`" in done.out


# What is not to be believed


@pytest.mark.parametrize("where", ["commit", "workspace"])
def test_a_metric_that_was_edited_by_hand(clone: Clone, told: Told, where: str) -> None:
    score(clone, 40)
    replace(clone, TEST, f'"accuracy": {260 / 300:.6f}', '"accuracy": 0.99')
    if where == "commit":
        clone.commit("edited")
    done = told(clone, "v1", *(["--head", "main"] if where == "commit" else []), "--fail-if", "worse")
    assert (done.status, done.verdict) == (1, "Worse")
    name = "main" if where == "commit" else "workspace"
    contradiction, altered = done.warnings
    assert altered == f"> ⚠ at {name} this is not what the pipeline wrote: `{TEST}`, `{PREDICTIONS}`"
    assert contradiction == (
        f"> ⚠ at {name} the metric accuracy is 0.99, but the predictions give 0.866667: "
        "one of the files is altered. The verdict is by the predictions."
    )


EDITS: dict[str, tuple[str, str, str, list[str]]] = {
    "param": ("params.yaml", "lr: 0.02", "lr: 0.03", ["train (lr)"]),
    "code": ("mnist/evaluation/scores.py", '"""', '"""Edited. ', ["evaluate (`mnist/evaluation/scores.py`)"]),
    "command": (
        "dvc.yaml",
        "cmd: python -m stages.evaluate",
        "cmd: python  -m stages.evaluate",
        ["evaluate (its command)"],
    ),
    "code of register alone": ("mnist/tracking/courier.py", '"""', '"""Edited. ', []),
    "nobody's param": ("params.yaml", "alpha: 0.05", "alpha: 0.01", []),
}


@pytest.mark.parametrize("where", ["commit", "workspace"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_old_results_are_told(
    clone: Clone, told: Told, edit: tuple[str, str, str, list[str]], where: str
) -> None:
    file, old, new, stages = edit
    replace(clone, file, old, new)
    if where == "commit":
        clone.commit("edited, not run")
    done = told(clone, "v1", *(["--head", "main"] if where == "commit" else []))
    name = "main" if where == "commit" else "workspace"
    assert done.warnings == [
        f"> ⚠ at {name} the results are old (run dvc repro), since this changed: {stage}" for stage in stages
    ]
    assert done.verdict == "Within noise"


def test_stages_that_came_went_and_changed(clone: Clone, told: Told) -> None:
    pipeline = clone.read("dvc.yaml")
    start = pipeline.index("  # Its out is neither")
    end = pipeline.index("plots:\n  - Accuracy")
    new = "  report:\n    cmd: 'true'\n    deps: [README.md]\n\n"
    write(clone, "dvc.yaml", pipeline[:start] + new + pipeline[end:])
    replace(clone, "dvc.yaml", "cmd: python -m stages.stats", "cmd: python  -m stages.stats")
    lock = clone.read("dvc.lock")
    old = re.search(r"path: mnist/model\.py\n +hash: md5\n +md5: (\w{32})", lock)
    data = re.search(r"path: data/stats\.json\n +hash: md5\n +md5: (\w{32})", lock)
    assert old
    assert data
    write(clone, "dvc.lock", lock.replace(old[1], "a" * 32).replace(data[1], "b" * 32))
    clone.commit("changed")
    done = told(clone, "v1", "--head", "main", "--json")
    assert done.err == ""
    found = json.loads(done.out)
    changed = {one["name"]: one for one in found["stages"]}
    assert {name: one["side"] for name, one in changed.items()} == {
        "stats": "both",
        "train": "both",
        "evaluate": "both",
        "register": "base",
        "report": "head",
    }
    assert changed["stats"]["is_cmd"]
    assert not changed["train"]["is_cmd"]
    assert (changed["train"]["code"], changed["train"]["data"]) == (
        ["mnist/training/model.py"],
        ["data/stats.json"],
    )
    assert (changed["evaluate"]["code"], changed["evaluate"]["data"]) == (["mnist/training/model.py"], [])


# MLflow


def timings(out: str) -> tuple[str, str] | None:
    found = re.search(r"\| training seconds +\| +(\S+) \| +(\S+) \|", out)
    return (found[1], found[2]) if found else None


def run_of(clone: Clone, revision: str) -> Run:
    """The run that evaluated just this, found without the tool."""
    digests = [
        hashlib.sha256(
            subprocess.run(
                ["git", "show", f"{revision}:{name}"], cwd=clone.folder, capture_output=True, check=True
            ).stdout
        ).hexdigest()
        for name in (TEST, PREDICTIONS)
    ]
    (run,) = [
        run
        for run in clone.runs()
        if run.data.tags["evaluation_sha256"] == results.evaluation_sha256(*digests)
    ]
    return run


def test_training_seconds_are_what_mlflow_knows(trained: Clone, clone: Clone) -> None:
    clone.store = "../kept.db"
    shutil.copy(trained.folder.parent / "mlflow.db", clone.folder / clone.store)
    branch(clone, "edited", lambda one: score(one, 40))
    seconds = [run_of(clone, name).data.metrics["training_seconds"] for name in ("main", "worse")]
    uri = f"sqlite:///{clone.folder.parent}/kept.db"

    both, one = (
        command(clone, "main", "--head", name, MLFLOW_TRACKING_URI=uri) for name in ("worse", "edited")
    )

    assert (both.status, both.err) == (one.status, one.err) == (0, "")
    base, head = (f"{value:,.1f}" for value in seconds)
    assert timings(both.out) == (base, head)
    assert timings(one.out) == (base, "-")
    assert one.verdict == "Worse"
    assert not (clone.folder / "mlflow.db").exists()


def test_where_there_is_no_store_none_is_made(clone: Clone) -> None:
    before = sorted(path.name for path in clone.folder.iterdir())
    done = command(clone, "main", "--head", "worse")
    assert (done.status, done.err, timings(done.out)) == (0, "", None)
    assert sorted(path.name for path in clone.folder.iterdir() if path.name != "__pycache__") == before


def test_where_mlflow_is_down_the_report_does_without(clone: Clone) -> None:
    start = time.monotonic()
    done = command(clone, "main", "--head", "worse", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert time.monotonic() - start < 40
    assert (done.status, done.verdict, timings(done.out)) == (0, "Worse", None)
    (line,) = done.err.splitlines()
    assert line.startswith("no training seconds: MLflow at http://127.0.0.1:9 does not answer")


def test_a_server_that_never_answers_costs_some_seconds(clone: Clone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        start = time.monotonic()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        done = command(clone, "main", "--head", "worse", MLFLOW_TRACKING_URI=url)
    assert time.monotonic() - start < 20  # MLflow alone would wait for 10 s, twice
    assert (done.status, done.verdict, timings(done.out)) == (0, "Worse", None)
    assert done.err == f"no training seconds: no answer in {diff.PATIENCE_SECONDS} s\n"


# Where it writes, where it runs


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["Markdown", "JSON"])
def test_the_output_is_the_report(clone: Clone, told: Told, options: list[str]) -> None:
    printed = told(clone, "main", "--head", "worse", *options)
    done = told(clone, "main", "--head", "worse", "--output", "new/diff.md", "--fail-if", "worse", *options)
    assert done.status == 1
    assert (clone.folder / "new/diff.md").read_text(encoding="utf-8") == printed.out
    assert done.out == "new/diff.md: worse\n"
    assert [path.name for path in (clone.folder / "new").iterdir()] == ["diff.md"]


def test_what_is_no_file_is_written_to_and_not_replaced(clone: Clone, told: Told) -> None:
    printed = told(clone, "main", "--head", "worse").out
    (clone.folder / "real.md").write_text("old")
    (clone.folder / "link.md").symlink_to("real.md")
    told(clone, "main", "--head", "worse", "--output", "link.md")
    assert (clone.folder / "link.md").is_symlink()
    assert (clone.folder / "real.md").read_text(encoding="utf-8") == printed
    pipe = clone.folder / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        told(clone, "main", "--head", "worse", "--output", "pipe")
        assert reader.communicate()[0].decode() == printed
    assert pipe.is_fifo()
    assert told(clone, "main", "--head", "worse", "--output", "-").out == printed
    assert "--output: found nothing" in told(clone, "main", "--output", "").error


@pytest.mark.parametrize("place", ["a folder", "below a file", "unwritable"])
def test_an_output_that_cannot_be_written_is_a_line(clone: Clone, told: Told, place: str) -> None:
    target = {"a folder": "metrics", "below a file": "README.md/diff.md", "unwritable": "/proc/diff.md"}[
        place
    ]
    before = sorted(path.name for path in clone.folder.iterdir())
    error = told(clone, "main", "--head", "worse", "--output", target).error
    assert target.removesuffix("diff.md").rstrip("/") in error
    assert sorted(path.name for path in clone.folder.iterdir()) == before
    assert clone.read("README.md")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["C", "POSIX", "ASCII"],
)
def test_any_locale_and_a_pipe(trained: Clone, environment: dict[str, str]) -> None:
    env = {key: value for key, value in trained.environment.items() if not key.startswith(("LC_", "LANG"))}
    done = subprocess.run(
        [*MODULE, "main", "--head", "worse"],
        cwd=trained.folder,
        env={**env, **environment},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"**Worse**: accuracy " in done.stdout
    assert done.stdout.endswith(b"|\n")


def test_in_a_subfolder_and_outside_it_is_a_line(clone: Clone, told: Told, tmp_path: Path) -> None:
    inside = dataclasses.replace(clone, folder=clone.folder / "metrics")
    assert "found a folder in " in told(inside, "main").error
    outside = dataclasses.replace(clone, folder=tmp_path / "elsewhere")
    outside.folder.mkdir()
    error = told(outside, "main").error
    assert error.startswith(f"ERROR: {outside.folder}: found you are not inside of a DVC repository")


def test_while_another_command_of_dvc_holds_its_locks(clone: Clone) -> None:
    score(clone, 40)
    with contextlib.ExitStack() as stack, Repo(str(clone.folder)) as repo:
        stack.enter_context(repo.lock)
        paths = [str(clone.folder / name) for name in (TEST, PREDICTIONS, "dvc.lock")]
        stack.enter_context(rwlock(repo.tmp_dir, repo.fs, "dvc repro", [], paths, False))
        # They are held indeed: another command of DVC's gives up.
        refused = clone.run("dvc", "checkout", check=False)
        assert refused.returncode != 0
        assert "Unable to acquire lock" in refused.stdout
        done = command(clone, "main")
    assert (done.status, done.err, done.verdict) == (0, "", "Worse")
