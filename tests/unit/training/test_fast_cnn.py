"""SimpleCNN with the batch innermost against SimpleCNN.

Shape suffixes: B images of a batch, C channels, H rows, W columns, F channels out.
"""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor, nn

from mnist.training import fast_cnn
from mnist.training.fast_cnn import BatchLastCNN
from mnist.training.model import MLP, SimpleCNN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def images(num_images: int, *, seed: int = 0) -> Tensor:
    """Normalized noise with the black margin that digits have, so that pooling meets ties."""
    x_BCHW = torch.randn(num_images, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    for part in (x_BCHW[..., :5, :], x_BCHW[..., -5:, :], x_BCHW[..., :5], x_BCHW[..., -5:]):
        part.fill_(-0.42)
    return x_BCHW


def gradients(network: SimpleCNN | BatchLastCNN, x_BCHW: Tensor, labels_B: Tensor) -> list[Tensor]:
    network.zero_grad()
    F.nll_loss(network(x_BCHW), labels_B, reduction="sum").backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("n_features", [1, 6, 16])
@pytest.mark.parametrize("num_images", [0, 1, 64])
def test_outputs_and_gradients_are_those_of_the_network(num_images: int, n_features: int) -> None:
    torch.manual_seed(n_features)
    network = SimpleCNN(n_features, 10)
    same = BatchLastCNN(copy.deepcopy(network))
    x_BCHW, labels_B = images(num_images), torch.arange(num_images) % 10

    expected_BK, found_BK = network(x_BCHW), same(x_BCHW)

    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-5, atol=1e-6)
    expected = gradients(network, x_BCHW, labels_B)
    found = gradients(same, x_BCHW, labels_B)
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        # Sums of up to some 10^4 products in another order: float32 has 1.2e-7.
        torch.testing.assert_close(one, other, rtol=0, atol=float(other.abs().max()) * 1e-5)


def test_the_parameters_are_the_networks_own() -> None:
    network = SimpleCNN(6, 10)

    same = BatchLastCNN(network)

    assert [id(parameter) for parameter in same.parameters()] == [
        id(parameter) for parameter in network.parameters()
    ]


@pytest.mark.parametrize(
    ("network", "suits"),
    [
        (SimpleCNN(6, 10), True),
        (SimpleCNN(16, 10), False),  # oneDNN is as fast
        (SimpleCNN(28, 10), True),
        (SimpleCNN(29, 10), False),
        (MLP(10), False),
    ],
    ids=["6 channels", "16", "28", "29", "no CNN"],
)
def test_it_is_taken_where_it_is_faster_and_right(network: nn.Module, suits: bool) -> None:
    assert BatchLastCNN.suits(network) is suits


@pytest.mark.parametrize(("height", "width"), [(6, 6), (10, 12)])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_gradient_is_the_one_of_finite_differences(channels: int, height: int, width: int) -> None:
    """In float64, where the values of a pool differ by more than the step."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((channels, height, width, 2), (3, channels, 5, 5), (3,))
    ]

    assert torch.autograd.gradcheck(fast_cnn.convolved_pooled_rectified, inputs)


def test_of_equal_values_the_gradient_is_shared() -> None:
    """A constant image: all four convolutions of each pool are equal, and get a quarter each."""
    x_CHWB = torch.ones(1, 6, 6, 1, requires_grad=True)
    weight_FCHW, bias_F = torch.ones(1, 1, 5, 5, requires_grad=True), torch.zeros(1)

    fast_cnn.convolved_pooled_rectified(x_CHWB, weight_FCHW, bias_F).sum().backward()

    assert weight_FCHW.grad is not None
    assert x_CHWB.grad is not None
    assert torch.equal(weight_FCHW.grad, torch.ones(1, 1, 5, 5))
    one_D = torch.tensor([1.0, 2, 2, 2, 2, 1]) / 2
    assert torch.equal(x_CHWB.grad[0, ..., 0], one_D[:, None] * one_D)


def test_nan_stays_nan() -> None:
    """So that a training that diverges is noticed."""
    network = SimpleCNN(6, 10)
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] = float("nan")

    found = gradients(BatchLastCNN(network), images(2), torch.tensor([0, 1]))

    assert torch.isnan(found[0]).any()
