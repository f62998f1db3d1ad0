"""The only module that runs git: its commands use the repository of a folder, not that of the environment."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mnist.core.errors import InputError

TIMEOUT_SECONDS = 120  # for one command, a fetch too
HASH = re.compile("[0-9a-f]{40}")
# In a hook and under `git rebase --exec` these lead to another repository: `git rev-parse --local-env-vars`.
LOCAL = re.compile(
    "GIT_(ALTERNATE_OBJECT_DIRECTORIES|COMMON_DIR|DIR|INDEX_FILE|NAMESPACE|OBJECT_DIRECTORY|PREFIX"
    "|SHALLOW_FILE|WORK_TREE)"
)
MAX_SHOWN = 200  # characters of a name
MAX_REASON = 600  # characters of an error; on a full disk there is one for each file
UNKNOWN = "no such commit, branch, tag or experiment here"


def run(
    *arguments: str, folder: Path, stdin: bytes = b"", index: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, whatever its exit status; without git installed, that is 127.

    Args:
        arguments: of `git`.
        folder: to run in.
        stdin: its input.
        index: the file to use as git's index.

    Raises:
        InputError: it does not end in time.
    """
    environment = {name: value for name, value in os.environ.items() if not LOCAL.fullmatch(name)}
    environment["GIT_TERMINAL_PROMPT"] = "0"  # a password is not asked for
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    command = ["git", *arguments]
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, b"", b"git is not installed")
    except subprocess.TimeoutExpired:
        found = f"no answer in {TIMEOUT_SECONDS} s"
        raise InputError(f"git {arguments[0]}", found=found, expected="an `origin` that answers") from None


def output(*arguments: str, folder: Path, stdin: bytes = b"", index: Path | None = None) -> bytes:
    """Return the output of a command.

    Raises:
        InputError: it fails.
    """
    done = run(*arguments, folder=folder, stdin=stdin, index=index)
    if done.returncode != 0:
        raise InputError(f"git {' '.join(arguments)}", found=_reason(done), expected="success")
    return done.stdout


def text(*arguments: str, folder: Path) -> str:
    """Return the output of a command, without the white space around it.

    Raises:
        InputError: it fails.
    """
    return output(*arguments, folder=folder).decode(errors="replace").strip()


def text_or_empty(*arguments: str, folder: Path) -> str:
    """Return the output of a command; nothing where it fails, as in a copy without git."""
    done = run(*arguments, folder=folder)
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def blobs(names: Sequence[str], *, folder: Path) -> list[bytes | None]:
    """Return the contents of objects, such as `<commit>:./<file>`, by one process; None for no such one."""
    if not names:
        return []
    data = output("cat-file", "--batch", folder=folder, stdin="\n".join(names).encode() + b"\n")
    found: list[bytes | None] = []
    start = 0
    for _ in names:
        line, _, _ = data[start:].partition(b"\n")  # "<hash> blob <size>", or "<name> missing"
        start += len(line) + 1
        if line.endswith(b" missing"):
            found.append(None)
            continue
        size = int(line.rpartition(b" ")[2])
        found.append(data[start : start + size])
        start += size + 1
    return found


def resolve(name: str, *, folder: Path) -> str:
    """Return the full hash of a commit: a branch, tag, hash or DVC experiment; else one that `origin` has.

    What is at `origin` alone is fetched, into no ref.

    Raises:
        InputError: it is not known there either, or `origin` does not answer.
    """
    if not name.strip() or name.startswith("-"):  # git would take it for an option
        raise _unknown(name, UNKNOWN if name.strip() else "nothing")
    return commit_here(name, folder=folder) or _fetch(name, folder)


def commit_here(name: str, *, folder: Path) -> str:
    """Return the full hash of a commit that is in this repository; empty where there is no such one."""
    options = ["--verify", "--quiet", "--end-of-options"]
    commit = text_or_empty("rev-parse", *options, f"{name}^{{commit}}", folder=folder)
    if HASH.fullmatch(commit):
        return commit
    if not _is_name(name, folder):
        return ""
    # Experiments of DVC: refs/exps/<start of the baseline>/<the rest of it>/<name>; the newest of that name.
    options = ["--sort=-committerdate", "--format=%(objectname)"]
    return text_or_empty("for-each-ref", *options, f"refs/exps/??/*/{name}", folder=folder).partition("\n")[0]


def num_missing(commit: str, other: str, *, folder: Path) -> int | None:
    """Count the commits of `commit` that are not in `other`; None in a shallow clone, which does not know."""
    if text_or_empty("rev-parse", "--is-shallow-repository", folder=folder) != "false":
        return None
    counted = text_or_empty("rev-list", "--count", commit, f"^{other or 'HEAD'}", folder=folder)
    return int(counted) if counted else None


def _fetch(name: str, folder: Path) -> str:
    """Fetch a commit from `origin`, where a tag goes before a branch of the same name."""
    wanted = name.removeprefix("origin/")
    # What is no name could be a refspec, which writes into a ref.
    if not _is_name(wanted, folder):
        raise _unknown(name, UNKNOWN)
    # Into no ref but FETCH_HEAD: a branch of that name may be another one here.
    into_none = ["--quiet", "--no-tags", "--refmap="]
    is_shallow = text_or_empty("rev-parse", "--is-shallow-repository", folder=folder) == "true"
    depth = ["--depth=1"] if is_shallow else []  # a clone that has all history is to keep it
    done = run("fetch", *into_none, *depth, "origin", wanted, folder=folder)
    commit = commit_here("FETCH_HEAD", folder=folder) if done.returncode == 0 else ""
    if not commit:
        reason = _reason(done) if done.returncode != 0 else "it is no commit"
        raise _unknown(name, f"{UNKNOWN}; `git fetch origin {wanted}`: {reason}")
    return commit


def _is_name(name: str, folder: Path) -> bool:
    return run("check-ref-format", f"refs/heads/{name}", folder=folder).returncode == 0


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    reason = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
    return reason if len(reason) <= MAX_REASON else f"... {reason[-MAX_REASON:]}"  # the cause comes last


def _unknown(name: str, found: str) -> InputError:
    shown = " ".join(name.split())[:MAX_SHOWN]
    return InputError(
        f"revision {shown}".strip(),
        found=" ".join(found.split())[: 3 * MAX_SHOWN],
        expected="one that git or DVC knows",
    )
