"""Fetch the data set from the first mirrors that have it, and write it as one file.

mirrors or .cache/mnist -> data/mnist.safetensors
"""

from collections import Counter
from pathlib import Path

from mnist import dataset as data
from mnist import mirrors, paths, stage
from mnist.params import Data, Section


class Params(Section):
    """What `download` depends on."""

    data: Data


def run(*, params: Params, dataset: Path = paths.DATASET) -> None:
    """Write both splits; archives that are in the cache already are not fetched again."""
    fetched = mirrors.fetch(params.data, paths.root() / mirrors.CACHE)
    train, test = mirrors.read(fetched.archives)
    data.write(dataset, train=train, test=test)
    for mirror, reason in fetched.reasons.items():
        print(f"download: passed over {mirror}: {reason}")
    origins = Counter(archive.origin for archive in fetched.archives.values())
    sources = " and ".join(f"{count} files from {origin}" for origin, count in origins.items())
    print(f"download: {sources}: {len(train):,} training and {len(test):,} test images")


if __name__ == "__main__":
    stage.main(run, Params)
