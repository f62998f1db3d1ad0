"""A training step as one CUDA graph: one launch instead of some sixty.

At batch 64 a GPU finishes a kernel of this network before Python has launched the next one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]

NUM_WARM_UPS = 3  # as torch.cuda.make_graphed_callables: libraries choose and allocate here


def capture(step: Step, state: list[Tensor], arguments: tuple[Tensor, Tensor, Tensor]) -> Step:
    """Capture `step` in a graph, and return a function that replays it.

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
