"""Filters and feature maps: the weights of the first layer as images, and the outputs of the layers.

Shape suffixes: N or B images, C channels, F filters or units, H rows, W columns, D pixels of an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mnist.data.store import IMAGE_SHAPE, Bytes
from mnist.training.model import Classifier, SimpleCNN

Floats = NDArray[np.float32]

# Layers that are shown, by their names in the network.
CONVOLUTIONS = {"conv1": "first convolution", "conv2": "second convolution"}
HIDDEN = {"fc1": "first hidden layer", "fc2": "second hidden layer"}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The feature maps of one layer.

    Attributes:
        name: of the layer, in words.
        maps_NCHW: float32 (N, C, H, W), after the ReLU; H and W are 1 in a fully connected layer.
    """

    name: str
    maps_NCHW: Floats


def filters(classifier: Classifier) -> Floats:
    """Return the weights of the first layer, float32 (F, H, W): 5x5 of a CNN, 28x28 of an MLP.

    Where the classifier shuffles the pixels, the weights of an MLP are put back in the places of the image.
    """
    weight = classifier.network.get_parameter(f"{_first(classifier.network)}.weight").detach()
    if weight.ndim == 4:  # noqa: PLR2004 -- filters, channels, rows, columns
        return _array(weight[:, 0])
    if classifier.permutation is not None:
        in_place_FD = torch.empty_like(weight)
        in_place_FD[:, classifier.permutation] = weight
        weight = in_place_FD
    return _array(weight.unflatten(1, IMAGE_SHAPE))


@torch.inference_mode()
def layers(classifier: Classifier, images_NHW: Bytes) -> tuple[Floats, list[Layer]]:
    """Return the inputs of the network, float32 (N, H, W), and the outputs of its layers but the last.

    Args:
        classifier: on any device.
        images_NHW: raw pixels, uint8 (N, 28, 28).
    """
    network, found = classifier.network, dict[str, Tensor]()

    def keep(name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
            # Before pooling, which `SimpleCNN` does before the ReLU: these maps are larger.
            found[name] = output.relu().reshape(*output.shape[:2], *(output.shape[2:] or (1, 1)))

        return network.get_submodule(name).register_forward_hook(hook)

    names = _names(network)
    hooks = [keep(name) for name in names]
    x_NCHW = classifier.preprocess(torch.from_numpy(images_NHW.copy()).to(classifier.mean.device))
    try:
        network(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return _array(x_NCHW[:, 0]), [
        Layer(name=label, maps_NCHW=_array(found[name])) for name, label in names.items()
    ]


def _names(network: nn.Module) -> dict[str, str]:
    return CONVOLUTIONS if isinstance(network, SimpleCNN) else HIDDEN


def _first(network: nn.Module) -> str:
    return next(iter(_names(network)))


def _array(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().cpu().numpy()
    return found
