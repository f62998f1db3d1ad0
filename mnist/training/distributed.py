"""Several processes that train one network, started by torchrun.

    python -m stages.train                                        one machine, as many as `processes`
    PET_NNODES=2 PET_NODE_RANK=1 ... python -m stages.train       one of several machines
    torchrun --nproc-per-node 2 -m stages.train                   started by torchrun

Each process has its rank, from 0, and its share of every batch. Rank 0 alone prints and writes. A training of
one process imports nothing of torch here. Docs: docs/cluster.md.
"""

import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from mnist.core import config, paths, process
from mnist.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

P = TypeVar("P", bound=config.Section)

TIMEOUT = timedelta(minutes=5)  # of one exchange: for a process that hangs, a machine that is cut off
GRACE_SECONDS = 5  # in which rank 0 ends the MLflow run before the others end the job


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place of this process: `rank` of `size` on all machines, `local_rank` on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Return whether this process prints and writes."""
        return self.rank == 0

    def share(self, index_B: "Tensor") -> "Tensor":
        """Return this process's part of a batch; the parts differ by at most one image, and may be empty."""
        return index_B.tensor_split(self.size)[self.rank]

    def wrap(self, network: "nn.Module") -> "nn.Module":
        """Return the network with rank 0's weights and with averaged gradients, both in place."""
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network)

    def sum(self, values: "Tensor") -> "Tensor":
        """Return the sums of `values` over the processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def check_same_fingerprint(self, fingerprint: str) -> None:
        """Compare the fingerprint of this process's training with that of rank 0.

        Raises:
            InputError: they differ: this machine has other code, params or data.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        of_main = torch.tensor(list(fingerprint.encode()))  # on the CPU: a lost process is noticed
        dist.broadcast(of_main, src=0)
        expected = bytes(of_main.tolist()).decode()
        if fingerprint != expected:
            raise InputError(
                f"the checkout of process {self.rank}",
                found=f"training {fingerprint[:12]}",
                expected=f"{expected[:12]}, as process 0: one commit, params.yaml and data on all machines",
            )


SINGLE = Context()


def main(run: Callable[..., None], wanted: type[P], module: str) -> None:
    """Run the stage `module` in this process, as one of torchrun's processes, or by starting torchrun."""
    with process.reported():
        settings = config.load(paths.PARAMS)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _run_worker(run, settings.only(wanted))
        elif settings.processes == 1 and "PET_NNODES" not in os.environ:
            process.perform(run, settings.only(wanted))
        else:
            _start_torchrun(module, settings, _num_nodes(settings.processes))


@contextmanager
def init(processes: int) -> Iterator[Context]:
    """Meet the other processes, and yield this one's place among them.

    Raises:
        InputError: torchrun started another number of processes than `processes`.
    """
    started = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
    rank, local_rank = int(started.get("RANK", "0")), int(started.get("LOCAL_RANK", "0"))
    size = int(started.get("WORLD_SIZE", "1"))
    if size != processes:
        raise InputError(
            "params.yaml: processes",
            found=f"{processes}, with {size} started (WORLD_SIZE)",
            expected=f"{size}, as many as are started on all machines together",
        )
    if size > 1:
        import torch
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    if started:  # rank 0 ends the MLflow run when it is interrupted; the others notice that it is gone
        _on_interrupt(_interrupt if rank == 0 else signal.SIG_IGN)
    yield Context(rank=rank, size=size, local_rank=local_rank)
    if size > 1:
        dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def _num_nodes(processes: int) -> int:
    """Return the number of machines, each with as many of the processes.

    Raises:
        InputError: the processes are not a multiple of it.
    """
    text = os.environ.get("PET_NNODES", "1")
    if not re.fullmatch("[1-9][0-9]*", text):
        raise InputError("PET_NNODES", found=repr(text), expected="the number of machines")
    if processes % int(text):
        expected = f"a multiple of PET_NNODES, {text}: the total on all machines"
        raise InputError("params.yaml: processes", found=str(processes), expected=expected)
    return int(text)


def _start_torchrun(module: str, settings: config.Params, num_nodes: int) -> None:
    """Start this machine's processes and wait for them; exit with the reason where one fails."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.num_threads))  # else torchrun sets 1, and warns
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    logging.disable()  # torchrun logs what its error message repeats
    _on_interrupt(signal.SIG_DFL)  # torch waits for other machines outside Python; then torchrun has its own
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="mnist-torchrun-") as folder:
        arguments = ["--standalone"] if num_nodes == 1 else []
        arguments += [f"--nproc-per-node={settings.processes // num_nodes}", f"--log-dir={folder}"]
        try:
            torchrun.run(torchrun.parse_args([*arguments, "-m", module]))
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            for path in sorted(Path(folder).rglob("error.json")):
                kind, _, message = json.loads(path.read_text())["message"]["message"].partition(": ")
                if kind == InputError.__name__:
                    sys.exit(f"ERROR: {message}")
            sys.exit(str(error))


def _run_worker(run: Callable[..., None], params: config.Section) -> None:
    """Run the stage as one of torchrun's processes, which reports its error."""
    _on_interrupt(signal.SIG_DFL)  # until `init` is done: torch waits there outside Python, too
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(process.perform)(run, params)
    except BaseException as error:  # noqa: BLE001 -- recorded, and printed by torchrun
        if isinstance(error, InputError) and os.environ["RANK"] != "0":
            # Rank 0 mostly has the same error, and torchrun interrupts it as soon as this process is gone.
            _on_interrupt(signal.SIG_DFL)
            time.sleep(GRACE_SECONDS)
        # gloo's threads still run: the usual end of Python may be an abort.
        process.leave(130 if isinstance(error, KeyboardInterrupt) else 1)


def _on_interrupt(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt` once: torchrun and a batch system may both send a signal."""
    del number, frame
    _on_interrupt(signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with(launcher: int) -> None:
    """End this process where its launcher was killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * GRACE_SECONDS)
    os._exit(130)
