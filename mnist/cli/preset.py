"""`mnist preset`: list the presets, or run one as an experiment."""

import shlex

import click

from mnist.comparison import presets
from mnist.core import config, paths
from mnist.lineage import experiments


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF DVC]...")
@click.pass_context
def preset(context: click.Context, name: str | None, options: tuple[str, ...]) -> None:
    """List the presets, or run the preset NAME as a DVC experiment.

    A preset is a set of params that shows what the networks can do. OPTIONS are those of `dvc exp run`;
    of two values for one param the last counts.

    \b
    Example:
      mnist preset
      mnist preset quick -S seed=3
    """
    known = presets.load(presets.PRESETS)
    if name is None:
        click.echo(presets.listing(known, config.load(paths.PARAMS)))
        return
    chosen = presets.named(known, name)
    arguments = presets.arguments(name, chosen, options)
    click.echo(f"{name}: {chosen.claim}\n{shlex.join(['dvc', *arguments])}")
    context.exit(2 if experiments.dvc(*arguments).returncode else 0)
