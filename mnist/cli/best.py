"""`mnist best`: rank the experiments."""

import click

from mnist.comparison import ranking
from mnist.core import paths


@click.command()
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show that many (default: all).")
@click.option(
    "--rev",
    "revs",
    multiple=True,
    default=["HEAD"],
    metavar="COMMIT",
    help="Rank those that started from it (default: HEAD).",
)
@click.option("--all-commits", is_flag=True, help="Rank those that started from any commit.")
def best(top: int | None, revs: tuple[str, ...], *, all_commits: bool) -> None:
    """Rank experiments by validation accuracy.

    It shows how to apply the best one.

    \b
    Example:
      dvc exp run --queue -S 'lr=0.01,0.05,0.1'
      dvc queue start -j 2
      mnist best --top 5
    """
    click.echo(ranking.report(paths.checkout(), None if all_commits else revs, top))
