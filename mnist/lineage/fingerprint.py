"""The origin of a result: the fingerprint of its training, its commit, the command that reproduces it."""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist.core import config, files, paths
from mnist.core.errors import InputError
from mnist.core.pipeline import Pipeline
from mnist.lineage import git

# Tracked by git, but made by the pipeline: as git's pathspecs.
EXCLUDED = (":(exclude)dvc.lock", ":(exclude)metrics")
HERE = Path()
TEMPLATE = re.compile(r"\$\{[^}]*\}")
IGNORED = "__pycache__"  # .dvcignore leaves it out, so that importing a folder does not change it

# What `git apply` reads, whatever the user has configured for their own eyes.
PLAIN = [
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--no-relative",
    "--src-prefix=a/",
    "--dst-prefix=b/",
]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkout that a stage runs in.

    Attributes:
        commit: full hash; for an experiment, of the commit that it started from. Empty outside git.
        branch: name; empty where no branch is checked out.
        patch: what was changed since `commit` in what the pipeline depends on, as `git apply` reads it;
            bytes that are not UTF-8 are lone surrogates (`surrogateescape`).
        experiment: name of the DVC experiment; empty in a plain `dvc repro`.
        rerun: the command that reproduces this result.
    """

    commit: str = ""
    branch: str = ""
    patch: str = ""
    experiment: str = ""
    rerun: str = ""

    @property
    def name(self) -> str:
        """Return the experiment's name, or branch and short commit."""
        return self.experiment or "-".join(filter(None, [self.branch, self.commit[:7]])) or "no-commit"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The origin of a trained network.

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

    It reads `dvc.yaml` and `params.yaml` as DVC does, and does not depend on what the keys mean.

    Args:
        folder: the root of a checkout, or a copy of what `train` depends on.
        where: it came from; without it, `source()`.

    Raises:
        InputError: `dvc.yaml` has no such stage, or a file or key that it lists is missing, or git
            fails.
    """
    pipeline = Pipeline(folder)
    train = pipeline.stages.get("train")
    if train is None or not (train.cmd and train.deps and train.params):
        expected = "one with cmd, deps and params"
        raise InputError(str(paths.PIPELINE), found="no such stage train", expected=expected)
    params = pipeline.params("train")
    deps = {name: _digest(folder / name) for name in pipeline.deps("train")}
    # DVC takes 1 and 1.0 for equal, and does not run a stage again for it.
    numbers = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in params.items()
    }
    ingredients = json.dumps({"cmd": train.cmd, "deps": deps, "params": numbers}, sort_keys=True)
    return Training(
        fingerprint=hashlib.sha256(ingredients.encode()).hexdigest(),
        # It may be listed by its folder.
        dataset_sha256=deps.get(str(paths.DATASET)) or files.sha256(folder / paths.DATASET),
        params=params,
        source=where or source(),
    )


def dataset_of(params: Mapping[str, Any]) -> str:
    """Return the name of the data set that params name."""
    return str(params.get("dataset", "mnist"))


def _digest(dep: Path) -> Any:
    """Return the digest of a file; of a folder, those of all files in it by their names there."""
    if not dep.is_dir():
        return files.sha256(dep)
    return {
        path.relative_to(dep).as_posix(): files.sha256(path)
        for path in sorted(dep.rglob("*"))
        if path.is_file() and IGNORED not in path.relative_to(dep).parts
    }


def source() -> Source:
    """Describe the checkout in the current folder, with what DVC has in the environment of an experiment.

    Raises:
        InputError: there is a commit, but git fails to show what was changed since.
    """
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or git.commit_here("HEAD", folder=HERE)
    # A temporary tree of `dvc exp run --temp` has no branch, the user's checkout has.
    branch = git.text_or_empty("symbolic-ref", "--short", "-q", "HEAD", folder=paths.checkout())
    experiment = os.environ.get("DVC_EXP_NAME", "")
    if not commit or not git.text_or_empty("rev-parse", "--git-dir", folder=HERE):
        rerun = f"git checkout {commit[:12]} && dvc repro" if commit else "dvc repro"
        return Source(commit=commit, branch=branch, experiment=experiment, rerun=rerun)
    return source_of(commit, branch=branch, experiment=experiment)


def source_of(commit: str, *, revision: str = "", branch: str = "", experiment: str = "") -> Source:
    """Describe a checkout that differs from the commit that it was made from.

    Args:
        commit: that it was made from.
        revision: a commit that recorded its state; without it, the checkout in the current folder.
        branch: of the checkout.
        experiment: name of the DVC experiment.

    Raises:
        InputError: git fails to show what is different.
    """
    inputs = _inputs(commit, revision)
    between = [commit, *filter(None, [revision]), "--", *inputs]
    with nullcontext() if revision else _index_with_new(inputs) as index:
        patch = git.output("diff", "--binary", *PLAIN, *between, folder=HERE, index=index)
        listed = git.output("diff", "--name-only", "--no-relative", *between, folder=HERE, index=index)
    rerun = "dvc repro"
    if names := listed.decode(errors="replace").splitlines():
        params = f"{git.text('rev-parse', '--show-prefix', folder=HERE)}{paths.PARAMS}"
        # An address may hold a password or a token: it stays in the patch.
        changes = _params_since(commit, revision) if names == [params] else []
        is_short = changes and not any("://" in change for change in changes)
        options = (f"-S {shlex.quote(change)}" for change in changes)
        rerun = " ".join(["dvc exp run", *options]) if is_short else "git apply dirty.patch && dvc repro"
    return Source(
        commit=commit,
        branch=branch,
        patch=patch.decode(errors="surrogateescape"),
        experiment=experiment,
        rerun=f"git checkout {commit[:12]} && {rerun}",
    )


def _inputs(commit: str, revision: str) -> list[str]:
    """Return the pathspecs of all that the pipeline depends on, now and at `commit`, without its outputs.

    The rest of a checkout makes no difference to a result, and may hold secrets (`.dvc/config`).

    Args:
        commit: what was removed since, was a dep there.
        revision: now; without it, the checkout in the current folder.
    """
    names = {str(paths.PIPELINE), str(paths.PARAMS)}
    names |= _deps(_read(paths.PIPELINE, revision)) | _deps(_read(paths.PIPELINE, commit))
    here = git.text_or_empty("rev-parse", "--show-prefix", folder=HERE)
    # Git takes a name outside of its repository for an error.
    ours = sorted(name for name in names if not os.path.normpath(Path(here, name)).startswith(("/", "..")))
    return [*map(_pathspec, ours), *EXCLUDED]


def _pathspec(name: str) -> str:
    """Return the pathspec of a dep; a `${param}` in its name may be anything."""
    pattern = TEMPLATE.sub("*", name)
    return f":(literal){name}" if pattern == name else f":(glob){pattern}"


def _read(name: Path, revision: str) -> str:
    """Return a file's text at a commit, or without one in the current folder; empty where there is none."""
    if revision:
        return git.text_or_empty("show", f"{revision}:./{name}", folder=HERE)
    return name.read_text(encoding="utf-8") if name.is_file() else ""


