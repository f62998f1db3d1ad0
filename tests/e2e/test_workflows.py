"""The workflows in .github: what holds for the files, and what their jobs come to, on small data."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from mnist.core import files
from mnist.evaluation import scores
from tests import checkout, runner
from tests.checkout import ROOT, Clone, edit
from tests.conftest import DIGITS, SmallData
from tests.runner import BIN, FOLDER, Caches, Job, gitlab, lines_of, steps, workflow

FILES = sorted(FOLDER.glob("*.yml"))
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
NUMBER = 7


# What holds for the files, before anything is run.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_and_say_their_version(path: Path) -> None:
    used = [line.strip() for line in path.read_text().splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert used
    for line in used:
        assert re.fullmatch(r"uses: actions/[a-z/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version() -> None:
    text = "\n".join(path.read_text() for path in FILES)
    pins = set(re.findall(r"uses: (actions/[a-z-]+)[a-z/-]*@([0-9a-f]{40} # \S+)", text))
    assert len(pins) == len({action for action, _ in pins})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rights_and_limits(path: Path) -> None:
    described = workflow(path.name)
    assert described["permissions"] == {}
    limits = [one["concurrency"] for one in (described, *described["jobs"].values()) if "concurrency" in one]
    assert [set(limit) for limit in limits] == [{"group", "cancel-in-progress"}]
    for job in described["jobs"].values():
        assert job["timeout-minutes"] <= 60
        wanted = {"contents": "read"}
        if path.name == "comment.yml":
            wanted = {"actions": "read", "pull-requests": "write"}
        assert job["permissions"] == wanted
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_who_runs_whose_code() -> None:
    pull_request, comment, main = (workflow(f"{name}.yml") for name in ("pull-request", "comment", "main"))
    assert pull_request["on"] == {"pull_request": None}
    assert "secrets." not in (FOLDER / "pull-request.yml").read_text()
    assert comment["on"]["workflow_run"] == {"workflows": [pull_request["name"]], "types": ["completed"]}
    assert [step["uses"].partition("@")[0] for step in steps("comment.yml") if "uses" in step] == [
        "actions/download-artifact"
    ]
    assert main["on"] == {"push": {"branches": ["main"]}}
    # Whoever waits for approval holds up no verification.
    assert main["jobs"]["register"]["environment"]
    assert main["jobs"]["register"]["concurrency"] == {"group": "register", "cancel-in-progress": False}
    for step in main["jobs"]["reproduce"]["steps"]:
        assert "secrets." not in str(step)
    for step in main["jobs"]["register"]["steps"]:
        wants = re.search(r"make (repro|promote)|TRACKING_URI is not set", step.get("run", ""))
        assert ("secrets." in str(step)) == bool(wants), step["name"]
    # What a pull request made is not kept for anybody.
    assert not [
        step for step in steps("pull-request.yml") if step.get("uses", "").startswith("actions/cache@")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_lines(path: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for lines in lines_of(path.name):
        assert lines.startswith("set -euo pipefail\n")
        assert "${{" not in lines  # an expression in a script is a hole: it comes by a variable
        for target in re.findall(r"(?:^ *|`)make ([a-z]+)", lines, re.MULTILINE):
            assert target in targets
        for module in re.findall(r"-m (tools\.\w+)", lines):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        shellcheck(lines)


def test_no_machine_is_named() -> None:
    for path in [*FILES, FOLDER.parent / "dependabot.yml", ROOT / "docs/continuous-integration.md"]:
        assert not re.search(r"/(work|root|home|Users)/|pypi|index-url", path.read_text(), re.IGNORECASE)


def shellcheck(lines: str) -> None:
    done = subprocess.run([str(BIN / "shellcheck"), "--shell=bash", "-"], input=lines, text=True, check=False)
    assert done.returncode == 0


def linters() -> list[str]:
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    lines = [line.strip() for line in recipe.splitlines()[1:]]
    return [line for line in lines if line.startswith(("zizmor", "check-jsonschema"))]


def lint(folder: Path) -> list[int]:
    """The exit statuses of what `make lint` runs on the workflows in `folder`, without network."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return [
        subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, check=False
        ).returncode
        for line in linters()
    ]


