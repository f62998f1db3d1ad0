"""What is said on a pull request, by comment.yml and by the lines for GitLab, with a server of our own."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings, strategies as st
from markdown_it import MarkdownIt

from tests.runner import BIN, ActionError, Job, comment_module, comment_script, gitlab, workflow

NUMBER = 7
BREAK = "\u200b"
SYSTEM = os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.defpath])

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
    "path": ".github/workflows/pull-request.yml",
    "display_title": f"Pull request {NUMBER}",
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
        "<!-- mnist-metric-diff run 12.1 -->\n\nCommit aaaaaaa, merged with its base in [run 12](https://github.example/"
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


def job_of(folder: Path, **run: Any) -> Job:
    """The job where no step can run."""
    github = {"event": {"workflow_run": RUN | run}}
    return Job(folder=folder, file="comment.yml", job="comment", github=github, actions={}, variables={})


@pytest.mark.parametrize(
    "run",
    [
        {"event": "push"},
        {"path": ".github/workflows/other.yml"},
        {"path": "x/.github/workflows/pull-request.yml"},
    ],
    ids=["push", "another file of this name", "another folder"],
)
def test_of_other_runs_nothing_is_said(tmp_path: Path, run: dict[str, str]) -> None:
    assert job_of(tmp_path, **run).run().outcomes == {}


def test_a_path_with_its_ref(comment: Commenter) -> None:
    artifact = {"number.txt": "7", "report.md": REPORT}
    comment(artifact, path=f"{RUN['path']}@refs/heads/main")
    assert len(comment.bodies) == 1


def test_pull_requests_from_one_branch_wait_for_none_but_themselves(tmp_path: Path) -> None:
    title = workflow("pull-request.yml")["run-name"]
    runs = {
        "first": {"display_title": title.replace("${{ github.event.pull_request.number }}", "7")},
        "again": {"display_title": title.replace("${{ github.event.pull_request.number }}", "7")},
        "other": {"display_title": title.replace("${{ github.event.pull_request.number }}", "8")},
        "stranger": {"head_branch": "b", "display_title": "Pull request 7"},
    }
    groups = {}
    for name, run in runs.items():
        job = job_of(tmp_path / name, event="push", **run)
        (groups[name],) = job.run().groups
    assert groups["first"] == groups["again"] == "comment-5-better-Pull request 7"
    assert len(set(groups.values())) == 3


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


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return comment_module(tmp_path_factory.mktemp("script"))


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
