"""Mean, standard deviation and interval of the test accuracy over seeds, for each recipe that was tried.

    dvc exp run --queue -S 'seed=range(0,5)' && dvc queue start -j 2
    python -m mnist.cli.seeds [--rev REV ... | --all-commits]

A recipe is all params of the training but the seed. Choose by validation accuracy (`mnist.cli.best`);
this is for what is said of the choice.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe
from mnist.core import paths, process
from mnist.lineage import experiments

TOO_FEW = 3  # seeds: below it the interval is wide, and says so


def table(recipes: Sequence[Recipe]) -> list[str]:
    """Seeds, mean, deviation, interval and range in percent, and the params that differ, in lines."""
    differing = experiments.differing([recipe.params for recipe in recipes])
    rows = [["seeds", "test accuracy", "sd", "95 % interval", "least to most", *differing]]
    for recipe in recipes:
        least, most = min(recipe.accuracies), max(recipe.accuracies)
        low_high = recipe.interval
        rows.append(
            [
                str(len(recipe.results)),
                f"{recipe.mean:.2%}",
                "-" if recipe.sd is None else f"{100 * recipe.sd:.2f}",
                "-" if low_high is None else f"{100 * low_high[0]:.2f} to {100 * low_high[1]:.2f}",
                f"{100 * least:.2f} to {100 * most:.2f}",
                *(experiments.shown(recipe.params.get(key)) for key in differing),
            ]
        )
    return experiments.aligned(rows, left=0)


def report(root: Path, revs: Sequence[str] | None) -> list[str]:
    """All that there is to say, in lines.

    Raises:
        InputError: there is no checkout with git and DVC, or no such commit.
    """
    known, found, left_out = recipes.recipes(root, revs)
    lines = table(found) if found else ["spread: none has a result"]
    if found and all(len(recipe.results) < TOO_FEW for recipe in found):
        lines += ["", "try more seeds: dvc exp run --queue -S 'seed=range(0,5)' && dvc queue start -j 2"]
    if len({recipe.dataset_md5 for recipe in found}) > 1:
        lines += ["", "not all of one data set: accuracies of different ones do not compare"]
    return [*lines, *left_out, *experiments.failures(known), *experiments.waiting(known)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exits with 1 and one line where there is no checkout to look at."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.seeds", description="What the recipes come to over seeds."
    )
    experiments.add_options(parser)
    options = parser.parse_args(arguments)
    with process.reported():
        print("\n".join(report(paths.checkout(), experiments.revs(options))))


if __name__ == "__main__":
    main()
