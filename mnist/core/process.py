"""The start and the end of a process: one setting of the garbage collector, one line for a user's mistake."""

import gc
import io
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn, TypeVar

from mnist.core import config, custody, paths
from mnist.core.errors import InputError

P = TypeVar("P", bound=config.Section)

# New objects between two collections; Python's default is 700. An import makes a million objects that stay,
# and collecting them again and again is a fifth of its time (torch 1.3 -> 1.0 s, Great Expectations
# 2.4 -> 1.9 s; with collections disabled it is the same).
GC_THRESHOLD = 300_000
PARENT_SECONDS = 0.2  # between two looks at the parent
READ = ("*", ".dvc/config*", "data/*", "datasets/*", "models/*", "metrics/**/*")  # files of a checkout


def main(run: Callable[..., str | None], wanted: type[P]) -> None:
    """Run a stage in the current folder with its part of `params.yaml`, and end as `reported` does."""
    with reported():
        perform(run, config.load(paths.PARAMS).only(wanted))


def perform(run: Callable[..., str | None], settings: config.Section) -> None:
    """Run a stage with these params, and end this process if the stage is its main module.

    The first of several processes checks what the stage reads, and writes its receipt (`mnist.core.custody`)
    with the machine that `run` returns, if it does.
    """
    _refuse_shallow_clone()
    is_first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"
    stage = Path(run.__code__.co_filename).stem
    held: AbstractContextManager[dict[str, str]] = custody.held(stage) if is_first else nullcontext({})
    with held as receipt:
        if machine := run(params=settings):
            receipt["machine"] = machine
    if run.__module__ == "__main__":  # not in a test
        leave()


def end_with_parent() -> None:
    """Let this process end when its parent does."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _refuse_shallow_clone() -> None:
    """Refuse an experiment that DVC would lose without a word: one in a tree beside a shallow clone."""
    is_beside = "DVC_EXP_NAME" in os.environ and Path.cwd() != paths.checkout()
    _, repository = paths.git_folders()
    if is_beside and (repository / "shallow").is_file():
        expected = "all history, or DVC loses what --temp and queues make: run `git fetch --unshallow`"
        raise InputError("git", found="a shallow clone", expected=expected)


def _refuse_pipes() -> None:
    """Refuse a named pipe in the place of a file: we, or DVC, would wait for ever for its writer."""
    for path in (path for pattern in READ for path in Path().glob(pattern)):
        if path.is_fifo():
            raise InputError(str(path), found="a named pipe", expected="a file")


def leave(status: int = 0) -> NoReturn:
    """End this process at once, with all files closed.

    Python would first free all modules and a million objects, one by one: 0.2 s after torch. Exit handlers
    of libraries do not run; none of ours writes anything there.
    """
    sys.stdout.flush()  # an error of these is reported like any other
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def reported(*, failure: int = 1) -> Iterator[None]:
    """Run the block as the body of this process, and exit as the user and the shell expect.

    An `InputError`, or an error of the system (no space, no permission), is one line on stderr and exit
    status `failure`. An interrupt or a request to terminate is exit status 130, as in shells; SIGTERM
    raises `KeyboardInterrupt`, so that what is open is closed (the MLflow run, for example). Any other
    exception is a fault of this project and keeps its traceback.

    Args:
        failure: exit status of an error; 2 for a command whose 1 is an answer, as with `diff` and `grep`.
    """
    gc.set_threshold(GC_THRESHOLD)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "DVC_STAGE" in os.environ:  # a stage that outlives a killed DVC would write beside the next one
        end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every encoding has arrows, or kana
    try:
        _refuse_pipes()
        yield
    except (InputError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(failure)
    except sqlite3.Error as error:  # DVC keeps digests in databases; `mnist.tracking.client` has MLflow's
        print(f"ERROR: DVC's databases in .dvc/tmp: found {error}, expected space to write", file=sys.stderr)
        sys.exit(failure)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
