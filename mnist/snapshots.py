"""What DVC knows of one revision of the repository, or of the workspace: read, not judged.

It goes by `dvc.yaml` of that revision, so renamed files and metrics of your own are found. What
cannot be read is named, and the rest is read all the same.
"""

import hashlib
import json
import logging
import math
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev

from mnist import comparison, identity, params, paths
from mnist.comparison import Predictions
from mnist.errors import InputError
from mnist.verdict import Verdict

WORKSPACE = "workspace"  # as DVC calls what is checked out, changes included
STEP = "step"  # the column of a table that counts optimizer steps
MAX_REASON = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of `dvc.yaml`, with the digests that `dvc.lock` has of what it read.

    Attributes:
        cmd: its command.
        params: that it lists, named as in `Snapshot.params`; a section stands for all in it.
        code: MD5 by path, of what no stage makes; empty where it never ran.
        data: the same of what other stages make.
        changed: of its command, code and params, what is not what it ran with, so that its outputs are
            stale; empty for a stage that no metric, plot or other stage builds on.
    """

    cmd: str
    params: frozenset[str]
    code: Mapping[str, str]
    data: Mapping[str, str]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        title: of the plot, or what the line is.
        x: what the first axis counts.
        y: what the second one measures.
        points: (x, y), finite, by rising x.
    """

    title: str
    x: str
    y: str
    points: tuple[tuple[float, float], ...]


@dataclass(kw_only=True)
class Snapshot:
    """A revision.

    Attributes:
        name: as it was asked for.
        commit: full hash; empty for the workspace.
        metrics: number, text or truth value by file and dotted key.
        params: by dotted key; those of other files than `params.yaml` begin with the file's name.
        stages: by name.
        curves: of all plots with numbers on both axes.
        num_steps: of the optimizer, where a table counts them.
        predictions: on the test images, out of the plot with the template `confusion`.
        evaluation: the bytes of the scores and the predictions, by which MLflow knows the result.
        validation: the verdict on the data.
        problems: why something could not be read, by file.
    """

    name: str
    commit: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    num_steps: int | None = None
    predictions: Predictions | None = None
    evaluation: tuple[bytes, bytes] | None = None
    validation: Verdict | None = None
    problems: dict[str, str] = field(default_factory=dict)


def read(names: Iterable[str], root: Path) -> list[Snapshot]:
    """Read revisions of the repository at `root`; `WORKSPACE` is what is checked out.

    Raises:
        InputError: `root` is no checkout with git and DVC; a revision is unknown here and at `origin`;
            its `dvc.yaml` is none.
    """
    # DVC would say in lines of its own what becomes one of `problems`.
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        repo = Repo(str(root))
    except DvcException as error:
        raise InputError(str(root), found=_reason(error), expected="a checkout with git and DVC") from None
    with repo:
        return [_read(repo, name) for name in names]


def _read(repo: Repo, name: str) -> Snapshot:
    commit = "" if name == WORKSPACE else _resolve(repo, name)
    snapshot = Snapshot(name=name, commit=commit)
    try:
        # DVC switches to the revision, and back when the loop ends.
        for plots in repo.plots.collect(revs=[commit or WORKSPACE], onerror=_keep):
            _read_metrics(repo, snapshot)
            _read_params(repo, snapshot)
            _read_stages(repo, snapshot)
            _read_plots(repo, snapshot, *plots.values())
            _read_validation(repo, snapshot)
    except DvcException as error:
        expected = "a pipeline that DVC can read"
        raise InputError(f"{paths.PIPELINE} at {name}", found=_reason(error), expected=expected) from None
    return snapshot


def _resolve(repo: Repo, name: str) -> str:
    """The full hash of a commit; a name that is not known here is asked of `origin`.

    Raises:
        InputError: it is not known there either.
    """
    with suppress(RevError):
        return str(resolve_rev(repo.scm, name))
    root = repo.root_dir
    # In a clone that has all history `--depth` would cut it off.
    shallow = _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
    depth = ["--depth=1"] if shallow else []
    wanted = name.removeprefix("origin/")
    # Into no ref: a branch of that name may be another one here.
    done = _git(root, "fetch", "--quiet", "--no-tags", *depth, "origin", "--", wanted)
    if done.returncode == 0:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "FETCH_HEAD^{commit}").stdout.strip()
        repo.scm.close()  # it keeps a list of the packs that were there
        return commit
    raise InputError(
        f"revision {name}",
        found=f"no such commit, branch, tag or experiment here; `git fetch origin {wanted}` says: "
        f"{_first_line(done.stderr) or f'exit status {done.returncode}'}",
        expected="one that git or DVC knows",
    )


def _git(root: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)


def _keep(result: dict[str, Any], exception: Exception, *_: Any, **__: Any) -> None:
    result["error"] = exception


def _read_metrics(repo: Repo, snapshot: Snapshot) -> None:
    for path, found in _gathered(repo.metrics.show(hide_workspace=False)):
        if "error" in found:
            snapshot.problems[path] = _reason(found["error"])
            continue
        values = found["data"] if isinstance(found["data"], dict) else {"": found["data"]}
        if values:
            snapshot.metrics[path] = identity.flat(values)
        else:
            snapshot.problems[path] = "it holds no metric"


