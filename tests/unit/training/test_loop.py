"""The training loop against a plain one, and each of its parts against a slow one.

Shape suffixes: N images, B images of a batch, H rows, W columns, K classes.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import tutorial
from mnist.core import config, paths
from mnist.core.config import Architecture, Recipe
from mnist.core.errors import InputError
from mnist.data.store import Images, cut
from mnist.training import devices, loop, model
from mnist.training.distributed import SINGLE, Context
from mnist.training.fast_cnn import BatchLastCNN
from mnist.training.history import Epoch, Window
from mnist.training.model import Classifier
from tests.conftest import DIGITS, digits

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
MEAN, STD = 0.13, 0.31
PART, VAL = cut(digits(1200, seed=0), val_size=200, seed=0)
TRAIN = PART.take(np.arange(len(PART)))
CNN = Architecture(model="simple_cnn", n_features=6, permute_pixels=False)
STILL = 1e-30  # a learning rate that is above 0 and moves no float32 weight

# What learns the small data.
LEARNS = {"epochs": 3, "batch_size": 16, "lr": 0.02, "momentum": 0.9, "schedule": "one_cycle"}


def recipe(**values: Any) -> Recipe:
    """The defaults of `params.yaml`, but for `values`."""
    read = config.load(ROOT / paths.PARAMS).only(Recipe).model_dump()
    return Recipe(**{**read, **values})


def classifier(seed: int = 0) -> Classifier:
    return model.build(CNN, classes=DIGITS.classes, seed=seed, mean=MEAN, std=STD)


def fit(
    of: Recipe, *, train: Images = TRAIN, val: Images = VAL, seed: int = 0
) -> tuple[Classifier, list[Window], list[Epoch]]:
    """Train a new classifier; the windows and epochs that came by, each in their order."""
    trained = classifier(seed)
    events = list(
        loop.fit(trained, train=train, val=val, recipe=of, seed=seed, device=CPU, precision="float32")
    )
    windows = [event for event in events if isinstance(event, Window)]
    epochs = [event for event in events if isinstance(event, Epoch)]
    return trained, windows, epochs


def batches_of(of: Recipe, *, train: Images = TRAIN, seed: int = 0) -> list[Tensor]:
    """What the network is given in each step of a training."""
    seen = []

    def watch(network: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(network, BatchLastCNN):
            seen.append(inputs[0].detach().clone())

    hook = nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        fit(of, train=train, seed=seed)
    finally:
        hook.remove()
    return seen


def raw(x_BCHW: Tensor) -> Tensor:
    """The pixels, uint8, that were normalized to these."""
    return ((x_BCHW[:, 0] * STD + MEAN) * 255).round().to(torch.uint8)


def positions(images_NHW: Tensor, within: Images = TRAIN) -> list[int]:
    """Which of the training images each one is; they are all different."""
    known = {image.tobytes(): position for position, image in enumerate(within.images_NHW)}
    assert len(known) == len(within)
    return [known[image.numpy().tobytes()] for image in images_NHW]


def weights(trained: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in trained.parameters()])


def one_cycle(
    optimizer: torch.optim.Optimizer, lr: float, num_steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Return torch's schedule with its peak at 30 %, beginning and ending one step's change above 0."""
    peak = round(0.3 * num_steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=num_steps,
        pct_start=peak / num_steps,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=peak,
        final_div_factor=(num_steps - peak + 1) / peak,
    )


# ---- the loop


