"""The command `mnist diff`: a comparison of two revisions, and its verdict."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from mnist.core import paths


@click.command()
@click.argument("base", default="main")
@click.argument("head", default="workspace")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON instead of Markdown.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report to a file, and print the verdict.",
)
@click.option(
    "--fail-if",
    type=click.Choice(["worse", "not-comparable", "stale"]),
    multiple=True,
    help="Exit with 1 if HEAD is worse beyond noise, cannot be compared, or has stale or edited results. "
    "It can be given several times.",
)
@click.option(
    "--max-drop",
    metavar="X",
    type=click.FloatRange(0, 1),
    help="Exit with 1 if the accuracy dropped by more than X, from 0 to 1.",
)
def diff(
    base: str,
    head: str,
    *,
    as_json: bool,
    output: Path | None,
    fail_if: tuple[str, ...],
    max_drop: float | None,
) -> None:
    """Compare two revisions: a verdict, metrics, params, images.

    BASE (default: main) and HEAD (default: workspace, the files as they are) are branches, tags,
    commits or DVC experiments. What is not here is fetched from `origin`. It prints Markdown.

    \b
    Example:
      mnist diff                                  the workspace with main
      mnist diff v1.0 my-branch --json
      mnist diff origin/main HEAD --fail-if worse --fail-if not-comparable
    """
    # DVC takes a second to import.
    from mnist.comparison import markdown, revision
    from mnist.comparison.diff import compare_revisions

    comparison = compare_revisions(*revision.read(base, head, paths.checkout()))
    if as_json:
        text = json.dumps(asdict(comparison), indent=2, allow_nan=False) + "\n"
    else:
        text = markdown.render(comparison)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        text = f"{output}: {comparison.outcome}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every encoding has arrows
    click.echo(text, nl=False)
    if reason := comparison.objection(fail_if=fail_if, max_drop=max_drop):
        click.echo(f"gate: {reason}", err=True)
        sys.exit(1)
