"""What a command leaves behind: files, git, the store, and things that should not be there."""

import contextlib
import hashlib
import json
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN = {".git", ".dvc", ".venv", ".cache", "mlartifacts", "__pycache__"}  # of the tools
CHANGING = re.compile(r"mlflow\.db.*|metrics/report\.html|promotions\.jsonl|.*model-card\.md")  # with times
RANDOM = re.compile(r"[0-9a-f]{6,}|(?<=[-.])[\w]{8}(?=$|\.)")
POINTS = """SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'system/%'
    AND key <> 'train/seconds' ORDER BY key, step"""
TAGS = ("dataset_sha256", "weights_sha256", "evaluation_sha256", "fingerprint", "test_sha256")


def of(folder: Path) -> dict[str, Any]:
    """Return all that a command left in a clone, without what differs each time."""
    return {
        "files": {str(name): digest for name, digest in sorted(contents(folder))},
        "git": state_of_git(folder),
        "experiments": experiments(folder),
        "cache": sorted(path.name for path in (folder / ".dvc/cache").rglob("*") if path.is_file()),
        "temporary": sorted(leftovers(folder)),
        "decisions": decisions(folder),
        "aliases": aliases(folder),
        **store(folder),
    }


def difference(expected: Any, found: Any, where: str = "") -> str | None:
    """Return the first difference in a line, or None."""
    if expected == found:
        return None
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = ((key, expected.get(key), found.get(key)) for key in {**expected, **found})
        return next(
            filter(None, (difference(ours, theirs, f"{where}{key}: ") for key, ours, theirs in pairs)), None
        )
    if isinstance(expected, list) and isinstance(found, list):
        ours, theirs = Counter(map(str, expected)), Counter(map(str, found))
        return f"{where}too many {[*theirs - ours]!s:.150}, missing {[*ours - theirs]!s:.150}"
    return f"{where}{found!s:.150}, expected {expected!s:.150}"


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of the project and their digests."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if not OWN & set(name.parts) and not CHANGING.fullmatch(str(name)) and path.is_file():
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def state_of_git(folder: Path) -> dict[str, str]:
    """Return branch, status, stash, and the refs but those of experiments."""
    return {
        "branch": git(folder, "symbolic-ref", "HEAD"),
        "commit": git(folder, "rev-parse", "HEAD"),
        "status": git(folder, "status", "--porcelain"),
        "stash": git(folder, "stash", "list"),
        "worktrees": str(len(git(folder, "worktree", "list").splitlines())),
        "refs": " ".join(
            name for name in git(folder, "for-each-ref", "--format=%(refname)").split() if is_own(name)
        ),
    }


def is_own(ref: str) -> bool:
    """Return whether a ref is none that DVC leaves after a run, or makes for an experiment."""
    return not re.fullmatch(
        r"refs/exps/(exec/EXEC_(APPLY|BASELINE|BRANCH|CHECKPOINT|HEAD)|[0-9a-f]{2}/.*)", ref
    )


def experiments(folder: Path) -> list[str]:
    """Return the learning rates of the experiments, each once."""
    refs = git(folder, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    found = set()
    for ref in refs:
        if re.match(r"refs/exps/[0-9a-f]{2}/", ref):
            found |= set(re.findall(r"(?m)^lr: (\S+)", git(folder, "show", f"{ref}:params.yaml")))
    return sorted(found)


def leftovers(folder: Path) -> Iterator[str]:
    """Yield what is temporary by its place or name."""
    for place in (folder.parent / "tmp", folder / ".dvc/tmp/exps"):
        yield from (f"{place.name}/{RANDOM.sub('*', path.name)}" for path in place.glob("*"))
    for pattern in (".part.*", ".mlflow.db.*", "mlflow.db-*"):
        found = (path for path in folder.rglob(pattern) if ".venv" not in path.parts)
        yield from (RANDOM.sub("*", path.name) for path in found)


def decisions(folder: Path) -> list[str]:
    """Return the recorded decisions; one that was cut off counts once with its repetition."""
    log = folder / "promotions.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    facts = [f"{line['decision']} version {line['candidate']['version']}" for line in lines]
    return [fact for before, fact in zip(["", *facts], facts, strict=False) if fact != before]


def aliases(folder: Path) -> list[list[Any]]:
    """Return the aliases and the weights that they name."""
    return query(
        folder,
        """SELECT alias, value FROM registered_model_aliases AS a JOIN model_version_tags AS t
        ON a.name = t.name AND a.version = t.version WHERE key = 'weights_sha256' ORDER BY alias""",
    )


def store(folder: Path) -> dict[str, Any]:
    """Return the runs that matter, by learning rate and data, with params, points and files; the versions."""
    runs = {}
    for run_id, status in query(
        folder,
        """SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'
        AND status NOT IN ('KILLED', 'FAILED') ORDER BY start_time""",
    ):
        params = dict(query(folder, "SELECT key, value FROM params WHERE run_uuid = ?", run_id))
        tags = dict(query(folder, "SELECT key, value FROM tags WHERE run_uuid = ?", run_id))
        artifacts = folder / "mlartifacts" / run_id / "artifacts"
        name = f"lr {params.get('lr')}, {status}"
        runs[name if name not in runs else f"{name}, another"] = {
            "params": params,
            "tags": {key: tags.get(key) for key in TAGS},
            "points": query(folder, POINTS, run_id),
            "files": sorted(
                {
                    str(path.relative_to(artifacts).parent if path.parent.name == "promotions" else path.name)
                    for path in artifacts.rglob("*")
                }
            ),
        }
    return {
        "integrity": query(folder, "PRAGMA integrity_check"),
        "runs": runs,
        "versions": query(
            folder,
            "SELECT key, value FROM model_version_tags WHERE key LIKE '%_sha256' ORDER BY key, value",
        ),
        "models": query(folder, "SELECT status, lifecycle_stage, count(*) FROM logged_models GROUP BY 1, 2"),
    }


def query(folder: Path, text: str, *values: str) -> list[list[Any]]:
    """Return the rows of a query on the store."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database:
        return [list(row) for row in database.execute(text, values)]


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or its error."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()
