"""Optimizer steps on one flat buffer of parameters.

They equal `torch.optim.SGD` and `torch.optim.Adam` (tests/unit/training/test_optim.py compares them). A step
is a few operations on one vector instead of several on each of eight tensors, which takes a tenth off an
epoch, and `torch._dynamo` is not imported, which takes 1.5 s. All that changes from step to step is a tensor
on the device, so that a CUDA graph can hold a step.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mnist.core.config import Recipe

ADAM_EPSILON = 1e-8  # Kingma & Ba 2015, algorithm 1, and the default of torch.optim.Adam


class Optimizer(ABC):
    """An optimizer whose model's parameters and gradients are views of two flat vectors.

    Args:
        model: its parameters are moved, so make the optimizer before anything refers to their memory.

    Attributes:
        params_P: float32 (P,), all parameters.
        grads_P: float32 (P,), all gradients; `step` zeroes them.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self.params_P = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.grads_P = torch.zeros_like(self.params_P)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self.params_P[start:end].view_as(parameter)
            parameter.grad = self.grads_P[start:end].view_as(parameter)
            start = end

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Update the parameters at learning rate `lr`, (), and zero the gradients."""
        self.update(lr)
        self.grads_P.zero_()

    @abstractmethod
    def update(self, lr: Tensor) -> None:
        """Change `params_P` in place."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return all tensors that a step changes, but the gradients, by name."""


class SGD(Optimizer):
    """Gradient descent with plain or Nesterov momentum, Sutskever et al. 2013."""

    def __init__(self, model: nn.Module, *, momentum: float, nesterov: bool) -> None:
        super().__init__(model)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity_P = torch.zeros_like(self.params_P)

    def update(self, lr: Tensor) -> None:
        """Set v to m v + g, and p to p - lr v; with Nesterov momentum to p - lr (g + m v)."""
        self.velocity_P.mul_(self.momentum).add_(self.grads_P)
        if self.nesterov:
            self.grads_P.add_(self.velocity_P, alpha=self.momentum)
            self.params_P.addcmul_(self.grads_P, lr, value=-1)
        else:
            self.params_P.addcmul_(self.velocity_P, lr, value=-1)

    def state(self) -> dict[str, Tensor]:
        """Return parameters and velocity."""
        return {"params": self.params_P, "velocity": self.velocity_P}


class Adam(Optimizer):
    """Adam, Kingma & Ba 2015, algorithm 1."""

    def __init__(self, model: nn.Module, *, beta1: float, beta2: float) -> None:
        super().__init__(model)
        self.beta1, self.beta2 = beta1, beta2
        self.num_steps = self.params_P.new_zeros(())
        self.mean_P = torch.zeros_like(self.params_P)
        self.square_P = torch.zeros_like(self.params_P)

    def update(self, lr: Tensor) -> None:
        """Set p to p - lr m / (sqrt(s) + eps), m and s the unbiased running mean and square of g."""
        self.num_steps += 1
        self.mean_P.lerp_(self.grads_P, 1 - self.beta1)
        self.square_P.mul_(self.beta2).addcmul_(self.grads_P, self.grads_P, value=1 - self.beta2)
        # `sqrt_` is MKL's, whose last bits differ between processors; these two are torch's own.
        root_P = (self.square_P / (1 - self.beta2**self.num_steps)).rsqrt_().reciprocal_().add_(ADAM_EPSILON)
        self.params_P.addcdiv_(self.mean_P * (lr / (1 - self.beta1**self.num_steps)), root_P, value=-1)

    def state(self) -> dict[str, Tensor]:
        """Return parameters, running mean and square, and the number of steps."""
        moments = {"mean": self.mean_P, "square": self.square_P}
        return {"params": self.params_P, **moments, "num_steps": self.num_steps}


def make(recipe: Recipe, model: nn.Module) -> Optimizer:
    """Return the optimizer of `recipe` for the parameters of `model`."""
    if recipe.optimizer == "adam":
        return Adam(model, beta1=recipe.momentum, beta2=recipe.beta2)
    return SGD(model, momentum=recipe.momentum, nesterov=recipe.optimizer == "nesterov")
