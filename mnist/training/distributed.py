"""The processes that train one network together.

Each has its rank, from 0, and its share of every batch. Rank 0 is the one that speaks and writes.
A training of one process imports nothing of torch for this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mnist.core.errors import InputError
from mnist.training import launched

if TYPE_CHECKING:
    from torch import Tensor, nn

# How long a process waits for another one in the middle of a training. A process that ends is noticed
# at once; this is for one that hangs, and for a network that drops a machine without a word.
TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Team:
    """Of `size` processes, of which this one is `rank`, from 0; on this machine it is `local_rank`."""

    rank: int
    size: int
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def share(self, index_B: "Tensor") -> "Tensor":
        """This process's part of a batch; the parts differ by one image at most, and may be empty."""
        return index_B.tensor_split(self.size)[self.rank]

    def wrapped(self, network: "nn.Module") -> "nn.Module":
        """The network, with gradients that are averaged over the team, and the leader's weights.

        The parameters and their gradients stay the tensors that they are, views of the optimizer's
        vectors: both are changed in place.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network)

    def total(self, values: "Tensor") -> "Tensor":
        """The sums over the team of each process's `values`."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def expect_alike(self, fingerprint: str) -> None:
        """Compare what this process is about to do with what the leader is about to do.

        Raises:
            InputError: they differ: this machine has other code, params or data.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        leaders = torch.tensor(list(fingerprint.encode()))  # on the CPU, so that a death is noticed at once
        dist.broadcast(leaders, src=0)
        expected = bytes(leaders.tolist()).decode()
        if fingerprint != expected:
            raise InputError(
                f"the checkout of process {self.rank}",
                found=f"training {fingerprint[:12]}",
                expected=f"{expected[:12]}, as process 0: one commit, params.yaml and data on all machines",
            )


ALONE = Team(rank=0, size=1)


@contextmanager
def joined(processes: int) -> Iterator[Team]:
    """The team of this process, for as long as the block runs: `ALONE`, or what its launcher made it part of.

    Join before anything that may fail on one machine alone: the others notice then.

    Args:
        processes: that the team must have.

    Raises:
        InputError: the launcher started another number, or did not say how to find the others.
    """
    place = launched.place()
    size = place.size if place else 1
    if size != processes:
        raise InputError(
            "params.yaml: processes",
            found=f"{processes}, with {size} started (WORLD_SIZE)",
            expected=f"{size}, as many as are started on all machines together",
        )
    if not place or size == 1:
        if place:
            launched.close_properly(place)
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    # Gloo carries what is on CPUs, NCCL what is on GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except ValueError as error:  # of a variable that torchrun would have set
        found, expected = str(error).splitlines()[0], "those that torchrun sets, or none"
        raise InputError("RANK, WORLD_SIZE, LOCAL_RANK", found=found, expected=expected) from None
    launched.close_properly(place)
    yield Team(rank=place.rank, size=size, local_rank=place.local_rank)
    dist.destroy_process_group()  # not after an error: it would wait for those that are gone
