"""What a result came from: the fingerprint of its training, its commit, the command that makes it again."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mnist.core import files, paths
from mnist.core.errors import InputError

# Tracked by git, but made by the pipeline: as git's pathspecs.
EXCLUDED = (":(exclude)dvc.lock", ":(exclude)metrics")

# What `git apply` reads, whatever the user has configured for their own eyes.
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkout that a stage runs in.

    Attributes:
        commit: full hash; for an experiment, of the commit that it started from. Empty outside git.
        branch: name; empty where no branch is checked out.
        patch: what was changed since `commit` in what the pipeline depends on, as `git apply` reads it;
            bytes that are not UTF-8 are lone surrogates (`surrogateescape`).
        experiment: name of the DVC experiment; empty in a plain `dvc repro`.
        rerun: the command that makes this result again; of URLs in it as much as `paths.shown` shows.
    """

    commit: str
    branch: str
    patch: str
    experiment: str
    rerun: str

    @property
    def name(self) -> str:
        """For people: the experiment's name, or branch and short commit."""
        return self.experiment or "-".join(filter(None, [self.branch, self.commit[:7]])) or "no-commit"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a trained network came from.

    Attributes:
        fingerprint: the digest of what determined it: the command, files and params that
            `dvc.yaml` lists for stage `train`.
        dataset_sha256: of `data/mnist.safetensors`.
        params: that stage `train` depends on.
        source: the checkout.
    """

    fingerprint: str
    dataset_sha256: str
    params: Mapping[str, Any]
    source: Source


def of_training(folder: Path = Path(), *, where: Source | None = None) -> Training:
    """Identify the training that the checkout in `folder` would do, or did.

    It reads `dvc.yaml` and `params.yaml` as DVC does, and knows nothing of what the keys mean: so
    it identifies the trainings of old revisions too, whose keys were others.

    Args:
        folder: the root of a checkout, or a copy of what `train` depends on.
        where: it came from; without it, `source` looks.

    Raises:
        InputError: `dvc.yaml` has no such stage, or a file or key that it lists is missing, or git
            does not tell what was changed.
    """
    try:
        train = read_yaml(folder / paths.PIPELINE)["stages"]["train"]
        command, names, keys = train["cmd"], train["deps"], train["params"]
    except (FileNotFoundError, YAMLError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        expected = "stage train with cmd, deps and params"
        raise InputError(str(paths.PIPELINE), found=found, expected=expected) from None
    params = _listed(keys, flat(read_yaml(folder / paths.PARAMS)))
    deps = {name: _digest(folder / name) for name in names}
    # DVC takes 1 and 1.0 for equal, and does not run a stage again for it.
    numbers = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in params.items()
    }
    ingredients = json.dumps({"cmd": command, "deps": deps, "params": numbers}, sort_keys=True)
    return Training(
        fingerprint=hashlib.sha256(ingredients.encode()).hexdigest(),
        # It may be listed by its folder.
        dataset_sha256=deps.get(str(paths.DATASET)) or files.sha256(folder / paths.DATASET),
        params=params,
        source=where or source(),
    )


def dataset_of(params: Mapping[str, Any]) -> str:
    """The name of the data set that params name; before there was a choice, it was MNIST."""
    return str(params.get("dataset", "mnist"))


def _listed(keys: Iterable[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The params that a stage lists, by dotted keys; a section stands for all that is in it."""
    params: dict[str, Any] = {}
    missing = []
    for key in keys:
        if isinstance(key, dict):
            found, expected = f"params of another file: {', '.join(map(str, key))}", f"keys of {paths.PARAMS}"
            raise InputError(f"{paths.PIPELINE}, stage train", found=found, expected=expected)
        of_key = {name: values[name] for name in values if name == key or name.startswith(f"{key}.")}
        params |= of_key
        if not of_key:
            missing.append(key)
    if missing:
        found = f"no {', '.join(map(str, missing))}"
        raise InputError(str(paths.PARAMS), found=found, expected="the keys that train lists")
    return params


def _digest(dep: Path) -> Any:
    """The digest of a file; of a folder, those of all files in it by their names there."""
    if not dep.is_dir():
        return files.sha256(dep)
    return {
        path.relative_to(dep).as_posix(): files.sha256(path)
        for path in sorted(dep.rglob("*"))
        if path.is_file()
    }


