"""The commands that score images from anywhere: `mnist predict`."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from mnist.core import config, files, paths
from mnist.core.errors import InputError, printable

if TYPE_CHECKING:
    from mnist.data.store import Bytes
    from mnist.training.onnx_model import OnnxModel

COLUMNS = ("file", "index", "predicted", "probability")
BATCH = 10_000  # images between two steps of the progress bar

FILES = click.argument("names", metavar="FILES...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command()
@FILES
@click.option(
    "--model", help="A version, models:/NAME/VERSION or models:/NAME@ALIAS, or an ONNX file of ours."
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to a file, whole or not at all, instead of stdout.",
)
def predict(names: Sequence[Path], model: str | None, output: Path | None) -> None:
    """Predict the classes of images with the champion.

    FILES are IDX (plain or packed with gzip), .npy, PNG, and folders of PNG. Images are raw pixels, uint8
    28x28, as for `mnist serve`. It prints CSV: file, index in the file, predicted class, probability.

    Files that hold something else are named on stderr, the rest is scored, and the exit status is 1.

    \b
    Example:
      mnist predict scans/ more.npy --output predictions.csv
      mnist predict t10k-images-idx3-ubyte.gz --model models/model.onnx
    """
    name, classifier = _load(model)
    faults, num_images = list[InputError](), 0
    is_shown = output is not None or not sys.stdout.isatty()  # else the table itself is on the terminal
    with _table(output) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for path, first, images_NHW in _batches(names, faults, is_shown=is_shown):
            probabilities_NK = classifier.predict(images_NHW)
            classes = (classifier.about.classes[label] for label in probabilities_NK.argmax(1).tolist())
            shown = (f"{probability:.6f}" for probability in probabilities_NK.max(1).tolist())
            table.writerows(zip(repeat(path), count(first), classes, shown))
            num_images += len(images_NHW)
    _report(faults)
    written, left = f"{output}: " if output else "", f"; {len(faults):,} left out" if faults else ""
    click.echo(f"predict: {written}{num_images:,} images by {name}{left}", err=not output)
    sys.exit(bool(faults))


def _load(model: str | None) -> tuple[str, "OnnxModel"]:
    """Return a model and its name: a version of the registry, without a name the champion; or a file."""
    params = config.load(paths.PARAMS)
    if model is not None and not model.startswith("models:"):
        from mnist.training import onnx_model

        return model, onnx_model.load(Path(model), num_threads=params.num_threads)
    from mnist.tracking import client, record, registry

    store = client.connect()
    with client.answering(store.uri):
        version = (
            record.find_version(store, model) if model else registry.find_champion(store, params.model_name)
        )
        loaded = registry.load_version(store, version, num_threads=params.num_threads)
    return f"models:/{version.name}/{version.version}", loaded


@contextmanager
def _table(output: Path | None) -> Iterator[TextIO]:
    """Yield the stream of the table."""
    if output is None:
        yield sys.stdout
        return
    if output.exists() and not output.is_file():  # it would be replaced
        raise InputError(str(output), found="no regular file", expected="a file to write")
    with (
        files.replacing(output) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        yield stream


def _batches(
    names: Sequence[Path], faults: list[InputError], *, is_shown: bool
) -> Iterator[tuple[Path, int, "Bytes"]]:
    """Yield the images, uint8 (N, 28, 28), with their file and the index of the first in it.

    A bar shows the progress on a terminal. The files that cannot be read are added to `faults`.
    """
    from mnist.data import image_files

    found = list(image_files.find(names))
    sizes = [path.stat().st_size if os.path.isfile(path) else 0 for path in found]  # noqa: PTH113 -- never raises
    is_shown = is_shown and sys.stderr.isatty()
    with click.progressbar(length=sum(sizes), file=sys.stderr, hidden=not is_shown) as bar:
        for path, size in zip(found, sizes, strict=True):
            try:
                images_NHW = image_files.read(path)
            except InputError as error:
                faults.append(error)
                bar.update(size)
                continue
            for first in range(0, len(images_NHW), BATCH):
                batch_NHW = images_NHW[first : first + BATCH]
                yield path, first, batch_NHW
                bar.update(size * len(batch_NHW) // len(images_NHW))


def _report(faults: Sequence[InputError]) -> None:
    """Name the files that could not be read."""
    for fault in faults:
        click.echo(printable(f"left out: {fault}"), err=True)
