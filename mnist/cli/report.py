"""Make the report of the result that lies in the workspace: one page, to be read and sent.

    python -m mnist.cli.report

`register` makes it too. This one needs no MLflow, and makes it where results came from git and DVC's cache.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mnist.core import config, files, paths, process
from mnist.evaluation import results


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and say what it is; exits with 1 where there is no result of what is there."""
    parser = argparse.ArgumentParser(prog="python -m mnist.cli.report", description="Make the report.")
    parser.parse_args(arguments)
    with process.reported():
        print("\n".join(report()))


def report() -> list[str]:
    """Write the page; what it is, in lines.

    Raises:
        InputError: there is no result here, or the code, data or params were changed since.
    """
    from mnist.lineage import lock

    here = Path()
    lock.check(here)
    # The time of the result, as far as the files tell it: that of a copy is when it was copied.
    made_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
    result = results.load(config.load(paths.PARAMS).registry, challenger=False, time_ms=made_ms)
    pages = results.pages(result)
    files.write_text(paths.REPORT, pages.report)
    size = len(pages.report.encode()) / 1000
    return [
        f"report: {paths.REPORT}, {size:,.0f} kB: open it in a browser, or send it",
        f"  result  {pages.summary.headline}",
        "  in it   numbers with intervals, curves, calibration, confusion, classes, pictures, the network,",
        "          the data's validation, params, lineage, and how to run it again",
    ]


if __name__ == "__main__":
    main()