def source() -> Source:
    """Look at the checkout in the current folder, and at what DVC says of the experiment.

    Raises:
        InputError: there is a commit, but git does not tell what was changed since.
    """
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "--verify", "-q", "HEAD")
    # A temporary tree of `dvc exp run --temp` has no branch, the user's checkout has.
    branch = _git("-C", str(paths.checkout()), "symbolic-ref", "--short", "-q", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    inputs = _inputs(commit)
    with _index_with_new(inputs if commit else []) as index:
        return _source(commit, branch, experiment, inputs, index=index)


def source_of(revision: str, *, baseline: str, branch: str = "", experiment: str = "") -> Source:
    """What `source` would have said where `revision` was made from the commit `baseline`.

    Raises:
        InputError: git does not tell what is different between them.
    """
    return _source(baseline, branch, experiment, _inputs(baseline, revision), revision=revision)


def _source(
    commit: str,
    branch: str,
    experiment: str,
    inputs: list[str],
    *,
    revision: str = "",
    index: str | None = None,
) -> Source:
    patch, rerun = "", "dvc repro"
    if commit:
        between = [commit, *filter(None, [revision]), "--", *inputs]
        patch = _told("diff", "--binary", *PLAIN, *between, index=index)
        changed = _told("diff", "--name-only", *between, index=index).splitlines()
        if changed == [str(paths.PARAMS)]:
            changes = _params_since(commit, revision)
            rerun = " ".join(["dvc exp run", *(f"-S {shlex.quote(change)}" for change in changes)])
        elif changed:
            rerun = "git apply dirty.patch && dvc repro"
        rerun = f"git checkout {commit[:12]} && {rerun}"
    return Source(commit=commit, branch=branch, patch=patch, experiment=experiment, rerun=rerun)


def _inputs(commit: str, revision: str = "") -> list[str]:
    """What the pipeline depends on, now and at `commit`, as git's pathspecs; outputs aside.

    The rest of a checkout makes no difference to a result, and may hold secrets (`.dvc/config`).

    Args:
        commit: what was removed since, was a dep there.
        revision: now; without it, the checkout in the current folder.
    """
    now = _git("show", f"{revision}:./{paths.PIPELINE}") if revision else paths.PIPELINE
    before = _git("show", f"{commit}:./{paths.PIPELINE}") if commit else ""
    names = {str(paths.PIPELINE), str(paths.PARAMS), *_deps(now), *_deps(before)}
    here = _git("rev-parse", "--show-prefix")
    # Git takes a name outside of its repository for an error.
    ours = sorted(name for name in names if not os.path.normpath(Path(here, name)).startswith(("/", "..")))
    return [*(f":(literal){name}" for name in ours), *EXCLUDED]


def _deps(pipeline: Path | str) -> set[str]:
    """The files and folders that the stages of a `dvc.yaml` list; none where it does not read as one."""
    try:
        stages = read_yaml(pipeline)["stages"].values()
        deps = {dep for stage in stages for dep in stage.get("deps", [])}
        entries = [entry for stage in stages for entry in stage.get("params", [])]
    except (FileNotFoundError, YAMLError, KeyError, TypeError, AttributeError):
        return set()
    return deps | {file for entry in entries if isinstance(entry, dict) for file in entry}


@contextmanager
def _index_with_new(inputs: list[str]) -> Iterator[str | None]:
    """A copy of git's index that knows the inputs that are not added yet; None without any.

    `git diff` passes over files that are not in the index; a patch without them is not what ran.
    """
    untracked = _told("ls-files", "-z", "--others", "--exclude-standard", "--", *inputs) if inputs else ""
    if not untracked:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "index")
        with suppress(FileNotFoundError):  # git has none before the first `git add`
            shutil.copyfile(_git("rev-parse", "--git-path", "index"), index)
        names = filter(None, untracked.split("\0"))
        _told("--literal-pathspecs", "add", "--intent-to-add", "--", *names, index=index)
        yield index


def _told(*arguments: str, index: str | None = None) -> str:
    """What git prints, to the byte; empty without git or outside of it.

    Raises:
        InputError: git fails.
    """
    done = _run(*arguments, index=index)
    if done and done.returncode != 0 and _git("rev-parse", "--git-dir"):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        found = lines[0] if lines else f"exit status {done.returncode}"
        command = next(argument for argument in arguments if not argument.startswith("-"))
        raise InputError(f"git {command}", found=found, expected="what was changed since the commit")
    return done.stdout.decode(errors="surrogateescape") if done and done.returncode == 0 else ""


def _git(*arguments: str) -> str:
    """What git prints; empty where it fails, since a copy without git works too."""
    done = _run(*arguments)
    return done.stdout.decode(errors="replace").strip() if done and done.returncode == 0 else ""


def _run(*arguments: str, index: str | None = None) -> subprocess.CompletedProcess[bytes] | None:
    environment = {**os.environ, "GIT_INDEX_FILE": index} if index else None
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False, env=environment)
    except FileNotFoundError:
        return None


def _params_since(commit: str, revision: str) -> list[str]:
    """`key=value` for each param that is not what it was at `commit`; without `revision`, in the file."""
    now = _git("show", f"{revision}:./{paths.PARAMS}") if revision else paths.PARAMS
    before, after = flat(read_yaml(_git("show", f"{commit}:./{paths.PARAMS}"))), flat(read_yaml(now))
    changed = {key: _fit_to_show(value) for key, value in after.items() if before.get(key) != value}
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
    ]


def _fit_to_show(value: Any) -> Any:
    """A param's value; of a URL in it that may hold a password or a token, what `paths.shown` shows."""
    if isinstance(value, list):
        return [_fit_to_show(one) for one in value]
    if isinstance(value, dict):
        return {key: _fit_to_show(one) for key, one in value.items()}
    may_hold = isinstance(value, str) and "://" in value and any(mark in value for mark in "@?#")
    return paths.shown(value) if may_hold else value


def read_yaml(document: Path | str) -> Any:
    """A file or a text, read as DVC reads it (YAML 1.2: `1e-05` is a number)."""
    return YAML(typ="safe").load(document) or {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        dotted |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return dotted
