"""Whether results are those of the code, data and params beside them: what can be told without a run.

`dvc.lock` says what each stage read and wrote when it ran; what `dvc.yaml` and the files say now is
compared with it.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from mnist.core import config, paths
from mnist.core.errors import InputError

MAKERS = ("train", "evaluate")  # the stages that make a result


@dataclass(frozen=True, kw_only=True)
class Out:
    """What a stage writes.

    Attributes:
        kept_in: DVC's cache, or git; empty for what git ignores: it is no part of a committed result.
        digest: DVC's, of what lies there; None for nothing.
    """

    kept_in: Literal["cache", "git", ""]
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of `dvc.yaml`, and what it would find now.

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


def pipeline(folder: Path) -> list[Stage]:
    """The stages of the checkout in `folder`, as DVC reads its `dvc.yaml`: in order, templates filled in.

    Raises:
        InputError: DVC cannot read it.
    """
    try:
        # Its own place for DVC's notes on files: the usual one is never tidied up, and it may be temporary.
        with Repo(str(folder), config={"core": {"site_cache_dir": str(folder / ".dvc/tmp/site")}}) as repo:
            ours = str(folder.resolve() / paths.PIPELINE)
            return [_stage(repo, stage) for stage in repo.index.stages if stage.path == ours]
    except DvcException as error:
        # DVC names the file by its way from the current folder.
        found = re.sub(r"'[^']*?([^'/]+)'", r"\1", " ".join(str(error).split()), count=1)
        raise InputError("the pipeline", found=found, expected="one that DVC can read") from None


def _stage(repo: Repo, stage: PipelineStage) -> Stage:
    params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    deps = [dep for dep in stage.deps if dep not in params]
    return Stage(
        name=stage.name,
        cmd=stage.cmd,
        deps={dep.def_path: dep.get_hash().value if dep.exists else None for dep in deps},
        params={dep.def_path: dep.read_params() for dep in params},
        outs={
            out.def_path: Out(
                kept_in="cache" if out.use_cache else "" if repo.scm.is_ignored(out.fs_path) else "git",
                digest=out.get_hash().value if out.exists else None,
            )
            for out in stage.outs
        },
    )


def locked(folder: Path) -> dict[str, Any]:
    """The stages of `dvc.lock`; none where there is no such file.

    Raises:
        InputError: it is no YAML.
    """
    stages: dict[str, Any] = config.read_keys(folder, paths.LOCK).get("stages", {})
    return stages


def digests(made: Mapping[str, Any], kind: Literal["deps", "outs"]) -> dict[str, str]:
    """By path, as a stage of `dvc.lock` has them."""
    return {entry["path"]: entry["md5"] for entry in made.get(kind, []) if "md5" in entry}


def kept(folder: Path) -> list[Path]:
    """What a run is to keep of the result in `folder`: all that its stages made, which were others once."""
    made = {path for entry in locked(folder).values() for path in digests(entry, "outs")}
    always = (paths.PARAMS, paths.PIPELINE, paths.LOCK)
    return [path for path in paths.ARTIFACTS if path in always or path.as_posix() in made]


def doubts(stages: Sequence[Stage], made: Mapping[str, Any]) -> list[str]:
    """What tells, without a run, that results were not made by the stages as they are: a line each.

    What one stage makes and another reads is compared as `dvc.lock` has it on both sides, since it
    may not be there.

    Args:
        stages: of a clean checkout.
        made: what `locked` says of it.
    """
    wrote = {path: digest for entry in made.values() for path, digest in digests(entry, "outs").items()}
    found: dict[str, list[str]] = {}
    for stage in stages:
        if stage.name not in made:
            found.setdefault(f"not in {paths.LOCK}", []).append(stage.name)
            continue
        deps = {path: wrote.get(path, digest) for path, digest in stage.deps.items()}
        now = replace(stage, deps=deps)
        for difference in [*_since(now, made[stage.name]), *_outs_since(now, made[stage.name])]:
            found.setdefault(difference, []).append(stage.name)
    gone = [name for name in made if name not in {stage.name for stage in stages}]
    if gone:
        found[f"in {paths.LOCK}, not in {paths.PIPELINE}: delete its lines"] = gone
    return [f"stage {', '.join(names)}: {difference}" for difference, names in found.items()]


def _outs_since(stage: Stage, made: Mapping[str, Any]) -> Iterator[str]:
    """How the outs of a stage, as far as they are there, are other ones than it wrote."""
    wrote = digests(made, "outs")
    for path in dict.fromkeys([*stage.outs, *wrote]):
        if path not in wrote:
            yield f"{path} is a new out"
        elif path not in stage.outs:
            yield f"{path} is no out any more"
        elif stage.outs[path].digest is None and stage.outs[path].kept_in == "git":
            yield f"{path} is not in git"
        elif stage.outs[path].digest not in (None, wrote[path]):
            yield f"{path} is not what it wrote"


def _since(stage: Stage, made: Mapping[str, Any]) -> Iterator[str]:
    """How a stage is another one than what ran according to `dvc.lock`."""
    if made["cmd"] != stage.cmd:
        yield f"its cmd is `{_command(stage.cmd)}`, was `{_command(made['cmd'])}`"
    read = digests(made, "deps")
    for path in dict.fromkeys([*stage.deps, *read]):
        if path not in read:
            yield f"{path} is a new dep"
        elif path not in stage.deps:
            yield f"{path} is no dep any more"
        elif stage.deps[path] is None:
            yield f"{path} is not there"
        elif stage.deps[path] != read[path]:
            yield f"{path} changed since"
    yield from _params_since(stage.params, made.get("params", {}))


def _params_since(params: Mapping[str, Mapping[str, Any]], ran: Mapping[str, Any]) -> Iterator[str]:
    for file in dict.fromkeys([*params, *ran]):
        now, was = config.flat(params.get(file, {})), config.flat(ran.get(file, {}))
        prefix = "" if file == str(paths.PARAMS) else f"{file}:"
        for key in dict.fromkeys([*now, *was]):
            if key not in was:
                yield f"{prefix}{key} is a new param"
            elif key not in now:
                yield f"{prefix}{key} is no param any more"
            elif now[key] != was[key]:
                yield f"{prefix}{key} is {now[key]}, was {was[key]}"


def _command(cmd: Any) -> str:
    return " && ".join(cmd) if isinstance(cmd, list) else str(cmd)


def check(folder: Path) -> None:
    """Let pass only a checkout whose results are those of its code, data and params, as `dvc.lock` has it.

    Raises:
        InputError: it has no results, or something was changed since.
    """
    made = locked(folder)
    for name in MAKERS:
        if name not in made:
            raise _stale(f"no stage {name}")
    pipeline, values = (
        config.read_keys(folder, paths.PIPELINE).get("stages", {}),
        config.read_keys(folder, paths.PARAMS),
    )
    for name in MAKERS:
        now = pipeline.get(name, {})
        stage = Stage(
            name=name,
            cmd=now.get("cmd"),
            deps={dep: _md5(folder / dep) for dep in now.get("deps", [])},
            params={str(paths.PARAMS): {key: _at(values, key) for key in now.get("params", [])}},
            outs={},
        )
        for difference in _since(stage, made[name]):
            raise _stale(f"stage {name}: {difference}")
        for path, digest in digests(made[name], "outs").items():
            if _md5(folder / path) != digest:
                raise _stale(f"{path} is not what stage {name} wrote")


def _stale(found: str) -> InputError:
    return InputError(str(paths.LOCK), found=found, expected="a result of what is there: `dvc repro`")


def _md5(path: Path) -> str | None:
    """The digest of a file; None for none."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _at(values: Any, key: str) -> Any:
    """A param by its dotted key; a section is one, too."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
