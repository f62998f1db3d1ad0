"""SimpleCNN with the batch as the innermost dimension, which is faster on a CPU.

A convolution of few channels leaves most lanes of a SIMD register empty: oneDNN reaches a tenth of a
core's speed. With the batch innermost every operation uses full lanes: convolution, pooling and their
gradients are matrix products and vector arithmetic.

Shape suffixes: B images of a batch, C channels in, F channels out, H rows, W columns, Y rows and X
columns after pooling, P and Q the place in a pooling window (row, column), K classes; a and b count
pairs of rows and columns of an input window.
"""

import functools
import itertools
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mnist.training.model import SimpleCNN
from mnist.training.products import differentiable_product, product

KERNEL = 5  # rows and columns of SimpleCNN's kernels
MAX_CHANNELS = 64
POOL = 2  # rows and columns of its pooling windows
WINDOW = KERNEL + POOL - 1  # rows and columns of the input that one pooled value sees


class BatchLastCNN(nn.Module):
    """A SimpleCNN with the batch innermost: the same parameters, the same function.

    Args:
        network: its parameters are shared, not copied.
    """

    def __init__(self, network: SimpleCNN) -> None:
        super().__init__()
        self.network = network

    @staticmethod
    def suits(network: nn.Module) -> TypeGuard[SimpleCNN]:
        """Return whether this makes a training step of `network` on a CPU faster.

        Time relative to the network's own step at batch 128, with 2 threads and AVX2 on an AMD EPYC: 0.5 at 6
        channels, 0.75 at 16, 0.85 at 32, 0.95 at 64, 1.0 at 96.
        """
        return isinstance(network, SimpleCNN) and network.conv1.out_channels <= MAX_CHANNELS

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return log-probabilities, float32 (B, K), of normalized images, float32 (B, 1, H, W)."""
        net = self.network
        x_CHWB = x_BCHW.permute(1, 2, 3, 0).contiguous()
        for conv in (net.conv1, net.conv2):
            assert conv.bias is not None
            x_CHWB = convolved_pooled_rectified(x_CHWB, conv.weight, conv.bias)
        x_FB = F.relu(differentiable_product(net.fc1.weight, x_CHWB.flatten(0, 2)) + net.fc1.bias[:, None])
        logits_KB = differentiable_product(net.fc2.weight, x_FB) + net.fc2.bias[:, None]
        return F.log_softmax(logits_KB, dim=0).t()


def convolved_pooled_rectified(x_CHWB: Tensor, weight_FCHW: Tensor, bias_F: Tensor) -> Tensor:
    """Compute `relu(max_pool2d(conv2d(x, weight, bias), 2))` of a 5x5 kernel, with the batch innermost.

    Args:
        x_CHWB: float32, contiguous; H and W even, from 6.
        weight_FCHW: float32 (F, C, 5, 5).
        bias_F: float32 (F,).

    Returns:
        float32 (F, (H - 4) / 2, (W - 4) / 2, B).
    """
    pooled: Tensor = _ConvolvedPooledRectified.apply(x_CHWB, weight_FCHW, bias_F)
    return pooled


class _ConvolvedPooledRectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_CHWB: Tensor, weight_FCHW: Tensor, bias_F: Tensor) -> Tensor:
        num_in, height, width, num_images = x_CHWB.shape
        num_out = len(weight_FCHW)
        rows, columns = (height - KERNEL + 1) // POOL, (width - KERNEL + 1) // POOL
        num_pooled = rows * columns * num_images

        # A column for each pooled value: the pixels of its four convolutions.
        c, h, w, b = x_CHWB.stride()
        windows = x_CHWB.as_strided(
            (num_in, WINDOW, WINDOW, rows, columns, num_images), (c, h, w, POOL * h, POOL * w, b)
        ).reshape(num_in * WINDOW**2, num_pooled)
        # All four are one matrix product. A third of its multiplications are by the zeros around the
        # kernels, and it still takes a third of the time of `conv2d`.
        weights = torch.cat([weight_FCHW.new_zeros(1), weight_FCHW.flatten()])
        kernels = weights.take(_places(num_out, num_in)[0])
        convolved = product(kernels, windows).view(POOL**2, num_out * num_pooled)

        largest = convolved.amax(0)
        is_largest = convolved.eq_(largest)  # as 1.0 and 0.0: arithmetic on booleans is slow
        out_FYXB = largest.view(num_out, num_pooled).add_(bias_F[:, None]).relu_()
        ctx.save_for_backward(windows, kernels, is_largest, out_FYXB)
        ctx.shape = x_CHWB.shape
        return out_FYXB.view(num_out, rows, columns, num_images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_FYXB: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        windows, kernels, is_largest, out_FYXB = ctx.saved_tensors
        num_in, height, width, num_images = ctx.shape
        num_out, rows, columns, _ = grad_FYXB.shape
        num_pooled = rows * columns * num_images

        grad = grad_FYXB.reshape(num_out, num_pooled) * out_FYXB.sign()  # of the rectifier: 1 above 0
        grad_bias_F = grad.sum(1)
        # Of equal values `max_pool2d` takes the first. Here they share the gradient. The gradient of the
        # weights is the same where the windows are equal too, as on black ground; other ties are rare.
        grad_convolved = is_largest * (grad.view(num_out * num_pooled) / is_largest.sum(0))
        grad_convolved = grad_convolved.view(POOL**2 * num_out, num_pooled)

        # Not `grad_convolved @ windows.t()`, which takes 1.8 and 1.3 times as long in the two layers of the
        # default params (AMD EPYC, AVX2).
        grad_kernels = product(windows, grad_convolved.t())
        grad_weights = grad.new_zeros(1 + num_out * num_in * KERNEL**2)
        grad_weights.index_add_(0, _places(num_out, num_in)[1], grad_kernels.flatten())
        grad_weight_FCHW = grad_weights[1:].view(num_out, num_in, KERNEL, KERNEL)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight_FCHW, grad_bias_F

        # Add each window's gradient where the window was: first along the rows, then down the columns.
        # In pairs of pixels the windows are one apart, so 3 + 3 additions replace 36.
        pairs = WINDOW // POOL
        grad_windows = product(kernels.t(), grad_convolved).view(
            num_in * WINDOW, pairs, POOL, rows, columns, num_images
        )
        grad_lines = grad.new_zeros(num_in * WINDOW, rows, width // POOL, POOL, num_images)
        for b in range(pairs):
            grad_lines[:, :, b : b + columns] += grad_windows[:, b].permute(0, 2, 3, 1, 4)
        grad_lines = grad_lines.view(num_in, pairs, POOL, rows, width * num_images)
        grad_x = grad.new_zeros(num_in, height // POOL, POOL, width * num_images)
        for a in range(pairs):
            grad_x[:, a : a + rows] += grad_lines[:, a].transpose(1, 2)
        return grad_x.view(ctx.shape), grad_weight_FCHW, grad_bias_F


@functools.cache
def _places(num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    """Return the number of the weight at each place in a window's kernels, from 1; 0 where there is none.

    It is int64, (4 F, 36 C) for the kernels, and (36 C * 4 F,) for their transposed gradient.
    """
    weights = torch.arange(num_out * num_in * KERNEL**2).view(num_out, num_in, KERNEL, KERNEL) + 1
    places = weights.new_zeros(POOL, POOL, num_out, num_in, WINDOW, WINDOW)
    for p, q in itertools.product(range(POOL), range(POOL)):
        places[p, q, :, :, p : p + KERNEL, q : q + KERNEL] = weights
    places = places.view(POOL**2 * num_out, num_in * WINDOW**2)
    return places, places.t().flatten()
