"""What a person sees of a training, on a terminal and in a log."""

import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist.training import progress
from mnist.training.history import Epoch, Window

ROOT = Path(__file__).parents[3]
NUM_IMAGES = 1000
SECONDS = 0.15  # of each window; a bar is drawn ten times a second at most

# On a terminal it needs a process of its own.
SCRIPT = """
from tests.unit.training.test_progress import progress, training
list(progress.shown(training(), num_images=1000, num_epochs=2))
"""


def training() -> Iterator[Window | Epoch]:
    """Two epochs of two windows, which take their time."""
    for epoch in (1, 2):
        for half in (1, 2):
            time.sleep(SECONDS)
            step = 200 * (epoch - 1) + 100 * half
            yield Window(epoch=epoch, step=step, num_images=500, loss=2 / step, accuracy=1 - 1 / step)
        yield Epoch(
            epoch=epoch,
            step=200 * epoch,
            train_loss=0.5 / epoch,
            train_accuracy=0.9,
            val_loss=0.25 / epoch,
            val_accuracy=0.9525,
        )


def test_events_pass_unchanged() -> None:
    events = [Window(epoch=1, step=1, num_images=NUM_IMAGES, loss=1.0, accuracy=0.5)]

    assert list(progress.shown(events, num_images=NUM_IMAGES, num_epochs=1)) == events


def test_events_pass_as_they_happen() -> None:
    asked_for = []

    def events() -> Iterator[Window]:
        for step in (1, 2):
            asked_for.append(step)
            yield Window(epoch=1, step=step, num_images=500, loss=1.0, accuracy=0.5)

    shown = progress.shown(events(), num_images=NUM_IMAGES, num_epochs=1)

    assert asked_for == []
    next(shown)
    assert asked_for == [1]


def test_a_log_has_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    seconds = [
        time.perf_counter() - start
        for event in progress.shown(training(), num_images=NUM_IMAGES, num_epochs=2)
        if isinstance(event, Epoch)
    ]

    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    lines = out.splitlines()
    told = "train: epoch {}/2: training loss {}, accuracy 90.00%; validation loss {}, accuracy 95.25%"
    assert [line.rpartition("; ")[0] for line in lines] == [
        told.format(1, "0.5000", "0.2500"),
        told.format(2, "0.2500", "0.1250"),
    ]
    for epoch, line in enumerate(lines, start=1):
        assert line.endswith(" images/s")
        rate = int(line.rpartition("; ")[2].removesuffix(" images/s").replace(",", ""))
        # It slept for this long at least, and was timed from outside.
        assert NUM_IMAGES * epoch / seconds[epoch - 1] - 1 <= rate <= NUM_IMAGES / (2 * SECONDS)


def on_a_terminal(num_columns: int, **environment: str) -> str:
    """What a terminal gets to see of the training."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, num_columns))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**plain, "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.parametrize("num_columns", [80, 130])
def test_a_terminal_has_a_bar_and_keeps_the_lines(num_columns: int) -> None:
    text = on_a_terminal(num_columns, NO_COLOR="1")

    # A bar as it stands after the second window: how far, how fast, how long still, how it learns.
    assert re.search(
        r"\repoch 1/2  50% \|[█▏▎▍▌▋▊▉ ]{5,}\| [\d.k]+ images/s, 00:\d\d left,"
        r" loss 0\.010, accuracy 99\.5%\r",
        text,
    )
    # Whole lines stay when the bar is gone: what a carriage return leaves is overwritten.
    left = [line.rpartition("\r")[2] for line in text.split("\r\n")]
    assert [line.partition(": training")[0] for line in left] == [
        "train: epoch 1/2",
        "train: epoch 2/2",
        "",
    ]


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "0"}, False), ({"TERM": "dumb"}, False)],
    ids=["a terminal", "NO_COLOR empty", "NO_COLOR", "a dumb terminal"],
)
def test_the_bar_has_a_colour_where_it_is_wanted(environment: dict[str, str], is_coloured: bool) -> None:
    text = on_a_terminal(100, **environment)

    assert ("\x1b[32m" in text) is is_coloured
    assert ("\x1b[" in re.sub(r"\x1b\[A|\n", "", text)) is is_coloured
