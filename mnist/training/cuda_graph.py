"""A training step as one CUDA graph: a single launch instead of some sixty.

At batch 64 a GPU is done with a kernel of this network before Python has launched the next one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]

NUM_WARM_UPS = 3  # what torch.cuda.make_graphed_callables takes: libraries choose and allocate in these


def captured(step: Step, state: list[Tensor], arguments: tuple[Tensor, Tensor, Tensor]) -> Step:
    """The same step on the same shapes, replayed from a graph.

    Args:
        step: launches work on the current CUDA device, without waiting for it.
        state: all tensors that the step changes and reads again. The steps of warm-up and capture
            leave them as they were.
        arguments: of the first call, for their shapes and dtypes.

    Returns:
        A function of arguments of those very shapes, whose result it copies, so that it stays.
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

    def replayed(*given: Tensor) -> Tensor:
        for own, argument in zip(static, given, strict=True):
            own.copy_(argument)
        graph.replay()
        return result.clone()

    return replayed
