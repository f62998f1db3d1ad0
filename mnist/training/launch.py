"""Running a stage as several processes, by torch's own launcher, `torchrun`.

    python -m stages.train                                        one machine, as many as `processes`
    PET_NNODES=2 PET_NODE_RANK=1 ... python -m stages.train       one of several machines
    torchrun --nproc-per-node 2 -m stages.train                   the same by hand

The launcher starts a stage's own module again, once for each process, in which `place` tells which
one it is. Where one process ends with an error, all end, and the launcher says in a line which one
it was, and why. Docs: docs/cluster.md.
"""

import contextlib
import io
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mnist.core import config, paths, process
from mnist.core.errors import InputError
from mnist.training import launched, processor

P = TypeVar("P", bound=config.Section)

SHUTDOWN_SECONDS = 20  # until torchrun kills what does not stop
MOST_A_CORE = 4  # processes: more are a mistake, and would not leave the machine room to say so


def main(run: Callable[..., None], wanted: type[P], module: str) -> None:
    """Run a stage as `stage.main` does, or launch it, or be one of the launched.

    Args:
        run: the stage.
        wanted: its params.
        module: its name, to start it by.
    """
    with process.reported():
        if here := launched.place():
            with launched.reporting_to_launcher(here):
                run(params=config.load(paths.PARAMS).only(wanted))
            return
        settings = config.load(paths.PARAMS)
        num_nodes = _num_nodes()
        if settings.processes == 1 and num_nodes == 1:
            process.perform(run, settings.only(wanted))
        else:
            _start(module, settings, num_nodes)


def _num_nodes() -> int:
    nodes = os.environ.get("PET_NNODES", "1")
    if not nodes.isdecimal() or int(nodes) == 0:
        raise InputError("PET_NNODES", found=nodes, expected="the number of machines: it must not change")
    return int(nodes)


def _start(module: str, settings: config.Params, num_nodes: int) -> None:
    """Start this machine's processes, and wait for them.

    Raises:
        InputError: the number of processes does not fit the machines, or the machines do not find each
            other; or it is the error that one of the processes ended with.
    """
    if settings.processes % num_nodes:
        raise InputError(
            "params.yaml: processes",
            found=f"{settings.processes}",
            expected=f"a multiple of the {num_nodes} machines (PET_NNODES)",
        )
    if num_nodes > 1 and os.environ.get("PET_RDZV_BACKEND", "static") != "static":
        raise InputError(
            "PET_RDZV_BACKEND",
            found=os.environ["PET_RDZV_BACKEND"],
            expected="static: machine 0 (PET_NODE_RANK) must be the one whose files are written",
        )
    _check_network()
    # Otherwise torchrun sets 1, and says so in a box of stars. The stage sets its threads itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.num_threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails is told by an exception, too
    logging.disable()  # of this process; what torchrun logs is told below, in a line
    import torch.distributed as dist
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="mnist-team-") as folder, _interruptible(folder):
        arguments = ["--max-restarts=0", f"--shutdown-timeout={SHUTDOWN_SECONDS}", f"--log-dir={folder}"]
        if "PET_NPROC_PER_NODE" not in os.environ:
            arguments.append(f"--nproc-per-node={_num_here(settings.processes // num_nodes)}")
        if num_nodes == 1:
            arguments += ["--standalone", "--local-addr=127.0.0.1"]
        try:
            torchrun.run(_options(torchrun.parse_args, [*arguments, "-m", module]))
        except SignalException:
            raise KeyboardInterrupt from None
        except ValueError as error:
            raise error if isinstance(error, InputError) else _refused(str(error)) from None
        except ChildFailedError as error:
            raise _reason(error.failures, settings.processes) from None
        except (dist.DistError, ConnectionError) as error:
            raise InputError(
                f"{num_nodes} machines (PET_NNODES)",
                found=launched.first_line(error),
                expected="this stage on each of them, and machine 0 at PET_MASTER_ADDR",
            ) from None


def _num_here(wanted: int) -> int:
    """The number of this machine's processes."""
    most = MOST_A_CORE * processor.num_cores()
    if wanted > most:
        raise InputError(
            "params.yaml: processes",
            found=f"{wanted} on this machine",
            expected=f"at most {most}, {MOST_A_CORE} for each of its cores",
        )
    return wanted


def _check_network() -> None:
    """Raises `InputError` for a network that gloo would not find: it says so as of a process that is gone."""
    known = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in known:
            raise InputError("GLOO_SOCKET_IFNAME", found=name, expected=f"one of {', '.join(known)}")


def _options(parse: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    """What torchrun makes of its arguments, and of the variables that stand for others."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parse(arguments)
    except SystemExit:
        raise _refused(complaint.getvalue().rpartition("error: ")[2]) from None


def _refused(complaint: str) -> InputError:
    """An error of the variables that torchrun reads; all its other arguments are ours."""
    return InputError("PET_...", found=" ".join(complaint.split()), expected="what torchrun takes")


@contextmanager
def _interruptible(folder: str) -> Iterator[None]:
    """Let an interrupt end this process, and its `folder`, while it waits for the other machines.

    There torch waits where no handler of Python's gets its turn. Once there are processes to end,
    torchrun has handlers of its own.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while os.read(reader, 1):
            if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
                shutil.rmtree(folder, ignore_errors=True)
                print("interrupted", file=sys.stderr)
                os._exit(launched.INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)
        thread.join()
        os.close(reader)


def _reason(failures: dict[int, Any], size: int) -> InputError:
    """What the user is to know of these failures, torchrun's, by rank; a traceback goes to stderr."""

    def order(item: tuple[int, Any]) -> tuple[int, int]:
        _, failure = item
        told = _told(failure)
        if told:
            return 3 if told["lost"] else 0, told["time_ns"]
        stopped = failure.exitcode in (launched.INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)
        return 2 if stopped else 1, failure.timestamp * 10**9

    rank, failure = min(failures.items(), key=order)
    told = _told(failure)
    if told and told["message"]:
        return _ToldError(told["message"])
    if told:
        print(told["py_callstack"], file=sys.stderr, end="")
        found = told["fault"]
    elif failure.exitcode in (launched.INTERRUPTED, -signal.SIGINT):
        found = "an interrupt"
    elif failure.exitcode < 0:
        memory = ": out of memory, perhaps" if failure.exitcode == -signal.SIGKILL else ""
        found = f"an end by {failure.signal_name()}{memory}"
    else:
        found = f"exit status {failure.exitcode}"
    expected = "all of them to the end; all were stopped"
    return InputError(f"process {rank} of {size}", found=found, expected=expected)


class _ToldError(InputError):
    """An error of another process, in its words."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)


def _told(failure: Any) -> dict[str, Any] | None:
    message = failure.error_file_data.get("message")
    extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    return extra if "time_ns" in extra else None
