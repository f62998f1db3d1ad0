"""Commits by name: of this repository, or else of `origin`, from where they are fetched."""

import os
import re
import subprocess
from contextlib import suppress

from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from scmrepo.exceptions import SCMError

from mnist.core.errors import InputError

PATIENCE_SECONDS = 120  # for one command of git, a fetch too
HASH = re.compile("[0-9a-f]{40}")
# Where a git hook, say, speaks of another repository than the one that is asked.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
MAX_SHOWN = 200  # characters of a name or message


def resolve(repo: Repo, name: str) -> str:
    """The full hash of a commit: a branch, tag, hash or DVC experiment, of `origin` where it is not here.

    Raises:
        InputError: it is not known there either, or `origin` does not answer.
    """
    if not name:
        raise _unknown("", "nothing")
    # SCMError: there is no commit yet. ValueError: nothing can have such a name.
    with suppress(RevError, SCMError, ValueError):
        commit = str(resolve_rev(repo.scm, name))
        if _is_here(repo.root_dir, commit):
            return commit
    return _fetched(repo.root_dir, name)


def num_missing(repo: Repo, commit: str, other: str) -> int | None:
    """How many commits of `commit` are not in `other`; None in a shallow clone, which does not know."""
    if _is_shallow(repo.root_dir):
        return None
    done = _git(repo.root_dir, "rev-list", "--count", commit, f"^{other or 'HEAD'}")
    return int(done.stdout) if done.returncode == 0 else None


def _fetched(root: str, name: str) -> str:
    nothing = "no such commit, branch, tag or experiment here"
    wanted = name.removeprefix("origin/")
    # What is no name could be a refspec, which writes into a ref.
    if _git(root, "check-ref-format", f"refs/heads/{wanted}").returncode != 0:
        raise _unknown(name, nothing)
    ref, commit = (wanted, wanted) if HASH.fullmatch(wanted) else _of_origin(root, name, wanted)
    # A fetch with depth 1 of what is here would cut off the history behind it.
    if not _is_here(root, commit):
        depth = ["--depth=1"] if _is_shallow(root) else []  # a clone that has all history is to keep it
        # Into no ref: a branch of that name may be another one here.
        into_none = ["--no-tags", "--refmap=", "--no-write-fetch-head"]
        done = _git(root, "fetch", "--quiet", *into_none, *depth, "origin", ref)
        if done.returncode != 0 or not _is_here(root, commit):
            reason = _first_line(done.stderr) if done.returncode != 0 else "it is no commit"
            raise _unknown(name, f"{nothing}; `git fetch origin {wanted}` says: {reason}")
    return commit


def _of_origin(root: str, name: str, wanted: str) -> tuple[str, str]:
    """The ref that `origin` has of this name, and its commit; of a tag, that which it points to."""
    refs = [f"refs/tags/{wanted}", f"refs/heads/{wanted}"]  # git takes the tag first, too
    done = _git(root, "ls-remote", "origin", *refs, f"{refs[0]}^{{}}")
    found = {ref: commit for commit, _, ref in (line.partition("\t") for line in done.stdout.splitlines())}
    for ref in refs:
        if ref in found:
            return ref, found.get(f"{ref}^{{}}", found[ref])
    reason = _first_line(done.stderr) if done.returncode != 0 else "no such branch or tag"
    raise _unknown(
        name,
        f"no such commit, branch, tag or experiment here; `git ls-remote origin {wanted}` says: {reason}",
    )


def _is_shallow(root: str) -> bool:
    return _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"


def _is_here(root: str, commit: str) -> bool:
    return _git(root, "cat-file", "-t", commit).stdout.strip() == "commit"


def _git(root: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={**environment, "GIT_TERMINAL_PROMPT": "0"},  # nobody may be there to answer
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        found = f"no answer in {PATIENCE_SECONDS} s"
        raise InputError(f"git {arguments[0]}", found=found, expected="an `origin` that answers") from None


def _unknown(name: str, found: str) -> InputError:
    shown = " ".join(name.split())[:MAX_SHOWN]
    return InputError(
        f"revision {shown}".strip(),
        found=" ".join(found.split())[: 3 * MAX_SHOWN],
        expected="one that git or DVC knows",
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
