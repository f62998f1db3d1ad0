"""Compute normalization statistics over the training images.

data/mnist.safetensors, metrics/validation.json -> data/stats.json

All images of the training split count, also those that are later held out for validation. So the
statistics do not change with `seed` and `val_size`, and equal the tutorial's for MNIST, 0.1307 and
0.3081. Two numbers over 47 million pixels give training no information about a single image.
"""

from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import Section
from mnist.data import statistics, store as data
from mnist.data.validation import require_valid


class Params(Section):
    """None: the statistics depend on the images alone."""


def run(
    *,
    params: Params,  # noqa: ARG001 -- every stage takes its params
    dataset: Path = paths.DATASET,
    validation: Path = paths.VALIDATION,
    stats: Path = paths.STATS,
) -> None:
    """Write the mean and standard deviation of the training pixels, scaled to [0, 1]."""
    require_valid(validation, dataset)
    measured = statistics.measure(data.load(dataset, "train").images_NHW)
    files.write_json(stats, measured.model_dump())
    print(
        f"stats: mean {measured.mean:.4f}, std {measured.std:.4f} of {measured.num_images:,} training images"
    )


if __name__ == "__main__":
    process.main(run, Params)
