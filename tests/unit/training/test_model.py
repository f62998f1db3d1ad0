"""The networks and the classifier, against the tutorial's.

Shape suffixes: N images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from benchmarks import tutorial
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


all_architectures = pytest.mark.parametrize(
    "architecture",
    ARCHITECTURES,
    ids=lambda a: f"{a.model}-{a.n_features}{'-permuted' if a.permute_pixels else ''}",
)


def build(architecture: Architecture, seed: int = 0) -> Classifier:
    return model.build(architecture, classes=DIGITS.classes, seed=seed, mean=0.1307, std=0.3081).eval()


# ---- the networks


def test_the_cnn_is_the_tutorials() -> None:
    """It pools before ReLU, which is the same function."""
    theirs, ours = tutorial.SimpleCNN(), SimpleCNN(6, 10)
    ours.load_state_dict(theirs.state_dict())
    x_NCHW = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(ours(x_NCHW), theirs(x_NCHW), rtol=0, atol=1e-6)
    assert model.num_parameters(ours) == 6_422


def test_the_mlp_is_three_linear_layers() -> None:
    network = MLP(10)
    layers = nn.Sequential(
        nn.Flatten(), network.fc1, nn.ReLU(), network.fc2, nn.ReLU(), network.fc3, nn.LogSoftmax(dim=1)
    )
    x_NCHW = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    assert torch.equal(network(x_NCHW), layers(x_NCHW))
    assert model.num_parameters(network) == 6_442


# ---- the classifier


def test_raw_pixels_become_probabilities() -> None:
    images_NHW = torch.from_numpy(digits(7, seed=5).images_NHW)
    classifier = build(CNN)

    probabilities_NK = classifier(images_NHW)

    x_NCHW = ((images_NHW / 255 - 0.1307) / 0.3081)[:, None]
    torch.testing.assert_close(probabilities_NK, classifier.network(x_NCHW).exp())
    torch.testing.assert_close(probabilities_NK.sum(1), torch.ones(7))


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


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_their_tensor(tmp_path: Path, number: float) -> None:
    path, classifier = tmp_path / "weights", build(CNN)
    classifier.get_parameter("network.fc2.bias").data[3] = number
    model.save(path, classifier, CNN)

    with pytest.raises(InputError) as caught:
        model.load(path)

    assert caught.value.where == f"{path}: network.fc2.bias"


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        model.load(tmp_path / "missing")
