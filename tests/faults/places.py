"""Odd places and environments: what people do every day comes out right there, or is refused in one line."""

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mnist.core import files, paths
from tests import checkout
from tests.faults import warm
from tests.faults.case import Case, clone_at

REPRO, EXPERIMENT, REGISTER = "dvc repro", "dvc exp run -S lr=0.03", "python -m stages.register"
DOCTOR, REPORT, DIFF, PROMOTE = (
    f"python -m mnist {name}" for name in ("doctor", "report", "diff", "promote")
)
COMMANDS = REPRO, EXPERIMENT, REGISTER, DOCTOR, REPORT, DIFF, PROMOTE
FOLDERS = {
    "space": "a b",
    "quotes": 'it\'s "here"',
    "percent": "a%2Fb%20c",
    "hash": "a#b",
    "question-mark": "a?b=c",
    "not-ascii": "d\u00e9p\u00f4t \u6570\u5b57",
    "newline": "a\nb",
    "dash": "-a",
    "shell": "a b$HOME;*",
    "long-path": "/".join(["x" * 180] * 2),  # of 512 characters at most, for SQLite
}
AHEAD = "UPDATE registered_model_tags SET value = '9999999999999' WHERE key = 'challenger_time_ms'"
AUTHOR = "git config user.name t; git config user.email t@example.org"


@dataclass(frozen=True)
class Place:
    """A place.

    Attributes:
        setup: commands of a shell in the folder above the clone, which is `clone` there.
        folder: where the clone is then.
        before: commands of a shell ahead of each command.
        refused: what a command says that must be refused there, by command; all others must succeed.
    """

    setup: str = ""
    folder: str = "clone"
    before: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, folder: Path) -> str | None:
        """Return None if all commands give there what they give elsewhere."""
        expected = _expected(folder)
        above = replace(clone_at(folder), folder=folder.parent)
        above.run("bash", "-ec", self.setup)
        clone = replace(above, folder=folder.parent / self.folder)
        for command in COMMANDS:
            done = clone.run("bash", "-c", f"{self.before}\n{command}", check=False)
            is_of_dvc = command.startswith("dvc") and command in self.refused
            if "Traceback" in done.stdout and not is_of_dvc:
                return f"{command}: a traceback: {done.stdout.splitlines()[-1]}"
            if (done.returncode != 0) != (command in self.refused):
                return f"{command}: status {done.returncode}: {done.stdout[-400:]}"
            if self.refused.get(command, "") not in done.stdout:
                return f"{command}: refused with {done.stdout[-400:]}"
        if EXPERIMENT not in self.refused and files.sha256(clone.folder / paths.WEIGHTS) != expected:
            return "other weights than elsewhere"
        return None


_weights: list[str] = []


def _expected(folder: Path) -> str:
    """Return the digest of the weights that the experiment gives elsewhere."""
    if not _weights:
        other = clone_at(folder.parent / "plain")
        shutil.copytree(folder, other.folder, symlinks=True)
        checkout.edit(other, "params.yaml", "lr: 0.02", "lr: 0.03")
        assert warm.run(other.folder, "python -m stages.train").status == 0
        _weights.append(files.sha256(other.folder / paths.WEIGHTS))
    return _weights[0]


def _in(name: str) -> Place:
    above = shlex.quote(f"./{name}")
    return Place(f"mkdir -p {above}; mv clone {above}/clone", f"{name}/clone")


def _set(variables: str, refused: Mapping[str, str] | None = None) -> Place:
    return Place(before=f"export {variables}", refused=refused or {})


def _after(commands: str, refused: Mapping[str, str] | None = None) -> Place:
    return Place(f"cd clone; {commands}", refused=refused or {})


