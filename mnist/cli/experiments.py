"""`mnist experiments`: the tutorial's experiment on shuffled pixels."""

import click

from mnist.comparison import shuffled_pixels
from mnist.core import config, files, paths


@click.command()
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="From 0 on.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Trainings at a time.")
def experiments(seeds: int, jobs: int) -> None:
    """Measure what shuffled pixels cost a CNN and an MLP.

    It trains both, on pixels in place and shuffled by one permutation, over seeds: by default 12 DVC
    experiments. Those that this commit has with these params are not trained again. It prints a table, and
    writes metrics/shuffled-pixels.json and metrics/shuffled-pixels.png.

    \b
    Example:
      mnist experiments --seeds 5
    """
    current = config.load(paths.PARAMS).model_dump()
    cases = shuffled_pixels.train(paths.checkout(), current, seeds, jobs)
    result = shuffled_pixels.summary(cases, seeds)
    files.write_json(shuffled_pixels.NUMBERS, result)
    shuffled_pixels.draw(shuffled_pixels.PICTURE, result)
    click.echo(f"{shuffled_pixels.table(cases)}\n\n{shuffled_pixels.sentence(result)}")
