"""The progress of a training on a terminal and in a log."""

import io
import time
from collections.abc import Iterator

import pytest

from mnist.training import progress
from mnist.training.history import Epoch, Window


def training() -> Iterator[Window | Epoch]:
    """Two epochs of two windows; a bar is drawn ten times a second at most."""
    for epoch in (1, 2):
        for half in (1, 2):
            time.sleep(0.15)
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


def test_events_pass_unchanged_as_they_happen() -> None:
    events = [Window(epoch=1, step=step, num_images=500, loss=1.0, accuracy=0.5) for step in (1, 2)]
    source = iter(events)

    shown = progress.shown(source, num_images=1000, num_epochs=1)

    assert next(shown) is events[0]
    assert next(source) is events[1]


def test_a_log_has_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    list(progress.shown(training(), num_images=1000, num_epochs=2))
    seconds = time.perf_counter() - start

    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    first, second = out.splitlines()
    assert first.startswith(
        "train: epoch 1/2: training loss 0.5000, accuracy 90.00%; validation loss 0.2500, accuracy 95.25%; "
    )
    assert second.startswith("train: epoch 2/2: training loss 0.2500, ")
    rate = int(second.rpartition("; ")[2].removesuffix(" images/s").replace(",", ""))
    assert 2000 / seconds - 1 <= rate <= 2000 / 0.6  # 0.6 s were slept


class Terminal(io.StringIO):
    """A stream that counts as a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("plain", [False, True], ids=["coloured", "NO_COLOR"])
def test_a_terminal_has_a_bar_that_goes_away(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1" if plain else "")
    monkeypatch.setenv("COLUMNS", "80")

    list(progress.shown(training(), num_images=1000, num_epochs=2))

    text = terminal.getvalue()
    assert "epoch 1/2  50% |" in text
    assert "loss 0.010, accuracy 99.5%" in text
    assert ("\x1b[32m" in text) is not plain
    # A carriage return overwrites the bar; whole lines stay.
    left = [line.rpartition("\r")[2].partition(": training")[0] for line in text.split("\n")]
    assert left == ["train: epoch 1/2", "train: epoch 2/2", ""]
