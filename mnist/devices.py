"""What the tensors live on, and how it is made to give the same bits each time."""

import os

import torch

from mnist import processor
from mnist.errors import InputError
from mnist.params import Machine


def prepare(machine: Machine) -> torch.device:
    """Set threads and determinism for this process, and return the device to use.

    Raises:
        InputError: `device` is `cuda` and torch sees no GPU.
    """
    gpu = torch.cuda.is_available()
    if machine.device == "cuda" and not gpu:
        raise InputError(
            "params.yaml: device",
            found="cuda, where torch sees no GPU",
            expected="auto or cpu on this machine",
        )
    torch.set_num_threads(machine.num_threads)
    # The same demand as torch.use_deterministic_algorithms(True), without its import of
    # torch._dynamo (1.5 s). cuBLAS reads its variable when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if gpu and machine.device != "cpu" else "cpu")


def describe(device: torch.device) -> str:
    """The device for people, with all of it that the last bits of a result depend on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    cpu = f"{processor.name()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"CPU ({cpu}), {num_threads} thread{'s' if num_threads > 1 else ''}"
