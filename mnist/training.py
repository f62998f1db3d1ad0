"""The training loop.

Shape suffixes: N images, M of them, B images of a batch, H rows, W columns, K classes.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor

from mnist import optimizers
from mnist.dataset import Images, Selection
from mnist.errors import InputError
from mnist.history import Epoch, Window
from mnist.model import Classifier, log_probabilities
from mnist.params import Recipe

WINDOW = 100  # steps between two reports
UPLOAD = 100_000  # images that go to a GPU at a time
WARM_UP = 0.3  # share of the steps in which one_cycle rises, the default of torch's OneCycleLR


def fit(
    classifier: Classifier,
    *,
    train: Images | Selection,
    val: Images,
    recipe: Recipe,
    seed: int,
    device: torch.device,
) -> Iterator[Window | Epoch]:
    """Train `classifier` in place, and yield what happened each `WINDOW` steps and each epoch.

    A window's worth of images is gathered and normalized at a time: by the CPU from where they lie,
    a memory-mapped file say, and on a GPU from its memory, which holds them all as uint8. Loss and
    accuracy are fetched from the device once a window.

    Raises:
        InputError: the loss is not finite; the weights are of no use then.
    """
    classifier.to(device).train()
    gather = _gathering(train, device)
    optimizer = optimizers.make(recipe, classifier.network)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one order on every device
    num_steps = recipe.epochs * -(-len(train) // recipe.batch_size)

    step = 0
    for epoch in range(1, recipe.epochs + 1):
        windows = []
        order_N = torch.randperm(len(train), generator=generator)
        for index in order_N.split(WINDOW * recipe.batch_size):
            raw_NHW, y_N = gather(index)
            x_NCHW = classifier.preprocess(shifted(raw_NHW, recipe.shift, generator))
            outputs = []
            for x_BCHW, y_B in zip(
                x_NCHW.split(recipe.batch_size), y_N.split(recipe.batch_size), strict=True
            ):
                log_probs_BK = classifier.network(x_BCHW)
                objective(log_probs_BK, y_B, recipe.label_smoothing).backward()
                optimizer.step(learning_rate(recipe, step, num_steps))
                outputs.append(log_probs_BK.detach())
                step += 1
            loss, accuracy = score(torch.cat(outputs), y_N)
            _expect_finite(loss, step, recipe)
            windows.append(
                Window(epoch=epoch, step=step, num_images=len(index), loss=loss, accuracy=accuracy)
            )
            yield windows[-1]

        log_probs_NK = log_probabilities(classifier, val, device)
        val_loss, val_accuracy = score(log_probs_NK, torch.from_numpy(val.labels_N))
        _expect_finite(val_loss, step, recipe)  # the last step of all may have been one too many
        yield Epoch(
            epoch=epoch,
            step=step,
            train_loss=sum(window.loss * window.num_images for window in windows) / len(train),
            train_accuracy=sum(window.accuracy * window.num_images for window in windows) / len(train),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
        )


def _gathering(images: Images | Selection, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function that gives the images, uint8 (M, H, W), and the labels, int64 (M,), of M positions."""

    def taken(index_M: Tensor) -> tuple[Tensor, Tensor]:
        some = images.take(index_M.numpy())
        return torch.from_numpy(some.images_NHW), torch.from_numpy(some.labels_N).long()

    if device.type == "cpu":
        return taken
    # In parts, so that the CPU's memory need not hold them all.
    parts = [
        [tensor.to(device) for tensor in taken(index_M)]
        for index_M in torch.arange(len(images)).split(UPLOAD)
    ]
    images_NHW, labels_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return lambda index_M: (images_NHW[index_M.to(device)], labels_N[index_M.to(device)])


def objective(log_probs_BK: Tensor, labels_B: Tensor, label_smoothing: float) -> Tensor:
    """The scalar that training lowers: negative log-likelihood, with smoothing as in Szegedy et al. 2016."""
    nll = F.nll_loss(log_probs_BK, labels_B)
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_probs_BK.mean()


def score(log_probs_NK: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Mean negative log-likelihood and accuracy of N images."""
    labels_N = labels_N.to(log_probs_NK.device, torch.int64)
    loss = F.nll_loss(log_probs_NK, labels_N)
    accuracy = (log_probs_NK.argmax(1) == labels_N).float().mean()
    loss_value, accuracy_value = torch.stack([loss, accuracy]).tolist()  # one wait for the device
    return loss_value, accuracy_value


def shifted(images_NHW: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels, up to `shift` each way; black comes in."""
    if shift == 0:
        return images_NHW
    num_images, height, width = images_NHW.shape
    padded_NHW = F.pad(images_NHW, (shift, shift, shift, shift))
    offsets_2N = torch.randint(0, 2 * shift + 1, (2, num_images), generator=generator).to(images_NHW.device)
    rows_NH = offsets_2N[0, :, None] + torch.arange(height, device=images_NHW.device)
    columns_NW = offsets_2N[1, :, None] + torch.arange(width, device=images_NHW.device)
    image_N = torch.arange(num_images, device=images_NHW.device)
    return padded_NHW[image_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """The learning rate of `step`, from 0: constant, or up to `lr` and down towards 0 in straight lines.

    One cycle: Smith & Topin 2018, https://arxiv.org/abs/1708.07120. The rate is above 0 at every
    step, and `lr` itself at the end of the rise.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    peak = max(1, round(WARM_UP * num_steps))
    if step < peak:
        return recipe.lr * (step + 1) / peak
    return recipe.lr * (num_steps - step) / (num_steps - peak + 1)


def _expect_finite(loss: float, step: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise InputError(
            "params.yaml: lr",
            found=f"a loss of {loss} by step {step} at lr {recipe.lr:g}",
            expected="training that converges: try a smaller lr",
        )
