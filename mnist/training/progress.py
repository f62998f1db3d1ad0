"""The progress of a training: a bar on a terminal, a line for each epoch in a log."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from mnist.core import terminal
from mnist.training.history import Epoch, Window

# In 80 columns the bar is still long enough.
BAR = "{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}"


def shown(events: Iterable[Window | Epoch], *, num_images: int, num_epochs: int) -> Iterator[Window | Epoch]:
    """Yield `events`, and show loss, accuracy, images per second and time left.

    Args:
        events: of a training.
        num_images: of one epoch.
        num_epochs: of the training.
    """
    start = time.perf_counter()
    with tqdm(
        total=num_images * num_epochs,
        unit=" images",
        unit_scale=True,
        bar_format=BAR,
        colour="green" if terminal.takes_color(sys.stderr) else None,
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
                rate = num_images * event.epoch / (time.perf_counter() - start)
                bar.write(
                    f"train: epoch {event.epoch}/{num_epochs}:"
                    f" training loss {event.train_loss:.4f}, accuracy {event.train_accuracy:.2%};"
                    f" validation loss {event.val_loss:.4f}, accuracy {event.val_accuracy:.2%};"
                    f" {rate:,.0f} images/s",
                    file=sys.stdout,
                )
            yield event
