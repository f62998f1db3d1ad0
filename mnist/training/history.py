"""The learning curves: their events, the files that grow with a training, and the progress that a user sees.

`metrics/steps.csv` has a row for each window of steps, `metrics/history.csv` one for each epoch; each is
written when it happens. `metrics/train.json` has the scores of the last epoch. None has a duration: equal
training gives equal bytes.
"""

import csv
import json
import os
import reprlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter

from mnist.core import files, paths
from mnist.core.config import Count, Fraction
from mnist.core.errors import InputError

Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The scores of some steps, before each step.

    Attributes:
        epoch: from 1.
        step: number of optimizer steps so far.
        num_images: trained on in this window.
        loss: mean negative log-likelihood, in nats an image, without label smoothing.
        accuracy: fraction of the images classified correctly.
    """

    epoch: Count
    step: Count
    num_images: Count
    loss: Loss
    accuracy: Fraction


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished pass over the training images.

    Attributes:
        epoch: from 1.
        step: number of optimizer steps so far.
        train_loss: mean negative log-likelihood, in nats an image, before each step.
        train_accuracy: fraction of the images classified correctly, before each step.
        val_loss: of the validation images, after the epoch.
        val_accuracy: of the validation images, after the epoch.
    """

    epoch: Count
    step: Count
    train_loss: Loss
    train_accuracy: Fraction
    val_loss: Loss
    val_accuracy: Fraction

    @property
    def scores(self) -> dict[str, float]:
        """Return loss and accuracy to six decimals: what `dvc metrics` shows."""
        return {
            name: round(value, 6) for name, value in asdict(self).items() if name not in ("epoch", "step")
        }


Row = TypeVar("Row", Window, Epoch)

# In 80 columns the bar is still long enough.
BAR = "{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}"


@contextmanager
def written(
    steps: Path, epochs: Path, metrics: Path, *, num_parameters: int
) -> Iterator[Callable[[Window | Epoch], None]]:
    """Begin both tables, and yield a function that adds an event to all files at once.

    In a temporary tree and in a queue it also writes the file that DVC's extension of VS Code watches, as
    DVCLive does (github.com/iterative/dvclive, `mark_dvclive_step_completed` in src/dvclive/dvc.py).

    Args:
        steps: the table of windows.
        epochs: the table of epochs.
        metrics: JSON with the scores of the last epoch.
        num_parameters: of the network, for `metrics`.
    """
    signal, is_aside = paths.checkout() / paths.SIGNAL, Path.cwd() != paths.checkout()

    def add(event: Window | Epoch) -> None:
        add_window(event)
        add_epoch(event)
        if isinstance(event, Epoch):
            files.write_json(metrics, {"num_parameters": num_parameters, **event.scores})
            if is_aside:
                with suppress(OSError):  # it is for a display alone
                    signal.parent.mkdir(parents=True, exist_ok=True)
                    signal.write_text(json.dumps({"pid": os.getpid(), "step": event.step}))

    with appending(steps, Window) as add_window, appending(epochs, Epoch) as add_epoch:
        try:
            yield add
        finally:
            if is_aside:
                with suppress(OSError):  # another worker of the queue makes it again
                    signal.unlink()


@contextmanager
def appending(path: Path, kind: type[Window] | type[Epoch]) -> Iterator[Callable[[Window | Epoch], None]]:
    """Begin a table, and yield a function that adds the row of an event of this kind at once.

    Floats have six significant digits: the noise of float32 lies below.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link into DVC's cache
    with files.writing(path), path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(field.name for field in fields(kind))
        stream.flush()

        def add(event: Window | Epoch) -> None:
            if isinstance(event, kind):
                values = asdict(event).values()
                table.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values)
                stream.flush()

        yield add


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Read a table.

    Raises:
        InputError: the file cannot be read, or is another table.
    """
    columns, row = [field.name for field in fields(kind)], TypeAdapter(kind)
    expected = f"a table of {', '.join(columns)}"
    try:
        with files.reading(path), path.open(newline="", encoding="utf-8") as stream:
            header, *lines = list(csv.reader(stream)) or [[]]
    except csv.Error as error:
        raise InputError(str(path), found=f"no CSV ({error})", expected=expected) from None
    if header != columns:
        raise InputError(f"{path}, line 1", found=reprlib.repr(",".join(header)), expected=expected)
    if not lines:
        raise InputError(str(path), found="no row", expected=expected)
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            rows.append(row.validate_strings(dict(zip(columns, line, strict=True))))
        except ValueError:  # too few cells or too many, no number, or an impossible one
            where, found = f"{path}, line {number}", reprlib.repr(",".join(line))
            raise InputError(where, found=found, expected=expected) from None
    return rows


def shown(
    events: Iterable[Window | Epoch],
    earlier: Iterable[Window | Epoch] = (),
    *,
    num_images: int,
    num_epochs: int,
) -> Iterator[Window | Epoch]:
    """Yield the `earlier` events and `events`, and show loss, accuracy, images per second and time left.

    On a terminal that is a bar; each epoch has a line.

    Args:
        events: of a training.
        earlier: events of its epochs before it was killed, which are not shown again.
        num_images: of one epoch.
        num_epochs: of the training.
    """
    from tqdm import tqdm  # here: readers of the tables need not wait for it

    earlier = tuple(earlier)
    num_done = earlier[-1].epoch if earlier else 0
    if num_done:
        print(f"train: resumed after epoch {num_done}/{num_epochs}, from its checkpoint")
    yield from earlier
    start = time.perf_counter()
    with tqdm(
        total=num_images * num_epochs,
        initial=num_images * num_done,
        unit=" images",
        unit_scale=True,
        bar_format=BAR,
        dynamic_ncols=True,
        leave=False,
        disable=None,
    ) as bar:
        for event in events:
            if isinstance(event, Window):
                bar.set_description_str(f"epoch {event.epoch}/{num_epochs}", refresh=False)
                bar.set_postfix_str(f"loss {event.loss:.3f}, accuracy {event.accuracy:.1%}", refresh=False)
                bar.update(event.num_images)
            else:
                rate = num_images * (event.epoch - num_done) / (time.perf_counter() - start)
                bar.write(
                    f"train: epoch {event.epoch}/{num_epochs}:"
                    f" training loss {event.train_loss:.4f}, accuracy {event.train_accuracy:.2%};"
                    f" validation loss {event.val_loss:.4f}, accuracy {event.val_accuracy:.2%};"
                    f" {rate:,.0f} images/s",
                    file=sys.stdout,
                )
            yield event
