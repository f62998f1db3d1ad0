"""Runs jobs of the workflows in .github as GitHub's runner does.

The `run` lines are executed as they stand, with what their expressions come to; `actions/...` are
played by functions of this file.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ruamel.yaml import YAML

from tests.checkout import ROOT

FOLDER = ROOT / ".github/workflows"
BIN = Path(sys.executable).parent  # of this environment's commands


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
            is_output = re.fullmatch(r"steps\.\w+\.outputs\.\w+", name) and part == name.rpartition(".")[2]
            assert is_output or part in value, f"unknown: {name} in {self.text!r}"
            value = value.get(part, "")
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
        at_end: what actions have left to do, where all steps succeeded.
    """

    folder: Path
    file: str
    job: str
    github: dict[str, Any]
    actions: dict[str, Callable[["Job", dict[str, str]], None]]
    variables: dict[str, str]
    secrets: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    at_end: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workspace, self.temp = self.folder / "workspace", self.folder / "temp"
        self.summary_file = self.folder / "summary.md"
        for folder in (self.workspace, self.temp):
            folder.mkdir(parents=True)
        self.summary_file.touch()
        self.github["workspace"] = str(self.workspace)
        self.states: dict[str, dict[str, Any]] = {}
        self.groups: list[str] = []

    @property
    def summary(self) -> str:
        return self.summary_file.read_text()

    def run(self) -> "Job":
        described = workflow(self.file)
        assert described["defaults"] == {"run": {"shell": "bash"}}
        job = described["jobs"][self.job]
        for limited in (described, job):
            if "concurrency" in limited:
                self.groups.append(self.expand(limited["concurrency"]["group"]))
        self.environment = self._expand_all(described.get("env", {})) | self._expand_all(job.get("env", {}))
        if not self._applies(job):
            return self
        for step in job["steps"]:
            self._step(step)
        if "failure" not in self.outcomes.values():
            for last in self.at_end:
                last()
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
        functions: dict[str, Callable[..., Any]] = {
            "success": lambda: succeeded,
            "failure": lambda: not succeeded,
            "cancelled": lambda: False,
            "startsWith": lambda text, start: text.lower().startswith(start.lower()),
        }
        return bool(self._value(condition, functions))

    def _expand_all(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {key: self.expand(value) for key, value in values.items()}

    def expand(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        expressions = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
        return expressions.sub(lambda found: str(self._value(found[1], {})), str(value))

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


def runner_variables(folder: Path) -> dict[str, str]:
    """Without this environment's own commands: a runner has Python, and `.venv` only where it is named."""
    path = [str(Path(sys.base_prefix) / "bin"), *os.environ["PATH"].split(os.pathsep)]
    taken = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DVC", "MLFLOW", "MNIST", "GITHUB", "MAKE", "MFLAGS"))
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


@dataclass(kw_only=True)
class Caches:
    """Play actions/cache.

    Attributes:
        kept: folders with what was kept, by key, the oldest first.
        asked: the keys that were asked for, each with the one that was found.
    """

    kept: dict[str, Path] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def restore(self, job: Job, inputs: dict[str, str]) -> None:
        """Play actions/cache/restore: what was kept under the key, or else the newest that fits."""
        assert re.fullmatch(r"pipeline-Linux-X64-[0-9a-f]{64}", inputs["key"])
        prefixes = inputs.get("restore-keys", "").split()
        fitting = [key for prefix in prefixes for key in reversed(self.kept) if key.startswith(prefix)]
        found = inputs["key"] if inputs["key"] in self.kept else next(iter(fitting), None)
        self.asked.append((inputs["key"], found))
        if found:
            self._copy(inputs["path"], self.kept[found], job.workspace)

    def keep(self, job: Job, inputs: dict[str, str]) -> None:
        """Play actions/cache: restore, and keep it when the job succeeded and the key is new."""
        self.restore(job, inputs)
        if inputs["key"] not in self.kept:
            job.at_end.append(partial(self._save, job, inputs))

    def _save(self, job: Job, inputs: dict[str, str]) -> None:
        folder = job.folder / "kept"
        self._copy(inputs["path"], job.workspace, folder)
        self.kept[inputs["key"]] = folder

    @staticmethod
    def _copy(names: str, source: Path, target: Path) -> None:
        for name in names.split():
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name, symlinks=True)


def upload(artifacts: Path, job: Job, inputs: dict[str, str]) -> None:
    """Play actions/upload-artifact."""
    assert Path(inputs["path"]).parent == job.temp
    shutil.copytree(inputs["path"], artifacts / inputs["name"])


def gitlab() -> dict[str, Any]:
    document = (ROOT / "docs/continuous-integration.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    loaded: dict[str, Any] = YAML(typ="safe").load(snippet)
    return loaded


def comment_script() -> str:
    (lines,) = lines_of("comment.yml")
    return str(re.findall(r"<<'PYTHON'\n(.*)PYTHON\n", lines, re.DOTALL)[0])


def comment_module(folder: Path) -> ModuleType:
    """The Python lines of comment.yml, imported."""
    path = folder / "comment.py"
    path.write_text(comment_script())
    spec = importlib.util.spec_from_file_location("comment", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
