"""The networks and the classifier, against sums written out in NumPy.

Shape suffixes: N images, C channels, H rows, W columns, K classes.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from mnist.core.config import Architecture
from mnist.core.errors import InputError
from mnist.training import model
from mnist.training.model import MLP, Classifier, SimpleCNN
from tests.conftest import DIGITS, digits

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
CNN = Architecture(model="simple_cnn", n_features=6, permute_pixels=False)
ARCHITECTURES = [
    CNN,
    Architecture(model="simple_cnn", n_features=3, permute_pixels=True),
    Architecture(model="mlp", n_features=6, permute_pixels=False),
    Architecture(model="mlp", n_features=6, permute_pixels=True),
]

Floats = NDArray[np.float64]

all_architectures = pytest.mark.parametrize(
    "architecture",
    ARCHITECTURES,
    ids=lambda a: f"{a.model}-{a.n_features}{'-permuted' if a.permute_pixels else ''}",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(architecture: Architecture, seed: int = 0) -> Classifier:
    return model.build(architecture, classes=DIGITS.classes, seed=seed, mean=0.1307, std=0.3081).eval()


def weights(network: nn.Module) -> dict[str, Floats]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}


# ---- the networks


def convolved(x_NCHW: Floats, weight: Floats, bias: Floats) -> Floats:
    """Cross-correlation without padding, a tap at a time."""
    _, _, height, width = x_NCHW.shape
    taps = weight.shape[2]
    y_NCHW = np.zeros((len(x_NCHW), len(weight), height - taps + 1, width - taps + 1))
    for row in range(taps):
        for column in range(taps):
            window = x_NCHW[:, :, row : row + height - taps + 1, column : column + width - taps + 1]
            y_NCHW += np.einsum("nchw,oc->nohw", window, weight[:, :, row, column])
    return y_NCHW + bias[:, None, None]


def pooled(x_NCHW: Floats) -> Floats:
    """The largest of each two by two."""
    corners = [x_NCHW[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.asarray(np.maximum.reduce(corners))


def log_softmax(x_NK: Floats) -> Floats:
    return np.asarray(x_NK - np.log(np.exp(x_NK).sum(1, keepdims=True)))


def flat(x_NCHW: Floats) -> Floats:
    return x_NCHW.reshape(len(x_NCHW), math.prod(x_NCHW.shape[1:]))


def simple_cnn(w: dict[str, Floats], x_NCHW: Floats) -> Floats:
    """The tutorial's order: convolution, ReLU, pooling."""
    x_NCHW = pooled(np.maximum(convolved(x_NCHW, w["conv1.weight"], w["conv1.bias"]), 0))
    x_NCHW = pooled(np.maximum(convolved(x_NCHW, w["conv2.weight"], w["conv2.bias"]), 0))
    x_NF = np.maximum(flat(x_NCHW) @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return log_softmax(x_NF @ w["fc2.weight"].T + w["fc2.bias"])


def mlp(w: dict[str, Floats], x_NCHW: Floats) -> Floats:
    x_NF = flat(x_NCHW)
    x_NF = np.maximum(x_NF @ w["fc1.weight"].T + w["fc1.bias"], 0)
    x_NF = np.maximum(x_NF @ w["fc2.weight"].T + w["fc2.bias"], 0)
    return log_softmax(x_NF @ w["fc3.weight"].T + w["fc3.bias"])


@pytest.mark.parametrize("num_images", [0, 1, 7])
@pytest.mark.parametrize(
    ("network", "by_hand", "num_parameters"),
    [
        (SimpleCNN(6, 10), simple_cnn, 6_422),
        (SimpleCNN(1, 3), simple_cnn, None),
        (MLP(10), mlp, 6_442),
    ],
    ids=["simple_cnn", "simple_cnn-1-3", "mlp"],
)
def test_the_network_is_the_tutorials_function(
    network: nn.Module, by_hand: Any, num_parameters: int | None, num_images: int
) -> None:
    with torch.no_grad():
        for parameter in network.parameters():  # larger than they begin, so that no term is lost
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    x_NCHW = torch.randn((num_images, 1, 28, 28), generator=torch.Generator().manual_seed(2))

    log_probs_NK = network(x_NCHW).detach().numpy()

    expected_NK = by_hand(weights(network), x_NCHW.numpy().astype(np.float64))
    assert log_probs_NK.shape == expected_NK.shape
    assert log_probs_NK.dtype == np.float32
    assert num_parameters in (None, model.num_parameters(network))
    # The log-probabilities reach -100; float32 has seven digits.
    np.testing.assert_allclose(log_probs_NK, expected_NK, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.exp(log_probs_NK.astype(np.float64)).sum(1), 1, atol=1e-5)


# ---- the classifier


def test_raw_pixels_become_probabilities() -> None:
    images = digits(7, seed=5)
    classifier = build(CNN)

    with torch.no_grad():
        probabilities_NK = classifier(torch.from_numpy(images.images_NHW)).numpy()

    x_NCHW = ((images.images_NHW / 255 - 0.1307) / 0.3081)[:, None]
    expected_NK = np.exp(simple_cnn(weights(classifier.network), x_NCHW))
    assert (probabilities_NK.shape, probabilities_NK.dtype) == ((7, 10), np.float32)
    np.testing.assert_allclose(probabilities_NK, expected_NK, rtol=1e-4)
    np.testing.assert_allclose(probabilities_NK.sum(1), 1, rtol=1e-5)


@all_architectures
@pytest.mark.parametrize("num_images", [0, 1, 501])
def test_log_probabilities_are_those_of_each_image_alone(architecture: Architecture, num_images: int) -> None:
    """In whatever batches they are computed: 501 images are two full ones and one of one image."""
    classifier = build(architecture).train()
    images = digits(num_images, seed=6)

    log_probs_NK = model.log_probabilities(classifier, images, CPU)

    assert log_probs_NK.shape == (num_images, 10)
    assert classifier.training  # as before
    assert not log_probs_NK.requires_grad
    for position in {0, num_images // 2, num_images - 1} & set(range(num_images)):
        one = torch.from_numpy(images.images_NHW[position : position + 1])
        expected_K = classifier(one)[0].log().detach()
        torch.testing.assert_close(log_probs_NK[position].clone(), expected_K, rtol=1e-4, atol=1e-5)


@all_architectures
def test_weights_are_the_seeds(architecture: Architecture) -> None:
    torch.manual_seed(1)
    first = build(architecture, seed=3).state_dict()
    torch.manual_seed(2)
    again = build(architecture, seed=3).state_dict()
    other = build(architecture, seed=4).state_dict()

    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert same == {"mean", "std"}


# ---- the permutation


def permutation(seed: int, *, name: Any = "simple_cnn", n_features: int = 6) -> NDArray[np.int64]:
    architecture = Architecture(model=name, n_features=n_features, permute_pixels=True)
    shuffle = build(architecture, seed=seed).permutation
    assert shuffle is not None
    return np.asarray(shuffle.numpy())


def test_a_permutation_is_the_seeds_alone() -> None:
    assert sorted(permutation(0)) == list(range(784))
    assert (permutation(0) == permutation(0, name="mlp")).all()
    assert (permutation(0) == permutation(0, n_features=9)).all()
    assert (permutation(0) != permutation(1)).any()


@pytest.mark.parametrize("name", ["simple_cnn", "mlp"])
def test_a_permutation_leaves_the_weights_as_they_were(name: Any) -> None:
    plain = build(Architecture(model=name, n_features=6, permute_pixels=False)).network.state_dict()
    permuted = build(Architecture(model=name, n_features=6, permute_pixels=True)).network.state_dict()

    assert all(torch.equal(plain[key], permuted[key]) for key in plain)


@pytest.mark.parametrize("name", ["simple_cnn", "mlp"])
def test_a_permuted_classifier_sees_permuted_images(name: Any) -> None:
    plain = build(Architecture(model=name, n_features=6, permute_pixels=False))
    permuted = build(Architecture(model=name, n_features=6, permute_pixels=True))
    images_NHW = digits(7, seed=5).images_NHW
    shuffled_NHW = np.take(images_NHW.reshape(7, 784), permutation(0), axis=1).reshape(7, 28, 28)

    with torch.no_grad():
        seen, expected = permuted(torch.from_numpy(images_NHW)), plain(torch.from_numpy(shuffled_NHW))

    assert torch.equal(seen, expected)


# ---- the file


@all_architectures
def test_a_classifier_comes_back_bit_for_bit(tmp_path: Path, architecture: Architecture) -> None:
    classes = tuple(f"class {number}" for number in range(37))
    saved = model.build(architecture, classes=classes, seed=0, mean=0.1, std=0.3).train()
    model.save(tmp_path / "weights", saved, architecture)

    loaded = model.load(tmp_path / "weights")

    assert (loaded.training, loaded.classes) == (False, classes)
    assert type(loaded.network) is type(saved.network)
    before, after = saved.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images_NHW = torch.from_numpy(digits(3, seed=5).images_NHW)
    probabilities_NK = loaded(images_NHW)
    assert torch.equal(saved.eval()(images_NHW), probabilities_NK)
    assert probabilities_NK.shape == (3, 37)


def test_the_file_holds_tensors_and_one_line_about_them(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    model.save(path, build(CNN), CNN)

    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {
        "classifier": '{"architecture":{"model":"simple_cnn","n_features":6,"permute_pixels":false},'
        '"classes":["0","1","2","3","4","5","6","7","8","9"]}'
    }
    assert {tensor["dtype"] for tensor in header.values()} == {"F32"}
    assert len(content) == 8 + size + 4 * (6_422 + 2)  # the parameters, the mean and the deviation


def header(architecture: Architecture) -> dict[str, str]:
    return {"classifier": model.Header(architecture=architecture, classes=DIGITS.classes).model_dump_json()}


def stored(path: Path, metadata: dict[str, str] | None, *, without: str = "", **more: torch.Tensor) -> None:
    """The tensors of a plain CNN, less one, plus some, under a header."""
    tensors = build(CNN).state_dict() | more
    save_file({name: tensor for name, tensor in tensors.items() if name != without}, path, metadata)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-100]), id="cut off"),
        pytest.param(lambda path: torch.save(build(CNN).state_dict(), path), id="a pickle"),
        pytest.param(lambda path: stored(path, None), id="no header"),
        pytest.param(lambda path: stored(path, header(ARCHITECTURES[2])), id="another network"),
        pytest.param(
            lambda path: stored(path, header(CNN.model_copy(update={"permute_pixels": True}))),
            id="no permutation",
        ),
        pytest.param(lambda path: stored(path, header(CNN), without="std"), id="a tensor less"),
        pytest.param(lambda path: stored(path, header(CNN), more=torch.zeros(1)), id="a tensor more"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "weights"
    model.save(path, build(CNN), CNN)
    spoil(path)

    with pytest.raises(InputError) as caught:
        model.load(path)

    assert caught.value.where == str(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_for_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    model.save(path, build(CNN), CNN)

    assert model.load(path, classes=DIGITS.classes).classes == DIGITS.classes
    with pytest.raises(InputError, match="found no such file"):
        model.load(tmp_path / "missing")
    with pytest.raises(InputError, match=r"found the classes 0, 1, .*, expected the classes cat, dog"):
        model.load(path, classes=("cat", "dog"))
