"""The training loop.

Shape suffixes: N images, M of them, B images of a batch, C channels, H rows, W columns, K classes.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor, nn

from mnist.core.config import Precision, Recipe
from mnist.core.errors import InputError
from mnist.data.store import IMAGE_SHAPE, Images
from mnist.training import devices, optim
from mnist.training.checkpoint import GENERATOR, Progress
from mnist.training.distributed import SINGLE, Context
from mnist.training.fast_cnn import BatchLastCNN
from mnist.training.history import Epoch, Window
from mnist.training.model import Classifier, log_probabilities

# A step of training on this process's share of a batch. It takes normalized images, float32 (B, 1, 28, 28),
# labels, int64 (B,), the learning rate, (), and the number of images of the whole batch; it returns the
# log-probabilities before the step, float32 (B, K).
Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]

WINDOW = 100  # steps between two reports
UPLOAD = 100_000  # images that go to a GPU at a time
GATHERED = 6_400  # images that are gathered and normalized at a time: 20 MB, for whole batches
WARM_UP = 0.3  # share of the steps in which one_cycle rises, the default of torch's OneCycleLR


def fit(
    classifier: Classifier,
    *,
    train: Images,
    val: Images,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    precision: Precision,
    ctx: Context = SINGLE,
    progress: Progress | None = None,
) -> Iterator[Window | Epoch]:
    """Train `classifier` in place, and yield its scores each `WINDOW` steps and each epoch.

    Several batches are gathered and normalized at a time: on a CPU from memory, on a GPU from its own memory,
    which holds all images as uint8. The CPU does not wait for the GPU inside an epoch: its windows come at
    the end. Every process calls this with the same arguments but the device, and gets the same events.
    With the `progress` of an earlier training only the epochs that remain are trained.

    Raises:
        InputError: the loss is not finite.
    """
    classifier.to(device).train()
    gather = _gather_from(train, device)
    step, optimizer = stepper(classifier.network, recipe, device=device, precision=precision, ctx=ctx)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one order on every device
    progress = progress or Progress()
    start = time.perf_counter() - progress.seconds
    if progress.epoch:
        generator.set_state(progress.tensors[GENERATOR])
        for name, tensor in optimizer.state().items():
            tensor.copy_(progress.tensors[name])
    steps_an_epoch = math.ceil(len(train) / recipe.batch_size)
    lr_S = learning_rates(recipe, recipe.epochs * steps_an_epoch).to(device)
    batches_at_a_time = max(1, GATHERED // recipe.batch_size)

    num_steps = progress.epoch * steps_an_epoch
    for epoch in range(progress.epoch + 1, recipe.epochs + 1):
        order = torch.randperm(len(train), generator=generator).to(device).split(recipe.batch_size)
        offsets_2N = random_offsets(len(train), recipe.shift, generator).to(device)
        windows: list[Window] = []
        pending: list[tuple[int, Tensor]] = []
        for window in _chunks(order, WINDOW):
            outputs, labels = [], []
            for batches in _chunks(window, batches_at_a_time):
                # This process's part of each batch: they differ by at most one image, and may be empty.
                shares = [index_B.tensor_split(ctx.size)[ctx.rank] for index_B in batches]
                index_M, sizes = torch.cat(shares), [len(share) for share in shares]
                raw_MHW, labels_M = gather(index_M)
                x_MCHW = classifier.preprocess(shifted(raw_MHW, recipe.shift, offsets_2N[:, index_M]))
                for x_BCHW, labels_B, index_B in zip(
                    x_MCHW.split(sizes), labels_M.split(sizes), batches, strict=True
                ):
                    outputs.append(step(x_BCHW, labels_B, lr_S[num_steps], len(index_B)))
                    num_steps += 1
                labels.append(labels_M)
            scores = totals(torch.cat(outputs), torch.cat(labels))
            if ctx.size > 1:
                dist.all_reduce(scores)
            pending.append((num_steps, scores))
            if device.type == "cpu" or num_steps == epoch * steps_an_epoch:
                windows += _fetch_windows(pending, epoch, recipe)
                yield from windows[-len(pending) :]
                pending.clear()
        last = _validate(classifier, val, device, windows, recipe)
        progress.epoch, progress.seconds = epoch, time.perf_counter() - start
        progress.tensors = {**optimizer.state(), GENERATOR: generator.get_state()}
        progress.events += [*windows, last]
        yield last


def stepper(
    network: nn.Module, recipe: Recipe, *, device: torch.device, precision: Precision, ctx: Context
) -> tuple[Step, optim.Optimizer]:
    """Return the function that takes a training step of `network` on `device`, and its optimizer."""
    optimizer = optim.make(recipe, network)
    if device.type == "cpu" and precision == "float32" and BatchLastCNN.suits(network):
        network = BatchLastCNN(network)
    if ctx.size > 1:
        dist.broadcast(optimizer.params_P, src=0)

    def step(x_BCHW: Tensor, labels_B: Tensor, lr: Tensor, num_images: int) -> Tensor:
        with _autocast(precision, device):
            log_probs_BK: Tensor = network(x_BCHW)
        loss = objective(log_probs_BK, labels_B, recipe.label_smoothing) / num_images
        loss.backward()
        if ctx.size > 1:  # each gradient at its place, or else the order of a sum changes when one is resumed
            dist.all_reduce(optimizer.grads_P)
        optimizer.step(lr)
        return log_probs_BK.detach()

    if device.type == "cpu" or ctx.size > 1:
        return step, optimizer

    whole_step: devices.GraphStep | None = None

    def replay(x_BCHW: Tensor, labels_B: Tensor, lr: Tensor, num_images: int) -> Tensor:
        nonlocal whole_step
        if num_images < recipe.batch_size:  # the last one of an epoch
            return step(x_BCHW, labels_B, lr, num_images)
        if whole_step is None:
            plain = functools.partial(step, num_images=recipe.batch_size)
            whole_step = devices.capture(plain, list(optimizer.state().values()), (x_BCHW, labels_B, lr))
        return whole_step(x_BCHW, labels_B, lr)

    return replay, optimizer


def _chunks(batches: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """Yield `size` batches at a time, and the rest."""
    return (batches[first : first + size] for first in range(0, len(batches), size))


def _gather_from(images: Images, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function of M positions: images, uint8 (M, H, W), and labels, int64 (M,), on `device`."""

    def taken(index_M: Tensor) -> tuple[Tensor, Tensor]:
        some = images.take(index_M.numpy())
        return torch.from_numpy(some.images_NHW), torch.from_numpy(some.labels_N).long()

    if device.type == "cpu":
        return taken
    # In parts, so that they are never twice in memory.
    images_NHW = torch.empty((len(images), *IMAGE_SHAPE), dtype=torch.uint8, device=device)
    labels_N = torch.empty(len(images), dtype=torch.int64, device=device)
    for index_M in torch.arange(len(images)).split(UPLOAD):
        part = slice(int(index_M[0]), int(index_M[-1]) + 1)
        images_NHW[part], labels_N[part] = taken(index_M)
    return lambda index_M: (images_NHW[index_M], labels_N[index_M])


