"""The command `mnist report`: the report of the result that lies in the workspace."""

from pathlib import Path

import click

from mnist.core import config, files, paths


@click.command()
def report() -> None:
    """Write metrics/report.html: one page to read and to send.

    It is made from the files of the workspace, without MLflow: `register` writes it too, but not where
    results came from git and DVC's cache. It fails where code, data or params have changed since.

    \b
    Example:
      dvc pull && mnist report
    """
    from mnist.evaluation import results
    from mnist.lineage import lock

    here = Path()
    lock.check(here)
    # The file's time is that of the result, or that of its copy.
    time_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
    result = results.load(config.load(paths.PARAMS).registry, challenger=False, time_ms=time_ms)
    pages = results.pages(result)
    files.write_text(paths.REPORT, pages.report)
    size = len(pages.report.encode()) / 1000
    click.echo(f"report: {paths.REPORT}, {size:,.0f} kB: open it in a browser")
    click.echo(f"  {pages.summary.headline}")
