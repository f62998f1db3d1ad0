"""`mnist promote`."""

import sys

import click

from mnist.core import config, files, paths


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the decision, and change nothing.")
@click.option(
    "--only-this-result", is_flag=True, help="Fail if the challenger is not the model of this checkout."
)
def promote(dry_run: bool, only_this_result: bool) -> None:
    """Make the challenger the champion, if it is not worse.

    It must reach registry.min_accuracy, and an exact paired test on the same test images must not find
    it worse than the champion (registry.alpha). Exit status 1 if it is refused. The decision is recorded
    in promotions.jsonl and in MLflow.

    \b
    Example:
      mnist promote --dry-run
      mnist promote
    """
    settings = config.load(paths.PARAMS)
    registry = settings.registry.of(settings.dataset)
    weights_sha256 = files.sha256(paths.WEIGHTS) if only_this_result else ""
    from mnist.tracking import champion, client

    store = client.connect()
    with client.answering(store.uri), client.lock("registry"):
        done = champion.promote(store, registry, weights_sha256=weights_sha256, dry_run=dry_run)
    sys.exit(not done)
