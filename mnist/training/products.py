"""Matrix products that give equal bytes on every x86-64 processor with AVX2.

torch leaves float32 products to MKL, whose kernels, and with them the last bits, differ between Intel and
AMD. oneDNN chooses its kernels by the instruction set alone, and `mnist.training` sets that.

Shape suffixes: M rows, K inner dimension, N columns, B images of a batch, I features in, O features out.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Return the matrix product, (M, N), without a gradient; of float32 on an x86-64 CPU by oneDNN."""
    is_float32 = a_MK.dtype == b_KN.dtype == torch.float32
    if not (HAS_ONEDNN and is_float32 and a_MK.is_cpu and a_MK.numel() and b_KN.numel()):
        return a_MK @ b_KN
    # The operator that torch.compile uses for linear layers; torch has no public one for oneDNN's product.
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_MK: Tensor, b_KN: Tensor) -> Tensor:
        ctx.save_for_backward(a_MK, b_KN)
        return product(a_MK, b_KN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a_MK, b_KN = ctx.saved_tensors
        wants_a, wants_b = ctx.needs_input_grad
        return (
            product(grad_MN, b_KN.t()) if wants_a else None,
            product(a_MK.t(), grad_MN) if wants_b else None,
        )


def differentiable_product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Return the matrix product, (M, N), as `product` does, with its gradient."""
    found: Tensor = _Product.apply(a_MK, b_KN)
    return found


class Linear(nn.Linear):
    """torch's linear layer, computed with `product`."""

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return float (B, O) of float (B, I)."""
        if not x_BI.is_cpu or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
            return F.linear(x_BI, self.weight, self.bias)
        return differentiable_product(x_BI, self.weight.t()) + self.bias
