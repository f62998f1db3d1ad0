"""The tutorial's script, which trains the same network without a pipeline. The benchmarks compare with it.

It trains a network of two convolutions on torchvision's MNIST, whose images pass one by one through
transforms and a `DataLoader`. It caches, checks, logs and saves nothing.

    python -m benchmarks.tutorial --data FOLDER [--seed 0] [--workers 0] [--device cpu]

Shape suffixes: B images of a batch, C channels, H rows, W columns, K classes.
"""

import argparse
import time
from pathlib import Path

import torch  # noqa: TID253 -- a script as tutorials are, which nothing imports but its tests
import torch.nn.functional as F  # noqa: N812, TID253 -- its name everywhere
from torch import Tensor, nn  # noqa: TID253
from torch.utils.data import DataLoader  # noqa: TID253
from torchvision import datasets, transforms  # type: ignore[import-untyped]  # noqa: TID253


class SimpleCNN(nn.Module):
    """Two 5x5 convolutions, each with ReLU and then max-pooling, two linear layers, log-softmax."""

    def __init__(self, n_features: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, n_features, kernel_size=5)
        self.conv2 = nn.Conv2d(n_features, n_features, kernel_size=5)
        self.fc1 = nn.Linear(n_features * 4 * 4, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return log-probabilities, float32 (B, K), of normalized images, float32 (B, 1, 28, 28)."""
        x_BCHW = F.max_pool2d(F.relu(self.conv1(x_BCHW)), 2)
        x_BCHW = F.max_pool2d(F.relu(self.conv2(x_BCHW)), 2)
        x_BF = F.relu(self.fc1(x_BCHW.flatten(1)))
        return F.log_softmax(self.fc2(x_BF), dim=1)


def loader(folder: Path, *, train: bool, num_workers: int = 0) -> DataLoader[tuple[Tensor, int]]:
    """Return one split in batches: 64 shuffled images to train on, 1000 to test on."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    images = datasets.MNIST(folder, train=train, download=True, transform=transform)
    return DataLoader(images, batch_size=64 if train else 1000, shuffle=train, num_workers=num_workers)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader[tuple[Tensor, int]],
    device: torch.device,
) -> None:
    """Train for one epoch of gradient descent."""
    network.train()
    for x_BCHW, y_B in batches:
        optimizer.zero_grad()
        F.nll_loss(network(x_BCHW.to(device)), y_B.to(device)).backward()
        optimizer.step()


@torch.no_grad()
def test(network: nn.Module, batches: DataLoader[tuple[Tensor, int]], device: torch.device) -> float:
    """Return the accuracy, 0 to 1."""
    network.eval()
    num_right = num_images = 0
    for x_BCHW, y_B in batches:
        predicted_B = network(x_BCHW.to(device)).argmax(1)
        num_right += int((predicted_B == y_B.to(device)).sum())
        num_images += len(y_B)
    return num_right / num_images


def main() -> None:
    """Train and test once, and print lines of a name and a number, which `benchmarks` reads."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tutorial", description="Train as tutorials do."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="torchvision's folder; filled if it is empty"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights and the order of the images (default: 0)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that prepare the images (default: none)"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to train on (default: a GPU, if there is one)",
    )
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    train_batches = loader(options.data, train=True, num_workers=options.workers)
    test_batches = loader(options.data, train=False)
    network = SimpleCNN().to(device)
    # Outside the epoch: the first optimizer that a process makes imports torch._dynamo, for seconds.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.5)

    start = time.perf_counter()
    train(network, optimizer, train_batches, device)
    trained = time.perf_counter()
    accuracy = test(network, test_batches, device)
    tested = time.perf_counter()
    print(f"accuracy {accuracy:.4f}")
    print(f"epoch_seconds {trained - start:.3f}")
    print(f"test_seconds {tested - trained:.3f}")


if __name__ == "__main__":
    main()
