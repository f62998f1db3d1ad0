import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github/workflows"
BREAK = "\u200b"


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(FOLDER / f"{name}.yml")
    return loaded


# Who may do what.


def test_the_code_of_a_pull_request_may_write_nothing_and_has_no_secret() -> None:
    described = workflow("pull-request")
    assert described["on"] == {"pull_request": None}
    assert described["permissions"] == {}
    for job in described["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert "environment" not in job
    text = (FOLDER / "pull-request.yml").read_text()
    assert "secrets" not in text
    assert "github.token" not in text
    assert "actions/cache@" not in text  # which would save what the pull request made


def test_the_comment_runs_no_code_of_the_pull_request() -> None:
    described = workflow("comment")
    assert described["on"] == {
        "workflow_run": {"workflows": [workflow("pull-request")["name"]], "types": ["completed"]}
    }
    assert described["permissions"] == {}
    (job,) = described["jobs"].values()
    assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert [set(step) for step in job["steps"]] == [{"name", "env", "run"}]  # no action, no checkout
    assert "secrets" not in (FOLDER / "comment.yml").read_text()


def test_the_secrets_are_for_the_job_that_registers() -> None:
    described = workflow("main")
    assert described["on"] == {"push": {"branches": ["main"]}}
    assert described["permissions"] == {}
    assert {str(job["permissions"]) for job in described["jobs"].values()} == {"{'contents': 'read'}"}
    assert "secrets" not in str(described["jobs"]["reproduce"])
    assert described["jobs"]["register"]["environment"] == "mlflow"


# The comment. Its lines run as they are, with a `gh` that records what it is called with.

GH = """#!/bin/bash
set -euo pipefail
case "$1 $2" in
  'pr list') jq -r "${@: -1}" < "$RUNNER_TEMP/pulls.json" ;;
  'run download') [ "$3 $4 $5 $6" = '99 --name metric-diff --dir' ] && cp -a "$RUNNER_TEMP/uploaded" "$7" ;;
  'pr comment') printf '%s\\n' "${@:3}" > "$RUNNER_TEMP/arguments"; cp "${@: -1}" "$RUNNER_TEMP/body.md" ;;
esac
"""
RUN = {
    "BRANCH": "better",
    "CONCLUSION": "success",
    "OWNER": "fork",
    "RUN_ID": "99",
    "RUN_URL": "https://github.example/o/r/actions/runs/99",
    "SHA": "a" * 40,
}
REPORT = """## `origin/main` (1234567) → `workspace`

**Better**: accuracy 94.70% → 95.60%, **+0.90 pp** (p = 0.0001).

| metric            |   base |   head |
|:------------------|-------:|-------:|
| `accuracy` ↑      |  0.947 |  0.956 |

```mermaid
---
config: {themeVariables: {xyChart: {plotColorPalette: "#8c959f, #2f81f7"}}}
---
xychart-beta
    x-axis "epoch" 1 --> 10
    line "base" [0.3, 0.2]
```
"""


def pull(number: int, *, sha: str = RUN["SHA"], owner: str = RUN["OWNER"]) -> str:
    owned = f'{{"login": "{owner}"}}' if owner else "null"
    return f'{{"number": {number}, "headRefOid": "{sha}", "headRepositoryOwner": {owned}}}'


@dataclass
class Commenter:
    """Runs comment.yml in a folder, on the files in `uploaded`."""

    folder: Path
    pulls: list[str] = field(default_factory=lambda: [pull(7)])

    def __post_init__(self) -> None:
        self.uploaded = self.folder / "uploaded"
        self.report = self.uploaded / "report.md"
        self.uploaded.mkdir()
        (self.folder / "gh").write_text(GH)
        (self.folder / "gh").chmod(0o755)

    def run(self, report: str | bytes | None = None) -> str:
        """Return the body of the comment, empty if there is none."""
        if report is not None:
            self.report.write_bytes(report if isinstance(report, bytes) else report.encode())
        (self.folder / "pulls.json").write_text(f"[{', '.join(self.pulls)}]")
        (step,) = workflow("comment")["jobs"]["comment"]["steps"]
        assert set(RUN) == set(step["env"]) - {"GH_REPO", "GH_TOKEN"}
        path = os.pathsep.join([str(self.folder), os.defpath])
        variables = RUN | {"PATH": path, "RUNNER_TEMP": str(self.folder)}
        subprocess.run(["bash", "-c", step["run"]], cwd=self.folder, env=variables, check=True, timeout=20)
        body = self.folder / "body.md"
        return body.read_text(errors="replace") if body.exists() else ""


@pytest.fixture
def comment(tmp_path: Path) -> Commenter:
    if not shutil.which("jq", path=os.defpath):
        pytest.skip("jq is not installed: it stands for the one in gh")
    return Commenter(tmp_path)


def test_the_comment_is_the_report(comment: Commenter) -> None:
    head, _, report = comment.run(REPORT).partition("\n\n")
    assert head.startswith(f"Commit aaaaaaa, merged with its base: **success** ([run]({RUN['RUN_URL']})")
    assert report == REPORT  # the table and the chart too
    arguments = (comment.folder / "arguments").read_text().split()
    assert arguments[:4] == ["7", "--edit-last", "--create-if-none", "--body-file"]


@pytest.mark.parametrize(
    ("pulls", "number"),
    [
        ([], ""),
        ([pull(7, sha="b" * 40)], ""),  # a newer commit
        ([pull(7, owner="other")], ""),  # the same commit in another fork
        ([pull(8, owner="other"), pull(7)], "7"),
        ([pull(7, owner="")], ""),  # a deleted fork
        ([pull(7), pull(8)], ""),  # two of one branch
    ],
)
def test_the_pull_request_is_not_guessed(comment: Commenter, pulls: list[str], number: str) -> None:
    comment.pulls = pulls
    (comment.uploaded / "number.txt").write_text("7\n")
    assert bool(comment.run(REPORT)) == bool(number)
    assert not number or (comment.folder / "arguments").read_text().startswith(f"{number}\n")


@pytest.mark.parametrize("kind", ["no artifact", "link", "pipe", "folder"])
def test_only_a_file_is_a_report(comment: Commenter, kind: str) -> None:
    (comment.folder / "secret").write_text("a secret of the runner")
    if kind == "no artifact":
        comment.uploaded.rmdir()
    elif kind == "link":
        comment.report.symlink_to(comment.folder / "secret")
    elif kind == "pipe":
        os.mkfifo(comment.report)
    else:
        comment.report.mkdir()
    assert comment.run().endswith(").\n\nThis run has no report.\n")


@pytest.mark.parametrize("content", ["@" * 1_000_000, b"\xff\xfe\0" * 500_000], ids=["mentions", "bytes"])
def test_a_report_without_end_fits(comment: Commenter, content: str | bytes) -> None:
    body = comment.run(content)
    assert 10_000 < len(body) <= 65_536  # GitHub takes no more


HOSTILE = {
    "mention": "@everyone, @o/team, &#64;everyone, &commat;everyone, \\@everyone mail@example.org",
    "script": "<script>alert(1)</script><SCRIPT src=//e.example></script> <iframe/onload=x>",
    "other HTML": "<!-- a --> <?x ?> <![CDATA[ ]]> <!DOCTYPE html> </a> <a\nhref='https://e.example'>",
    "image": "![a](https://e.example/a.png) ![b][c] <img src='https://e.example/b.png'> !\u200b[a](/b)",
    "reference": "[c]: https://e.example/c.png\n\n[c] [d](//e.example) [e](javascript:x) <https://e.example>",
    "address": "https://e.example HTTP://E.example www.e.example ftp://e.example ///e mailto:a@e.example",
    "issue": "#12 o/r#12 GH-12 gh-12 closes #12",
    "html in a block": "<details>\n```\n<img src='https://e.example/a.png'>\n```",
    "fence in a fence": "~~~\n```\n~~~\n<img src='https://e.example/a.png'>\n@everyone\n```\n",
    "code span": "`a\n```\n` <img src='https://e.example/a.png'> @everyone",
    "controls": "a\x00b\x1b[31m\x07c\r\nd\x0b@every\x00one\u2028@everyone <\x00img src=x>",
    "chart": '```mermaid\nclick a href "http:e.example"\na@{img: "//e"} c["<img src=//e>"] #64; #lt;\n```',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_harmless(comment: Commenter, text: str) -> None:
    _, _, body = comment.run(f"before\n{text}\n\nafter\n").partition("\n\n")
    assert body.startswith("before")
    assert body.endswith("after\n")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", body)
    for block in MarkdownIt("commonmark", {"html": True}).parse(body):
        for piece in block.children or [block]:
            assert piece.type not in {"image", "link_open", "html_block", "html_inline"}, piece.content
            acts = r"@\w|<[a-z!/?]|\w#\d|(^|\W)#\d|(?<!\u200b)//|https?:|www\.|gh-\d"
            assert not re.search(acts, piece.content, re.IGNORECASE), piece.content


def test_the_gitlab_file_of_the_docs_is_valid(tmp_path: Path) -> None:
    document = (ROOT / "docs/continuous-integration.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    file = tmp_path / "gitlab-ci.yml"
    file.write_text(snippet)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", str(file)]
    assert subprocess.run(command, check=False).returncode == 0
