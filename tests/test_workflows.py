"""The workflows in .github: their lines run as a runner runs them, on small data, with a GitHub of our own.

The `run` lines are executed as they stand, with what their expressions come to; `actions/...` are
played by functions of this file.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from tests import checkout
from tests.checkout import ROOT, Clone
from tests.conftest import SmallData

FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
NUMBER = 7
BREAK = "\u200b"
BIN = Path(sys.executable).parent  # of the linters
SYSTEM = os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.defpath])


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(FOLDER / name)
    return loaded


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in workflow(name)["jobs"].values():
        yield from job["steps"]


def lines_of(name: str) -> list[str]:
    """What the steps run."""
    return [step["run"] for step in steps(name) if "run" in step]


class Expression:
    """An expression of GitHub's: operators, names and functions that these workflows use, and no others."""

    TOKEN = re.compile(r"\s*(?:'((?:[^']|'')*)'|(\|\||&&|==|!=|[!(),])|([A-Za-z_][\w.-]*))")
    STATUS = ("always", "cancelled", "failure", "success")

    def __init__(self, text: str, contexts: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]):
        self.text, self.contexts, self.functions = text, contexts, functions
        self.tokens: list[tuple[str, str, str]] = []
        text = text.strip()
        while text:
            token = self.TOKEN.match(text)
            assert token, f"unknown in {self.text!r}: {text!r}"
            self.tokens.append((token[1] or "", token[2] or "", token[3] or ""))
            text = text[token.end() :].strip()

    def value(self) -> Any:
        value = self._either()
        assert not self.tokens, f"left of {self.text!r}: {self.tokens}"
        return value

    def _takes(self, operator: str) -> bool:
        if self.tokens and self.tokens[0][1] == operator:
            del self.tokens[0]
            return True
        return False

    def _either(self) -> Any:
        value = self._both()
        while self._takes("||"):
            other = self._both()
            value = value or other
        return value

    def _both(self) -> Any:
        value = self._equal()
        while self._takes("&&"):
            other = self._equal()
            value = value and other
        return value

    def _equal(self) -> Any:
        value = self._one()
        if self._takes("=="):
            return value == self._one()
        if self._takes("!="):
            return value != self._one()
        return value

    def _one(self) -> Any:
        if self._takes("!"):
            return not self._one()
        if self._takes("("):
            value = self._either()
            assert self._takes(")"), self.text
            return value
        text, operator, name = self.tokens.pop(0)
        assert not operator, f"{operator} in {self.text!r}"
        if not name:
            return text.replace("''", "'")
        if self._takes("("):
            arguments = []
            while not self._takes(")"):
                arguments.append(self._either())
                self._takes(",")
            assert name in self.functions, f"unknown function {name} in {self.text!r}"
            return self.functions[name](*arguments)
        value = self.contexts
        for part in name.split("."):
            if value is None:  # as GitHub has it, of null
                return ""
            assert part in value, f"unknown: {name} in {self.text!r}"
            value = value[part]
        assert not isinstance(value, Mapping), name
        return value


