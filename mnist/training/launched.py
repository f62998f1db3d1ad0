"""One of the processes that a launcher has started: its place, and how it ends.

It tells the launcher of an error, not the user, and a request to stop lets the leader close the training.
"""

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mnist.core import process
from mnist.core.errors import InputError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun wants to be told why a process failed
INTERRUPTED = 130  # as shells count
# What a process that does not lead waits after a request to stop: until then it takes part, so that the
# leader's step comes to its end, and the leader to its closing lines.
GRACE_SECONDS = 10
WATCH_SECONDS = 1  # between two looks whether the launcher still lives


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of a process among those that a launcher started.

    Attributes:
        rank: over all machines, from 0.
        size: how many they are, on all machines.
        local_rank: on this machine, from 0.
    """

    rank: int
    size: int
    local_rank: int


def place() -> Place | None:
    """This process's place; None where no launcher started it.

    Batch systems set some of these variables for whatever they run; torchrun sets all three.

    Raises:
        InputError: it has no place among so many.
    """
    values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdecimal() for value in values):
        return None
    rank, size, local_rank = map(int, values)
    if rank >= size:
        raise InputError("RANK", found=f"{rank} of {size} (WORLD_SIZE)", expected=f"less than {size}")
    return Place(rank=rank, size=size, local_rank=local_rank)


@contextmanager
def reporting_to_launcher(here: Place) -> Iterator[None]:
    """Be ended as the launcher and the user want it, and tell the launcher of an error, not the user."""
    # Until all have joined nothing is begun, and torch waits for them where no handler gets its turn.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if ERROR_FILE in os.environ:
        threading.Thread(target=_leave_with, args=[os.getppid()], daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if ERROR_FILE not in os.environ:
            raise
        process.leave(INTERRUPTED)  # the launcher says it
    except Exception as error:
        _ignore_signals()
        if ERROR_FILE not in os.environ:
            raise
        _tell(Path(os.environ[ERROR_FILE]), error, here)
        process.leave(1)  # gloo's threads still run: Python's own end may be an abort, with C++'s last words


def close_properly(here: Place) -> None:
    """From now on a request to stop is not the end at once: the training is to be closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt if here.rank == 0 else _leave_soon)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Break off, once: launcher and batch system may both ask."""
    del number, frame
    _ignore_signals()
    raise KeyboardInterrupt


def _leave_soon(number: int, frame: FrameType | None) -> None:
    """Leave when the leader has had the time to, if it did not end this process before."""
    del number, frame
    _ignore_signals()
    timer = threading.Timer(GRACE_SECONDS, os._exit, [INTERRUPTED])
    timer.daemon = True
    timer.start()


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _leave_with(launcher: int) -> None:
    """End this process where its launcher ends without a word: nobody would wait for it, or end it."""
    while os.getppid() == launcher:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * GRACE_SECONDS)
    os._exit(INTERRUPTED)


def _tell(path: Path, error: Exception, here: Place) -> None:
    """Write why this process failed, as torchrun reads it; the keys beside its own are for `_reason`."""
    lost = _is_loss(error)
    message, callstack = "", "".join(traceback.format_exception(error))
    if lost:
        message = str(
            InputError(
                f"process {here.rank} of {here.size}",
                found=f"another one gone or silent ({first_line(error)})",
                expected="all of them to the end: where it ran it is told why",
            )
        )
    elif isinstance(error, (InputError, OSError)):
        message = str(error)
    now_ns = time.time_ns()
    extra = {
        "py_callstack": message or callstack,
        "timestamp": str(now_ns // 10**9),
        "time_ns": now_ns,
        "lost": lost,
        "message": message,
        "fault": f"{type(error).__name__}: {first_line(error)}",
    }
    path.write_text(json.dumps({"message": {"message": message or str(error), "extraInfo": extra}}))


def _is_loss(error: Exception) -> bool:
    """Whether it says no more than that another process does not answer."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def first_line(error: BaseException) -> str:
    """What it says, or its kind, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
