"""Filters and feature maps: those that are shown are the weights and outputs of the network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mnist.core.config import Architecture
from mnist.evaluation import insight
from mnist.training import model
from mnist.training.model import MLP, Classifier, SimpleCNN
from tests.conftest import DIGITS, digits


def classifier(kind: str, *, permute_pixels: bool = False, n_features: int = 3) -> Classifier:
    architecture = Architecture.model_validate(
        {"model": kind, "n_features": n_features, "permute_pixels": permute_pixels}
    )
    return model.build(architecture, classes=DIGITS.classes, seed=2, mean=0.2, std=0.4).eval()


def test_filters_of_a_cnn_are_its_first_kernels() -> None:
    net = classifier("simple_cnn")

    patterns_FHW = insight.filters(net)

    assert isinstance(net.network, SimpleCNN)
    assert patterns_FHW.shape == (3, 5, 5)
    assert np.array_equal(patterns_FHW, net.network.conv1.weight[:, 0].detach().numpy())


@pytest.mark.parametrize("permute_pixels", [False, True], ids=["in place", "shuffled"])
def test_filters_of_an_mlp_lie_where_the_pixels_of_the_image_are(permute_pixels: bool) -> None:
    """Held over the image as it is, a pattern gives what the unit gives."""
    net = classifier("mlp", permute_pixels=permute_pixels)
    images_NHW = digits(4, seed=0).images_NHW

    patterns_FHW = insight.filters(net)

    assert isinstance(net.network, MLP)
    assert patterns_FHW.shape == (8, 28, 28)
    x_NHW = (images_NHW / 255 - 0.2) / 0.4
    by_hand_NF = np.einsum("nhw,fhw->nf", x_NHW, patterns_FHW) + net.network.fc1.bias.detach().numpy()
    x_NCHW = net.preprocess(torch.from_numpy(images_NHW))
    assert np.allclose(by_hand_NF, net.network.fc1(x_NCHW.flatten(1)).detach().numpy(), atol=1e-4)


def test_maps_of_a_cnn_are_its_rectified_convolutions() -> None:
    net, images_NHW = classifier("simple_cnn", permute_pixels=True), digits(4, seed=1).images_NHW

    inputs_NHW, (first, second) = insight.layers(net, images_NHW)

    assert isinstance(net.network, SimpleCNN)
    x_NCHW = net.preprocess(torch.from_numpy(images_NHW))
    with torch.no_grad():
        first_NCHW = F.relu(net.network.conv1(x_NCHW))
        second_NCHW = F.relu(net.network.conv2(F.max_pool2d(first_NCHW, 2)))
    assert np.array_equal(inputs_NHW, x_NCHW[:, 0].numpy())  # shuffled, as the network gets them
    assert (first.name, second.name) == ("first convolution", "second convolution")
    assert (first.maps_NCHW.shape, second.maps_NCHW.shape) == ((4, 3, 24, 24), (4, 3, 8, 8))
    assert np.allclose(first.maps_NCHW, first_NCHW.numpy(), atol=1e-6)
    assert np.allclose(second.maps_NCHW, second_NCHW.numpy(), atol=1e-6)


def test_maps_of_an_mlp_are_its_units() -> None:
    net, images_NHW = classifier("mlp"), digits(3, seed=1).images_NHW

    _, (first, second) = insight.layers(net, images_NHW)

    assert isinstance(net.network, MLP)
    with torch.no_grad():
        x_NF = F.relu(net.network.fc1(net.preprocess(torch.from_numpy(images_NHW)).flatten(1)))
        expected_NF = F.relu(net.network.fc2(x_NF)).numpy()
    assert first.maps_NCHW.shape == second.maps_NCHW.shape == (3, 8, 1, 1)
    assert np.allclose(second.maps_NCHW[:, :, 0, 0], expected_NF, atol=1e-6)


def test_looking_leaves_the_network_as_it_was() -> None:
    net, images_NHW = classifier("simple_cnn"), digits(2, seed=1).images_NHW
    before_NK = net(torch.from_numpy(images_NHW))

    insight.layers(net, images_NHW)

    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(net(torch.from_numpy(images_NHW)), before_NK)
