"""The files of a run: logged once, and again where one is lost or damaged."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Run, RunTag

from mnist.core import files, paths
from mnist.core.errors import InputError
from mnist.evaluation.pages import Pages
from mnist.lineage.result import Result
from mnist.tracking import client
from mnist.tracking.client import Store
from mnist.tracking.events import EVALUATED, FINGERPRINT
from mnist.tracking.record import PATCH

CARD = Path("model-card.md")  # among the files of a run
FILES = "files_sha256"  # tag: digest of the names and digests of its files


def are_whole(store: Store, run: Run, result: Result) -> bool:
    """Return whether a run has the files of this evaluation, and none of them is lost or damaged."""
    tags, patch = run.data.tags, _patch(run, result)
    if tags.get(EVALUATED) != result.evaluation_sha256 or FILES not in tags:
        return False
    found = _digests(store, run.info.run_id)
    has_patch = not patch or found.get(str(PATCH)) == hashlib.sha256(patch).hexdigest()
    return has_patch and tags[FILES] == _summary(found)


def _digests(store: Store, run_id: str) -> dict[str, str]:
    """Return the SHA-256 of the files of a result that a run has, by path; of those alone."""
    names = [*paths.ARTIFACTS, paths.REPORT, CARD, PATCH]
    with client.readable("MLflow's artifacts"), files.temporary("run") as folder:
        if not store.client.list_artifacts(run_id):
            return {}
        # All at once: one by one they take ten times as long.
        top = Path(store.client.download_artifacts(run_id, "", str(folder)))
        return {str(name): files.sha256(top / name) for name in names if (top / name).is_file()}


def _summary(digests: Mapping[str, str]) -> str:
    """Return one digest of all; without the patch, which only the training that had it can log again."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items()) if name != str(PATCH)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _patch(run: Run, result: Result) -> bytes:
    """Return what was not committed of the training of this run; nothing of another one."""
    is_same = run.data.tags.get(FINGERPRINT) == result.origin.fingerprint
    return result.origin.source.patch.encode(errors="surrogateescape") if is_same else b""


def log(store: Store, run: Run, result: Result, pages: Pages, *, names: Sequence[Path], folder: Path) -> None:
    """Log the files of a result, its pages, and what was not committed; and then the tags of their digests.

    One result may come from several commits and experiments: a run that has the files of this evaluation
    keeps them, so that its report is about the commit and the patch of its tags.
    """
    if are_whole(store, run, result):
        return
    run_id = run.info.run_id
    with files.temporary("run") as kept:
        for name in names:
            if not (folder / name).is_file():
                raise InputError(str(name), found="no such file", expected=files.MADE)
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (kept / name).symlink_to((folder / name).resolve())
        files.write_text(kept / paths.REPORT, pages.report)
        files.write_text(kept / CARD, pages.card)
        if patch := _patch(run, result):
            (kept / PATCH).write_bytes(patch)
        sent = {str(name): files.sha256(kept / name) for name in (*names, paths.REPORT, CARD)}
        with client.readable("MLflow's artifacts"):
            store.client.log_artifacts(run_id, str(kept))
    found = _digests(store, run_id)
    if damaged := [name for name, digest in sent.items() if found.get(name) != digest]:
        where, expected = f"MLflow's artifacts: {damaged[0]}", "those that were sent: run `mnist sync`"
        raise InputError(where, found="other bytes", expected=expected)
    tags = {EVALUATED: result.evaluation_sha256, FILES: _summary(found)}
    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