PLACES = {
    **{f"folder-with-{name}": _in(folder) for name, folder in FOLDERS.items()},
    "folder-with-braces": replace(
        _in("a{b}"),
        refused={
            EXPERIMENT: "postfix",
            DOCTOR: "without { and }",
            **dict.fromkeys((REGISTER, REPORT), "ERROR: "),  # of the experiment that DVC broke off
        },
    ),
    "moved": Place("mv clone elsewhere", "elsewhere"),
    "link": Place("ln -s clone link", "link", "cd ../link"),
    "subfolder": Place(
        "mkdir -p larger/ml; cd larger; git init -qb main; git -C ../clone archive HEAD | tar -x -C ml;"
        f"{AUTHOR}; git add .; git commit -qm all",
        "larger/ml",
    ),
    "worktree": Place("git -C clone worktree add -qb work ../work", "work"),
    "worktree-of-a-bare-clone": Place(
        f"git clone -q --bare clone bare; cd bare; {AUTHOR}; git worktree add -q ../work main", "work"
    ),
    "shallow-clone": Place(
        f'git clone -q --depth 1 "file://$PWD/clone" shallow; cd shallow; {AUTHOR}',
        "shallow",
        refused={DOCTOR: "git fetch --unshallow"},
    ),
    "submodule": Place(
        f"git init -qb main larger; cd larger; git -c protocol.file.allow=always submodule add -q ../clone"
        f" ml; cd ml; {AUTHOR}",
        "larger/ml",
    ),
    "no-git": _after(
        "rm -r .git; dvc config --local core.no_scm true",
        {EXPERIMENT: "ERROR", DIFF: "not a git repository"},
    ),
    "home-unset": Place(before="unset HOME"),
    "home-missing": _set("HOME=/nowhere"),
    "home-no-folder": _set(
        "HOME=/dev/null", dict.fromkeys((REPRO, EXPERIMENT, DOCTOR, REPORT, DIFF), "/dev/null/.config/dvc")
    ),
    "tmpdir-missing": _set("TMPDIR=/nowhere"),
    "tmpdir-with-space": Place("mkdir 'a b'", before='export TMPDIR="$PWD/../a b"'),
    "ascii": _set("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 PYTHONIOENCODING=ascii"),
    "time-zone": _set("TZ=XXX-12:45"),
    "clock-was-ahead": Place(
        f'python -c "import sqlite3; s = sqlite3.connect(\'clone/mlflow.db\'); s.execute(\\"{AHEAD}\\");'
        ' s.commit()"; find clone -exec touch -hd "+1 day" {} +',
        refused={DOCTOR: "of the future"},
    ),
    "umask": Place(before="umask 077"),
    "autocrlf": _after("git config core.autocrlf true; git rm -rq --cached .; git reset -q --hard"),
    "hooks": _after(
        "mkdir ../hooks; printf '#!/bin/sh\\necho hook; exit 1\\n' > ../hooks/pre-commit; chmod +x ../hooks/*"
        "; cp ../hooks/pre-commit ../hooks/post-checkout; git config core.hooksPath ../hooks"
    ),
    "author-not-ascii": Place(
        "printf '[user]\\n name = Jos\u00e9\\n email = j@example.org\\n' > author;"
        "git -C clone config --remove-section user",
        before='export GIT_CONFIG_GLOBAL="$PWD/../author"',
    ),
    "safe-path": Place(
        before="unset PYTHONPATH; export PYTHONSAFEPATH=1",
        refused={
            EXPERIMENT: "stages",
            REGISTER: "stages",
            DOCTOR: "unset PYTHONSAFEPATH",
            REPORT: "lr is 0.03, was 0.02",  # which DVC left in params.yaml
        },
    ),
    "experiment-name-empty": _set("MLFLOW_EXPERIMENT_NAME="),
    "store-empty": _set("MLFLOW_TRACKING_URI="),
    "proxies": _set(
        "http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 ALL_PROXY=socks5://127.0.0.1:9"
    ),
    "threads": _set("OMP_NUM_THREADS=3 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=5"),
    "optimized": _set("PYTHONOPTIMIZE=2"),
    "hash-seed": _set("PYTHONHASHSEED=7 PYTHONDONTWRITEBYTECODE=1"),
    "narrow": _set("COLUMNS=20 TERM=dumb NO_COLOR=1"),
    "no-stdin": Place(before="exec <&-"),
    "few-open-files": Place(before="ulimit -n 256"),
    "hook-of-git": Place(before='export GIT_DIR="$PWD/.git" GIT_INDEX_FILE="$PWD/.git/index"'),
    "cache-elsewhere": _after("mv .dvc/cache '../a cache'; dvc config --local cache.dir '../../a cache'"),
    "cache-of-links": _after("dvc config --local cache.type symlink; dvc checkout -q --relink"),
    "cache-of-hard-links": _after("dvc config --local cache.type hardlink; dvc checkout -q --relink"),
    "detached-head": _after("git checkout -q --detach"),
    "uncommitted": _after("echo >> README.md; echo > new; git add new"),
    "removed-from-the-index": _after(
        "git rm -q --cached LICENSE", {EXPERIMENT: "uncommitted changes exist in the index"}
    ),
}
if os.geteuid():
    PLACES["read-only"] = Place(
        "chmod -R a-w clone", refused=dict.fromkeys((EXPERIMENT, REGISTER, REPORT, PROMOTE), "ermission")
    )
else:
    owner = {EXPERIMENT: "is not owned by current user", DOCTOR: "safe.directory", DIFF: "dubious ownership"}
    PLACES["files-of-another-user"] = _after("chown -R 12345 .", owner)
NUMBER = len(PLACES)  # of cases


def cases(seed: int) -> Iterator[Case]:  # noqa: ARG001 -- nothing here is random
    """Yield a case for each place."""
    for name, place in PLACES.items():
        yield Case("places", name, place)
