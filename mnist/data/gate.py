"""The verdict of `validate`, asked by every stage that builds on the data."""

from pathlib import Path

from mnist.core import files
from mnist.core.errors import InputError
from mnist.data import validation


def check(verdict: Path, dataset: Path) -> None:
    """Stop unless `verdict` says that just this data set is sound.

    Raises:
        InputError: the verdict is missing, broken, negative, or about other data; a negative
            one is told by the first expectation that failed, with what was seen and where.
    """
    said = validation.read(verdict)
    if said.failed:
        more = f" (and {len(said.failed) - 1} more expectations)" if len(said.failed) > 1 else ""
        raise InputError(
            str(verdict),
            found=f"bad data: {said.failed[0].line}{more}",
            expected="data that pass: see data/validation.html",
        )
    if not said.success:
        raise InputError(
            str(verdict),
            found="no success, and no expectation that failed",
            expected="the file that `validate` writes: run `dvc repro --force validate`",
        )
    digest = files.sha256(dataset)
    if said.dataset_sha256 != digest:
        raise InputError(
            str(verdict),
            found=f"a verdict on other data ({said.dataset_sha256[:12]})",
            expected=f"one on {dataset} ({digest[:12]}): run `dvc repro validate`",
        )
