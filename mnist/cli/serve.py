"""`mnist serve`."""

import click


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
    from mnist.tracking import serving

    serving.serve(port)
