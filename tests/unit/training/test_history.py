"""The tables of the learning curves."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mnist.core.errors import InputError
from mnist.training import history
from mnist.training.history import Epoch, Window

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


def test_each_kind_has_its_own_table(tmp_path: Path) -> None:
    history.write(tmp_path / "steps.csv", EVENTS, Window)
    history.write(tmp_path / "history.csv", EVENTS, Epoch)

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


def test_a_row_can_be_read_as_soon_as_it_is_added(tmp_path: Path) -> None:
    with history.appending(tmp_path / "history.csv", Epoch) as add:
        assert history.read(tmp_path / "history.csv", Epoch) == []
        for event in EVENTS[:3]:
            add(event)
        assert [row.step for row in history.read(tmp_path / "history.csv", Epoch)] == [150]


@given(
    loss=st.floats(0, 1e30, allow_subnormal=False),
    accuracy=st.floats(0, 1, allow_subnormal=False),
    step=st.integers(1, 10**12),
)
def test_a_table_that_was_read_is_written_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, loss: float, accuracy: float, step: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    events = [Window(epoch=1, step=step, num_images=64, loss=loss, accuracy=accuracy)]

    history.write(folder / "first.csv", events, Window)
    history.write(folder / "second.csv", history.read(folder / "first.csv", Window), Window)

    assert (folder / "second.csv").read_bytes() == (folder / "first.csv").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,step,train_loss,train_accuracy,val_loss,val_accuracy\n1,2,3,4,5,6\n",
        "epoch,step,num_images,loss,accuracy\n1,100,6400,1.2\n",
        "epoch,step,num_images,loss,accuracy\n1,100,6400,low,0.5\n",
    ],
    ids=["empty", "other table", "short row", "word"],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)

    with pytest.raises(
        InputError, match=r"steps\.csv: found .*, expected a table of epoch, step, num_images"
    ):
        history.read(path, Window)
    with pytest.raises(InputError, match="found no such file"):
        history.read(tmp_path / "missing.csv", Window)


def test_the_summary_is_the_last_epoch() -> None:
    assert history.summary(EVENTS) == {
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "val_loss": 0.333333,
        "val_accuracy": 0.666667,
    }
