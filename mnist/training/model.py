"""The networks, and the classifier that maps raw pixels to probabilities.

Shape suffixes: N or B images, C channels, H rows, W columns, K classes, D pixels of an image.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mnist.core import files
from mnist.core.config import Architecture, Section
from mnist.core.errors import InputError
from mnist.data.store import Images
from mnist.training.products import Linear

NUM_PIXELS = 28 * 28
NUM_HIDDEN = 8  # units of an MLP's layers, the course's: as many parameters as the CNN of 6 channels has
EVALUATION_BATCH = 250  # images; on a CPU, whose caches they fit, twice as fast as 1000

HEADER = "classifier"  # the one key of a weights file's header


class Header(Section):
    """The architecture and classes that build the classifier of a weights file."""

    architecture: Architecture
    classes: Annotated[tuple[str, ...], Field(min_length=2)]


class SimpleCNN(nn.Module):
    """The tutorial's network: two 5x5 convolutions, two linear layers, log-softmax.

    Args:
        n_features: channels of both convolutions.
        num_classes: K.
    """

    def __init__(self, n_features: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, n_features, kernel_size=5)
        self.conv2 = nn.Conv2d(n_features, n_features, kernel_size=5)
        self.fc1 = Linear(n_features * 4 * 4, 50)  # of 28 rows, convolutions and poolings leave 24, 12, 8, 4
        self.fc2 = Linear(50, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return log-probabilities, float32 (B, K), of normalized images, float32 (B, 1, H, W)."""
        # The tutorial pools after ReLU. Both orders are the same function, since ReLU is
        # monotonic, and this one rectifies a quarter of the values.
        x_BCHW = F.relu(F.max_pool2d(self.conv1(x_BCHW), 2))
        x_BCHW = F.relu(F.max_pool2d(self.conv2(x_BCHW), 2))
        x_BF = F.relu(self.fc1(x_BCHW.flatten(1)))
        return F.log_softmax(self.fc2(x_BF), dim=1)


class MLP(nn.Module):
    """The tutorial's fully connected control: two hidden layers, blind to neighbouring pixels.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc1 = Linear(NUM_PIXELS, NUM_HIDDEN)
        self.fc2 = Linear(NUM_HIDDEN, NUM_HIDDEN)
        self.fc3 = Linear(NUM_HIDDEN, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return log-probabilities, float32 (B, K), of normalized images, float32 (B, 1, H, W)."""
        x_BF = F.relu(self.fc1(x_BCHW.flatten(1)))
        x_BF = F.relu(self.fc2(x_BF))
        return F.log_softmax(self.fc3(x_BF), dim=1)


class Classifier(nn.Module):
    """A network with its normalization: raw pixels in, probabilities out.

    It is saved, evaluated, registered and served as a whole, so that no user can normalize wrongly.

    Args:
        network: maps normalized images, float32 (B, 1, 28, 28), to log-probabilities (B, K).
        mean: of the training pixels, black 0 to white 1.
        std: of the training pixels, above 0.
        permutation: int64 (D,), where pixel d of the shuffled image comes from; None leaves
            the pixels where they are.
        classes: the names of the K classes.
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: float,
        std: float,
        permutation: Tensor | None,
        classes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.register_buffer("permutation", permutation)

    def preprocess(self, images_NHW: Tensor) -> Tensor:
        """Normalize raw uint8 pixels, and permute them if that is on: float32 (N, 1, 28, 28)."""
        # In place, which takes 2 % off an epoch.
        x_NHW = images_NHW.float().div_(255).sub_(self.mean).div_(self.std)
        if self.permutation is not None:
            x_NHW = x_NHW.flatten(1)[:, self.permutation].unflatten(1, (28, 28))
        return x_NHW.unsqueeze(1)

    def forward(self, images_NHW: Tensor) -> Tensor:
        """Return class probabilities, float32 (N, K), of raw images, uint8 (N, 28, 28)."""
        log_probs_NK: Tensor = self.network(self.preprocess(images_NHW))
        return log_probs_NK.exp()


def build(
    architecture: Architecture, *, classes: tuple[str, ...], seed: int, mean: float, std: float
) -> Classifier:
    """Make a classifier with weights, and a permutation if `permute_pixels` is on, drawn by `seed`."""
    # With its own generator the permutation leaves the weights as they were.
    generator = torch.Generator().manual_seed(seed)
    permutation = torch.randperm(NUM_PIXELS, generator=generator) if architecture.permute_pixels else None
    torch.manual_seed(seed)
    network = _network(architecture, len(classes))
    return Classifier(network, mean=mean, std=std, permutation=permutation, classes=classes)


@torch.inference_mode()
def log_probabilities(classifier: Classifier, images: Images, device: torch.device) -> Tensor:
    """Return log-probabilities, float32 (N, K) on `device`, of raw images; keeps the training mode."""
    was_training = classifier.training
    classifier.to(device).eval()
    log_probs = [
        # A copy: torch wants writable memory, and the images may be a memory-mapped file.
        classifier.network(classifier.preprocess(torch.from_numpy(raw_BHW.copy()).to(device)))
        for raw_BHW in np.split(images.images_NHW, range(EVALUATION_BATCH, len(images), EVALUATION_BATCH))
    ]
    classifier.train(was_training)
    return torch.cat(log_probs)


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def save(path: Path, classifier: Classifier, architecture: Architecture) -> None:
    """Write the classifier, with its architecture in the header; equal classifiers give equal bytes."""
    # One metadata key: safetensors writes several in an order that changes from run to run.
    header = Header(architecture=architecture.only(Architecture), classes=classifier.classes)
    metadata = {HEADER: header.model_dump_json()}
    tensors = {name: tensor.cpu().clone() for name, tensor in classifier.state_dict().items()}
    with files.replacing(path) as part:
        save_file(tensors, part, metadata)


def load(path: Path) -> Classifier:
    """Read a classifier from a weights file, on the CPU and in evaluation mode.

    Raises:
        InputError: the file cannot be read, was not made by `save`, or holds a number that is not finite.
    """
    try:
        with files.reading(path), safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 -- no dict
        stored_as = Header.model_validate_json(header[HEADER])
        architecture, classes = stored_as.architecture, stored_as.classes
        # Placeholders: `load_state_dict` demands a tensor of the file for each of them.
        unset = torch.zeros(NUM_PIXELS, dtype=torch.int64) if architecture.permute_pixels else None
        network = _network(architecture, len(classes))
        classifier = Classifier(network, mean=0.0, std=1.0, permutation=unset, classes=classes)
        classifier.load_state_dict(tensors)
    except InputError:
        raise
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(str(path), found=f"{reason}", expected="weights that `train` wrote") from None
    for name, tensor in tensors.items():
        if num_bad := int((~tensor.isfinite()).sum()):
            found = f"{num_bad:,} of {tensor.numel():,} numbers that are NaN or infinite"
            raise InputError(f"{path}: {name}", found=found, expected="finite numbers: run `dvc repro`")
    return classifier.eval()


def _network(architecture: Architecture, num_classes: int) -> nn.Module:
    if architecture.model == "mlp":
        return MLP(num_classes)
    return SimpleCNN(architecture.n_features, num_classes)