@pytest.mark.parametrize(
    "of",
    [
        recipe(),
        recipe(
            epochs=2,
            batch_size=48,
            lr=0.02,
            momentum=0.8,
            optimizer="nesterov",
            schedule="one_cycle",
            label_smoothing=0.1,
        ),
    ],
    ids=["the tutorial's recipe", "all of torch's"],
)
def test_training_is_a_plain_loop(of: Recipe) -> None:
    """On the same batches: torch's optimizer, schedule and loss, the tutorial's network, nothing of ours."""
    theirs = tutorial.SimpleCNN()
    theirs.load_state_dict(classifier().network.state_dict())
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=of.lr, momentum=of.momentum, nesterov=of.optimizer == "nesterov"
    )
    batches = batches_of(of)
    schedule = one_cycle(optimizer, of.lr, len(batches)) if of.schedule == "one_cycle" else None
    labels_N = torch.from_numpy(TRAIN.labels_N).long()
    loss_sum, num_right = 0.0, 0
    for x_BCHW in batches:
        y_B = labels_N[positions(raw(x_BCHW))]
        pixels_BCHW = raw(x_BCHW)[:, None].float() / 255
        optimizer.zero_grad()
        outputs_BK = theirs((pixels_BCHW - MEAN) / STD)
        F.cross_entropy(outputs_BK, y_B, label_smoothing=of.label_smoothing).backward()
        optimizer.step()
        if schedule and schedule.last_epoch < len(batches) - 1:
            schedule.step()
        loss_sum += F.nll_loss(outputs_BK, y_B, reduction="sum").item()
        num_right += int((outputs_BK.argmax(1) == y_B).sum())

    trained, _, epochs = fit(of)

    moved = weights(trained) - weights(classifier())
    their_weights = torch.cat([parameter.detach().flatten() for parameter in theirs.parameters()])
    # Rounding alone: a thousandth of what training did, at the most.
    largest = float(moved.abs().max())
    assert largest > 0.005
    torch.testing.assert_close(weights(trained), their_weights, rtol=0, atol=largest / 1000)
    num_seen = 1000 * of.epochs
    assert sum(epoch.train_loss for epoch in epochs) / of.epochs == pytest.approx(
        loss_sum / num_seen, rel=1e-3
    )
    # A rounding may decide a tie, or two.
    assert sum(epoch.train_accuracy for epoch in epochs) * 1000 == pytest.approx(num_right, abs=2.1)


@pytest.mark.parametrize("batch_size", [1, 64, 5000])
def test_each_image_is_used_once_an_epoch_in_an_order_of_the_seed(batch_size: int) -> None:
    train = TRAIN.take(np.arange(300)) if batch_size == 1 else TRAIN
    of = recipe(epochs=2, batch_size=batch_size, lr=STILL)
    seen = batches_of(of, train=train)

    num_steps = math.ceil(len(train) / batch_size)
    assert len(seen) == 2 * num_steps
    sizes = [len(x_BCHW) for x_BCHW in seen[:num_steps]]
    assert set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] == len(train) - batch_size * (num_steps - 1)
    orders = [
        list(itertools.chain(*(positions(raw(x_BCHW), train) for x_BCHW in seen[part])))
        for part in (slice(num_steps), slice(num_steps, None))
    ]
    for order in orders:
        assert sorted(order) == list(range(len(train)))
    assert torch.equal(torch.cat(seen), torch.cat(batches_of(of, train=train)))
    assert not torch.equal(torch.cat(seen), torch.cat(batches_of(of, train=train, seed=1)))
    # In a random order 1 +- 1 images are where they were.
    assert sum(first == second for first, second in zip(*orders, strict=True)) < 10
    assert sum(position == place for place, position in enumerate(orders[0])) < 10


def test_bfloat16_learns_too_and_keeps_its_weights_in_float32() -> None:
    trained = classifier()
    events = loop.fit(
        trained, train=TRAIN, val=VAL, recipe=recipe(**LEARNS), seed=0, device=CPU, precision="bfloat16"
    )
    *_, last = events

    assert isinstance(last, Epoch)
    assert last.val_accuracy > 0.8
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert not torch.equal(weights(trained), weights(fit(recipe(**LEARNS))[0]))


def test_the_global_random_state_does_not_count() -> None:
    of = recipe(epochs=2, shift=2)

    def run(disturbance: int) -> Tensor:
        trained = classifier()
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002
        for _ in loop.fit(trained, train=TRAIN, val=VAL, recipe=of, seed=0, device=CPU, precision="float32"):
            torch.rand(1)
        return weights(trained)

    assert torch.equal(run(1), run(2))


def test_validation_images_do_not_influence_the_weights() -> None:
    first, _, (epoch,) = fit(recipe(lr=0.1), val=VAL)
    second, _, (other_epoch,) = fit(recipe(lr=0.1), val=digits(37, seed=8))

    assert torch.equal(weights(first), weights(second))
    assert epoch.val_loss != other_epoch.val_loss


