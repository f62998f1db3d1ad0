"""The results of one revision of the repository, or of the workspace, as its `dvc.yaml` lists them.

It also finds metrics that a user added, and renamed files. A file that cannot be read becomes a problem
with its reason; the other files are still read.
"""

import csv
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dvc.exceptions import DvcException
from dvc.repo import Repo

from mnist.core import config, custody, files, paths
from mnist.core.errors import InputError
from mnist.data.validation import Verdict
from mnist.evaluation.predictions import Predictions, parse_table
from mnist.lineage import git, lock

WORKSPACE = "workspace"  # DVC's name of the files in the checkout, uncommitted changes included
CURVES = {
    "Training loss by step": (paths.STEPS, "step", "loss"),
    "Validation loss by epoch": (paths.HISTORY, "epoch", "val_loss"),
}

YAML = paths.PARAMS, paths.PIPELINE, paths.LOCK

T = TypeVar("T")
Points = tuple[tuple[float, float], ...]  # (x, y)


@dataclass(kw_only=True)
class Snapshot:
    """The results of a revision."""

    name: str  # as the user typed it; a full hash is shortened
    commit: str  # full hash; empty for the workspace
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by file and dotted key
    params: dict[str, Any] = field(default_factory=dict)  # `<file>:<key>` for other files than params.yaml
    code: dict[str, str] = field(default_factory=dict)  # commands, and MD5s of files and folders, by name
    predictions: Predictions | None = None  # on the test images
    validation: Verdict | None = None
    curves: dict[str, Points] = field(default_factory=dict)  # by title
    stale: tuple[str, ...] = ()  # code, params, commands and results that are not those of the last run
    problems: dict[str, str] = field(default_factory=dict)  # why something could not be read, by file
    num_missing: int | None = None  # commits of the base that are not in this revision


def read(base: str, head: str, root: Path) -> tuple[Snapshot, Snapshot]:
    """Read two revisions of the repository at `root`; `WORKSPACE` is what is checked out.

    Raises:
        InputError: a revision is unknown here and at `origin`, or DVC cannot read its `dvc.yaml`.
    """
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # it would print what becomes one of `problems`
    # Resolved before DVC opens the repository: it does not see packs that are fetched afterwards.
    commits = ["" if name == WORKSPACE else git.resolve(name, folder=root) for name in (base, head)]
    for commit in filter(None, commits):  # DVC waits for ever for a damaged object, which git names
        git.output("archive", f"--output={os.devnull}", commit, folder=root)
    for name, commit in zip((base, head), commits, strict=True):
        _check_yaml(root, name, commit)
    sides = [_read(root, name, commit) for name, commit in zip((base, head), commits, strict=True)]
    if sides[0].commit:
        sides[1].num_missing = git.num_missing(sides[0].commit, sides[1].commit, folder=root)
    return sides[0], sides[1]


def _check_yaml(root: Path, name: str, commit: str) -> None:
    """Check what DVC reads without a bound: a small file may hold more values than memory does."""
    for path in YAML:
        where = f"{path} at {name}"
        with files.reading(root / path):
            here = (root / path).read_bytes() if not commit and (root / path).exists() else None
        (content,) = git.blobs([f"{commit}:./{path}"], folder=root) if commit else [here]
        config.parse(content or b"", where)


def _read(root: Path, name: str, commit: str) -> Snapshot:
    snapshot = Snapshot(name=commit[:7] if name == commit and commit else name, commit=commit)
    try:
        with Repo(str(root)) as repo, repo.switch(commit or WORKSPACE):
            for path, values in _files(repo.metrics.show(hide_workspace=False), snapshot, "metric"):
                snapshot.metrics[path] = values
            for path, values in _files(repo.params.show(hide_workspace=False), snapshot, "param"):
                prefix = "" if path == str(paths.PARAMS) else f"{path}:"
                snapshot.params |= {f"{prefix}{key}": value for key, value in values.items()}
            _read_stages(repo, snapshot)
            snapshot.predictions = _parsed(repo, snapshot, _predictions_path(repo), _predictions)
            snapshot.validation = _parsed(repo, snapshot, paths.VALIDATION.as_posix(), _verdict)
            _read_curves(repo, snapshot)
    except DvcException as error:
        expected = f"a pipeline that DVC can read, with its {paths.PARAMS}"
        raise InputError(f"{paths.PIPELINE} at {name}", found=_reason(error), expected=expected) from None
    return snapshot


