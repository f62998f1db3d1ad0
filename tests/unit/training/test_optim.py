"""Our optimizer steps against those of `torch.optim`."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist.core.config import Recipe
from mnist.training import optim
from mnist.training.model import SimpleCNN
from tests.unit.training.test_loop import recipe

NUM_STEPS = 20

Theirs = Callable[[Any, Recipe], torch.optim.Optimizer]


def sgd(parameters: Any, of: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=of.lr, momentum=of.momentum, nesterov=of.optimizer == "nesterov", foreach=False
    )


def adam(parameters: Any, of: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=of.lr, betas=(of.momentum, of.beta2), foreach=False)


def learning_rate(step: int) -> float:
    """One that changes: up, down, tiny, and up again."""
    return [0.01, 0.1, 0.003, 1e-7, 0.05][step % 5]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("name", "momentum", "theirs", "tolerance"),
    [
        ("sgd", 0.0, sgd, 0.0),
        ("sgd", 0.9, sgd, 0.0),
        ("nesterov", 0.9, sgd, 0.0),
        # Ours divides by the corrections where theirs multiplies: some roundings of float32, which
        # has 1.2e-7, on a step of at most 0.1 or so.
        ("adam", 0.9, adam, 1e-6),
        ("adam", 0.0, adam, 1e-6),
    ],
)
def test_steps_are_those_of_torch(name: str, momentum: float, theirs: Theirs, tolerance: float) -> None:
    """On random gradients of very different sizes, and bit for bit where the tolerance is 0."""
    of = recipe(optimizer=name, momentum=momentum, beta2=0.95)
    mine = SimpleCNN(6, 10)
    reference = copy.deepcopy(mine)
    ours, torchs = optim.make(of, mine), theirs(reference.parameters(), of)
    generator = torch.Generator().manual_seed(0)

    for step in range(NUM_STEPS):
        for own, other in zip(mine.parameters(), reference.parameters(), strict=True):
            gradient = torch.randn(own.shape, generator=generator)
            gradient *= 10 ** (4 * torch.rand(own.shape, generator=generator) - 3)
            assert own.grad is not None
            own.grad.copy_(gradient)
            other.grad = gradient.clone()
        ours.step(torch.tensor(learning_rate(step)))
        assert not ours.grads_P.any()
        torchs.param_groups[0]["lr"] = learning_rate(step)
        torchs.step()

        torch.testing.assert_close(flat(mine), flat(reference), rtol=tolerance, atol=tolerance)
    assert not torch.equal(flat(mine), flat(SimpleCNN(6, 10)))


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_taking_over_a_model_changes_no_value(name: str) -> None:
    model = SimpleCNN(6, 10)
    before = copy.deepcopy(model.state_dict())

    optimizer = optim.make(recipe(optimizer=name), model)

    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(optimizer.params_P) == 6_422
    assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} == {
        optimizer.params_P.untyped_storage().data_ptr()
    }
