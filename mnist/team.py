"""The processes that train one network together.

Each has its rank, from 0, and its share of every batch. Rank 0 is the one that speaks and writes.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Team:
    """Of `size` processes, of which this one is `rank`, from 0."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def share(self, index_B: Tensor) -> Tensor:
        """This process's part of a batch; the parts differ by one image at most, and may be empty."""
        return index_B.tensor_split(self.size)[self.rank]

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network, with gradients that are averaged over the team, and the leader's weights."""
        return DistributedDataParallel(network) if self.size > 1 else network

    def total(self, values: Tensor) -> Tensor:
        """The sums over the team of each process's `values`."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


ALONE = Team(rank=0, size=1)
