"""What only a GPU can show; skipped where there is none.

Shape suffixes: B images of a batch, C channels, H rows, W columns, K classes.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor

from mnist.core.config import Machine, Precision, Recipe
from mnist.training import devices, loop
from mnist.training.history import Epoch, Window
from mnist.training.model import Classifier
from tests.unit.training.test_loop import LEARNS, TRAIN, VAL, classifier, recipe, weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("torch_as_before"),
]


def fit(
    of: Recipe, *, on: str = "cuda", precision: Precision = "float32"
) -> tuple[Classifier, list[Window | Epoch]]:
    machine = Machine.model_validate({"device": on, "num_threads": 1})
    device = devices.prepare(machine, devices.EXACT.model_copy(update={"precision": precision}))
    trained = classifier()
    events = loop.fit(trained, train=TRAIN, val=VAL, recipe=of, seed=0, device=device, precision=precision)
    return trained, list(events)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_it_trains_as_the_cpu_does(optimizer: str) -> None:
    of = recipe(**LEARNS, optimizer=optimizer) if optimizer != "adam" else recipe(optimizer="adam", lr=0.001)

    there, events = fit(of)
    here, expected = fit(of, on="cpu")

    assert [type(event) for event in events] == [type(event) for event in expected]
    moved = weights(here) - weights(classifier())
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
    replay = devices.capture(step, state=state, arguments=arguments)
    assert all(torch.equal(one, other) for one, other in zip(state, plain, strict=True))

    results = []
    for number in (1.0, 2.0, 3.0):
        x, y, lr = (torch.full_like(argument, number) for argument in arguments)
        results.append(replay(x, y, lr))
        plain[0].addcmul_(x + y, lr)
        assert torch.equal(results[-1], plain[0] * 2)
    assert torch.equal(state[0], plain[0])
    assert state[1].item() == 3
    assert not torch.equal(results[0], results[1])  # each result stays


def test_nothing_waits_inside_an_epoch() -> None:
    """As many waits at 250 steps an epoch as at 1000; some there are, before and after."""

    def num_waits(batch_size: int) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                fit(recipe(batch_size=batch_size))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing CUDA operation" in str(each.message) for each in caught)

    assert num_waits(1) == num_waits(4) > 0


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_shorter_precision_learns_as_well(precision: Precision) -> None:
    """Calculator digits: chance is 10 %."""
    _, events = fit(recipe(**LEARNS), precision=precision)

    (last,) = events[-1:]
    assert isinstance(last, Epoch)
    assert last.val_accuracy > 0.8


@pytest.mark.parametrize(("precision", "exact"), [("float32", True), ("tf32", False)])
def test_float32_is_float32_and_tf32_is_not(precision: Precision, exact: bool) -> None:
    """TF32 has 10 bits of mantissa: 1 + 2^-12 would be 1, in matrix products and in convolutions."""
    device = devices.prepare(
        Machine(device="cuda", num_threads=1), devices.EXACT.model_copy(update={"precision": precision})
    )
    x = torch.full((64, 64), 1 + 2**-12, device=device)
    expected = torch.full_like(x, 1 + 2**-12)

    product = x @ torch.eye(64, device=device)
    image = F.conv2d(x.view(1, 1, 64, 64), torch.ones(1, 1, 1, 1, device=device)).view(64, 64)

    assert torch.allclose(product, expected, rtol=0, atol=1e-7) is exact
    assert torch.allclose(image, expected, rtol=0, atol=1e-7) or not exact
