"""Check the data against the bounds of the data set's file, and stop the pipeline where they break one.

data/mnist.safetensors, datasets/<dataset>.yaml -> metrics/validation.json, data/validation.html
"""

from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import DatasetParams
from mnist.core.errors import InputError
from mnist.data import catalog, store as data, validation


class Params(DatasetParams):
    """The name of the data set."""


def run(
    *,
    params: Params,
    datasets: Path = paths.DATASETS,
    dataset: Path = paths.DATASET,
    verdict: Path = paths.VALIDATION,
    page: Path = paths.VALIDATION_PAGE,
) -> None:
    """Write the verdict on both splits for programs and for people, whatever it is.

    Raises:
        InputError: the data break an expectation; each that failed is named, with what was seen
            and the places of some offending images. Both files are there nevertheless.
    """
    bounds = catalog.load(datasets, params.dataset).validation
    described = data.describe(dataset)
    train, test = data.load(dataset, split="train"), data.load(dataset, split="test")
    from mnist.data import expectations

    sha256 = files.sha256(dataset)
    found = expectations.validate(train, test, description=described, bounds=bounds, dataset_sha256=sha256)
    validation.write(verdict, found)
    files.write_text(page, validation.page(found, train, test, description=described, bounds=bounds))

    num_expectations = len(found.expectations)
    if found.failed:
        lines = "".join(f"\n  {finding.line}" for finding in found.failed)
        raise InputError(
            str(dataset),
            found=f"data that break {len(found.failed)} of {num_expectations} expectations",
            expected=f"data that keep them all (see {page}):{lines}",
        )
    print(
        f"validate: {num_expectations} of {num_expectations} expectations hold "
        f"for {len(train):,} + {len(test):,} images of {described.title}; page: {page}"
    )
    if found.warning:
        print(f"validate: WARNING: {found.warning}")


if __name__ == "__main__":
    process.main(run, Params)