def _read_params(repo: Repo, snapshot: Snapshot) -> None:
    for path, found in _gathered(repo.params.show(hide_workspace=False)):
        if "error" in found:
            snapshot.problems[path] = _reason(found["error"])
            continue
        snapshot.params |= {
            f"{_prefix(path)}{key}": value for key, value in identity.flat(found["data"]).items()
        }


def _prefix(path: str) -> str:
    """Before the names of the params of a file."""
    return "" if path == str(paths.PARAMS) else f"{path}:"


def _gathered(shown: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """By file, of the one revision that DVC stands at."""
    for revision in shown.values():
        if "error" in revision:
            raise revision["error"]
        yield from revision["data"].items()


def _read_stages(repo: Repo, snapshot: Snapshot) -> None:
    made = {_relative(repo, out.fs_path) for out in repo.index.outs}
    read = {dep.fs_path for stage in repo.index.stages for dep in stage.deps}
    for stage in repo.index.stages:
        counts = any(out.metric or out.plot or out.fs_path in read for out in stage.outs)
        folder = _relative(repo, stage.wdir)
        name = getattr(stage, "name", None) or stage.relpath
        digests = {
            _relative(repo, dep.fs_path): dep.hash_info.value or ""
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency)
        }
        code = {path: digest for path, digest in digests.items() if path not in made}
        snapshot.stages[name if folder == "." else f"{folder}:{name}"] = Stage(
            cmd=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd or []),
            params=frozenset(
                f"{_prefix(_relative(repo, dep.fs_path))}{name}"
                for dep in stage.params
                for name in dep.params
            ),
            code=code,
            data={path: digest for path, digest in digests.items() if path in made},
            changed=tuple(_changed(repo, stage, code)) if counts else (),
        )


def _relative(repo: Repo, path: str) -> str:
    return Path(repo.fs.relpath(path, repo.root_dir)).as_posix()


def _changed(repo: Repo, stage: Any, code: Mapping[str, str]) -> Iterator[str]:
    if stage.cmd_changed:
        yield "its command"
    for path, digest in code.items():
        file = repo.fs.join(repo.root_dir, path)
        if repo.fs.isfile(file):  # a folder has a digest of another kind
            content = repo.fs.cat_file(file)
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
                yield path
    for dep in stage.params:
        ran_with = dep.hash_info.value or {}
        for name, value in dep.read_params().items():
            if name not in ran_with or ran_with[name] != value:
                yield f"{_prefix(_relative(repo, dep.fs_path))}{name}"


def _read_plots(repo: Repo, snapshot: Snapshot, plots: Mapping[str, Any]) -> None:
    tables: dict[str, list[dict[str, str]]] = {}

    def table(path: str) -> list[dict[str, str]]:
        if path not in tables:
            source: Mapping[str, Callable[[], dict[str, Any]]] = sources.get(path, {})
            read = source["data_source"]() if "data_source" in source else {}
            tables[path] = read.get("data") or []
            if not isinstance(tables[path], list) or not tables[path]:
                snapshot.problems[path] = _reason(read.get("error") or "no table")
                tables[path] = []
        return tables[path]

    sources = plots.get("sources", {}).get("data", {})
    for plot in plots.get("definitions", {}).get("data", {}).values():
        for source, properties in plot.get("data", {}).items():
            if properties.get("template") == "confusion":
                _read_predictions(repo, snapshot, source)
                continue
            for path, x, y, title in _lines(source, properties):
                if points := _points(table(path), x, y):
                    snapshot.curves.append(Curve(title=title, x=x, y=y, points=points))
    counts = [row.get(STEP) for rows in tables.values() for row in rows]
    snapshot.num_steps = max((int(count) for count in counts if count and count.isdigit()), default=None)


def _lines(source: str, properties: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The lines of a plot: file, its two columns, title. Pictures and tables without an x have none."""
    x, y = properties.get("x"), properties.get("y")
    if isinstance(x, dict):
        x = next(iter(x.values()))
    columns = y if isinstance(y, dict) else {source: y}
    named = [
        (path, name)
        for path, names in columns.items()
        for name in (names if isinstance(names, list) else [names])
    ]
    for path, name in named:
        if isinstance(x, str) and isinstance(name, str):
            title = properties.get("title") if len(named) == 1 else None
            yield path, x, name, title or f"{name} by {x}"


def _points(rows: Iterable[Mapping[str, str]], x: str, y: str) -> tuple[tuple[float, float], ...]:
    points = []
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):  # a gap, or no numbers
            point = float(row[x]), float(row[y])
            if all(map(math.isfinite, point)):
                points.append(point)
    return tuple(sorted(points))


def _read_predictions(repo: Repo, snapshot: Snapshot, path: str) -> None:
    try:
        content = repo.dvcfs.cat_file(path)
        snapshot.predictions = comparison.parse(content.decode(errors="replace"), path)
    except (OSError, DvcException, InputError) as error:
        snapshot.problems[path] = _reason(error)
        return
    with suppress(OSError, DvcException):
        snapshot.evaluation = repo.dvcfs.cat_file(paths.TEST_METRICS.as_posix()), content


def _read_validation(repo: Repo, snapshot: Snapshot) -> None:
    path = paths.VALIDATION.as_posix()
    try:
        snapshot.validation = params.check(Verdict, json.loads(repo.dvcfs.cat_file(path)), path)
    except (OSError, DvcException, ValueError) as error:
        snapshot.problems[path] = _reason(error)


def _reason(error: Any) -> str:
    """What went wrong, in a line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    cause = error.__cause__ if isinstance(error, DvcException) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
