"""What DVC knows of one revision of the repository, or of the workspace: read, not judged.

It goes by `dvc.yaml` of that revision, so renamed files and metrics of your own are found. What
cannot be read is named, and the rest is read all the same.
"""

import hashlib
import json
import logging
import math
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import NoSCM, RevError, resolve_rev
from scmrepo.exceptions import SCMError

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
        InputError: `root` is no checkout with git and DVC, or a folder in one; a revision is unknown
            here and at `origin`; its `dvc.yaml` is none.
    """
    # DVC would say in lines of its own what becomes one of `problems`.
    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    expected = "the top folder of a checkout with git and DVC"
    try:
        repo = Repo(str(root))
    except DvcException as error:
        raise InputError(str(root), found=_reason(error), expected=expected) from None
    with repo:
        if isinstance(repo.scm, NoSCM):
            raise InputError(str(root), found="DVC without git", expected=expected)
        if not root.samefile(repo.root_dir):  # DVC finds it from within, and names files from here
            raise InputError(str(root), found=f"a folder in {repo.root_dir}", expected=expected)
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
            _read_plots(repo, snapshot, next(iter(plots.values()), {}))
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
    root = repo.root_dir
    unknown = "nothing" if not name else "no such commit, branch, tag or experiment here"
    # SCMError: there is no commit yet. ValueError: nothing can have such a name.
    with suppress(RevError, SCMError, ValueError):
        commit = str(resolve_rev(repo.scm, name)) if name else ""  # DVC takes it for HEAD
        if commit and _git(root, "cat-file", "-t", commit).stdout.strip() == "commit":
            return commit
    wanted = name.removeprefix("origin/")
    # What is no name could be a refspec, which writes into a ref.
    if _git(root, "check-ref-format", f"refs/heads/{wanted}").returncode == 0:
        # In a clone that has all history `--depth` would cut it off.
        shallow = _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        depth = ["--depth=1"] if shallow else []
        # Into no ref: a branch of that name may be another one here.
        done = _git(root, "fetch", "--quiet", "--no-tags", "--refmap=", *depth, "origin", "--", wanted)
        reason = _first_line(done.stderr) or f"exit status {done.returncode}"
        if done.returncode == 0:
            commit = _git(root, "rev-parse", "--verify", "--quiet", "FETCH_HEAD^{commit}").stdout.strip()
            if commit:
                return commit
            reason = "it is no commit"
        unknown += f"; `git fetch origin {wanted}` says: {reason}"
    raise InputError(
        f"revision {_reason(name)}" if name else "revision",
        found=" ".join(unknown.split()),
        expected="one that git or DVC knows",
    )


def _git(root: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace", check=False
    )


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
        if not isinstance(found["data"], dict):
            snapshot.problems[path] = "it holds no param"
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
    read = {_relative(repo, dep.fs_path) for stage in repo.index.stages for dep in stage.deps}
    for stage in repo.index.stages:
        counts = any(
            out.metric or out.plot or _is_among(_relative(repo, out.fs_path), read) for out in stage.outs
        )
        digests = {
            _relative(repo, dep.fs_path): dep.hash_info.value or ""
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency)
        }
        code = {path: digest for path, digest in digests.items() if not _is_among(path, made)}
        snapshot.stages[_name(repo, stage)] = Stage(
            cmd=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd or []),
            params=frozenset(
                f"{_prefix(_relative(repo, dep.fs_path))}{name}"
                for dep in stage.params
                for name in dep.params or dep.read_params()  # a whole file
            ),
            code=code,
            data={path: digest for path, digest in digests.items() if path not in code},
            changed=tuple(_changed(repo, stage, code)) if counts else (),
        )


def _name(repo: Repo, stage: Any) -> str:
    """In `dvc.yaml`, with its folder; what is in no `dvc.yaml` is in a file of its own."""
    path = Path(_relative(repo, stage.path))
    name = getattr(stage, "name", None) or path.name
    return name if path.parent == Path() else f"{path.parent.as_posix()}:{name}"


def _is_among(path: str, others: Iterable[str]) -> bool:
    """Whether it is one of them, or holds one, or is in one."""
    return any(
        path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in others
    )


def _relative(repo: Repo, path: str) -> str:
    return Path(repo.fs.relpath(path, repo.root_dir)).as_posix()


def _changed(repo: Repo, stage: Any, code: Mapping[str, str]) -> Iterator[str]:
    if getattr(stage, "cmd_changed", False):  # a stage outside of `dvc.yaml` does not know
        yield "its command"
    for path, digest in code.items():
        file = repo.fs.join(repo.root_dir, path)
        if repo.fs.isfile(file):  # a folder has a digest of another kind
            content = repo.fs.cat_file(file)
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
                yield path
    for dep in stage.params:
        ran_with, values = dep.hash_info.value or {}, dep.read_params()
        for name in dict.fromkeys([*values, *ran_with]):
            if name not in values or name not in ran_with or ran_with[name] != values[name]:
                yield f"{_prefix(_relative(repo, dep.fs_path))}{name}"


def _read_plots(repo: Repo, snapshot: Snapshot, plots: Mapping[str, Any]) -> None:
    tables: dict[str, list[dict[str, Any]]] = {}

    def table(path: str) -> list[dict[str, Any]]:
        if path not in tables:
            source: Mapping[str, Callable[[], dict[str, Any]]] = sources.get(path, {})
            read = source["data_source"]() if "data_source" in source else {}
            tables[path] = _rows(read.get("data"))
            if not tables[path]:
                snapshot.problems[path] = _reason(read.get("error") or "no table")
        return tables[path]

    sources = plots.get("sources", {}).get("data", {})
    predictions = []
    for source, properties in _definitions(snapshot, plots):
        if properties.get("template") == "confusion":
            predictions += [path for path, _ in _columns(source, properties.get("y"))]
            continue
        for (x_path, x), (path, y), title in _lines(source, properties):
            if points := _points(table(x_path), x, table(path), y):
                snapshot.curves.append(Curve(title=title, x=x, y=y, points=points))
    snapshot.num_steps = _num_steps(row for rows in tables.values() for row in rows)
    # There may be other confusion matrices, as of the validation images.
    ours = paths.PREDICTIONS.as_posix()
    for path in [ours] if ours in predictions else predictions[:1]:
        _read_predictions(repo, snapshot, path)


def _definitions(snapshot: Snapshot, plots: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All plots, by name or file; what DVC cannot make one of becomes one of `problems`."""
    of_files = plots.get("definitions", {}).get("data", {})
    for part in (*plots.values(), *of_files.values()):
        if "error" in part:
            snapshot.problems["plots"] = _reason(part["error"])
    for part in of_files.values():
        yield from part.get("data", {}).items()