def objective(log_probs_BK: Tensor, labels_B: Tensor, label_smoothing: float) -> Tensor:
    """Return the loss, (), summed over B images: smoothed negative log-likelihood.

    Smoothing as in Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7.
    """
    nll = F.nll_loss(log_probs_BK, labels_B, reduction="sum")
    if label_smoothing == 0:
        return nll
    return (1 - label_smoothing) * nll - label_smoothing * log_probs_BK.mean(1).sum()


def totals(log_probs_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the sum of negative log-likelihoods, the number of right answers, and N: float64 (3,)."""
    nll = F.nll_loss(log_probs_NK, labels_N, reduction="sum")
    num_right = (log_probs_NK.argmax(1) == labels_N).sum()
    return torch.stack([nll, num_right, torch.full_like(nll, len(labels_N))]).double()


def random_offsets(num_images: int, shift: int, generator: torch.Generator) -> Tensor:
    """Draw the pixels by which each image moves down and right, int64 (2, N), up to `shift` each way."""
    if shift == 0:
        return torch.zeros(2, num_images, dtype=torch.int64)  # the generator stays as it is
    return torch.randint(-shift, shift + 1, (2, num_images), generator=generator)


def shifted(images_NHW: Tensor, shift: int, offsets_2N: Tensor) -> Tensor:
    """Move each image down and right by its own offset, of up to `shift` pixels; fill with black."""
    if shift == 0:
        return images_NHW
    num_images, height, width = images_NHW.shape
    padded_NHW = F.pad(images_NHW, (shift, shift, shift, shift))
    every_shift = padded_NHW.unfold(1, height, 1).unfold(2, width, 1)  # a view, (N, 2 s + 1, 2 s + 1, H, W)
    image_N = torch.arange(num_images, device=images_NHW.device)
    return every_shift[image_N, shift - offsets_2N[0], shift - offsets_2N[1]]


def learning_rates(recipe: Recipe, num_steps: int) -> Tensor:
    """Return the learning rate of each step, float32 (S,).

    It is constant, or rises linearly to `lr` and falls towards 0: one cycle, Smith & Topin 2018,
    https://arxiv.org/abs/1708.07120. It is above 0 at every step, and `lr` at the end of the rise.
    """
    if recipe.schedule == "constant":
        return torch.full((num_steps,), recipe.lr)
    peak = max(1, round(WARM_UP * num_steps))
    rise = [recipe.lr * (step + 1) / peak for step in range(peak)]
    fall = [recipe.lr * (num_steps - step) / (num_steps - peak + 1) for step in range(peak, num_steps)]
    return torch.tensor(rise + fall)


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    if precision != "bfloat16":
        return nullcontext()
    # No weight is used twice in a step, so a cache gains nothing, and a CUDA graph must have none.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _fetch_windows(pending: list[tuple[int, Tensor]], epoch: int, recipe: Recipe) -> list[Window]:
    """Return the windows that ended at these steps with these totals; wait for the device once."""
    fetched = torch.stack([total for _, total in pending]).tolist()
    windows = [
        Window(
            epoch=epoch,
            step=step,
            num_images=int(num_images),
            loss=nll / num_images,
            accuracy=num_right / num_images,
        )
        for (step, _), (nll, num_right, num_images) in zip(pending, fetched, strict=True)
    ]
    for window in windows:
        _check_finite(window.loss, window.step, recipe)
    return windows


def _validate(
    classifier: Classifier, val: Images, device: torch.device, windows: list[Window], recipe: Recipe
) -> Epoch:
    """Return the epoch of these windows, with the scores of the validation images."""
    log_probs_NK = log_probabilities(classifier, val, device)
    labels_N = torch.from_numpy(val.labels_N).to(device, torch.int64)
    val_nll, val_num_right, _ = totals(log_probs_NK, labels_N).tolist()
    # The last step's loss is in no window.
    _check_finite(val_nll, windows[-1].step, recipe)
    num_images = sum(window.num_images for window in windows)
    return Epoch(
        epoch=windows[-1].epoch,
        step=windows[-1].step,
        train_loss=sum(window.loss * window.num_images for window in windows) / num_images,
        train_accuracy=sum(window.accuracy * window.num_images for window in windows) / num_images,
        val_loss=val_nll / len(val),
        val_accuracy=val_num_right / len(val),
    )


def _check_finite(loss: float, step: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise InputError(
            "params.yaml: lr",
            found=f"a loss of {loss} by step {step} at lr {recipe.lr:g}",
            expected="training that converges: try a smaller lr",
        )
