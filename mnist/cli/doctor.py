"""`mnist doctor`: checks of the place where the pipeline runs, in a second."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import psutil  # type: ignore[import-untyped]

from mnist.core import config, custody, files, paths
from mnist.core.errors import InputError
from mnist.lineage import git, lock
from mnist.tracking import database

HERE = Path()
MIN_FREE_BYTES = 500e6  # a data set, twice with DVC's cache, and the files of some hundred runs
TIMEOUT_SECONDS = 2.0  # for the tracking server
CLOCK_SECONDS = 60  # by which the clocks of two machines may differ
MOVED = r"(?m)^(?:checkout: moving from (.+) to (.+)|dvc: (?!Restore HEAD to '[0-9a-f]{40}').+)$"
KILLED_REFS = ("refs/exps/exec/EXEC_HEAD", "refs/exps/exec/EXEC_MERGE")  # of a killed `dvc exp run`
CRLF = re.compile(r"i/lf +w/(crlf|mixed) +attr/(?!.*eol=crlf *\t)")  # of `git ls-files --eol`; not as wanted
RWLOCK = Path(".dvc/tmp/rwlock")  # of DVC
CONNECT = "from mnist.tracking import client; client.connect()"
PLACES = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlartifacts'"
# `mnist.tracking.registry` writes it; the challenger stays until a newer model is registered.
AHEAD = (
    "SELECT name, datetime(CAST(value AS INTEGER) / 1000, 'unixepoch') FROM registered_model_tags"
    " WHERE key = 'challenger_time_ms' AND CAST(value AS INTEGER) > ?"
)


class RepairableError(InputError):
    """Something wrong that a command repairs, which needs no decision of the user and loses nothing."""

    def __init__(self, where: str, *, found: str, expected: str, command: Sequence[str]) -> None:
        super().__init__(where, found=found, expected=f"{expected}: run `{shlex.join(command)}`")
        self.command = command


@click.command()
@click.option("--fix", is_flag=True, help="Run the commands that need no decision of yours.")
def doctor(*, fix: bool) -> None:
    """Check environment, git, DVC, MLflow's store and disks.

    A line that is wrong names the command that fixes it, and the exit status is 1.

    \b
    Example:
      mnist doctor
      mnist doctor --fix
    """
    num_wrong = 0
    for name, check in CHECKS.items():
        try:
            try:
                found = check()
            except RepairableError as error:
                if not fix:
                    raise
                click.echo(f"fixing {error}")
                subprocess.run(error.command, capture_output=True, check=False)
                found = check()
            click.echo(f"fine   {name}: {found}")
        except (InputError, OSError, sqlite3.Error) as error:
            click.echo(f"WRONG  {error}")
            num_wrong += 1
    sys.exit(num_wrong > 0)


def check_environment() -> str:
    """Check that `python` and `dvc` are of the checkout's .venv, else of this process's environment."""
    own = Path(".venv/bin")
    if (own / "dvc").is_file():
        named = re.search(rb"/[^\n'\"]*(?=/python)", (own / "dvc").read_bytes())
        made_for = Path(os.fsdecode(named[0])) if named else HERE
        if made_for.resolve() != own.resolve():
            expected = "those of here: run `make setup`"
            raise InputError(".venv", found=f"scripts of {made_for}", expected=expected)
    wanted = (own if own.is_dir() else Path(sys.executable).parent).resolve()
    for name in ("python", "dvc"):  # DVC starts the stages with the first `python`
        found = shutil.which(name)
        if not found or Path(found).parent.resolve() != wanted:
            expected = f"that of {wanted}: run `source {wanted}/activate`"
            raise InputError(f"{name} on PATH", found=found or "none", expected=expected)
    if re.search("[{}]", here := str(HERE.resolve())):
        raise InputError("folder", found=here, expected="one without { and }, on which DVC fails: `mv` it")
    if value := os.environ.get("PYTHONSAFEPATH"):
        expected = "none, or Python does not find the stages: run `unset PYTHONSAFEPATH`"
        raise InputError("PYTHONSAFEPATH", found=value, expected=expected)
    return f"python and dvc of {wanted}"


def check_repository() -> str:
    """Check that there is a repository with all its history, or that DVC knows that there is none."""
    done = git.run("rev-parse", "--is-shallow-repository", "--show-prefix", folder=HERE)
    if done.returncode:
        settings = "\n".join(file.read_text(encoding="utf-8") for file in HERE.glob(".dvc/config*"))
        if re.search(r"(?mi)^\s*no_scm *= *true", settings):
            return "none, as core.no_scm allows"
        found = " ".join(done.stderr.decode(errors="replace").split())
        expected = "a repository: run `git init`, or `dvc config --local core.no_scm true`"
        if "dubious ownership" in found:
            expected = 'one of yours: run `git config --global --add safe.directory "$PWD"`'
        raise InputError("git", found=found, expected=expected)
    is_shallow, prefix, *_ = [*done.stdout.decode(errors="replace").splitlines(), ""]
    if is_shallow == "true":
        expected = "all history, or DVC loses experiments of --temp and queues: run `git fetch --unshallow`"
        raise InputError("git", found="a shallow clone", expected=expected)
    return f"all history{f', in {prefix} of a larger repository' if prefix else ''}"


def check_head() -> str:
    """Check that commits go to a branch: a killed `dvc exp run` leaves HEAD detached.

    HEAD's reflog has its checkout of `EXEC_HEAD` then, and `EXEC_MERGE` is there, which a run that ends
    removes. A HEAD that the user detached is fine; after one more experiment both look alike.
    """
    if branch := git.text_or_empty("symbolic-ref", "--quiet", "--short", "HEAD", folder=HERE):
        return branch
    left = git.text_or_empty("rev-parse", *KILLED_REFS, folder=HERE).split()
    reflog = git.text_or_empty("log", "-g", "--format=%gs", "HEAD", folder=HERE)  # the newest first
    moved = re.search(MOVED, reflog)
    name, place = moved.groups("") if moved else ("", "")
    was_on_branch = git.text_or_empty("rev-parse", f"refs/heads/{name}", folder=HERE)
    if place not in left[:1] or not was_on_branch or _dvc_runs():
        is_left = was_on_branch and not git.text_or_empty("rev-parse", f"refs/heads/{place}", folder=HERE)
        return f"no branch; `git switch {name}` goes back to one" if is_left else "no branch"
    expected = f"{name}: run `git switch {name}`"
    if git.run("merge-base", "--is-ancestor", "HEAD", name, folder=HERE).returncode:
        expected += f", then `git merge {git.text('rev-parse', '--short', 'HEAD', folder=HERE)}`"
    raise InputError("git HEAD", found="no branch, since `dvc exp run` was killed", expected=expected)


def check_author() -> str:
    """Check that DVC can commit experiments: it takes a name in the repository's own settings for ASCII."""
    name = git.text_or_empty("config", "user.name", folder=HERE)
    own = git.text_or_empty("config", "--local", "user.name", folder=HERE)
    if not own.isascii():
        commands = f"`git config --global user.name {shlex.quote(own)}`, then `git config --unset user.name`"
        expected = f"ASCII, or DVC fails in --temp and queues: run {commands}"
        raise InputError("user.name of this repository", found=own, expected=expected)
    if not name and git.run("rev-parse", folder=HERE).returncode == 0:
        expected = 'one, for experiments: run `git config --global user.name "Ada Lovelace"`'
        raise InputError("git user.name", found="none", expected=expected)
    return name or "none"


