"""The verdict of `validate`, read by every stage that builds on the data."""

from pathlib import Path

from mnist import files
from mnist.errors import InputError


def check(validation: Path, dataset: Path) -> None:
    """Stop unless `validation` says that just this data set is sound.

    Raises:
        InputError: the verdict is missing, negative, or about other data; a negative one is
            told by the first expectation that failed, with what was seen.
    """
    verdict = files.read_json(validation)
    failed = [result for result in verdict["expectations"] if not result["success"]]
    if failed:
        first, more = failed[0], f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise InputError(
            str(validation),
            found=f"data that failed {first['expectation']} ({first['observed']}){more}",
            expected="data that pass: see data/validation.html",
        )
    digest = files.sha256(dataset)
    if verdict["dataset_sha256"] != digest:
        raise InputError(
            str(validation),
            found=f"a verdict on other data ({verdict['dataset_sha256'][:12]})",
            expected=f"one on {dataset} ({digest[:12]}): run `dvc repro validate`",
        )
