"""Commands without the seconds that their imports take: each runs in a fork of a process that made them."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults.case import clone_at

PACKAGES = (
    *("dvc.cli", "great_expectations", "torch.utils._python_dispatch", "mnist.data.expectations"),
    *(f"mnist.cli.{name}" for name in ("doctor", "models", "reproduce", "results", "sync")),
    *(f"mnist.comparison.{name}" for name in ("diff", "presets", "ranking", "recipes")),
    *(f"mnist.tracking.{name}" for name in ("champion", "record", "runs", "serving")),
    *("mnist.evaluation.figures", "mnist.training.loop"),
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PACKAGES))
LIMIT_SECONDS = 60  # for a command; the longest of them takes 15 s
OWN = ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MNIST_MIRROR")  # of whoever runs this


@dataclass(frozen=True, kw_only=True)
class Done:
    """The end of a command; `status` is None where there was none."""

    command: str
    status: int | None
    output: str


def run(folder: Path, command: str, **variables: str) -> Done:
    """Run `mnist ...`, `dvc ...` or `python -m stages...` in a clone; stdout and stderr are one output."""
    environment = {**clone_at(folder).environment, **variables}
    with tempfile.NamedTemporaryFile() as log:
        process = CONTEXT.Process(target=_main, args=(str(folder), environment, command.split(), log.name))
        process.start()
        process.join(LIMIT_SECONDS)
        is_late = process.is_alive()
        if is_late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        output = Path(log.name).read_text(errors="replace")
    return Done(command=command, status=None if is_late else process.exitcode, output=output)


def _main(folder: str, environment: dict[str, str], command: list[str], log: str) -> None:
    """Be that command, in a session of its own."""
    os.setsid()
    signal.alarm(2 * LIMIT_SECONDS)  # also where whoever waits for it was killed
    for stream, number in ((os.open(log, os.O_WRONLY | os.O_APPEND), 1), (1, 2)):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    for name in OWN:
        os.environ.pop(name, None)
    os.environ.update(environment)
    name, *arguments = command[2:] if command[0] == "python" else command
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
