"""`mnist rollback`."""

import sys

import click

from mnist.core import config, paths


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the decision, and change nothing.")
def rollback(dry_run: bool) -> None:
    """Give the alias champion back to the champion before it.

    \b
    Example:
      mnist rollback
    """
    settings = config.load(paths.PARAMS)
    registry = settings.registry.of(settings.dataset)
    from mnist.tracking import champion, client

    store = client.connect()
    with client.answering(store.uri), client.lock("registry"):
        done = champion.roll_back(store, registry.model_name, dry_run=dry_run)
    sys.exit(not done)
