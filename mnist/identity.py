"""What a result came from: the fingerprint of its training, its commit, the command that makes it again."""

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mnist import files, paths
from mnist.errors import InputError

OUTPUTS = ("dvc.lock", "metrics")  # tracked by git, but made by the pipeline


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
        fingerprint: the digest of what determined it: the command and files that `dvc.yaml`
            lists for stage `train`, and its params.
        dataset_sha256: of `data/mnist.safetensors`.
        params: of stage `train`, checked.
        source: the checkout.
    """

    fingerprint: str
    dataset_sha256: str
    params: Mapping[str, Any]
    source: Source


def of_training(params: Mapping[str, Any]) -> Training:
    """Identify the training that the current folder would do, or did, with the `params` of stage `train`.

    Raises:
        InputError: `dvc.yaml` has no such stage, or a file that it lists is missing.
    """
    try:
        train = YAML(typ="safe").load(paths.PIPELINE)["stages"]["train"]
        command, names = train["cmd"], train["deps"]
    except (FileNotFoundError, YAMLError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(str(paths.PIPELINE), found=found, expected="stage train with cmd and deps") from None
    deps = {name: files.sha256(Path(name)) for name in names}
    ingredients = json.dumps({"cmd": command, "deps": deps, "params": dict(params)}, sort_keys=True)
    return Training(
        fingerprint=hashlib.sha256(ingredients.encode()).hexdigest(),
        dataset_sha256=deps[str(paths.DATASET)],
        params=params,
        source=source(),
    )


def source() -> Source:
    """Look at the checkout in the current folder, and at what DVC says of the experiment."""
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "--verify", "-q", "HEAD")
    # A temporary tree of `dvc exp run --temp` has no branch, the main checkout has.
    branch = _git("-C", str(paths.root()), "symbolic-ref", "--short", "-q", "HEAD")
    patch, rerun = "", "dvc repro"
    if commit:
        inputs = ["--", ".", *(f":(exclude){output}" for output in OUTPUTS)]
        patch = _git("diff", "--binary", commit, *inputs, strip=False)
        changed = _git("diff", "--name-only", commit, *inputs).split()
        if changed == [str(paths.PARAMS)]:
            rerun = " ".join(
                ["dvc exp run", *(f"-S {shlex.quote(change)}" for change in _params_since(commit))]
            )
        elif changed:
            rerun = "git apply dirty.patch && dvc repro"
        rerun = f"git checkout {commit[:12]} && {rerun}"
    experiment = os.environ.get("DVC_EXP_NAME", "")
    return Source(commit=commit, branch=branch, patch=patch, experiment=experiment, rerun=rerun)


def _git(*arguments: str, strip: bool = True) -> str:
    """What git prints; empty where it fails, since a copy without git works too."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    text = done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    return text.strip() if strip else text


def _params_since(commit: str) -> list[str]:
    """`key=value` for each param that is not what it was at `commit`."""
    yaml = YAML(typ="safe")
    before = _flat(yaml.load(_git("show", f"{commit}:{paths.PARAMS}")) or {})
    now = _flat(yaml.load(paths.PARAMS))
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