def _files(shown: Mapping[str, Any], snapshot: Snapshot, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and dotted keys of each file that DVC could read; the others become problems."""
    for revision in shown.values():
        if "error" in revision:
            raise revision["error"]
        for path, file in revision["data"].items():
            values = file.get("data")
            if "error" in file:
                snapshot.problems[path] = _reason(file["error"])
            elif Path(path).parent == custody.RECEIPTS:
                continue
            elif not values or not isinstance(values, dict):
                snapshot.problems[path] = f"it holds no {kind}"
            else:
                yield path, {key: _json(value) for key, value in config.flat(values).items()}


def _json(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN, infinity, dates and the like as text."""
    if isinstance(value, list):
        return [_json(one) for one in value]
    is_held = isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
    return value if is_held else str(value)


def _read_stages(repo: Repo, snapshot: Snapshot) -> None:
    """Compare the stages that results depend on with their last run, by `dvc.lock`."""
    try:
        stages = lock.stages(repo)
    except DvcException as error:  # params that cannot be read
        snapshot.problems[str(paths.LOCK)] = _reason(error)
        return
    is_locked = repo.fs.isfile(repo.fs.join(repo.root_dir, str(paths.LOCK)))
    locked = lock.parse(repo.dvcfs.cat_file(str(paths.LOCK)) if is_locked else b"")
    wrote = lock.written(locked)
    read = {path for stage in stages for path in stage.deps}
    stale = []
    for stage in stages:
        if not any(out.kept_in == "git" or path in read for path, out in stage.outs.items()):
            continue  # no result depends on it, as on `register`
        command = f"command of {stage.name}"
        if stage.name not in locked:
            stale.append(f"stage {stage.name}")
            continue
        entry = locked[stage.name]
        deps = lock.digests(entry, "deps")
        snapshot.code |= {path: digest for path, digest in deps.items() if path not in wrote}
        snapshot.code[command] = str(entry["cmd"])
        changes = [*lock.changes(stage, entry, wrote=wrote), *lock.changed_outs(stage, entry)]
        stale += [command if change.what == "cmd" else change.what for change in changes]
    snapshot.stale = tuple(dict.fromkeys(stale))


def _predictions_path(repo: Repo) -> str:
    """Return the path of the predictions; under another name they are found by their plot's template."""
    plots = {out.def_path: out.plot for out in repo.index.outs if isinstance(out.plot, dict)}
    found = [path for path, plot in plots.items() if plot.get("template") == "confusion"]
    ours = paths.PREDICTIONS.as_posix()
    return ours if ours in found or not found else found[0]


def _predictions(content: bytes, where: str) -> Predictions:
    return parse_table(content.decode(errors="replace"), where)


def _verdict(content: bytes, where: str) -> Verdict:
    return config.check(Verdict, files.parse_json(content, where), where)


def _parsed(repo: Repo, snapshot: Snapshot, path: str, parse: Callable[[bytes, str], T]) -> T | None:
    """Return what a file holds; None where it cannot be read, which is a problem."""
    try:
        return parse(repo.dvcfs.cat_file(path), path)
    except (OSError, DvcException, ValueError) as error:
        snapshot.problems[path] = _reason(error)
        return None


def _read_curves(repo: Repo, snapshot: Snapshot) -> None:
    for title, (path, x, y) in CURVES.items():
        with suppress(OSError, DvcException, KeyError, TypeError, ValueError):  # no such table: no curve
            table = csv.DictReader(repo.dvcfs.cat_file(path.as_posix()).decode().splitlines())
            points = [(float(row[x]), float(row[y])) for row in table]
            snapshot.curves[title] = tuple(point for point in points if all(map(math.isfinite, point)))


def _reason(error: Exception) -> str:
    """Return the reason of an error, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return lock.reason(error) if isinstance(error, DvcException) else " ".join(str(error).split())