def test_each_image_moves_by_its_own_offset_in_every_window() -> None:
    of = recipe(batch_size=5, shift=1, lr=STILL)
    generator = torch.Generator().manual_seed(0)
    order_N = torch.randperm(1000, generator=generator)
    offsets_2N = loop.random_offsets(1000, 1, generator)
    _, still_windows, _ = fit(of)

    moved_NHW = raw(torch.cat(batches_of(of)))

    assert len(still_windows) == 2
    for place in (0, 499, 500, 777, 999):  # of both windows
        image = int(order_N[place])
        down, right = offsets_2N[:, image].tolist()
        expected_HW = slowly_shifted(torch.from_numpy(TRAIN.images_NHW[image].copy()), down, right)
        assert torch.equal(moved_NHW[place], expected_HW)


def test_much_is_not_gathered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches, as many as fit into the limit; what is trained is the same."""
    of = recipe(batch_size=64, shift=1)
    expected = weights(fit(of)[0])
    taken: list[int] = []
    take = Images.take

    def record(self: Images, index_M: NDArray[np.int64]) -> Images:
        taken.append(len(index_M))
        return take(self, index_M)

    monkeypatch.setattr(Images, "take", record)
    monkeypatch.setattr(loop, "GATHERED", 200)

    assert torch.equal(weights(fit(of)[0]), expected)
    assert set(taken) == {192, 40}


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_a_graph_is_of_whole_batches_and_of_all_state(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, with a stand-in for the graph that steps, and takes its warm-up back as the graph does."""
    captures: list[int] = []

    def capture(
        step: devices.GraphStep, state: list[Tensor], arguments: tuple[Tensor, Tensor, Tensor]
    ) -> devices.GraphStep:
        before = [tensor.clone() for tensor in state]
        for _ in range(3):
            step(*arguments)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        captures.append(len(arguments[0]))
        return step

    monkeypatch.setattr(devices, "capture", capture)
    networks = [classifier().network for _ in range(2)]
    of = recipe(optimizer=optimizer, batch_size=4)
    generator = torch.Generator().manual_seed(0)
    plain, graph = (
        loop.stepper(network, of, device=torch.device(kind), precision="float32", ctx=SINGLE)[0]
        for network, kind in zip(networks, ("cpu", "cuda"), strict=True)
    )
    for num_images in (4, 4, 3, 4):
        x_BCHW = torch.randn(num_images, 1, 28, 28, generator=generator)
        labels_B = torch.arange(num_images)
        for step in (plain, graph):
            step(x_BCHW, labels_B, torch.tensor(0.01), num_images)

    assert captures == [4]
    first, second = (torch.cat([each.detach().flatten() for each in net.parameters()]) for net in networks)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_several_processes_have_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are summed over the processes in the middle of a step."""
    monkeypatch.setattr(devices, "capture", pytest.fail)
    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    of, cuda = recipe(batch_size=4), torch.device("cuda")
    step, _ = loop.stepper(
        classifier().network, of, device=cuda, precision="float32", ctx=Context(rank=0, size=2)
    )

    step(torch.zeros(4, 1, 28, 28), torch.arange(4), torch.tensor(0.01), 4)


@pytest.mark.parametrize(
    ("batch_size", "found"),
    [(64, r"a loss of .* at lr 1e\+30"), (5000, r"a loss of (nan|inf) by step 1 at")],
    ids=["a later step", "the last step"],
)
def test_a_loss_that_is_not_finite_names_the_learning_rate(batch_size: int, found: str) -> None:
    with pytest.raises(InputError, match=rf"^params\.yaml: lr: found {found}"):
        fit(recipe(lr=1e30, batch_size=batch_size))


# ---- the events


def test_a_window_is_a_hundred_steps_or_the_rest_of_an_epoch() -> None:
    of = recipe(epochs=2, batch_size=4, lr=STILL)
    events = loop.fit(classifier(), train=TRAIN, val=VAL, recipe=of, seed=0, device=CPU, precision="float32")

    assert [
        (event.epoch, event.step, event.num_images if isinstance(event, Window) else None) for event in events
    ] == [
        *((1, 100, 400), (1, 200, 400), (1, 250, 200), (1, 250, None)),
        *((2, 350, 400), (2, 450, 400), (2, 500, 200), (2, 500, None)),
    ]


@pytest.mark.parametrize("upload", [7, 100_000])
def test_a_gpu_is_given_all_images_as_bytes(monkeypatch: pytest.MonkeyPatch, upload: int) -> None:
    """Of tensors on the device `meta` all is known but their numbers."""
    monkeypatch.setattr(loop, "UPLOAD", upload)
    gather = loop._gather_from(PART, torch.device("meta"))

    raw_MHW, y_M = gather(torch.tensor([999, 0, 5]))

    assert (raw_MHW.shape, raw_MHW.dtype, raw_MHW.device.type) == ((3, 28, 28), torch.uint8, "meta")
    assert (y_M.shape, y_M.dtype, y_M.device.type) == ((3,), torch.int64, "meta")


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_and_accuracy_are_those_of_the_images(smoothing: float) -> None:
    """Of weights that stand still, so that every step scores the same network; smoothing does not show."""
    of = recipe(batch_size=7, lr=STILL, label_smoothing=smoothing)
    trained, windows, (epoch,) = fit(of)
    assert torch.equal(weights(trained), weights(classifier()))

    def score(images: Images) -> tuple[float, float]:
        log_probs_NK = model.log_probabilities(classifier(), images, CPU).double().numpy()
        right_N = log_probs_NK.argmax(1) == images.labels_N
        return -log_probs_NK[np.arange(len(images)), images.labels_N].mean(), right_N.mean()

    shown = [position for x_BCHW in batches_of(of) for position in positions(raw(x_BCHW))]
    for window, start in zip(windows, (0, 700), strict=True):
        expected = score(TRAIN.take(np.array(shown[start : start + 700])))
        assert (window.loss, window.accuracy) == pytest.approx(expected, rel=1e-5)
    assert (epoch.train_loss, epoch.train_accuracy) == pytest.approx(score(TRAIN), rel=1e-5)
    assert (epoch.val_loss, epoch.val_accuracy) == pytest.approx(score(VAL), rel=1e-5)


# ---- the parts


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_one_cycle_of_a_few_steps_reaches_lr_and_stays_above_0(num_steps: int) -> None:
    of = recipe(schedule="one_cycle", lr=0.06)

    rates = loop.learning_rates(of, num_steps).tolist()

    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.06)
    assert rates[-1] > 0


def slowly_shifted(image_HW: Tensor, down: int, right: int) -> Tensor:
    """A pixel at a time."""
    height, width = image_HW.shape
    moved_HW = torch.zeros_like(image_HW)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved_HW[row, column] = image_HW[row - down, column - right]
    return moved_HW


@pytest.mark.parametrize("shift", [1, 2])
def test_every_image_moves_by_its_own_offset(shift: int) -> None:
    """Each of the equally likely offsets occurs, about equally often: 40 +- 6.3 of N each."""
    offsets = list(itertools.product(range(-shift, shift + 1), repeat=2))
    image_HW = torch.arange(1, 31, dtype=torch.uint8).view(6, 5)
    num_images = 40 * len(offsets)
    places = {slowly_shifted(image_HW, *offset).numpy().tobytes(): offset for offset in offsets}

    drawn_2N = loop.random_offsets(num_images, shift, torch.Generator().manual_seed(0))
    moved_NHW = loop.shifted(image_HW.expand(num_images, 6, 5), shift, drawn_2N)

    assert [places[moved_HW.numpy().tobytes()] for moved_HW in moved_NHW] == [
        (down, right) for down, right in drawn_2N.t().tolist()
    ]
    assert (moved_NHW.shape, moved_NHW.dtype) == ((num_images, 6, 5), torch.uint8)
    counts = dict.fromkeys(offsets, 0)
    for moved_HW in moved_NHW:
        counts[places[moved_HW.numpy().tobytes()]] += 1
    assert 15 < min(counts.values()) <= max(counts.values()) < 65


def test_a_shift_of_0_is_none() -> None:
    images_NHW = torch.from_numpy(TRAIN.images_NHW[:5])
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    offsets_2N = loop.random_offsets(5, 0, generator)

    assert not offsets_2N.any()
    assert torch.equal(loop.shifted(images_NHW, 0, offsets_2N), images_NHW)
    assert torch.equal(generator.get_state(), before)
