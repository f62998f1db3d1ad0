"""The commands on registered models: `mnist promote`, `mnist rollback`, `mnist serve`."""

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


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the decision, and change nothing.")
def rollback(dry_run: bool) -> None:
    """Give the alias champion back to the champion before it.

    \b
    Example:
      mnist rollback
    """
    model_name = config.load(paths.PARAMS).model_name
    from mnist.tracking import champion, client

    store = client.connect()
    with client.answering(store.uri), client.lock("registry"):
        done = champion.roll_back(store, model_name, dry_run=dry_run)
    sys.exit(not done)


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="0: any free one."
)
def serve(port: int) -> None:
    """Serve the champion over HTTP, on this machine alone.

    It speaks MLflow's scoring protocol and takes raw pixels, uint8 (N, 28, 28).

    \b
    Example:
      mnist serve --port 5001
      curl -H 'Content-Type: application/json' -d '{"inputs": [...]}' http://127.0.0.1:5001/invocations
    """
    from mnist.cli import score
    from mnist.tracking import serving

    serving.serve(port, score.load)
