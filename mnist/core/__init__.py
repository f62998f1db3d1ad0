"""The base of all packages: params, paths, files, errors, process start and end.

It imports no other package of this project. Whatever runs imports it first.
"""

import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Name the Python that lacks a library: often it is that of a `dvc` from elsewhere."""
    if not isinstance(error, ModuleNotFoundError) or f"{error.name}".startswith(("mnist", "stages")):
        sys.__excepthook__(kind, error, trace)
        return
    expected = "that of this project: run `make setup`, then `source .venv/bin/activate`"
    print(f"ERROR: {sys.executable}: found no module {error.name}, expected {expected}", file=sys.stderr)


sys.excepthook = _report
