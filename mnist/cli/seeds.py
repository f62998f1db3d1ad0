"""`mnist seeds`: the test accuracy of each recipe over seeds."""

import click

from mnist.comparison import recipes
from mnist.core import paths


@click.command()
@click.option(
    "--rev",
    "revs",
    multiple=True,
    default=["HEAD"],
    metavar="COMMIT",
    help="Show those that started from it (default: HEAD).",
)
@click.option("--all-commits", is_flag=True, help="Show those that started from any commit.")
def seeds(revs: tuple[str, ...], *, all_commits: bool) -> None:
    """Show the test accuracy of each recipe over its seeds.

    A recipe is all params of the training but the seed. Choose one by `mnist best`, which looks at
    validation accuracy; this shows what the choice is worth.

    \b
    Example:
      dvc exp run --queue -S 'seed=range(0,5)'
      dvc queue start -j 2
      mnist seeds
    """
    click.echo(recipes.report(paths.checkout(), None if all_commits else revs))