def check_line_ends() -> str:
    """Check that files have the line ends that are committed, since DVC compares bytes."""
    listed = git.text_or_empty("ls-files", "-z", "--eol", folder=HERE).split("\0")
    changed = [line.partition("\t")[2] for line in listed if CRLF.match(line)]
    if changed:
        command = ["perl", "-pi", "-e", r"s/\r$//", *changed]
        found, expected = f"CRLF in {len(changed)} files", "line feeds, as committed"
        raise RepairableError("line ends", found=found, expected=expected, command=command)
    return "as committed"


def check_pipeline() -> str:
    """Check that params.yaml, dvc.yaml and dvc.lock can be read, and are whole."""
    for path in (paths.PARAMS, paths.PIPELINE, paths.LOCK):
        here = path.read_bytes() if path.is_file() else None
        committed = git.run("show", f"HEAD:./{path}", folder=HERE).stdout
        if here is not None and committed.startswith(here.rstrip()) and len(here) < len(committed.rstrip()):
            expected = f"the rest, too: run `git checkout {path}`"
            raise InputError(str(path), found="the beginning of the committed file", expected=expected)
    config.load(paths.PARAMS)
    stages = lock.pipeline(HERE)
    if missing := {file.stem for file in HERE.glob("stages/[!_]*.py")} - {
        stage.name for stage in stages if stage.outs
    }:
        expected = "a stage for each file in stages/: `git diff dvc.yaml` shows it"
        raise InputError(
            str(paths.PIPELINE), found=f"no whole stage {', '.join(sorted(missing))}", expected=expected
        )
    lock.check_whole(lock.read(HERE), stages)
    return f"{len(stages)} stages"


