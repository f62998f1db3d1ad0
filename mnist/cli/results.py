"""The commands on results: compare, rank, run and report them. Imports are inside: some take a second."""

import json
import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from mnist.core import config, custody, files, paths
from mnist.core.errors import InputError

MAX_SEEDS = 2**32  # the largest is one less


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
    help="Exit with 1 if the accuracy dropped by more than X, from 0 to 1, or cannot be compared.",
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
    click.echo(text, nl=False)
    if reason := comparison.objection(fail_if=fail_if, max_drop=max_drop):
        click.echo(f"gate: {reason}", err=True)
        sys.exit(1)


@click.command()
@click.argument("base", required=False)
@click.argument("head", default="workspace")
@click.option(
    "--seeds", type=click.IntRange(2, MAX_SEEDS), default=20, show_default=True, help="At most that many."
)
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Chance of a verdict, better or worse, about two equally good recipes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON instead of Markdown.")
def compare(base: str | None, head: str, *, seeds: int, first_seed: int, alpha: float, as_json: bool) -> None:
    """Compare two recipes, code with params, over several seeds.

    It trains and evaluates BASE and HEAD (default: workspace, the files as they are) with the same seeds, in
    temporary checkouts, until the accuracies give a verdict: better, worse, or no evidence after all seeds.
    Without BASE it shows the accuracy of the workspace's recipe over seeds. What was trained is kept in
    .cache/trials. Exit status: 1 if HEAD is worse.

    \b
    Example:
      mnist compare main               the workspace with main
      mnist compare v1.0 my-branch --seeds 12
      mnist compare --seeds 5          mean, deviation and interval of the workspace's recipe
    """
    from mnist.comparison import markdown, verdict

    if first_seed + seeds > MAX_SEEDS:
        raise InputError("--first-seed", found=str(first_seed), expected=f"{MAX_SEEDS - seeds} at most")
    chosen = range(first_seed, first_seed + seeds)
    report = verdict.compare(
        [head] if base is None else [base, head], chosen, alpha, partial(click.echo, err=True)
    )
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2, allow_nan=False))
    else:
        click.echo(markdown.render_recipes(report), nl=False)
    sys.exit(report.difference is not None and report.difference.outcome == "worse")


@click.command()
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show that many (default: all).")
@click.option(
    "--rev",
    "revs",
    multiple=True,
    default=["HEAD"],
    metavar="COMMIT",
    help="Take experiments that started from it (default: HEAD). It can be given several times.",
)
@click.option("--all-commits", is_flag=True, help="Take experiments that started from any commit.")
def best(top: int | None, revs: tuple[str, ...], *, all_commits: bool) -> None:
    """Rank experiments by validation accuracy.

    It shows how to apply the best one.

    \b
    Example:
      dvc exp run --queue -S 'lr=0.01,0.05,0.1'
      dvc queue start -j 2
      mnist best --top 5
    """
    from mnist.comparison import ranking

    click.echo(ranking.report(paths.checkout(), None if all_commits else revs, top))


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF DVC]...")
def preset(name: str | None, options: tuple[str, ...]) -> None:
    """List the presets, or run the preset NAME as a DVC experiment.

    A preset is a set of params that shows what the networks can do. OPTIONS are those of `dvc exp run`;
    of two values for one param the last counts.

    \b
    Example:
      mnist preset
      mnist preset quick -S seed=3
    """
    from mnist.comparison import presets
    from mnist.lineage import experiments

    known = presets.load(presets.PRESETS)
    if name is None:
        click.echo(presets.listing(known, config.load(paths.PARAMS)))
        return
    chosen = presets.named(known, name)
    arguments = presets.arguments(name, chosen, options)
    click.echo(f"{name}: {chosen.claim}\n{shlex.join(['dvc', *arguments])}")
    sys.exit(2 if experiments.dvc(*arguments) else 0)


@click.command()
def report() -> None:
    """Write metrics/report.html: one page to read and to send.

    It is made from the files of the workspace, without MLflow: `register` writes it too, but not where
    results came from git and DVC's cache. It fails where code, data or params have changed since.

    \b
    Example:
      dvc pull && mnist report
    """
    from mnist.evaluation import pages, results
    from mnist.lineage import lock

    registry = config.load(paths.PARAMS).registry
    lock.check(Path())
    custody.check("register")
    # The file's time is that of the result, or that of its copy.
    time_ms = int(paths.WEIGHTS.stat().st_mtime * 1000)
    result = results.load(registry, challenger=False, time_ms=time_ms)
    rendered = pages.render(result)
    files.write_text(paths.REPORT, rendered.report)
    size = len(rendered.report.encode()) / 1000
    click.echo(f"report: {paths.REPORT}, {size:,.0f} kB: open it in a browser")
    click.echo("\n".join(f"  {line}" for line in (rendered.summary.headline, *rendered.summary.warnings)))


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--title", default="", help="Name for people; the default is NAME.")
@click.option("--classes", default="", help="Names by label, with commas; the default is the labels.")
def measure(name: str, folder: Path, title: str, classes: str) -> None:
    """Print a file for datasets/ from four archives in FOLDER.

    It has their checksums, and bounds with some margin around what they hold. Whether that is what the
    data should be is your decision: read the bounds, and add where the data come from.

    \b
    Example:
      mnist measure shapes ../my-data/shapes --classes square,cross,ring > datasets/shapes.yaml
    """
    from mnist.data import image_table

    names = [one.strip() for one in classes.split(",")] if classes else []
    click.echo(image_table.measure(name, folder, title=title, classes=names), nl=False)


@click.command()
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="From 0 on.")
def experiments(seeds: int) -> None:
    """Measure what shuffled pixels cost a CNN and an MLP.

    It trains both, on pixels in place and shuffled by one permutation, over seeds: by default 12 trainings.
    What was trained is kept in .cache/trials. It prints a table, and writes metrics/shuffled-pixels.json and
    metrics/shuffled-pixels.png.

    \b
    Example:
      mnist experiments --seeds 5
    """
    from mnist.comparison import recipes

    cases = recipes.train_cases(seeds, partial(click.echo, err=True))
    result = recipes.costs(cases, seeds)
    files.write_json(recipes.SHUFFLED_PIXELS, result)
    recipes.draw(recipes.SHUFFLED_PIXELS_PLOT, result)
    click.echo(f"{recipes.table(cases)}\n\n{recipes.sentence(result)}")
