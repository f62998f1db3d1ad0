"""Run a module as Python does, and tell on stderr how many of its seconds were imports.

    python -m benchmarks.timed stages.train

An import counts from the outermost `import` statement to its end, wherever it stands, those that
libraries put off until they need them included. It ends as the module ends.
"""

import atexit
import builtins
import os
import runpy
import sys
import threading
import time
from typing import Any


class Imports:
    """In place of Python's `__import__`, adds up its seconds on the main thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.inside = False
        self.plain = builtins.__import__

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Import as Python would."""
        if self.inside or threading.current_thread() is not threading.main_thread():
            return self.plain(*arguments, **keywords)
        start, self.inside = time.perf_counter(), True
        try:
            return self.plain(*arguments, **keywords)
        finally:
            self.inside = False
            self.seconds += time.perf_counter() - start


def main() -> None:
    """Run the module that the first argument names."""
    imports = Imports()
    leave = os._exit

    def tell() -> None:
        print(f"import_seconds {imports.seconds:.3f}", file=sys.stderr, flush=True)

    def told_leave(status: int) -> None:
        tell()
        leave(status)

    atexit.register(tell)
    os._exit = told_leave  # type: ignore[assignment]  # as `mnist.core.process.leave` ends
    builtins.__import__ = imports
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
