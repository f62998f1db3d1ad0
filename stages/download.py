"""Fetch the data set from the first mirrors that have it, and write it as one file.

datasets/<dataset>.yaml, mirrors or .cache/mnist -> data/mnist.safetensors
"""

from collections import Counter
from pathlib import Path

from mnist.core import paths, process
from mnist.core.config import Data, DatasetParams
from mnist.data import catalog, download, store as data


class Params(DatasetParams):
    """The name of the data set, and where to look for it first."""

    data: Data


def run(*, params: Params, datasets: Path = paths.DATASETS, dataset: Path = paths.DATASET) -> None:
    """Write both splits; archives in the cache are not fetched again."""
    known = catalog.load(datasets, params.dataset)
    ahead = params.data.mirrors_of(params.dataset)
    fetched = download.fetch(known, paths.root() / paths.DOWNLOADS, ahead=ahead)
    train, test = download.read(fetched.archives)
    data.write(dataset, train=train, test=test, description=known.described(params.dataset))
    for mirror, reason in fetched.reasons.items():
        print(f"download: skipped {mirror}: {reason}")
    origins = Counter(fetched.origins.values())
    sources = " and ".join(f"{count} files from {origin}" for origin, count in origins.items())
    print(f"download: {known.title}, {sources}: {len(train):,} training and {len(test):,} test images")


if __name__ == "__main__":
    process.main(run, Params)
