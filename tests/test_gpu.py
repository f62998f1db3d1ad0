"""What only a GPU can show; skipped where there is none.

Shape suffixes: B images of a batch, C channels, H rows, W columns, K classes.
"""

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist import cuda_graph, devices, model, params, paths, training
from mnist.dataset import cut
from mnist.history import Epoch, Window
from mnist.model import Classifier
from mnist.params import Architecture, Machine, Precision, Recipe
from tests.conftest import digits
from tests.test_training import LEARNS, ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TRAIN, VAL = cut(digits(1200, seed=0), val_size=200, seed=0)


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    yield
    devices.prepare(Machine(device="cpu", num_threads=1))


def recipe(**values: object) -> Recipe:
    read = params.load(ROOT / paths.PARAMS).only(Recipe).model_dump()
    return Recipe.model_validate({**read, **values})


def fit(
    of: Recipe, *, on: str = "cuda", precision: Precision = "float32", n_features: int = 6
) -> tuple[Classifier, list[Window | Epoch]]:
    machine = Machine.model_validate({"device": on, "num_threads": 1})
    device = devices.prepare(machine, precision=precision)
    architecture = Architecture(model="simple_cnn", n_features=n_features, permute_pixels=False)
    trained = model.build(architecture, seed=0, mean=0.13, std=0.31)
    events = training.fit(
        trained, train=TRAIN, val=VAL, recipe=of, seed=0, device=device, precision=precision
    )
    return trained, list(events)


def weights(trained: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in trained.parameters()])


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_it_trains_as_the_cpu_does(optimizer: str) -> None:
    of = recipe(**LEARNS, optimizer=optimizer) if optimizer != "adam" else recipe(optimizer="adam", lr=0.001)

    there, events = fit(of)
    here, expected = fit(of, on="cpu")

    assert [type(event) for event in events] == [type(event) for event in expected]
    moved = weights(here) - weights(
        model.build(
            Architecture(model="simple_cnn", n_features=6, permute_pixels=False), seed=0, mean=0.13, std=0.31
        )
    )
    atol = float(moved.abs().max()) / 50
    torch.testing.assert_close(weights(there), weights(here), rtol=0, atol=atol)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_trainings_give_the_same_bits(optimizer: str) -> None:
    of = recipe(epochs=2, shift=1, optimizer=optimizer, lr=0.01)

    assert torch.equal(weights(fit(of)[0]), weights(fit(of)[0]))


def test_a_graph_does_what_the_step_does() -> None:
    """Bit for bit, with a learning rate that changes, and with nothing left of warm-up and capture."""
    device = devices.prepare(Machine(device="cuda", num_threads=1))
    state = [torch.ones(5, device=device), torch.zeros((), device=device)]

    def step(x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        state[0].addcmul_(x + y, lr)
        state[1].add_(1)
        return state[0] * 2

    plain = copy.deepcopy(state)
    arguments = (torch.zeros(5, device=device), torch.zeros(5, device=device), torch.zeros((), device=device))
    replayed = cuda_graph.captured(step, state=state, arguments=arguments)
    assert all(torch.equal(one, other) for one, other in zip(state, plain, strict=True))

    results = []
    for number in (1.0, 2.0, 3.0):
        x, y, lr = (torch.full_like(argument, number) for argument in arguments)
        results.append(replayed(x, y, lr))
        plain[0].addcmul_(x + y, lr)
        assert torch.equal(results[-1], plain[0] * 2)
    assert torch.equal(state[0], plain[0])
    assert state[1].item() == 3
    assert not torch.equal(results[0], results[1])  # each result stays


def test_nothing_waits_inside_an_epoch() -> None:
    """As many waits at 250 steps an epoch as at 1000."""

    def num_waits(batch_size: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit(recipe(batch_size=batch_size))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert num_waits(1) == num_waits(4)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_shorter_precision_learns_as_well(precision: Precision) -> None:
    """Calculator digits: chance is 10 %."""
    _, events = fit(recipe(**LEARNS), precision=precision)

    (last,) = events[-1:]
    assert isinstance(last, Epoch)
    assert last.val_accuracy > 0.8


def test_float32_is_float32() -> None:
    """TensorFloat-32 has 10 bits of mantissa: 1 + 2^-12 would be 1."""
    device = devices.prepare(Machine(device="cuda", num_threads=1))
    x = torch.full((64, 64), 1 + 2**-12, device=device)

    assert np.allclose((x @ torch.eye(64, device=device)).cpu().numpy(), 1 + 2**-12, rtol=0, atol=1e-7)
