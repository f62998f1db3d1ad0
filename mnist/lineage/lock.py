"""The check that results are those of this code, data and params, by `dvc.yaml`, `dvc.lock` and the files.

`dvc.lock` holds what each stage read and wrote when it ran. It is compared with what DVC finds now,
files and folders alike, without a run.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnist.core import config, files, paths
from mnist.core.errors import InputError
from mnist.lineage import git

if TYPE_CHECKING:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")  # of DVC, of a file or folder
MAKERS = ("train", "evaluate")  # the stages that make a result


@dataclass(frozen=True, kw_only=True)
class Out:
    """An output of a stage.

    Attributes:
        kept_in: DVC's cache, or git; empty for what git ignores: it is no part of a committed result.
        digest: DVC's, of what lies there; None for nothing.
    """

    kept_in: Literal["cache", "git", ""]
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of `dvc.yaml`, and the present state of its files and params.

    Attributes:
        name: in `dvc.yaml`.
        cmd: one command or several.
        deps: DVC's digest by path; None for what is not there.
        params: by file and key.
        outs: by path.
    """

    name: str
    cmd: Any
    deps: Mapping[str, str | None]
    params: Mapping[str, Mapping[str, Any]]
    outs: Mapping[str, Out]


@dataclass(frozen=True)
class Change:
    """One thing of a stage that is not as `dvc.lock` has it.

    Attributes:
        what: `cmd`, a path, or a param, which has its file in front unless that is `params.yaml`.
        reason: how it differs.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.reason}"


def read(folder: Path) -> dict[str, Any]:
    """Return the stages of `dvc.lock` in a folder; none where there is no such file.

    Raises:
        InputError: it is not what DVC writes.
    """
    path = folder / paths.LOCK
    with files.reading(path, "what DVC wrote"):
        return parse(path.read_bytes() if path.exists() else b"")


def parse(content: bytes) -> dict[str, Any]:
    """Return the stages of a `dvc.lock`; none of an empty one.

    Raises:
        InputError: it is not what DVC writes.
    """
    values = config.parse_keys(content, str(paths.LOCK))
    from dvc.dvcfile import Lockfile
    from dvc.utils.strictyaml import YAMLValidationError

    try:
        stages: dict[str, Any] = Lockfile.validate(values).get("stages", {}) if values else {}
    except YAMLValidationError as error:
        raise InputError(str(paths.LOCK), found=str(error.exc), expected="what DVC wrote") from None
    return stages


def check_whole(locked: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Check that `dvc.lock` was not cut off: its last entry has the digest of each out of its stage.

    Raises:
        InputError: it has not.
    """
    *_, (name, entry) = [("", {}), *locked.items()]
    wrote = digests(entry, "outs")
    outs = (out for stage in stages if stage.name == name for out in stage.outs)
    if missing := [out for out in outs if not DIGEST.fullmatch(wrote.get(out, ""))]:
        found = f"stage {name} without the digest of {missing[0]}"
        raise InputError(str(paths.LOCK), found=found, expected="a whole entry: run `dvc repro`")


def reason(error: "DvcException") -> str:
    """Return the reason of an error of DVC, in one line."""
    # DVC names the file by its way from the current folder.
    parts = [" ".join(str(one).split()) for one in (error, error.__cause__) if one]
    return re.sub(r"'[^']*?([^'/]+\.yaml)'", r"\1", ": ".join(parts), count=1)


def digests(entry: Mapping[str, Any], kind: Literal["deps", "outs"]) -> dict[str, str]:
    """Return DVC's digests by path, as the entry of a stage in `dvc.lock` has them."""
    return {one["path"]: one["md5"] for one in entry.get(kind, []) if "md5" in one}


def written(locked: Mapping[str, Any]) -> dict[str, str]:
    """Return DVC's digests of the outs of all stages, by path."""
    return {path: digest for entry in locked.values() for path, digest in digests(entry, "outs").items()}


