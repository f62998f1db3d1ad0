"""What a result came from: the fingerprint of its training, its commit, the command that makes it again."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mnist import files, paths
from mnist.errors import InputError

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
        patch: what was changed since `commit`, outputs of the pipeline aside, as `git apply` reads it.
        experiment: name of the DVC experiment; empty in a plain `dvc repro`.
        rerun: the command that makes this result again.
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
        InputError: `dvc.yaml` has no such stage, or a file or key that it lists is missing.
    """
    try:
        train = read_yaml(folder / paths.PIPELINE)["stages"]["train"]
        command, names, keys = train["cmd"], train["deps"], train["params"]
    except (FileNotFoundError, YAMLError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        expected = "stage train with cmd, deps and params"
        raise InputError(str(paths.PIPELINE), found=found, expected=expected) from None
    values = flat(read_yaml(folder / paths.PARAMS))
    params = {key: values[key] for key in keys if key in values}
    if len(params) < len(keys):
        missing = ", ".join(key for key in keys if key not in values)
        raise InputError(str(paths.PARAMS), found=f"no {missing}", expected="the keys that train lists")
    deps = {name: files.sha256(folder / name) for name in names}
    # DVC takes 1 and 1.0 for equal, and does not run a stage again for it.
    numbers = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in params.items()
    }
    ingredients = json.dumps({"cmd": command, "deps": deps, "params": numbers}, sort_keys=True)
    return Training(
        fingerprint=hashlib.sha256(ingredients.encode()).hexdigest(),
        dataset_sha256=deps[str(paths.DATASET)],
        params=params,
        source=where or source(),
    )


def source() -> Source:
    """Look at the checkout in the current folder, and at what DVC says of the experiment."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "--verify", "-q", "HEAD")
    # A temporary tree of `dvc exp run --temp` has no branch, the main checkout has.
    branch = _git("-C", str(paths.root()), "symbolic-ref", "--short", "-q", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    with _index_with_new_deps() as index:
        return _source(commit, branch, experiment, index=index)


def source_of(revision: str, *, baseline: str, branch: str = "", experiment: str = "") -> Source:
    """What `source` would have said where `revision` was made from the commit `baseline`."""
    return _source(baseline, branch, experiment, revision=revision)


def _source(
    commit: str, branch: str, experiment: str, *, revision: str = "", index: str | None = None
) -> Source:
    patch, rerun = "", "dvc repro"
    if commit:
        inputs = [commit, *filter(None, [revision]), "--", ".", *EXCLUDED]
        patch = _git("diff", "--binary", *PLAIN, *inputs, strip=False, index=index)
        changed = _git("diff", "--name-only", *inputs, index=index).splitlines()
        if changed == [str(paths.PARAMS)]:
            changes = _params_since(commit, revision)
            rerun = " ".join(["dvc exp run", *(f"-S {shlex.quote(change)}" for change in changes)])
        elif changed:
            rerun = "git apply dirty.patch && dvc repro"
        rerun = f"git checkout {commit[:12]} && {rerun}"
    return Source(commit=commit, branch=branch, patch=patch, experiment=experiment, rerun=rerun)


@contextmanager
def _index_with_new_deps() -> Iterator[str | None]:
    """A copy of git's index that knows the stages' deps that are not added yet; None without any.

    `git diff` passes over files that are not in the index; a patch without them is not what ran.
    """
    try:
        stages = read_yaml(paths.PIPELINE)["stages"].values()
        deps = sorted({dep for stage in stages for dep in stage.get("deps", [])})
    except (FileNotFoundError, YAMLError, KeyError, TypeError, AttributeError):
        deps = []
    listing = ["ls-files", "-z", "--others", "--exclude-standard", "--", *deps, *EXCLUDED]
    untracked = _git(*listing) if deps else ""
    if not untracked:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "index")
        shutil.copyfile(_git("rev-parse", "--git-path", "index"), index)
        _git("add", "--intent-to-add", "--", *filter(None, untracked.split("\0")), index=index)
        yield index


def _git(*arguments: str, strip: bool = True, index: str | None = None) -> str:
    """What git prints; empty where it fails, since a copy without git works too."""
    environment = {**os.environ, "GIT_INDEX_FILE": index} if index else None
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False, env=environment)
    except FileNotFoundError:
        return ""
    text = done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    return text.strip() if strip else text


def _params_since(commit: str, revision: str) -> list[str]:
    """`key=value` for each param that is not what it was at `commit`; without `revision`, in the file."""
    now = _git("show", f"{revision}:{paths.PARAMS}") if revision else paths.PARAMS
    before, after = flat(read_yaml(_git("show", f"{commit}:{paths.PARAMS}"))), flat(read_yaml(now))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
    ]


def read_yaml(document: Path | str) -> Any:
    """A file or a text, read as DVC reads it (YAML 1.2: `1e-05` is a number)."""
    return YAML(typ="safe").load(document) or {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        dotted |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return dotted
