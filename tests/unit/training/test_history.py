"""The learning curves: their tables, and the progress on a terminal and in a log."""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.training import history
from mnist.training.history import Epoch, Window

HEADER = "epoch,step,num_images,loss,accuracy\n"
EVENTS: list[Window | Epoch] = [
    Window(epoch=1, step=100, num_images=6400, loss=1.23456789, accuracy=0.5),
    Window(epoch=1, step=150, num_images=3200, loss=1e-7, accuracy=1.0),
    Epoch(
        epoch=1,
        step=150,
        train_loss=0.82304526,
        train_accuracy=0.66666667,
        val_loss=0.1,
        val_accuracy=0.97000002861,
    ),
    Window(epoch=2, step=250, num_images=6400, loss=2.5e10, accuracy=0.0),
    Epoch(epoch=2, step=300, train_loss=0.5, train_accuracy=0.75, val_loss=1 / 3, val_accuracy=2 / 3),
]


def write(path: Path, events: Sequence[Window | Epoch], kind: type[Window] | type[Epoch]) -> None:
    with history.appending(path, kind) as add:
        for event in events:
            add(event)


def test_each_kind_has_its_own_table(tmp_path: Path) -> None:
    write(tmp_path / "steps.csv", EVENTS, Window)
    write(tmp_path / "history.csv", EVENTS, Epoch)

    assert (tmp_path / "steps.csv").read_bytes().decode() == (
        "epoch,step,num_images,loss,accuracy\n"
        "1,100,6400,1.23457,0.5\n"
        "1,150,3200,1e-07,1\n"
        "2,250,6400,2.5e+10,0\n"
    )
    assert (tmp_path / "history.csv").read_bytes().decode() == (
        "epoch,step,train_loss,train_accuracy,val_loss,val_accuracy\n"
        "1,150,0.823045,0.666667,0.1,0.97\n"
        "2,300,0.5,0.75,0.333333,0.666667\n"
    )


def test_a_row_and_the_last_scores_can_be_read_as_soon_as_they_are_added(tmp_path: Path) -> None:
    steps, epochs, metrics = (tmp_path / name for name in ("steps.csv", "history.csv", "train.json"))
    with history.written(steps, epochs, metrics, num_parameters=7) as add:
        assert epochs.read_text().startswith("epoch,step,train_loss,")
        for event in EVENTS[:3]:
            add(event)
        assert [row.step for row in history.read(steps, Window)] == [100, 150]
        assert [row.step for row in history.read(epochs, Epoch)] == [150]
        assert json.loads(metrics.read_text()) == {
            "num_parameters": 7,
            "train_loss": 0.823045,
            "train_accuracy": 0.666667,
            "val_loss": 0.1,
            "val_accuracy": 0.97,
        }


@pytest.mark.parametrize("is_aside", [True, False], ids=["a temporary tree", "the workspace"])
def test_the_extension_of_vs_code_is_signalled_each_epoch_elsewhere(
    is_aside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    tree = tmp_path / ".dvc/tmp/exps/tmpabc" if is_aside else tmp_path
    tree.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tree)
    signal = tmp_path / ".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED"
    with history.written(Path("steps.csv"), Path("history.csv"), Path("train.json"), num_parameters=7) as add:
        for event, step in ((EVENTS[0], None), (EVENTS[2], 150), (EVENTS[3], 150), (EVENTS[4], 300)):
            add(event)
            expected = {"pid": os.getpid(), "step": step} if step and is_aside else None
            assert (json.loads(signal.read_text()) if signal.exists() else None) == expected
    assert not signal.exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ", line 1"),
        ("epoch,step,train_loss,train_accuracy,val_loss,val_accuracy\n1,2,3,0.4,5,0.6\n", ", line 1"),
        (HEADER, ""),
        (f"{HEADER}1,100,6400,1.2\n", ", line 2"),
        (f"{HEADER}1,100,6400,low,0.5\n", ", line 2"),
        (f"{HEADER}1,100,6400,nan,0.5\n", ", line 2"),
        (f"{HEADER}1,100,6400,inf,0.5\n", ", line 2"),
        (f"{HEADER}1,100,6400,1.2,1.5\n", ", line 2"),
        (f"{HEADER}{'1' * 200_000}\n", ""),
    ],
)
def test_another_file_is_refused_by_its_line(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)

    with pytest.raises(InputError) as caught:
        history.read(path, Window)
    assert caught.value.where == f"{path}{place}"
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="found no such file"):
        history.read(tmp_path / "missing.csv", Window)


# ---- progress


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

    shown = history.shown(source, num_images=1000, num_epochs=1)

    assert next(shown) is events[0]
    assert next(source) is events[1]


def test_a_log_has_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    list(history.shown(training(), num_images=1000, num_epochs=2))
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


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")

    list(history.shown(training(), num_images=1000, num_epochs=2))

    text = terminal.getvalue()
    assert "epoch 1/2  50% |" in text
    assert "loss 0.010, accuracy 99.5%" in text
    # A carriage return overwrites the bar; whole lines stay.
    left = [line.rpartition("\r")[2].partition(": training")[0] for line in text.split("\n")]
    assert left == ["train: epoch 1/2", "train: epoch 2/2", ""]
