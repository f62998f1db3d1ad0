"""What a command leaves behind: files, git, the store, and things that should not be there."""

import contextlib
import hashlib
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

OWN = {".git", ".dvc", ".venv", ".cache", "mlartifacts", "__pycache__"}  # of the tools
CHANGING = re.compile(r"mlflow\.db|metrics/report\.html|promotions\.jsonl")  # with times
RANDOM = re.compile(r"[0-9a-f]{6,}|(?<=[-.])\w{8}(?=$|\.)")
OF_DVC = re.compile(r"refs/exps/exec/EXEC_(APPLY|BASELINE|BRANCH|CHECKPOINT|HEAD)|refs/stash")  # any run's
EXPERIMENT = re.compile(r"refs/exps/[0-9a-f]{2}/.*")
RUNS = """FROM runs JOIN params ON params.run_uuid = runs.run_uuid AND params.key = 'lr'
    AND lifecycle_stage = 'active' AND status NOT IN ('KILLED', 'FAILED')"""
QUERIES = {
    "integrity": "PRAGMA integrity_check",
    "runs": f"SELECT params.value, status {RUNS}",
    "points": f"""SELECT params.value, m.key, m.step, m.value {RUNS} JOIN metrics AS m
        ON m.run_uuid = runs.run_uuid AND m.key NOT LIKE 'system/%' AND m.key <> 'train/seconds'""",
    "tags": f"""SELECT params.value, t.key, t.value {RUNS} JOIN tags AS t
        ON t.run_uuid = runs.run_uuid AND (t.key LIKE '%_sha256' OR t.key = 'fingerprint')
        AND t.key <> 'files_sha256'""",  # of pages with times
    "versions": "SELECT key, value FROM model_version_tags WHERE key LIKE '%_sha256'",
    "models": "SELECT status FROM logged_models WHERE lifecycle_stage = 'active'",
    "aliases": """SELECT alias, value FROM registered_model_aliases AS a JOIN model_version_tags AS t
        ON a.name = t.name AND a.version = t.version AND key = 'weights_sha256'""",
}

Traces = Mapping[str, Sequence[str]]


def of(folder: Path) -> Traces:
    """Return all that a command left in a clone, without what differs each time."""
    refs = git(folder, "for-each-ref", "--format=%(refname)").splitlines()
    experiments = [git(folder, "show", f"{ref}:params.yaml") for ref in refs if EXPERIMENT.fullmatch(ref)]
    return {
        "files": contents(folder),
        "branch": [git(folder, "symbolic-ref", "HEAD"), git(folder, "rev-parse", "HEAD")],
        # Staged or not: DVC stages its lock file after it wrote it.
        "status": [" ".join(line.split()) for line in git(folder, "status", "--porcelain").splitlines()],
        "refs": [ref for ref in refs if not OF_DVC.fullmatch(ref) and not EXPERIMENT.fullmatch(ref)],
        "experiments": sorted(set(re.findall(r"(?m)^lr: .*", "\n".join(experiments)))),
        "cached": [path.name for path in (folder / ".dvc/cache").rglob("*") if path.is_file()],
        "logged": sorted({path.name for path in (folder / "mlartifacts").rglob("[!0-9]*") if path.is_file()}),
        "temporary": leftovers(folder),
        **{name: query(folder, name) for name in QUERIES},
    }


def difference(expected: Traces, found: Traces) -> str | None:
    """Return the first difference in a line, or None."""
    for name, lines in expected.items():
        ours, theirs = Counter(lines), Counter(found[name])
        if ours != theirs:
            return f"{name}: too many {[*theirs - ours]!s:.150}, missing {[*ours - theirs]!s:.150}"
    return None


def contents(folder: Path) -> list[str]:
    """Return the files of the project with their digests."""
    return [
        f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        for path in folder.rglob("*")
        if path.is_file()
        and not OWN & set(path.parts[len(folder.parts) :])
        and not CHANGING.fullmatch(str(path.relative_to(folder)))
    ]


def leftovers(folder: Path) -> list[str]:
    """Return what is temporary by its place or name."""
    found = [*(folder.parent / "tmp").glob("*"), *(folder / ".dvc/tmp/exps").glob("*")]
    for pattern in (".part.*", ".mlflow.db.*", "mlflow.db-*"):
        found += (path for path in folder.rglob(pattern) if ".venv" not in path.parts)
    return [RANDOM.sub("*", path.name) for path in found]


def query(folder: Path, name: str) -> list[str]:
    """Return the rows of a query on the store."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database:
        return [" ".join(map(str, row)) for row in database.execute(QUERIES[name])]


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or its error."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()