def pipeline(folder: Path) -> list[Stage]:
    """Return the stages of the checkout in `folder`, as DVC reads its `dvc.yaml`: templates filled in.

    Raises:
        InputError: DVC cannot read it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    try:
        # DVC's notes on files stay in the folder: the usual place is never tidied, and it may be temporary.
        settings = {"core": {"site_cache_dir": str(folder.resolve() / ".dvc/tmp/site")}}
        is_git = bool(git.text_or_empty("rev-parse", "--git-dir", folder=folder))
        with Repo(str(folder), config=settings, scm=None if is_git else NoSCM(str(folder))) as repo:
            return stages(repo)
    except DvcException as error:
        raise InputError("the pipeline", found=reason(error), expected="one that DVC can read") from None
    except NotImplementedError:  # from DVC, at the end of a file that was cut off
        expected = "md5: run `git checkout dvc.lock`"
        raise InputError(str(paths.LOCK), found="a hash of unknown kind", expected=expected) from None


def stages(repo: "Repo") -> list[Stage]:
    """Return the stages of the `dvc.yaml` at the root of a repository, at the revision that DVC stands at."""
    ours = repo.fs.join(repo.root_dir, str(paths.PIPELINE))
    return [_stage(repo, stage) for stage in repo.index.stages if stage.path == ours]


def _stage(repo: "Repo", stage: "PipelineStage") -> Stage:
    from dvc.dependency import ParamsDependency

    params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    deps = [dep for dep in stage.deps if dep not in params]
    return Stage(
        name=stage.name,
        cmd=stage.cmd,
        deps={dep.def_path: dep.get_hash().value if dep.exists else None for dep in deps},
        params={dep.def_path: dep.read_params() for dep in params},
        outs={
            out.def_path: Out(
                kept_in="cache" if out.use_cache else "" if _is_ignored(repo, out.fs_path) else "git",
                digest=out.get_hash().value if out.exists else None,
            )
            for out in stage.outs
        },
    )


def _is_ignored(repo: "Repo", path: str) -> bool:
    """Return whether git ignores a path of DVC's; at a revision, the repository is DVC's root folder."""
    root = repo.scm.root_dir
    return bool(repo.scm.is_ignored(path if path.startswith(root) else root + path))


def stale_reasons(now: Sequence[Stage], locked: Mapping[str, Any]) -> list[str]:
    """Return the reasons why results are stale, a line each; none if the stages as they are made them.

    What one stage makes and another reads is compared as `dvc.lock` has it on both sides, since it
    may not be there.

    Args:
        now: of a clean checkout.
        locked: what `read` returned.
    """
    wrote = written(locked)
    found: dict[str, list[str]] = {}
    for stage in now:
        if stage.name not in locked:
            found.setdefault(f"not in {paths.LOCK}", []).append(stage.name)
            continue
        entry = locked[stage.name]
        for change in [*changes(stage, entry, wrote=wrote), *changed_outs(stage, entry)]:
            found.setdefault(str(change), []).append(stage.name)
    removed = [name for name in locked if name not in {stage.name for stage in now}]
    if removed:
        found[f"in {paths.LOCK}, not in {paths.PIPELINE}: delete its lines"] = removed
    return [f"stage {', '.join(names)}: {reason}" for reason, names in found.items()]


def check(folder: Path) -> None:
    """Check that the results of a checkout are those of its code, data and params, by `dvc.lock`.

    Raises:
        InputError: it has no results, or something has changed since.
    """
    locked, now = read(folder), {stage.name: stage for stage in pipeline(folder)}
    for name in MAKERS:
        if reason := next(_stale(name, locked.get(name), now.get(name)), ""):
            expected = (
                "a result of what is there: `dvc repro`, or `mnist doctor --fix` if that finds nothing to do"
            )
            raise InputError(str(paths.LOCK), found=reason, expected=expected)


def _stale(name: str, entry: Mapping[str, Any] | None, now: Stage | None) -> Iterator[str]:
    if entry is None:
        yield f"no stage {name}"
    elif now is None:
        yield f"no stage {name} in {paths.PIPELINE}"
    else:
        for change in [*changes(now, entry), *changed_outs(now, entry)]:
            yield f"stage {name}: {change}"
        yield from (f"{path} is not there" for path, out in now.outs.items() if out.digest is None)


def changes(
    stage: Stage, entry: Mapping[str, Any], *, wrote: Mapping[str, str] | None = None
) -> Iterator[Change]:
    """Yield the differences of a stage's command, deps and params from its last run.

    Args:
        stage: what it is now.
        entry: its entry in `dvc.lock`.
        wrote: digests by path to go by, instead of the files that are there.
    """
    if entry["cmd"] != stage.cmd:
        yield Change("cmd", f"is `{_command(stage.cmd)}`, was `{_command(entry['cmd'])}`")
    deps = {path: (wrote or {}).get(path, digest) for path, digest in stage.deps.items()}
    yield from _changes("dep", deps, digests(entry, "deps"), _changed_dep)
    yield from _changes("param", _flat(stage.params), _flat(entry.get("params", {})), _changed_param)


def changed_outs(stage: Stage, entry: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the differences of a stage's outs, if they are there, from those of its last run."""
    yield from _changes("out", stage.outs, digests(entry, "outs"), _changed_out)


def _changes(
    kind: str, now: Mapping[str, Any], was: Mapping[str, Any], changed: Callable[[Any, Any], str]
) -> Iterator[Change]:
    """Yield what was added and removed, and what has changed, with the reason that `changed` returns."""
    for what in dict.fromkeys([*now, *was]):
        if what not in was:
            yield Change(what, f"is a new {kind}")
        elif what not in now:
            yield Change(what, f"is no {kind} any more")
        elif reason := changed(now[what], was[what]):
            yield Change(what, reason)


def _changed_dep(now: str | None, was: str) -> str:
    return "is not there" if now is None else "changed since" if now != was else ""


def _changed_param(now: Any, was: Any) -> str:
    return f"is {now}, was {was}" if now != was else ""


def _changed_out(now: Out, was: str) -> str:
    if now.digest is None:
        return "is not in git" if now.kept_in == "git" else ""
    return "is not what it wrote" if now.digest != was else ""


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of several files by dotted keys; those of `params.yaml` have no file in front."""
    return {
        key if file == str(paths.PARAMS) else f"{file}:{key}": value
        for file, values in params.items()
        for key, value in config.flat(values).items()
    }


def _command(cmd: Any) -> str:
    return " && ".join(cmd) if isinstance(cmd, list) else str(cmd)
