"""What DVC knows of one revision of the repository, or of the workspace: read, not judged.

It goes by `dvc.yaml` of that revision, so renamed files and metrics of your own are found. What
cannot be read is named, and the rest is read all the same.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import NoSCM

from mnist.comparison import plots
from mnist.comparison.plots import Curve
from mnist.core import config, paths
from mnist.core.errors import InputError
from mnist.data.validation import Verdict
from mnist.evaluation import statistics
from mnist.evaluation.statistics import Predictions
from mnist.lineage import git

WORKSPACE = "workspace"  # as DVC calls what is checked out, changes included
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
        altered: metrics and plots in git that are not what it wrote.
    """

    cmd: str
    params: frozenset[str]
    code: Mapping[str, str]
    data: Mapping[str, str]
    changed: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()


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
        unreadable: why there are no predictions, though there is such a plot.
        evaluation: the bytes of the scores and the predictions, by which MLflow knows the result.
        validation: the verdict on the data.
        problems: why something could not be read, by file.
        num_missing: commits of the base that it is compared with and that are not in it; None where unknown.
    """

    name: str
    commit: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    num_steps: int | None = None
    predictions: Predictions | None = None
    unreadable: str = ""
    evaluation: tuple[bytes, bytes] | None = None
    validation: Verdict | None = None
    problems: dict[str, str] = field(default_factory=dict)
    num_missing: int | None = None


def read(names: Iterable[str], root: Path) -> list[Snapshot]:
    """Read revisions of the repository at `root`, the base first; `WORKSPACE` is what is checked out.

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
        base, *others = [_read(repo, name) for name in names]
        for other in others if base.commit else []:
            other.num_missing = git.num_missing(base.commit, other.commit, folder=root)
    return [base, *others]


def _read(repo: Repo, name: str) -> Snapshot:
    commit = "" if name == WORKSPACE else git.resolve(name, folder=Path(repo.root_dir))
    snapshot = Snapshot(name=commit[:7] if commit and commit.startswith(name) else name, commit=commit)
    try:
        # DVC switches to the revision, and back when the loop ends.
        for drawn in repo.plots.collect(revs=[commit or WORKSPACE], onerror=_keep):
            _read_metrics(repo, snapshot)
            _read_params(repo, snapshot)
            _read_stages(repo, snapshot)
            _read_plots(repo, snapshot, next(iter(drawn.values()), {}))
            _read_validation(repo, snapshot)
    except DvcException as error:
        expected = "a pipeline that DVC can read"
        raise InputError(f"{paths.PIPELINE} at {name}", found=_reason(error), expected=expected) from None
    return snapshot


def _keep(result: dict[str, Any], exception: Exception, *_: Any, **__: Any) -> None:
    result["error"] = exception


def _read_metrics(repo: Repo, snapshot: Snapshot) -> None:
    for path, found in _gathered(repo.metrics.show(hide_workspace=False)):
        if "error" in found:
            snapshot.problems[path] = _reason(found["error"])
            continue
        values = found["data"] if isinstance(found["data"], dict) else {"": found["data"]}
        if values:
            snapshot.metrics[path] = config.flat(values)
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
            f"{_prefix(path)}{key}": value for key, value in config.flat(found["data"]).items()
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
            altered=tuple(_altered(repo, stage)),
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
    if not any(part.hash_info for part in (*stage.deps, *stage.outs)):
        yield f"not in {paths.LOCK}"
        return
    if getattr(stage, "cmd_changed", False):  # a stage outside of `dvc.yaml` does not know
        yield "its command"
    for path, digest in code.items():
        if _md5(repo, repo.fs.join(repo.root_dir, path)) not in (None, digest):
            yield path
    for dep in stage.params:
        ran_with, values = dep.hash_info.value or {}, dep.read_params()
        for name in dict.fromkeys([*values, *ran_with]):
            if name not in values or name not in ran_with or ran_with[name] != values[name]:
                yield f"{_prefix(_relative(repo, dep.fs_path))}{name}"


def _altered(repo: Repo, stage: Any) -> Iterator[str]:
    for out in stage.outs:
        digest = out.hash_info.value
        if (out.metric or out.plot) and digest and _md5(repo, out.fs_path) not in (None, digest):
            yield _relative(repo, out.fs_path)


def _md5(repo: Repo, file: str) -> str | None:
    """DVC's digest of a file; None for none, and for a folder, which has one of another kind."""
    if not repo.fs.isfile(file):
        return None
    return hashlib.md5(repo.fs.cat_file(file), usedforsecurity=False).hexdigest()


def _read_plots(repo: Repo, snapshot: Snapshot, drawn: Mapping[str, Any]) -> None:
    tables: dict[str, list[dict[str, Any]]] = {}

    def table(path: str) -> list[dict[str, Any]]:
        if path not in tables:
            source: Mapping[str, Callable[[], dict[str, Any]]] = sources.get(path, {})
            read = source["data_source"]() if "data_source" in source else {}
            tables[path] = plots.rows(read.get("data"))
            if not tables[path]:
                snapshot.problems[path] = _reason(read.get("error") or "no table")
        return tables[path]

    sources = drawn.get("sources", {}).get("data", {})
    predictions = []
    for source, properties in _definitions(snapshot, drawn):
        if properties.get("template") == "confusion":
            predictions += [path for path, _ in plots.columns(source, properties.get("y"))]
            continue
        for (x_path, x), (path, y), title in plots.lines(source, properties):
            if points := plots.points(table(x_path), x, table(path), y):
                snapshot.curves.append(Curve(title=title, x=x, y=y, points=points))
    snapshot.num_steps = plots.num_steps(row for rows in tables.values() for row in rows)
    # There may be other confusion matrices, as of the validation images.
    ours = paths.PREDICTIONS.as_posix()
    for path in [ours] if ours in predictions else predictions[:1]:
        _read_predictions(repo, snapshot, path)


def _definitions(snapshot: Snapshot, drawn: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All plots, by name or file; what DVC cannot make one of becomes one of `problems`."""
    of_files = drawn.get("definitions", {}).get("data", {})
    for part in (*drawn.values(), *of_files.values()):
        if "error" in part:
            snapshot.problems["plots"] = _reason(part["error"])
    for part in of_files.values():
        yield from part.get("data", {}).items()


def _read_predictions(repo: Repo, snapshot: Snapshot, path: str) -> None:
    try:
        content = repo.dvcfs.cat_file(path)
        snapshot.predictions = statistics.parse(content.decode(errors="replace"), path)
    except (OSError, DvcException, InputError) as error:
        snapshot.problems[path] = snapshot.unreadable = _reason(error)
        return
    with suppress(OSError, DvcException):
        snapshot.evaluation = repo.dvcfs.cat_file(paths.TEST_METRICS.as_posix()), content


def _read_validation(repo: Repo, snapshot: Snapshot) -> None:
    path = paths.VALIDATION.as_posix()
    try:
        snapshot.validation = config.check(Verdict, json.loads(repo.dvcfs.cat_file(path)), path)
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
    text = text.replace("../", "")  # DVC names files by their way from the current folder
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