def _rows(data: Any) -> list[dict[str, Any]]:
    """The rows of a table: in JSON and YAML, the first list of them that there is."""
    if isinstance(data, dict):
        return next(filter(None, map(_rows, data.values())), [])
    is_table = isinstance(data, list) and all(isinstance(row, dict) for row in data)
    return data if is_table else []


def _num_steps(rows: Iterable[Mapping[str, Any]]) -> int | None:
    counts = (str(row.get(STEP)) for row in rows)
    return max((int(count) for count in counts if re.fullmatch("[0-9]{1,18}", count)), default=None)


def _lines(
    source: str, properties: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], tuple[str, str], str]]:
    """The lines of a plot: file and column of x, those of y, title.

    Pictures and tables without an x have none. As DVC has it, one x of a file is for all y, several
    are for one y each.
    """
    x, columns = properties.get("x"), _columns(source, properties.get("y"))
    xs = _columns(source, x) if isinstance(x, dict) else [(path, x) for path, _ in columns]
    names = [name for _, name in columns]
    for number, (path, y) in enumerate(columns):
        x_path, x = xs[0] if len(xs) == 1 else xs[number] if number < len(xs) else ("", None)
        if isinstance(x, str) and isinstance(y, str):
            file = f"{path}: " if names.count(y) > 1 else ""
            title = properties.get("title") if len(columns) == 1 else None
            yield (x_path, x), (path, y), title or f"{file}{y} by {x}"


def _columns(source: str, named: Any) -> list[tuple[str, Any]]:
    """File and column, of a name, a list of names or either by file."""
    by_file = named if isinstance(named, dict) else {source: named}
    return [
        (path, name)
        for path, names in by_file.items()
        for name in (names if isinstance(names, list) else [names])
    ]


def _points(
    x_rows: Sequence[Mapping[str, Any]], x: str, y_rows: Sequence[Mapping[str, Any]], y: str
) -> tuple[tuple[float, float], ...]:
    points = []
    if len(x_rows) == len(y_rows):  # or else nobody knows what belongs together
        for x_row, y_row in zip(x_rows, y_rows, strict=True):
            with suppress(KeyError, TypeError, ValueError):  # a gap, or no numbers
                point = float(x_row[x]), float(y_row[y])
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
    # DVC names the file, the cause names the fault.
    cause = error.__cause__ if isinstance(error, DvcException) else None
    said = filter(None, (" ".join(str(one).split()) for one in (error, cause) if one))
    text = ": ".join(dict.fromkeys(said)) or type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
