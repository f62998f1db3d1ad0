"""The command `mnist measure`."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--title", default="", help="Name for people; the default is NAME.")
@click.option("--classes", default="", help="Names by label, with commas; the default is the labels.")
def measure(name: str, folder: Path, title: str, classes: str) -> None:
    """Print a file for datasets/ from four archives in FOLDER.

    It has their checksums, and bounds with some margin around what they hold. Whether that is what the
    data should be is your decision: read the bounds, and add where the data come from.

    \b
    Example:
      mnist measure shapes ../my-data/shapes --classes square,cross,ring > datasets/shapes.yaml
    """
    from mnist.data import bounds

    names = [one.strip() for one in classes.split(",")] if classes else []
    click.echo(bounds.measure(name, folder, title=title, classes=names), nl=False)
