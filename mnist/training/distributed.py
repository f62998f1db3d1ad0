"""Several processes that train one network, started by torchrun.

    python -m stages.train                                        one machine, as many as `processes`
    PET_NNODES=2 PET_NODE_RANK=1 ... python -m stages.train       one of several machines
    torchrun --nproc-per-node 2 -m stages.train                   started by torchrun

Each process has its rank, from 0, and its share of every batch (`training.loop`). Rank 0 alone prints and
writes. A training of one process imports nothing of torch here. Docs: docs/cluster.md.
"""

import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from mnist.core import config, paths, process
from mnist.core.errors import InputError

TIMEOUT = timedelta(minutes=5)  # of one exchange: for a process that hangs, a machine that is cut off
GRACE_SECONDS = 5  # in which rank 0 ends the MLflow run before the others end the job
ERRORS = ".cache/torchrun-"  # folder of the errors of a machine's processes, and the machine's number


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place of this process: `rank` of `size` on all machines, `local_rank` on this one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def check_same_fingerprint(self, fingerprint: str) -> None:
        """Raise an `InputError` where another machine than rank 0's has other code, params or data."""
        if fingerprint != (expected := self.broadcast(fingerprint.encode()).decode()):
            raise InputError(
                f"the checkout of process {self.rank}",
                found=f"training {fingerprint[:12]}",
                expected=f"{expected[:12]}, as process 0: one commit, params.yaml and data on all machines",
            )

    def broadcast(self, content: bytes) -> bytes:
        """Return the bytes of rank 0 in every process."""
        if self.size == 1:
            return content
        import torch
        import torch.distributed as dist

        num_bytes = torch.tensor(len(content))  # on the CPU: a lost process is noticed
        dist.broadcast(num_bytes, src=0)
        if not num_bytes:
            return b""
        of_main = torch.frombuffer(
            bytearray(content if self.rank == 0 else int(num_bytes)), dtype=torch.uint8
        )
        dist.broadcast(of_main, src=0)
        return bytes(of_main.numpy())


SINGLE = Context()


@contextmanager
def init(processes: int) -> Iterator[Context]:
    """Meet the other processes, and yield this one's place among them.

    Raises:
        InputError: torchrun started another number of processes than `processes`.
    """
    given = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {"WORLD_SIZE": "1"}
    rank, size, local_rank = (int(given.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
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
    yield Context(rank=rank, size=size, local_rank=local_rank)
    if size > 1:
        dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def main(run: Callable[..., str | None], wanted: type[config.Section], module: str) -> None:
    """Run the stage `module` in this process, as one of torchrun's processes, or by starting torchrun."""
    with process.reported():
        settings, is_worker = config.load(paths.PARAMS), "TORCHELASTIC_RUN_ID" in os.environ
        if settings.processes == 1 and not is_worker and "PET_NNODES" not in os.environ:
            process.perform(run, settings.only(wanted))
            return
        for number in (signal.SIGINT, signal.SIGTERM):  # end at once: torch may be waiting outside Python
            signal.signal(number, signal.SIG_DFL)
        if is_worker:
            _run_worker(run, settings.only(wanted))
        else:
            _start_torchrun(module, settings)


def _start_torchrun(module: str, settings: config.Params) -> None:
    """Start this machine's processes and wait for them; exit with the reason where one fails."""
    num_nodes, total = os.environ.get("PET_NNODES", "1"), settings.processes
    if not re.fullmatch("[1-9][0-9]*", num_nodes) or total % int(num_nodes):
        expected = f"the number of machines, by which `processes` ({total}) can be divided"
        raise InputError("PET_NNODES", found=num_nodes, expected=expected)
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.num_threads))  # else torchrun sets 1, and warns
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    logging.disable()  # torchrun logs what its error message repeats
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    folder = ERRORS + os.environ.get("PET_NODE_RANK", "0")
    shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed
    arguments = ["--standalone"] if num_nodes == "1" else []
    arguments += [f"--nproc-per-node={total // int(num_nodes)}", f"--log-dir={folder}", "-m", module]
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        match failure.error_file_data["message"]:
            case {"message": str(text)} if text.startswith("InputError: "):
                sys.exit(f"ERROR: {text.removeprefix('InputError: ')}")
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_worker(run: Callable[..., str | None], params: config.Section) -> None:
    """Run the stage as one of torchrun's processes, which reports its error."""
    process.end_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(process.perform)(run, params)
    except BaseException as error:  # noqa: BLE001 -- recorded, and printed by torchrun
        if isinstance(error, InputError) and os.environ["RANK"] != "0":
            # Rank 0 mostly has the same error, and torchrun ends it as soon as this process is gone.
            time.sleep(GRACE_SECONDS)
        process.leave(1)  # gloo's threads still run: the usual end of Python may be an abort
