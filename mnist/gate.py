"""The verdict of `validate`, asked by every stage that builds on the data."""

from pathlib import Path

from mnist import files, verdict
from mnist.errors import InputError


def check(validation: Path, dataset: Path) -> None:
    """Stop unless `validation` says that just this data set is sound.

    Raises:
        InputError: the verdict is missing, broken, negative, or about other data; a negative
            one is told by the first expectation that failed, with what was seen and where.
    """
    said = verdict.read(validation)
    if said.failed:
        more = f" (and {len(said.failed) - 1} more expectations)" if len(said.failed) > 1 else ""
        raise InputError(
            str(validation),
            found=f"bad data: {said.failed[0].line}{more}",
            expected="data that pass: see data/validation.html",
        )
    if not said.success:
        raise InputError(
            str(validation),
            found="no success, and no expectation that failed",
            expected="the file that `validate` writes: run `dvc repro --force validate`",
        )
    digest = files.sha256(dataset)
    if said.dataset_sha256 != digest:
        raise InputError(
            str(validation),
            found=f"a verdict on other data ({said.dataset_sha256[:12]})",
            expected=f"one on {dataset} ({digest[:12]}): run `dvc repro validate`",
        )