def _deps(pipeline: str) -> set[str]:
    """Return the deps that the stages of a `dvc.yaml` list; none where it does not read as one."""
    try:
        entries = config.parse_keys(pipeline, str(paths.PIPELINE))["stages"].values()
        stages = [entry.get("do", entry) for entry in entries]  # of a `foreach`
        deps = {dep for stage in stages for dep in stage.get("deps", [])}
        params = [entry for stage in stages for entry in stage.get("params", [])]
    except (InputError, KeyError, TypeError, AttributeError):
        return set()
    return deps | {file for entry in params if isinstance(entry, dict) for file in entry}


@contextmanager
def _index_with_new(inputs: list[str]) -> Iterator[Path | None]:
    """Yield a copy of git's index that knows the inputs that are not added yet; None without any.

    `git diff` passes over files that are not in the index; a patch without them is not what ran.
    """
    listed = git.output("ls-files", "-z", "--others", "--exclude-standard", "--", *inputs, folder=HERE)
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    if not names:
        yield None
        return
    with files.temporary("index") as folder:
        index = folder / "index"
        with suppress(FileNotFoundError):  # git has none before the first `git add`
            shutil.copyfile(git.text("rev-parse", "--git-path", "index", folder=HERE), index)
        git.output("--literal-pathspecs", "add", "--intent-to-add", "--", *names, folder=HERE, index=index)
        yield index


def _params_since(commit: str, revision: str) -> list[str]:
    """Return `key=value` for each param that is not what it was at `commit`."""
    before, after = (
        config.flat(config.parse_keys(_read(paths.PARAMS, name), str(paths.PARAMS)))
        for name in (commit, revision)
    )
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in after.items()
        if before.get(key) != value
    ]