def check_locks() -> str:
    """Check the file with DVC's locks: if DVC is killed while it writes that, it fails from then on."""
    try:
        files.read_json(RWLOCK)
    except InputError:
        if RWLOCK.is_file() and not _dvc_runs():
            command = ["rm", str(RWLOCK)]
            raise RepairableError(str(RWLOCK), found="no JSON", expected="none", command=command) from None
    return "readable"


def check_cache() -> str:
    """Check that each object of DVC's cache has the MD5 of its name: DVC does not."""
    objects = list(custody.cached_objects())
    if damaged := [str(path) for path in objects if custody.is_damaged(path)]:
        found, expected = f"{len(damaged)} damaged objects", "none (`dvc repro` makes them again)"
        raise RepairableError("DVC's cache", found=found, expected=expected, command=["rm", "-f", *damaged])
    return f"{len(objects)} objects"


def check_leftovers() -> str:
    """Check for hidden files of writers that were killed."""
    root = paths.root()
    parts = set(root.glob(".mlflow.db.*"))
    for folder in {path.parent for path in paths.ARTIFACTS} | {root / paths.DOWNLOADS.parent}:
        parts |= set(folder.glob(f"{files.PART}*") if folder == HERE else folder.rglob(f"{files.PART}*"))
    if old := sorted(str(path) for path in [*files.abandoned(parts), *files.left_behind()]):
        found, command = f"{len(old)}", ["rm", "-rf", *old]
        raise RepairableError("files of killed writers", found=found, expected="none", command=command)
    return "none"


def check_disks() -> str:
    """Check the space for a run."""
    for folder in (str(paths.root()), tempfile.gettempdir()):
        free = shutil.disk_usage(folder).free
        if free < MIN_FREE_BYTES:
            expected = f"{MIN_FREE_BYTES / 1e6:.0f} MB: run `dvc gc --all-commits --all-experiments`"
            raise InputError(f"the disk of {folder}", found=f"{free / 1e6:.0f} MB free", expected=expected)
    return "enough space"


def check_store() -> str:
    """Check that MLflow's server answers, or that its file is a store of this MLflow and this checkout."""
    uri = paths.store_uri()
    database.check(uri)
    shown, file = paths.shown(uri), paths.sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        return _ask_server(uri, shown)
    if not uri.startswith("sqlite:///"):
        database.reach(uri)
        return shown
    if not file.exists():
        return f"{shown}, which the next command makes"
    # Not by MLflow, whose import takes a second, and which would change the file.
    ahead = database.query(uri, AHEAD, (time.time() + CLOCK_SECONDS) * 1000)
    for (place,) in database.query(uri, PLACES) if file == paths.root() / "mlflow.db" else []:
        old = Path(unquote(place.removeprefix("file://")))
        if old.parent != paths.root() and (paths.root() / old.name).is_dir():
            expected, command = "files in this checkout", ["python", "-c", CONNECT]
            raise RepairableError(shown, found=f"files in {old}", expected=expected, command=command)
    for name, when in ahead:
        found, expected = f"a challenger {name} of the future ({when} UTC)", "one that newer models replace"
        call = f"delete_registered_model_tag({name!r}, 'challenger_time_ms')"
        command = ["python", "-c", f"{CONNECT}.client.{call}"]
        raise RepairableError(shown, found=found, expected=expected, command=command)
    return shown


def _ask_server(uri: str, shown: str) -> str:
    import requests

    expected = "a server that answers: start it, or run `unset MLFLOW_TRACKING_URI`"
    is_insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not is_insecure  # as in MLflow
    try:
        if requests.utils.get_environ_proxies(uri):
            expected = f"an answer through the proxy: run `export NO_PROXY={urlsplit(uri).hostname}`"
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_SECONDS, verify=verify).status_code
        found = "" if status == requests.codes.ok else f"answer {status}"
    except (requests.RequestException, ValueError) as error:  # ValueError: no URL
        found = type(error).__name__  # its text holds the URI
    if found:
        raise InputError(shown, found=found, expected=expected)
    return shown


def _dvc_runs() -> bool:
    """Return whether a process of DVC works in this checkout."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:3]]
        if process.info["cwd"] == str(Path.cwd()) and "dvc" in words:
            return True
    return False


CHECKS = {
    "environment": check_environment,
    "git": check_repository,
    "HEAD": check_head,
    "author": check_author,
    "line ends": check_line_ends,
    "pipeline": check_pipeline,
    "DVC's locks": check_locks,
    "DVC's cache": check_cache,
    "leftovers": check_leftovers,
    "MLflow": check_store,
    "disks": check_disks,
}
