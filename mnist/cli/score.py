"""The commands that score images from anywhere: `mnist predict`, `mnist drift`."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
import numpy as np

from mnist.core import config, files, paths
from mnist.core.errors import InputError, printable

if TYPE_CHECKING:
    from mnist.data.store import Bytes
    from mnist.training.onnx_model import OnnxModel

COLUMNS = ("file", "index", "predicted", "probability")

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
    name, classifier = load(model)
    faults, num_images = list[InputError](), 0
    on_terminal = output is None and sys.stdout.isatty()
    with _table(output) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for path, images_NHW in _images(names, faults, output=output, hidden=on_terminal):
            probabilities_NK = classifier.predict(images_NHW)
            classes = (classifier.about.classes[label] for label in probabilities_NK.argmax(1).tolist())
            shown = (f"{probability:.6f}" for probability in probabilities_NK.max(1).tolist())
            table.writerows(zip(repeat(path), count(), classes, shown))
            num_images += len(images_NHW)
    written, left = f"{output}: " if output else "", f"; {len(faults):,} left out" if faults else ""
    click.echo(f"predict: {written}{num_images:,} images by {name}{left}", err=not output)
    sys.exit(bool(faults))


@click.command()
@FILES
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Chance of a false alarm.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def drift(names: Sequence[Path], alpha: float, *, as_json: bool) -> None:
    """Check whether images are still like the champion's test images.

    It compares their ink and brightness, the champion's confidence, and how often it predicts each class
    with those of the test images of this checkout. FILES are those of `mnist predict`.

    Exit status 1 is drift. Files that hold something else are named on stderr, the rest is compared, and
    the exit status is 2 where that shows no drift.

    \b
    Example:
      mnist drift scans/
      mnist drift scans/ --alpha 0.01 --json
    """
    from mnist.data import store as data, validation

    validation.require_valid(paths.VALIDATION, paths.DATASET)
    name, classifier = load(trained_on=validation.read(paths.VALIDATION).dataset_sha256)
    from mnist.evaluation import drift as method

    faults = list[InputError]()
    measured = [method.measure(classifier, images_NHW) for _, images_NHW in _images(names, faults)]
    if not measured:
        raise InputError("FILES", found="no images", expected="some: 200 or more show the usual faults")
    found = {key: np.concatenate([one[key] for one in measured]) for key in measured[0]}
    test_NHW = data.load(paths.DATASET, "test").images_NHW
    compared = method.compare(method.measure(classifier, test_NHW), found, alpha=alpha)
    numbers = {"num_test": len(test_NHW), "num_images": len(found["ink"]), "alpha": alpha}
    drifted = [one.measure for one in compared if one.drifted]
    if as_json:
        measures = [one.model_dump() for one in compared]
        result = {"model": name, "drifted": bool(drifted), **numbers, "measures": measures}
        click.echo(json.dumps(result, indent=2))
    else:
        least = method.smallest(len(test_NHW), len(found["ink"]), num_measures=len(compared), alpha=alpha)
        verdict = f"no drift; a difference below {least:.2f} would not show"
        if drifted:
            verdict = f"drift of {', '.join(drifted)}"
        click.echo(f"{method.table(compared)}\n\n{len(found['ink']):,} images, {name}: {verdict}")
    sys.exit(1 if drifted else 2 if faults else 0)


def load(model: str | None = None, *, trained_on: str = "") -> tuple[str, "OnnxModel"]:
    """Return a name and a model: a version of the registry, without a name the champion; or a file.

    Raises:
        InputError: there is none, or it was trained on other data than those of this digest.
    """
    params = config.load(paths.PARAMS)
    if model is not None and not model.startswith("models:"):
        from mnist.training import onnx_model

        return model, onnx_model.load(Path(model), num_threads=params.num_threads)
    from mnist.tracking import stored
    from mnist.tracking.promotion import CHAMPION

    registered, num_threads = params.model_name, params.num_threads
    if model is None and not trained_on and (found := stored.champion(registered, num_threads=num_threads)):
        return found
    from mnist.tracking import client, events, record, registry

    store = client.connect()
    with client.answering(store.uri):
        version = record.find_version(store, model or f"models:/{registered}@{CHAMPION}")
        name = f"models:/{version.name}/{version.version}"
        candidate = record.find(store, name, [events.DATASET]) if trained_on else None
        if candidate and (of_model := candidate.run.data.tags[events.DATASET]) != trained_on:
            expected = f"{of_model[:12]}, on which the champion {name} was trained"
            raise InputError(str(paths.DATASET), found=f"the data {trained_on[:12]}", expected=expected)
        return name, registry.load_version(store, version, num_threads=num_threads)


@contextmanager
def _table(output: Path | None) -> Iterator[TextIO]:
    """Yield the stream of the table."""
    if output is None:
        yield sys.stdout
        return
    if output.exists() and not output.is_file():  # it would be replaced
        raise InputError(str(output), found="no regular file", expected="a file to write")
    with (
        files.replacing(output.resolve()) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        yield stream


def _images(
    names: Sequence[Path], faults: list[InputError], *, output: Path | None = None, hidden: bool = False
) -> Iterator[tuple[Path, "Bytes"]]:
    """Yield each file with its images, uint8 (N, 28, 28), and a progress bar on a terminal, unless `hidden`.

    Those that cannot be read are added to `faults`, and named at the end.

    Raises:
        InputError: `output` is one of the files, and would replace it.
    """
    from mnist.data import image_files

    found, hidden = list(image_files.find(names)), hidden or not sys.stderr.isatty()
    with click.progressbar(found, file=sys.stderr, hidden=hidden) as shown:
        for path in shown:
            if output and output.exists() and path.exists() and output.samefile(path):
                raise InputError(str(output), found="one of FILES", expected="another file to write")
            try:
                images_NHW = image_files.read(path)
            except InputError as error:
                faults.append(error)
            else:
                yield path, images_NHW
    for fault in faults:
        click.echo(printable(f"left out: {fault}"), err=True)
