"""The device of the tensors: made repeatable, named, and a GPU's steps as one CUDA graph."""

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.deterministic
from torch import Tensor

from mnist.core.config import Execution, Machine, Precision
from mnist.core.errors import InputError
from mnist.training import CPUINFO, ONE_INSTRUCTION_SET
from mnist.training.products import HAS_ONEDNN

GraphStep = Callable[[Tensor, Tensor, Tensor], Tensor]

EXACT = Execution(precision="float32", deterministic=True, processes=1)
NUM_WARM_UPS = 3  # as torch.cuda.make_graphed_callables: libraries choose and allocate here


def prepare(machine: Machine, execution: Execution = EXACT, *, local_rank: int = 0) -> torch.device:
    """Set threads, precision and determinism for this process, and return the device to use.

    Args:
        machine: device and threads of `params.yaml`.
        execution: precision of matrix products and convolutions, of which bfloat16 is left to
            `torch.autocast`; and whether to raise for kernels whose last bits differ from run to run.
        local_rank: of this process on this machine, from 0; each uses its own GPU.

    Raises:
        InputError: the machine has no such device, or the device does not have this precision.
    """
    # With a driver that is too old, `device_count` alone still counts the cards.
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if machine.device == "cuda" and num_gpus == 0:
        raise InputError(
            "params.yaml: device",
            found="cuda, where torch sees no GPU",
            expected="auto or cpu on this machine",
        )
    device = torch.device("cpu")
    if num_gpus and machine.device != "cpu":
        if local_rank >= num_gpus:
            raise InputError(
                "params.yaml: processes",
                found=f"process {local_rank + 1} on a machine with {num_gpus} GPUs",
                expected="at most one process a GPU",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if execution.precision == "tf32" and device.type == "cpu":
        raise InputError("params.yaml: precision", found="tf32 on a CPU", expected="float32 or bfloat16")

    torch.set_num_threads(machine.num_threads)
    set_precision(execution.precision)
    torch.backends.cudnn.benchmark = not execution.deterministic
    # As torch.use_deterministic_algorithms(True), without its import of torch._dynamo (1.5 s).
    # cuBLAS reads its variable when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error" if execution.deterministic else "default")
    # It also fills every new tensor, which takes 7 % of an epoch. No code here reads a tensor before
    # it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def set_precision(precision: Precision) -> None:
    """Turn on TF32 for float32 products on a GPU, or turn it off.

    It has 10 bits of mantissa instead of 23; cuDNN uses it in convolutions by default.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def describe(device: torch.device, processes: int = 1) -> str:
    """Describe all of the device that the last bits of a result depend on.

    Args:
        device: of this process.
        processes: number of processes that share the work, each on such a device.
    """
    others = f", {processes} processes" if processes > 1 else ""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}{others}"
    num_threads = torch.get_num_threads()
    name = "x86-64" if ONE_INSTRUCTION_SET and HAS_ONEDNN else processor_name()
    cpu = f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    return f"CPU ({cpu}), {num_threads} thread{'s' if num_threads > 1 else ''}{others}"


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor; on other systems than Linux, its kind."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def capture(step: GraphStep, state: list[Tensor], arguments: tuple[Tensor, Tensor, Tensor]) -> GraphStep:
    """Capture `step` in a CUDA graph, and return a function that replays it.

    That is one launch instead of some sixty: at batch 64 a GPU finishes a kernel before Python has launched
    the next one.

    Args:
        step: launches work on the current CUDA device without waiting for it.
        state: all tensors that the step changes and reads again; restored after warm-up and capture.
        arguments: of the first call, for their shapes and dtypes.

    Returns:
        A function of arguments of these shapes; it returns a copy of the result, which later calls keep.
    """
    static = tuple(argument.clone() for argument in arguments)
    before = [tensor.clone() for tensor in state]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(NUM_WARM_UPS):
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(*static)
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)

    def replay(*arguments: Tensor) -> Tensor:
        for own, argument in zip(static, arguments, strict=True):
            own.copy_(argument)
        graph.replay()
        return result.clone()

    return replay
