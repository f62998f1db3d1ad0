"""How a stage or a tool starts and ends: a user's mistake is one line."""

import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TypeVar

from mnist.core import config, paths
from mnist.core.errors import InputError

P = TypeVar("P", bound=config.Section)
RARELY = 100_000  # objects made between two looks of the garbage collector; Python's own choice is 700


def main(run: Callable[..., None], wanted: type[P]) -> None:
    """Run a stage in the current folder with its share of `params.yaml`; ends as `reported` says."""
    with reported():
        perform(run, config.load(paths.PARAMS).only(wanted))


def perform(run: Callable[..., None], settings: config.Section) -> None:
    """Run a stage with these params; if it has this process for itself, the process ends with it."""
    # Libraries import more of themselves when they are used: 0.3 s less for `register`'s exporter.
    gc.set_threshold(RARELY)
    run(params=settings)
    if run.__module__ == "__main__":  # not so in a test
        leave()


def leave(status: int = 0) -> NoReturn:
    """End this process, when all its files are closed and its work is done, or has failed.

    Python would first take all modules and a million objects apart, one by one: 0.2 s after torch,
    1.1 s after torch's exporter. Exit handlers of libraries do not run; ours write nothing there.
    """
    sys.stdout.flush()  # an error is reported as any other
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def reported(*, failure: int = 1) -> Iterator[None]:
    """End this process as its user and the shell expect, whatever ends the block.

    Exits with `failure` and one line on stderr for an `InputError` and for what the system refuses
    (no space, no permission, a folder where a file should be), with 130 for an interrupt, as
    shells do; anything else keeps its traceback, since it is a fault of ours. A request to
    terminate counts as an interrupt, so that what is open is closed (the MLflow run, say).

    Args:
        failure: an exit status; 2 for a tool whose 1 is an answer, as with `diff` and `grep`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (InputError, OSError) as error:
        if failure == 1:
            sys.exit(f"ERROR: {error}")  # Python prints a text, and exits with 1
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(failure)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Import a module in a thread while the block computes without Python's lock, as torch does.

    Where that fails, importing it after the block fails again, and says why.
    """

    def load() -> None:
        with suppress(Exception):
            importlib.import_module(name)

    thread = threading.Thread(target=load)
    with heavy_imports():
        thread.start()
        try:
            yield
        finally:
            thread.join()


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import the big libraries in this block without the garbage collector at their heels.

    Importing makes millions of objects that all stay: collecting them again and again is a
    third of the time (torch 1.8 -> 1.2 s, Great Expectations 3.2 -> 1.9 s, on 2 cores). What
    was imported is then frozen, so later collections pass over it too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
