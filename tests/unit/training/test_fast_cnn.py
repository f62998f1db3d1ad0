"""SimpleCNN with the batch innermost against SimpleCNN.

Shape suffixes: B images of a batch, C channels, H rows, W columns, F channels out.
"""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor, nn

from mnist.training.fast_cnn import BatchLastCNN
from mnist.training.model import MLP, SimpleCNN


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
    # Sums of up to some 10^4 products in another order: float32 has 1.2e-7, and terms may cancel.
    largest = max(float(other.abs().max()) for other in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=largest * 3e-6)


@pytest.mark.parametrize(
    ("network", "suits"),
    [
        (SimpleCNN(6, 10), True),
        (SimpleCNN(64, 10), True),
        (SimpleCNN(65, 10), False),  # oneDNN is as fast
        (MLP(10), False),
    ],
    ids=["6 channels", "64", "65", "no CNN"],
)
def test_it_is_taken_where_it_is_faster_and_right(network: nn.Module, suits: bool) -> None:
    assert BatchLastCNN.suits(network) is suits
