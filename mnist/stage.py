"""How a stage or a tool starts and ends: a user's mistake is one line."""

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mnist import params, paths
from mnist.errors import InputError

P = TypeVar("P", bound=params.Section)


def main(run: Callable[..., None], wanted: type[P]) -> None:
    """Run a stage in the current folder with its share of `params.yaml`; ends as `reported` says."""
    with reported():
        run(params=params.load(paths.PARAMS).only(wanted))


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