@dataclass(kw_only=True)
class Job:
    """A job that a runner runs: `outcomes` and `said` are by the names of its steps.

    Attributes:
        folder: for the workspace and the runner's other folders.
        file: of the workflow.
        job: its key there.
        github: the context `github`.
        actions: what plays `actions/...`; raises `ActionError` where the action would fail.
        variables: of the runner, as a shell has them.
        secrets: of the repository.
    """

    folder: Path
    file: str
    job: str
    github: dict[str, Any]
    actions: dict[str, Callable[["Job", dict[str, str]], None]]
    variables: dict[str, str]
    secrets: dict[str, str] = field(default_factory=dict)
    skipped_lines: Sequence[str] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workspace, self.temp = self.folder / "workspace", self.folder / "temp"
        self.summary_file = self.folder / "summary.md"
        for folder in (self.workspace, self.temp):
            folder.mkdir(parents=True)
        self.summary_file.touch()
        self.github["workspace"] = str(self.workspace)
        self.states: dict[str, dict[str, Any]] = {}

    @property
    def summary(self) -> str:
        return self.summary_file.read_text()

    def run(self) -> "Job":
        described = workflow(self.file)
        assert described["defaults"] == {"run": {"shell": "bash"}}
        self.expand(described["concurrency"]["group"])
        job = described["jobs"][self.job]
        self.environment = self._expand_all(described.get("env", {})) | self._expand_all(job.get("env", {}))
        if not self._applies(job):
            return self
        for step in job["steps"]:
            self._step(step)
        return self

    def _step(self, step: dict[str, Any]) -> None:
        name = step["name"]
        outcome = "skipped"
        if self._applies(step):
            done = self._use(step) if "uses" in step else self._shell(step)
            outcome = "success" if done else "failure"
        self.outcomes[name] = outcome
        if outcome == "failure" and step.get("continue-on-error"):
            self.outcomes[name] = "success"
        if "id" in step:
            self.states[step["id"]] = {"outcome": outcome, "outputs": self._outputs()}

    def _outputs(self) -> dict[str, str]:
        written = self.folder / "output"
        lines = written.read_text().splitlines() if written.exists() else []
        written.unlink(missing_ok=True)
        return dict(line.split("=", 1) for line in lines)

    def _use(self, step: dict[str, Any]) -> bool:
        action = step["uses"].partition("@")[0]
        assert action in self.actions, f"unknown action {action}"
        try:
            self.actions[action](self, self._expand_all(step.get("with", {})))
        except ActionError:
            return False
        return True

    def _shell(self, step: dict[str, Any]) -> bool:
        if step["run"].split("\n")[1] in self.skipped_lines:
            return True
        script = self.folder / "step.sh"
        script.write_text(step["run"])
        given = {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ENV": str(self.folder / "env"),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.summary_file),
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],  # what `shell: bash` means
            cwd=self.workspace,
            env=self.variables | given | self.environment | self._expand_all(step.get("env", {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.said[step["name"]] = done.stdout
        return done.returncode == 0

    def _applies(self, step: dict[str, Any]) -> bool:
        succeeded = "failure" not in self.outcomes.values()
        condition = str(step.get("if", "success()")).strip()
        condition = condition.removeprefix("${{").removesuffix("}}")
        if not any(f"{status}()" in condition for status in Expression.STATUS):
            condition = f"success() && ({condition})"
        functions = {
            "success": lambda: succeeded,
            "failure": lambda: not succeeded,
            "cancelled": lambda: False,
        }
        return bool(self._value(condition, functions))

    def _expand_all(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {key: self.expand(value) for key, value in values.items()}

    def expand(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(self._value(found[1], {})), str(value))

    def _value(self, text: str, functions: dict[str, Callable[..., Any]]) -> Any:
        contexts = {
            "github": self.github,
            "runner": {"temp": str(self.temp), "os": "Linux", "arch": "X64"},
            "steps": self.states,
            "secrets": self.secrets,
            "env": getattr(self, "environment", {}),
        }
        return Expression(text, contexts, {"hashFiles": self._hash_files, **functions}).value()

    def _hash_files(self, name: str) -> str:
        file = self.workspace / name
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


class ActionError(Exception):
    """An action that fails."""


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
    assert set(described["concurrency"]) == {"group", "cancel-in-progress"}
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
    assert main["concurrency"]["cancel-in-progress"] is False
    assert main["jobs"]["register"]["environment"]
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
        assert not re.search(r"/work/|/root/|pypi|index-url", path.read_text(), re.IGNORECASE)


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


# The comment.

RUN = {
    "event": "pull_request",
    "id": 99,
    "run_number": 12,
    "run_attempt": 1,
    "conclusion": "success",
    "head_sha": "a" * 40,
    "head_branch": "better",
    "head_repository": {"id": 5, "owner": {"login": "fork"}},
    "html_url": "https://github.example/o/r/actions/runs/99",
}
REPORT = """## `origin/main` (1234567) → `workspace`

**Better**: accuracy 94.70% → 95.60%, **+0.90 pp** (p < 0.0001).

> ⚠ a warning

| metric            |   base |   head |
|:------------------|-------:|-------:|
| `accuracy` ↑      |  0.947 |  0.956 |
| `a\\|b`            |      1 |      2 |

```mermaid
---
config: {themeVariables: {xyChart: {plotColorPalette: "#8c959f, #0969da"}}}
---
xychart-beta
    title "Validation loss"
    x-axis "epoch" 1 --> 10
    line "base" [0.3, 0.2]
```

The end.
"""


class GitHub(ThreadingHTTPServer):
    """GitHub's REST API, as far as the comment needs it."""

    TOKEN = "t0ken"  # noqa: S105

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.pulls = {NUMBER: pull(NUMBER, repository=5), 8: pull(8, repository=6)}
        self.comments: dict[int, list[dict[str, Any]]] = {NUMBER: [], 8: []}
        self.asked: list[str] = []
        self.broken = False
        self.next_page = ""

    def add(self, body: str | None, login: str, number: int = NUMBER) -> None:
        everything = [comment for comments in self.comments.values() for comment in comments]
        user = {"login": login} if login else None
        self.comments[number].append({"id": 100 + len(everything), "user": user, "body": body})

    def answer(self, method: str, url: str, fields: dict[str, Any]) -> Any:
        address = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        path = address.path.removeprefix("/repos/o/r/")
        assert path != address.path, url
        if pulls := re.fullmatch(r"pulls/(\d+)", path):
            return self.pulls.get(int(pulls[1]))
        if path == "pulls":
            owner, _, branch = query["head"].partition(":")
            assert query["state"] == "open"
            return [
                pull
                for pull in self.pulls.values()
                if pull["head"]["user"]["login"] == owner and pull["head"]["ref"] == branch
            ]
        if issue := re.fullmatch(r"issues/(\d+)/comments", path):
            number = int(issue[1])
            if method == "POST":
                self.add(fields["body"], "github-actions[bot]", number)
                return self.comments[number][-1]
            page, size = int(query["page"]), int(query["per_page"])
            return self.comments[number][(page - 1) * size : page * size]
        if method == "PATCH" and (changed := re.fullmatch(r"issues/comments/(\d+)", path)):
            for comment in (comment for comments in self.comments.values() for comment in comments):
                if comment["id"] == int(changed[1]):
                    comment["body"] = fields["body"]
                    return comment
        return None


class Answer(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        fields = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        assert len(fields.get("body", "").encode()) <= 60_000
        token = self.server.TOKEN
        known = token in (
            self.headers["PRIVATE-TOKEN"],
            (self.headers["Authorization"] or "")[len("Bearer ") :],
        )
        found = self.server.answer(self.command, self.path, fields) if known else None
        status = 500 if self.server.broken else 401 if not known else 404 if found is None else 200
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Next-Page", self.server.next_page)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def pull(number: int, *, repository: int) -> dict[str, Any]:
    """A pull request whose head is that of `RUN`."""
    head = {"sha": RUN["head_sha"], "ref": "better", "repo": {"id": repository}, "user": {"login": "fork"}}
    return {"number": number, "head": head}


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


Artifact = Mapping[str, str | bytes | Callable[[Path], None]]


@dataclass
class Commenter:
    """Runs comment.yml at the end of a run of pull-request.yml."""

    github: GitHub
    folder: Path
    num_runs: int = 0

    def __call__(self, artifact: Artifact | None, **run: Any) -> str:
        self.num_runs += 1
        folder = self.folder / str(self.num_runs)
        event = {"workflow_run": RUN | run}
        folder.mkdir()
        (folder / "event.json").write_text(json.dumps(event))
        job = Job(
            folder=folder,
            file="comment.yml",
            job="comment",
            github={"event": event, "token": GitHub.TOKEN},
            actions={"actions/download-artifact": partial(self.download, artifact)},
            variables={
                "PATH": SYSTEM,
                "GITHUB_API_URL": f"http://127.0.0.1:{self.github.server_port}",
                "GITHUB_EVENT_PATH": str(folder / "event.json"),
                "GITHUB_REPOSITORY": "o/r",
            },
        ).run()
        (said,) = job.said.values()
        assert job.outcomes["Make or update the comment"] == "success", said
        assert "Traceback" not in said
        return said

    def download(self, artifact: Artifact | None, job: Job, inputs: dict[str, str]) -> None:
        assert inputs["name"] == "metric-diff"
        assert inputs["run-id"] == "99"
        assert inputs["github-token"] == GitHub.TOKEN
        if artifact is None:
            raise ActionError
        folder = Path(inputs["path"])
        assert folder.parent == job.temp
        (job.workspace / "json.py").write_text("raise RuntimeError('imported')")
        folder.mkdir()
        for name, content in artifact.items():
            if callable(content):
                content(folder / name)
            else:
                (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    @property
    def bodies(self) -> list[str]:
        return [comment["body"] for comment in self.github.comments[NUMBER]]


@pytest.fixture
def comment(github: GitHub, tmp_path: Path) -> Commenter:
    return Commenter(github, tmp_path)


def test_the_comment_is_made_once_and_then_changed(comment: Commenter, github: GitHub) -> None:
    assert "made the comment on pull request 7" in comment({"number.txt": "7\n", "report.md": REPORT})
    (body,) = comment.bodies
    head, _, report = body.partition("passed.\n\n")
    assert head.startswith(
        "<!-- mnist-metric-diff run 12.1 -->\n\nCommit aaaaaaa, [run 12](https://github.example/"
    )
    assert report == REPORT  # the table and the chart too

    artifact = {"number.txt": "7\n", "report.md": "**Worse**"}
    assert "updated the comment" in comment(artifact, run_number=13, conclusion="failure")
    (body,) = comment.bodies
    assert "**the checks ended with `failure`**.\n\n**Worse**\n" in body
    assert "Better" not in body
    assert not github.comments[8]


def test_the_comment_is_found_behind_others(comment: Commenter, github: GitHub) -> None:
    for _ in range(230):
        github.add("hello", "somebody")
    github.add(None, "")  # of a deleted account
    comment({"number.txt": "7", "report.md": "first"})
    comment({"number.txt": "7", "report.md": "second"}, run_number=13)
    assert len(comment.bodies) == 232
    assert "second" in comment.bodies[-1]


def test_comments_of_others_are_left_alone(comment: Commenter, github: GitHub) -> None:
    theirs = "<!-- mnist-metric-diff run 99.1 --> all is well"
    github.add(theirs, "somebody")
    github.add("I said <!-- mnist-metric-diff run 99.1 -->", "github-actions[bot]")  # of another workflow
    comment({"number.txt": "7", "report.md": REPORT})
    assert len(comment.bodies) == 3
    assert comment.bodies[0] == theirs
    comment({"number.txt": "7", "report.md": REPORT}, run_number=13)
    assert len(comment.bodies) == 3


@pytest.mark.parametrize(
    "number",
    ["8", "9", "0", "-7", "7; id", "$(id)", "7/../8", "\u0667", "7\n8", "", "9" * 5000],
    ids=lambda number: repr(number[:9]),
)
def test_a_number_that_is_not_this_run_s(comment: Commenter, github: GitHub, number: str) -> None:
    github.pulls[8]["head"]["user"]["login"] = "victim"
    assert "no report, and no comment on pull request 7" in comment(
        {"number.txt": number, "report.md": REPORT}
    )
    assert github.comments == {7: [], 8: []}
    assert not [asked for asked in github.asked if not asked.startswith("GET ")]


@pytest.mark.parametrize(
    "head",
    [{"sha": "b" * 40}, {"ref": "other"}, {"repo": {"id": 6}}, {"repo": None}],
    ids=["newer push", "other branch", "other fork with the same commit", "deleted fork"],
)
def test_a_pull_request_with_another_head(comment: Commenter, github: GitHub, head: dict[str, Any]) -> None:
    comment({"number.txt": "7", "report.md": "of the newest commit"}, run_number=11)
    before = comment.bodies
    github.pulls[NUMBER]["head"] |= head
    said = comment({"number.txt": "7", "report.md": REPORT})
    assert "no pull request has this run's commit as its head" in said
    assert comment.bodies == before


def test_a_later_run_of_the_same_commit_stays(comment: Commenter) -> None:
    artifact = {"number.txt": "7", "report.md": "later"}
    comment(artifact, run_attempt=2)
    before = comment.bodies
    assert "left as it is" in comment({"number.txt": "7", "report.md": "earlier"})
    assert "left as it is" in comment(None, run_number=11, conclusion="cancelled")
    assert comment.bodies == before
    comment({"number.txt": "7", "report.md": "again"}, run_attempt=2)
    assert "again" in comment.bodies[0]


@pytest.mark.parametrize("artifact", [None, {"number.txt": "7\n"}, {"number.txt": "7\n", "report.md": ""}])
def test_without_a_report_no_old_verdict_stands(comment: Commenter, artifact: dict[str, str] | None) -> None:
    assert "no comment on pull request 7 to take back" in comment(artifact, conclusion="failure")
    assert comment.bodies == []
    comment({"number.txt": "7", "report.md": REPORT})
    comment(artifact, run_number=13, conclusion="timed_out")
    (body,) = comment.bodies
    assert "Better" not in body
    assert "[run 12]" not in body
    assert "the checks ended with `timed_out`" in body
    assert "This run left no report" in body


def test_which_of_two_pull_requests_from_one_branch_is_not_guessed(
    comment: Commenter, github: GitHub
) -> None:
    github.pulls[8] = pull(8, repository=5)
    comment({"number.txt": "8", "report.md": REPORT})
    assert comment.bodies == []
    (before,) = github.comments[8]
    assert "no pull request has this run's commit" in comment(None, run_number=13)
    assert github.comments[8] == [before]


def test_of_another_event_nothing_is_said(github: GitHub, tmp_path: Path) -> None:
    event = {"workflow_run": RUN | {"event": "push"}}
    job = Job(
        folder=tmp_path, file="comment.yml", job="comment", github={"event": event}, actions={}, variables={}
    )
    assert job.run().outcomes == {}
    assert github.asked == []


def test_a_fork_that_is_gone(comment: Commenter, github: GitHub) -> None:
    assert "is gone: no comment" in comment({"number.txt": "7", "report.md": REPORT}, head_repository=None)
    assert github.asked == []


def test_an_api_that_fails_is_a_failure(github: GitHub, comment: Commenter) -> None:
    github.broken = True
    with pytest.raises(AssertionError, match=r"::error::GitHub's API answered 500 to http://127"):
        comment({"number.txt": "7", "report.md": REPORT})


def test_links_and_pipes_in_the_artifact_are_not_followed(comment: Commenter, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of the runner")
    for make in (lambda path: path.symlink_to(secret), os.mkfifo, Path.mkdir):
        assert "no report" in comment({"number.txt": "7", "report.md": make})
    assert comment.bodies == []


HOSTILE = {
    "mention": "@everyone, @o/team, &#64;everyone, &commat;everyone, \\@everyone mail@example.org",
    "script": "<script>alert(1)</script><SCRIPT src=//e.example></script> <iframe/onload=x>",
    "other HTML": "<!-- a --> <?x ?> <![CDATA[ ]]> <!DOCTYPE html> </a> <a\nhref='https://e.example'>",
    "image": "![a](https://e.example/a.png) ![b][c] <img src='https://e.example/b.png'> !\u200b[a](/b)",
    "reference": "[c]: https://e.example/c.png\n\n[c] [d](//e.example) [e](javascript:x) <https://e.example>",
    "address": "https://e.example HTTP://E.example www.e.example ftp://e.example mailto:a@e.example",
    "issue": "#12 o/r#12 GH-12 gh-12 closes #12",
    "html in a block": "<details>\n```\n<img src='https://e.example/a.png'>\n```",
    "fence in a fence": "~~~\n```\n~~~\n<img src='https://e.example/a.png'>\n@everyone\n```\n",
    "longer fence": "````\n```\n````\n<img src='https://e.example/a.png'>\n```\n@everyone\n```",
    "fence in a list": "- a\n  ```\n![a](https://e.example)\n\n> ```\n![a](https://e.example)\n",
    "fence in a quote": "> ~~~\n> a\n\n```\n> ~~~\n<img src='https://e.example/a.png'>\n```\n",
    "fence with words": "```a b\n```\n<img src='https://e.example/a.png'>\n```\n@everyone",
    "code span": "`a\n```\n` <img src='https://e.example/a.png'> @everyone",
    "controls": "a\x00b\x1b[31m\x07\u202e\u2066c\r\nd\x0b@everyone\u2028@everyone",
    "marker": "<!-- mnist-metric-diff run 99.9 -->",
}
FRAGMENTS = [
    *"`~<>!@[](){}:/#&;\\|-*_ \n\t\r1a",
    *(
        "```",
        "~~~",
        "````",
        "mermaid",
        "<img src=x>",
        "![a](",
        "](https://e.example)",
        "[a]: ",
        "&#64;",
        "@everyone",
    ),
    *(
        "<script>",
        "-->",
        "<!--",
        "\n\n",
        "\n    ",
        "> ",
        "- ",
        "1. ",
        "\u200b",
        "\x00",
        "\u2028",
        "<details>",
    ),
]


def comment_script() -> str:
    (lines,) = lines_of("comment.yml")
    return str(re.findall(r"<<'PYTHON'\n(.*)PYTHON\n", lines, re.DOTALL)[0])


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The Python lines of comment.yml."""
    path = tmp_path_factory.mktemp("script") / "comment.py"
    path.write_text(comment_script())
    spec = importlib.util.spec_from_file_location("comment", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(markdown: str) -> list[tuple[str, str]]:
    """The kinds and texts of what a reader of Markdown makes of a text; raw HTML counts as it."""
    pieces = []
    for block in MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown):
        pieces += [(piece.type, piece.content) for piece in block.children or [block]]
    return pieces


def check_harmless(markdown: str) -> None:
    for kind, text in rendered(markdown):
        assert kind not in {"image", "link_open", "html_block", "html_inline"}, (kind, text)
        if kind == "text":  # in code GitHub looks for nothing
            assert not re.search(r"@\w|\w#\d|(^|\W)#\d|://|www\.|gh-\d|mailto:", text, re.IGNORECASE), text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", markdown)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text(comment: Commenter, text: str) -> None:
    comment({"number.txt": "7", "report.md": f"before\n{text}\nafter\n"})
    (body,) = comment.bodies
    marker, _, rest = body.partition("\n")
    assert marker == "<!-- mnist-metric-diff run 12.1 -->"
    link = "[run 12](https://github.example/o/r/actions/runs/99)"
    assert rest.count(link) == 1
    check_harmless(rest.replace(link, ""))
    assert "before" in body
    assert "after" in body
    assert "![" not in body or "```" in body


@settings(deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
def test_any_text_is_defused(script: ModuleType, text: str) -> None:
    check_harmless(script.defused(text, 60_000))


def test_a_text_without_end(comment: Commenter) -> None:
    row = "| `metric` | 0.1 | 0.2 |\n"
    for content in (
        "x" * 1_000_000,
        row * 40_000,
        "@" * 1_000_000,
        b"\xff\xfe" * 500_000,
        "```\n" + row * 40_000,
    ):
        comment({"number.txt": "7", "report.md": content})  # the server refuses more than 60,000 bytes
        (body,) = comment.bodies
        assert body.endswith("_The rest was cut off: the run has the whole report._\n")
    comment({"number.txt": "7", "report.md": row * 40_000})
    (body,) = comment.bodies
    assert len(body.encode()) > 59_000
    assert body.count(row) == body.count("metric`")  # whole rows


def test_charts_do_nothing_but_show(script: ModuleType) -> None:
    chart = (
        '```mermaid\nflowchart LR\n  a@{ img: "https://e.example/a.png" } --> b\n  click a href "https://e.example"\n'
        '  c["<img src=//e.example>"] --> d["&#64;e #64;e"]\n  style a fill:url(\\2f\\2f e)\n```\n'
    )
    made = script.defused(chart, 60_000)
    assert "click" not in made
    assert not re.search(r"@\{|//|<img|&#64;|#64;|\\2f", made)
    assert made.replace(BREAK, "").count("-->") == 2


def test_the_script_is_clean() -> None:
    ruff = [
        str(BIN / "ruff"),
        "check",
        "--isolated",
        "--select=A,ARG,B,C4,E,F,I,PERF,PIE,RET,SIM,UP,W",
        "--line-length=110",
    ]
    done = subprocess.run([*ruff, "-"], input=comment_script(), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


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

    def check(self, *, cache: Path | None = None) -> Job:
        """Run the job with the pipeline, as far as the report and the gate."""
        event = {"number": NUMBER, "base": {"ref": self.base}}
        return Job(
            folder=self.folder / "runner",
            file="pull-request.yml",
            job="pipeline",
            github={"event": {"pull_request": event}},
            actions={
                "actions/checkout": partial(check_out, self.origin, f"refs/pull/{NUMBER}/merge"),
                "actions/setup-python": nothing,
                "actions/cache/restore": partial(restore, cache),
                "actions/upload-artifact": partial(upload, self.folder / "artifacts"),
            },
            variables=runner_variables(self.folder),
            skipped_lines=["make setup"],
        ).run()

    def artifact(self, name: str) -> str:
        return (self.folder / "artifacts/metric-diff" / name).read_text()


def runner_variables(folder: Path) -> dict[str, str]:
    """Without this environment's own commands: a runner has Python, and `.venv` only where it is named."""
    path = [str(Path(sys.base_prefix) / "bin"), *os.environ["PATH"].split(os.pathsep)]
    taken = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DVC", "MLFLOW", "MNIST", "GITHUB"))
    }
    return taken | {
        "PATH": os.pathsep.join(part for part in path if part != str(BIN)),
        "DVC_SITE_CACHE_DIR": str(folder / "site-cache"),
    }


def nothing(_job: Job, _inputs: dict[str, str]) -> None:
    """Play actions/setup-python: Python is there."""


def check_out(origin: Path, ref: str, job: Job, inputs: dict[str, str]) -> None:
    """Play actions/checkout: a shallow clone of one commit, with an environment that is up to date."""
    git = ["git", "-C", str(job.workspace)]
    for arguments in (
        ["init", "-q"],
        ["remote", "add", "origin", f"file://{origin}"],
        [
            "fetch",
            "-q",
            "--no-tags",
            f"--depth={inputs.get('fetch-depth', '1')}",
            "origin",
            f"+{ref}:refs/remotes/it",
        ],
        ["checkout", "-q", "--detach", "refs/remotes/it"],
    ):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    environment = job.workspace / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / "installed").touch()


def restore(cache: Path | None, job: Job, inputs: dict[str, str]) -> None:
    """Play actions/cache/restore: what `cache` has, or nothing."""
    assert re.fullmatch(r"pipeline-Linux-X64-[0-9a-f]{64}", inputs["key"])
    for name in inputs["path"].split():
        if cache and (cache / name).is_dir():
            shutil.copytree(cache / name, job.workspace / name)


def upload(artifacts: Path, job: Job, inputs: dict[str, str]) -> None:
    """Play actions/upload-artifact."""
    assert Path(inputs["path"]).parent == job.temp
    shutil.copytree(inputs["path"], artifacts / inputs["name"])


@pytest.fixture
def pull_request(main_branch: Clone, tmp_path: Path) -> PullRequest:
    shutil.copytree(main_branch.folder, tmp_path / "author", symlinks=True)
    author = dataclasses.replace(main_branch, folder=tmp_path / "author")
    author.environment = author.environment | {"DVC_SITE_CACHE_DIR": str(tmp_path / "author-site-cache")}
    made = PullRequest(folder=tmp_path, author=author)
    made.git("init", "-q", "--bare", str(made.origin))
    made.git("push", "-q", str(made.origin), "main", "main:release")
    return made


def edit(clone: Clone, name: str, old: str, new: str) -> None:
    text = clone.read(name)
    assert old in text
    (clone.folder / name).write_text(text.replace(old, new, 1))


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
    edit(author, "params.yaml", f"model_name: {checkout.NAME}", "model_name: other")
    edit(author, "dvc.lock", f"registry.model_name: {checkout.NAME}", "registry.model_name: other")
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
    pull_request: PullRequest, main_branch: Clone, script: ModuleType
) -> None:
    edit(pull_request.author, "params.yaml", "lr: 0.02", "lr: 0.0001")
    pull_request.open()
    job = pull_request.check(cache=main_branch.folder)
    assert outcomes(job) == all_but(VERIFY, GATE), job.said
    assert "::error title=Verify::The committed results are not what the code makes" in job.said[VERIFY]
    assert "### The committed results are not what the code makes\n\n~~~text\n" in job.summary
    assert "does not hold" in job.summary
    assert "::error title=Gate::The model is worse than that of the base" in job.said[GATE]
    report = pull_request.artifact("report.md")
    # What the code makes, not what is committed: that is the same on both sides.
    assert report.startswith("> [!WARNING]\n> The committed results did not hold")
    assert "**Worse**" in report
    assert "| `lr`" in report
    assert "```mermaid\n" in report
    assert job.summary.endswith(report)
    # The comment has it as it is.
    assert script.defused(report, 60_000) == report


def test_metrics_edited_and_broken_and_a_deleted_stage(pull_request: PullRequest, main_branch: Clone) -> None:
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
    job = pull_request.check(cache=main_branch.folder)
    assert outcomes(job) == all_but(VERIFY), job.said
    assert "0.99875" in job.summary
    assert "metrics/train.json" in job.summary
    report = pull_request.artifact("report.md")
    assert "[!WARNING]" in report
    assert "the same images right and wrong" in report  # what the code made
    assert "0.99875" not in report
    assert "Could not be read" not in report
    assert "`register` (removed)" in report


def test_a_pipeline_that_fails(pull_request: PullRequest, main_branch: Clone) -> None:
    edit(pull_request.author, "params.yaml", "batch_size: 16", "batch_size: 0")
    pull_request.open()
    job = pull_request.check(cache=main_branch.folder)
    assert outcomes(job)[VERIFY] == outcomes(job)["Reproduce"] == "failure"
    assert outcomes(job)[UPLOAD] == "success"
    assert "::error title=Verify::It could not be found out" in job.said[VERIFY]
    assert "batch_size: found 0" in job.said["Reproduce"]
    assert pull_request.artifact("report.md").startswith("> [!WARNING]\n> The pipeline failed in this run")
    assert pull_request.artifact("number.txt") == "7\n"


def test_lint_and_tests_both_report() -> None:
    code = workflow("pull-request.yml")["jobs"]["code"]["steps"]
    assert [step["run"].split("\n")[1] for step in code if "run" in step] == [
        "make setup",
        "make lint",
        "make test",
    ]
    assert code[-1]["if"] == "${{ !cancelled() && steps.setup.outcome == 'success' }}"


# What is on main.


def main_job(job: str, main_branch: Clone, folder: Path, secrets: dict[str, str]) -> Job:
    subprocess.run(
        ["git", "clone", "-q", "--bare", str(main_branch.folder), str(folder / "origin.git")], check=True
    )
    return Job(
        folder=folder / "runner",
        file="main.yml",
        job=job,
        github={},
        secrets={
            f"MLFLOW_TRACKING_{name}": secrets.get(name, "") for name in ("URI", "USERNAME", "PASSWORD")
        },
        actions={
            "actions/checkout": partial(check_out, folder / "origin.git", "refs/heads/main"),
            "actions/setup-python": nothing,
            "actions/cache": partial(restore, main_branch.folder),
            "actions/cache/restore": partial(restore, main_branch.folder),
        },
        variables=runner_variables(folder),
        skipped_lines=["make setup", "make verify"],
    ).run()


def test_main_without_a_server(main_branch: Clone, tmp_path: Path) -> None:
    job = main_job("register", main_branch, tmp_path, {})
    first, *others = job.outcomes.values()
    assert first == "success"
    assert set(others) == {"skipped"}
    assert job.summary == "The secret MLFLOW_TRACKING_URI is not set: nothing is registered or promoted\n"


def test_main_with_a_server(main_branch: Clone, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/server.db"
    job = main_job("register", main_branch, tmp_path, {"URI": store})
    first, *others = job.outcomes.values()
    assert first == "skipped"
    assert set(others) == {"success"}, job.said
    ran = re.findall(r"^> python -m stages\.(\w+)", job.said["Register"], re.MULTILINE)
    assert "train" not in ran  # what was made before is taken
    assert "register" in ran
    assert (
        "`champion` is version 1 now"
        in job.said["Promote: the challenger becomes the champion, if it is not worse"]
    )
    assert job.summary == ""


# What docs/continuous-integration.md says to do elsewhere.


def gitlab() -> dict[str, Any]:
    document = (ROOT / "docs/continuous-integration.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    loaded: dict[str, Any] = YAML(typ="safe").load(snippet)
    return loaded


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


def test_gitlab_note(github: GitHub, tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = [{"id": n, "author": {"id": 1}, "body": "hello"} for n in range(150)]
    notes[120]["body"] = "<!-- mnist-metric-diff --> of somebody else"

    def answer(method: str, url: str, fields: dict[str, Any]) -> Any:
        path, _, query = url.partition("?")
        if path == "/user":
            return {"id": 2}
        if method == "GET":
            page = int(parse_qs(query)["page"][0])
            github.next_page = str(page + 1) if page * 100 < len(notes) else ""
            return notes[(page - 1) * 100 : page * 100]
        if method == "POST":
            notes.append({"id": len(notes), "author": {"id": 2}, "body": fields["body"]})
            return notes[-1]
        notes[int(path.rpartition("/")[2])]["body"] = fields["body"]
        return notes[-1]

    github.answer = answer  # type: ignore[method-assign]
    variables = {
        "PATH": SYSTEM,
        "NOTE_TOKEN": GitHub.TOKEN,
        "CI_API_V4_URL": f"http://127.0.0.1:{github.server_port}",
        "CI_MERGE_REQUEST_PROJECT_ID": "3",
        "CI_MERGE_REQUEST_IID": "4",
        "CI_COMMIT_SHORT_SHA": "1234567",
        "CI_PIPELINE_URL": "https://gitlab.example/p/1",
    }
    (lines,) = gitlab()["note"]["script"]
    for report in ("first", "second"):
        (tmp_path / "report.md").write_text(report)
        subprocess.run(["bash", "-c", lines], cwd=tmp_path, env=variables, check=True)
    assert len(notes) == 151
    assert notes[150]["body"].startswith("<!-- mnist-metric-diff -->\n\nCommit 1234567")
    assert notes[150]["body"].endswith("second")
    assert {path.partition("?")[0] for path in github.asked if path.startswith(("POST", "PUT"))} == {
        "POST /projects/3/merge_requests/4/notes",
        "PUT /projects/3/merge_requests/4/notes/150",
    }
