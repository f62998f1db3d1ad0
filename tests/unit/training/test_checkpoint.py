"""A training that is broken off and resumed ends with the bytes of one that was not."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mnist.core import paths
from mnist.core.config import Precision, Recipe
from mnist.core.errors import InputError
from mnist.data.store import Images
from mnist.training import checkpoint, loop, optim
from mnist.training.checkpoint import Checkpoint, Progress
from mnist.training.distributed import SINGLE
from mnist.training.history import Epoch, Window
from tests.unit.training.test_loop import CPU, TRAIN, VAL, classifier, recipe, weights

FEW: Images = TRAIN.take(np.arange(130))
OF = recipe(epochs=4, batch_size=16, lr=0.02, momentum=0.9)
ORIGIN = ("fingerprint", "CPU", {"torch": "2"})

Events = list[Window | Epoch]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all checkpoints, in a checkout of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / paths.CHECKPOINTS


def kept(of: Recipe = OF, *, every: int = 1, origin: tuple[Any, ...] = ORIGIN) -> Checkpoint:
    return Checkpoint(origin, num_epochs=of.epochs, every=every, ctx=SINGLE)


def train(
    of: Recipe = OF, *, until: int = 99, every: int = 1, precision: Precision = "float32"
) -> tuple[Tensor, Events, int]:
    """Train until an epoch after `until` begins; the weights, events, and the epoch that it resumed after."""
    net = classifier()
    file = kept(of, every=every)
    progress = file.progress
    start, events = progress.epoch, [*progress.events]
    for event in loop.fit(
        net, train=FEW, val=VAL, recipe=of, seed=0, device=CPU, precision=precision, progress=progress
    ):
        if event.epoch > until:
            file._lock.release()  # as the end of a process does
            return weights(net), events, start
        events.append(event)
        file.save()
    file.remove()
    return weights(net), events, start


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.0},
        {"optimizer": "nesterov", "schedule": "one_cycle", "label_smoothing": 0.1},
        {"optimizer": "adam", "schedule": "one_cycle", "lr": 0.01},
        {"shift": 2},
    ],
    ids=["sgd", "nesterov", "adam", "shift"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_that_is_broken_off_in_each_epoch(values: dict[str, Any], precision: Precision) -> None:
    of = recipe(**{**OF.model_dump(), **values})
    expected, expected_events, _ = train(of, precision=precision)

    for until in range(of.epochs):
        _, events, start = train(of, until=until, precision=precision)
        assert (start, events) == (max(until - 1, 0), expected_events[: 2 * until])
    found, events, start = train(of, precision=precision)

    assert torch.equal(found, expected)
    assert events == expected_events
    assert start == of.epochs - 1


def test_a_checkpoint_each_second_epoch(folder: Path) -> None:
    assert train(until=3, every=2)[2] == 0
    assert train(until=3, every=1)[2] == 2
    assert train(until=2, every=0)[2] == 0
    assert train(every=2)[2] == 3
    assert list(folder.iterdir()) == []


def test_the_last_epoch_makes_none(folder: Path) -> None:
    of, net = recipe(epochs=1), classifier()
    file = kept(of)
    progress = file.progress
    for _ in loop.fit(
        net, train=FEW, val=VAL, recipe=of, seed=0, device=CPU, precision="float32", progress=progress
    ):
        file.save()
    assert progress.epoch == 1
    assert list(folder.rglob("*.safetensors")) == []


def test_seconds_add_up_and_the_start_stays() -> None:
    net = classifier()
    first = Progress(epoch=2, seconds=100.0, time_ms=5, training="a")
    optimizer = optim.make(OF, net.network)
    first.tensors = {**optimizer.state(), checkpoint.GENERATOR: torch.Generator().get_state()}
    progress = checkpoint.unpack(checkpoint.pack(first), "a")
    list(
        loop.fit(
            net, train=FEW, val=VAL, recipe=OF, seed=0, device=CPU, precision="float32", progress=progress
        )
    )
    assert 100 < progress.seconds < 200
    assert (progress.epoch, progress.time_ms) == (4, 5)


def stored(folder: Path) -> Path:
    (path,) = folder.rglob("checkpoint.safetensors")
    return path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def of_another_training(path: Path) -> None:
    progress = checkpoint.unpack(path.read_bytes(), path.parent.name)
    progress.training = "0" * 63 + "1"
    path.write_bytes(checkpoint.pack(progress))


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda path, place=place: flip(path, place) for place in (0, 30, 100, 700, -1)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(8) + b"[]"),
        of_another_training,
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_ignored_with_one_line(
    damage: Callable[[Path], object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, expected_events, _ = train()
    train(until=2)
    damage(stored(folder))
    capsys.readouterr()

    found, events, start = train()

    assert start == 0
    assert torch.equal(found, expected)
    assert events == expected_events
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_every_bit_counts(folder: Path) -> None:
    train(until=2)
    path = stored(folder)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << (place % 8)
        with pytest.raises(InputError):
            checkpoint.unpack(bytes(flipped), path.parent.name)


def test_other_code_data_or_devices_have_their_own() -> None:
    train(until=2)
    assert kept(origin=("fingerprint", "CPU", {"torch": "3"})).progress.epoch == 0
    assert kept().progress.epoch == 2


def test_two_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    train(until=2)
    first, second = kept(), kept()
    assert first.progress.epoch == 2
    assert second.progress.epoch == 0
    second.remove()
    assert len(capsys.readouterr().out.splitlines()) == 1
    first._lock.release()
    assert train()[2] == 2


def test_a_full_disk_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    expected, _, _ = train()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        found, _, _ = train()
    assert torch.equal(found, expected)
    (line,) = capsys.readouterr().out.splitlines()
    assert "No space left on device" in line


def test_old_ones_of_other_trainings_are_removed(folder: Path) -> None:
    week = time.time() - 7 * 24 * 3600
    for name, seconds in (("old", week - 100), ("young", week + 100)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (seconds, seconds))
    train(until=2)
    os.utime(stored(folder).parent, (week - 100, week - 100))
    assert train()[2] == 2
    assert [path.name for path in folder.iterdir()] == ["young"]