def test_make_lint_reads_the_workflows(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    assert lint(tmp_path) == [0, 0, 0]
    file = tmp_path / ".github/workflows/pull-request.yml"
    text = file.read_text()
    file.write_text(text.replace("make lint", 'make lint "${{ github.event.pull_request.title }}"'))
    assert lint(tmp_path)[0] != 0
    file.write_text(text.replace("timeout-minutes: 45", "timeout-minute: 45", 1))
    assert lint(tmp_path)[1] != 0
    (tmp_path / ".github/dependabot.yml").write_text("version: 3\n")
    assert lint(tmp_path)[2] != 0


# The pipeline.


@pytest.fixture(scope="module")
def main_branch(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project on small data with its results committed, and what DVC has of them."""
    made = checkout.clone(tmp_path_factory.mktemp("main") / "pipeline", small_data)
    made.dvc("repro")
    made.commit("What the pipeline made")
    for name in ("mlartifacts", "mlspool"):
        shutil.rmtree(made.folder / name, ignore_errors=True)
    (made.folder / "mlflow.db").unlink()  # it names the folder
    return made


@dataclass(kw_only=True)
class PullRequest:
    """One that GitHub has merged for a test; its branch is in `author`.

    Attributes:
        folder: for all of it.
        author: the checkout of whoever makes it.
        base: the branch that it goes to.
    """

    folder: Path
    author: Clone
    base: str = "main"

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    def git(self, *arguments: str) -> str:
        return self.author.run(*GIT, *arguments).stdout.strip()

    def open(self, *, fork: bool = False) -> None:
        """Commit, and push what GitHub has of it: of a fork, only the merge."""
        self.author.commit("A change")
        self.git("branch", "-m", "change")
        if not fork:
            self.git("push", "-q", str(self.origin), "change")
        self.git("fetch", "-q", str(self.origin), self.base)
        self.git("checkout", "-q", "--detach", "FETCH_HEAD")
        self.git("merge", "-q", "--no-ff", "-m", "Merge", "change")
        self.git("push", "-q", str(self.origin), f"HEAD:refs/pull/{NUMBER}/merge")

    def check(self, caches: Caches | None = None) -> Job:
        """Run the job with the pipeline, as far as the report and the gate."""
        event = {"number": NUMBER, "base": {"ref": self.base}}
        return Job(
            folder=self.folder / "runner",
            file="pull-request.yml",
            job="pipeline",
            github={"event": {"pull_request": event}},
            actions={
                "actions/checkout": partial(runner.check_out, self.origin, f"refs/pull/{NUMBER}/merge"),
                "actions/setup-python": runner.nothing,
                "actions/cache/restore": (caches or Caches()).restore,
                "actions/upload-artifact": partial(runner.upload, self.folder / "artifacts"),
            },
            variables=runner.runner_variables(self.folder),
        ).run()

    def artifact(self, name: str) -> str:
        return (self.folder / "artifacts/metric-diff" / name).read_text()


def key_of(folder: Path) -> str:
    return f"pipeline-Linux-X64-{hashlib.sha256((folder / 'dvc.lock').read_bytes()).hexdigest()}"


@pytest.fixture
def caches(main_branch: Clone) -> Caches:
    """With what main has."""
    return Caches(kept={key_of(main_branch.folder): main_branch.folder})


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return runner.comment_module(tmp_path_factory.mktemp("script"))


@pytest.fixture
def pull_request(main_branch: Clone, tmp_path: Path) -> PullRequest:
    shutil.copytree(main_branch.folder, tmp_path / "author", symlinks=True)
    author = dataclasses.replace(main_branch, folder=tmp_path / "author")
    author.environment = author.environment | {"DVC_SITE_CACHE_DIR": str(tmp_path / "author-site-cache")}
    made = PullRequest(folder=tmp_path, author=author)
    made.git("init", "-q", "--bare", str(made.origin))
    made.git("push", "-q", str(made.origin), "main", "main:release")
    return made


VERIFY = "Verify: what is committed is what the code makes"
DIFF, UPLOAD = "Compare with the base", "Hand the report to the workflow that comments"
GATE = "Gate: the model is not worse than that of the base"


def outcomes(job: Job) -> dict[str, str]:
    return {name: job.outcomes[name] for name in (VERIFY, "Reproduce", DIFF, UPLOAD, GATE)}


def all_but(*failures: str) -> dict[str, str]:
    names = (VERIFY, "Reproduce", DIFF, UPLOAD, GATE)
    return {name: "failure" if name in failures else "success" for name in names}


def test_a_fork_whose_base_is_another_branch_that_moved_on(pull_request: PullRequest) -> None:
    pull_request.base = "release"
    author = pull_request.author
    # Meanwhile on the base: not to be charged to this pull request.
    edit(author, "params.yaml", "model_name: '{dataset}-simplecnn'", "model_name: other")
    edit(author, "dvc.lock", "registry.model_name: '{dataset}-simplecnn'", "registry.model_name: other")
    author.commit("On the base")
    pull_request.git("push", "-q", str(pull_request.origin), "HEAD:release")
    pull_request.git("reset", "-q", "--hard", "HEAD~")
    edit(author, "params.yaml", "alpha: 0.05", "alpha: 0.01")  # which no stage reads
    pull_request.open(fork=True)
    job = pull_request.check()
    assert outcomes(job) == all_but(), job.said
    assert pull_request.artifact("number.txt") == "7\n"
    report = pull_request.artifact("report.md")
    assert re.match(r"## `origin/release` \(\w{7}\) → `pull-7` \(\w{7}\)\n", report)
    assert "| `registry.alpha` |" in report
    assert "model_name" not in report
    assert "[!WARNING]" not in report
    assert job.summary == report


def test_a_worse_model_that_was_not_run(
    pull_request: PullRequest, main_branch: Clone, caches: Caches, script: ModuleType
) -> None:
    edit(pull_request.author, "params.yaml", "lr: 0.02", "lr: 0.0001")
    pull_request.open()
    job = pull_request.check(caches)
    assert outcomes(job) == all_but(VERIFY, GATE), job.said
    assert "::error title=Verify::The committed results are not what the code makes" in job.said[VERIFY]
    assert "### The committed results are not what the code makes\n\n~~~text\n" in job.summary
    assert "does not hold" in job.summary
    assert "::error title=Gate::The model is worse than that of the base" in job.said[GATE]
    key = key_of(main_branch.folder)
    assert caches.asked == [(key, key)]
    report = pull_request.artifact("report.md")
    # What the code makes, not what is committed: that is the same on both sides.
    said = (
        "> [!WARNING]\n> What follows are the results of this run, not the committed ones: those did not hold"
    )
    assert report.startswith(said)
    assert "**Worse**" in report
    assert "| `lr`" in report
    assert "```mermaid\n" in report
    assert job.summary.endswith(report)
    # The comment has it as it is.
    assert script.defused(report, 60_000) == report


def test_metrics_edited_and_broken_and_a_deleted_stage(pull_request: PullRequest, caches: Caches) -> None:
    author = pull_request.author
    accuracy = json.loads(author.read("metrics/test.json"))["accuracy"]
    edit(author, "metrics/test.json", f'"accuracy": {accuracy}', '"accuracy": 0.99875')
    (author.folder / "metrics/train.json").write_text('{"val_accuracy": 0.9')
    yaml = YAML()
    for name in ("dvc.yaml", "dvc.lock"):
        described = yaml.load(author.folder / name)
        del described["stages"]["register"]
        yaml.dump(described, author.folder / name)
    pull_request.open()
    job = pull_request.check(caches)
    assert outcomes(job) == all_but(VERIFY), job.said
    assert "0.99875" in job.summary
    assert "metrics/train.json" in job.summary
    report = pull_request.artifact("report.md")
    assert "[!WARNING]" in report
    assert "the same images right and wrong" in report  # what the code made
    assert "0.99875" not in report
    assert "Could not be read" not in report
    assert "`register` (removed)" in report


def test_a_pipeline_that_fails(pull_request: PullRequest, caches: Caches) -> None:
    edit(pull_request.author, "params.yaml", "batch_size: 16", "batch_size: 0")
    pull_request.open()
    job = pull_request.check(caches)
    assert outcomes(job)[VERIFY] == outcomes(job)["Reproduce"] == "failure"
    assert outcomes(job)[UPLOAD] == "success"
    assert "::error title=Verify::It could not be found out" in job.said[VERIFY]
    assert "batch_size: found 0" in job.said["Reproduce"]
    report = pull_request.artifact("report.md")
    assert report.startswith("> [!WARNING]\n> The pipeline failed in this run")
    # What is committed is not shown for what the code made.
    assert "metrics/test.json" in report
    assert outcomes(job)[GATE] == "failure"
    assert pull_request.artifact("number.txt") == "7\n"


# A mistake in the code, by which the first six images that were right are wrong.
MISTAKE = """    log_probs_NK = np.array(log_probs_NK)
    for index in np.flatnonzero(log_probs_NK.argmax(1) == test.labels_N)[:6]:
        log_probs_NK[index] = np.roll(log_probs_NK[index], 1)
"""


def test_results_edited_by_as_much_as_the_tolerances_allow(pull_request: PullRequest, caches: Caches) -> None:
    author = pull_request.author
    was = author.read("metrics/predictions.csv")
    scored = "    scores = scoring.score(log_probs_NK"
    edit(author, "stages/evaluate.py", scored, MISTAKE + scored)
    assert author.dvc("repro") == ["evaluate", "register"]
    # Weights, losses and a picture as if of another machine; and half of the mistakes are corrected by
    # hand, in other classes each, with the scores to it.
    weights = author.folder / "models/model.safetensors"
    stored = weights.read_bytes()
    weights.unlink()  # DVC's cache may have the same inode
    weights.write_bytes(stored[:-4] + bytes([stored[-4] ^ 1]) + stored[-3:])
    loss = json.loads(author.read("metrics/train.json"))["val_loss"]
    edit(author, "metrics/train.json", f'"val_loss": {loss}', f'"val_loss": {loss + 1e-6:.6f}')
    for name, column in (("metrics/history.csv", 4), ("metrics/steps.csv", 3)):
        cell = author.read(name).splitlines()[1].split(",")[column]
        edit(author, name, f",{cell},", f",{float(cell) + 1e-6:.6f},")
    with (author.folder / "metrics/plots/errors.png").open("ab") as stream:
        stream.write(b"\n")
    correct_by_hand(author.folder, was, num_images=3)
    author.run("dvc", "commit", "--force")
    pull_request.open()
    gate = ["-m", "mnist.cli.diff", "HEAD^1", "--head", "change", "--fail-if", "worse"]
    assert "Within noise" in author.run("python", *gate).stdout  # where it is believed

    job = pull_request.check(caches)
    # Another dvc.lock than that of main, whose cache is the nearest.
    assert caches.asked == [(key_of(author.folder), *caches.kept)]
    assert job.said[VERIFY].splitlines()[-1].startswith("holds within the tolerances: "), job.said[VERIFY]
    assert outcomes(job) == all_but(GATE), job.said
    report = pull_request.artifact("report.md")
    said = "> [!NOTE]\n> What follows are the results of this run, not the committed ones: those hold within"
    assert report.startswith(said)
    assert "**Worse**" in report
    assert "-2.00 pp" in report  # six of 300 images, not three
    assert "::error title=Gate::The model is worse than that of the base" in job.said[GATE]


def correct_by_hand(folder: Path, was: str, *, num_images: int) -> None:
    """Put back rows of the predictions, one of a class at most, and make the scores fit them."""
    file = folder / "metrics/predictions.csv"
    rows, before = (list(csv.DictReader(text.splitlines())) for text in (file.read_text(), was))
    corrected: set[str] = set()
    for row, right in zip(rows, before, strict=True):
        if row != right and row["label"] not in corrected and len(corrected) < num_images:
            row["predicted"] = right["predicted"]
            corrected.add(row["label"])
    assert len(corrected) == num_images
    predicted_N, labels_N = (np.array([int(row[key]) for row in rows]) for key in ("predicted", "label"))
    labels_N, classes = labels_N.astype(np.uint8), DIGITS.classes
    scores.write_predictions(file, labels_N=labels_N, predicted_N=predicted_N, classes=classes)
    told = json.loads((folder / "metrics/test.json").read_text())
    certain_NK = np.eye(10, dtype=np.float32)[predicted_N]
    counted = scores.score(certain_NK, labels_N, classes=classes).model_dump()
    kept = {key: told[key] for key in ("loss", "expected_calibration_error")}
    files.write_json(folder / "metrics/test.json", counted | kept)


@pytest.mark.parametrize(
    ("broken", "failed", "skipped"),
    [
        ("", [], []),
        ("lint", ["Lint"], []),
        ("lint test", ["Lint", "Test"], []),
        ("setup", ["Set up the environment"], ["Lint", "Test"]),
    ],
    ids=["all well", "lint fails", "both fail", "no environment"],
)
def test_lint_and_tests_both_report(
    pull_request: PullRequest, tmp_path: Path, broken: str, failed: list[str], skipped: list[str]
) -> None:
    pull_request.git("push", "-q", str(pull_request.origin), f"HEAD:refs/pull/{NUMBER}/merge")
    commands = tmp_path / "commands"
    commands.mkdir()
    # In place of the real one, which lints and tests for minutes.
    (commands / "make").write_text(
        f'#!/bin/sh\necho "make $*"\ncase " {broken} " in *" $1 "*) exit 2 ;; esac\n'
    )
    (commands / "make").chmod(0o755)
    variables = runner.runner_variables(tmp_path)
    job = Job(
        folder=tmp_path / "runner",
        file="pull-request.yml",
        job="code",
        github={"event": {"pull_request": {"number": NUMBER}}},
        actions={
            "actions/checkout": partial(runner.check_out, pull_request.origin, f"refs/pull/{NUMBER}/merge"),
            "actions/setup-python": runner.nothing,
        },
        variables=variables | {"PATH": f"{commands}{os.pathsep}{variables['PATH']}"},
    ).run()
    assert [name for name, outcome in job.outcomes.items() if outcome == "failure"] == failed
    assert [name for name, outcome in job.outcomes.items() if outcome == "skipped"] == skipped
    ran = {"Set up the environment": "make setup\n", "Lint": "make lint\n", "Test": "make test\n"}
    assert job.said == {name: said for name, said in ran.items() if name not in skipped}


# What is on main.

EARLIER = ".dvc/cache/files/md5/00/112233445566778899aabbccddeeff"
REGISTER = "Register"
PROMOTE = "Promote: the challenger becomes the champion, if it is not worse"


def main_job(job: str, main_branch: Clone, folder: Path, *, uri: str = "", caches: Caches) -> Job:
    origin = folder / "origin.git"
    if not origin.exists():
        subprocess.run(["git", "clone", "-q", "--bare", str(main_branch.folder), str(origin)], check=True)
    return Job(
        folder=folder / job,
        file="main.yml",
        job=job,
        github={},
        secrets={
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": "",
            "MLFLOW_TRACKING_PASSWORD": "",
        },
        actions={
            "actions/checkout": partial(runner.check_out, origin, "refs/heads/main"),
            "actions/setup-python": runner.nothing,
            "actions/cache": caches.keep,
            "actions/cache/restore": caches.restore,
        },
        variables=runner.runner_variables(folder),
    ).run()


def test_main_reproduces_and_then_registers_what_it_made(main_branch: Clone, tmp_path: Path) -> None:
    old = tmp_path / "old"
    (old / EARLIER).parent.mkdir(parents=True)
    (old / EARLIER).write_text("of an earlier commit")
    caches = Caches(kept={"pipeline-Linux-X64-old": old})
    job = main_job("reproduce", main_branch, tmp_path, caches=caches)
    assert set(job.outcomes.values()) == {"success"}, job.said
    key = key_of(main_branch.folder)
    assert caches.asked == [(key, "pipeline-Linux-X64-old")]
    assert list(caches.kept) == ["pipeline-Linux-X64-old", key]
    assert job.said[VERIFY].splitlines()[-1].startswith("holds: ")
    assert (caches.kept[key] / EARLIER).exists()

    job = main_job("register", main_branch, tmp_path, uri=f"sqlite:///{tmp_path}/server.db", caches=caches)
    assert set(job.outcomes.values()) == {"success"}, job.said
    assert caches.asked[1:] == [(key, key)]
    ran = re.findall(r"^> python -m stages\.(\w+)", job.said[REGISTER], re.MULTILINE)
    assert "train" not in ran  # what was made before is taken
    assert "register" in ran
    assert "`champion` is version 1 now" in job.said[PROMOTE]
    assert job.summary == ""


def test_main_without_a_server(main_branch: Clone, tmp_path: Path, caches: Caches) -> None:
    job = main_job("register", main_branch, tmp_path, caches=caches)
    first, *others = job.outcomes.values()
    assert first == "success"
    assert set(others) == {"skipped"}
    assert job.summary == "The secret MLFLOW_TRACKING_URI is not set: nothing is registered or promoted\n"


def test_main_with_a_server_that_is_down(main_branch: Clone, tmp_path: Path, caches: Caches) -> None:
    job = main_job("register", main_branch, tmp_path, uri="http://127.0.0.1:9", caches=caches)
    assert job.outcomes[REGISTER] == "failure"
    assert job.outcomes[PROMOTE] == "skipped"
    assert "the result waits in mlspool/" in job.said[REGISTER]  # `register` itself succeeds


def test_main_promotes_no_model_but_its_own(main_branch: Clone, tmp_path: Path, caches: Caches) -> None:
    uri = f"sqlite:///{tmp_path}/server.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model(checkout.NAME, tags={"challenger_time_ms": str(10**14)})  # a newer one
    client.create_model_version(checkout.NAME, str(tmp_path), tags={"weights_sha256": "0" * 64})
    client.set_registered_model_alias(checkout.NAME, "challenger", "1")
    job = main_job("register", main_branch, tmp_path, uri=uri, caches=caches)
    assert job.outcomes[REGISTER] == "success", job.said
    assert job.outcomes[PROMOTE] == "failure"
    assert "Version 1, the challenger, is not of this commit" in job.said[PROMOTE]
    assert "champion" not in client.get_registered_model(checkout.NAME).aliases


# What docs/continuous-integration.md says to do elsewhere.


def test_gitlab_snippet(tmp_path: Path) -> None:
    described = gitlab()
    (tmp_path / "gitlab.json").write_text(json.dumps(described))
    check = [
        str(BIN / "check-jsonschema"),
        "--builtin-schema",
        "vendor.gitlab-ci",
        str(tmp_path / "gitlab.json"),
    ]
    assert subprocess.run(check, check=False).returncode == 0
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for job in ("code", "pipeline", "note", "main"):
        lines = "\n".join(described[job]["script"])
        assert set(re.findall(r"^make ([a-z]+)", lines, re.MULTILINE)) <= set(targets)
        shellcheck(lines)


def test_lines_for_any_other_ci() -> None:
    section = (ROOT / "docs/continuous-integration.md").read_text().partition("\n## Any other CI\n")[2]
    (lines,) = re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    shellcheck("set -e\n" + lines)
    for line in lines.splitlines():
        if line.startswith("make "):
            subprocess.run(["bash", "-c", line.replace("make", "make -n", 1)], cwd=ROOT, check=True)
