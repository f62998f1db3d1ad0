"""Ensure the MLflow run of this result, and register its model where it is good enough.

all that training depends on, models/model.safetensors, models/model.onnx, metrics/, data/validation.html,
data/log_probs.safetensors -> MLflow, models/registered.json, metrics/report.html

Its out is neither in git nor in DVC's cache, so DVC cannot restore it. So the stage runs in a new clone, in
a temporary tree and for every new result, and each result gets its MLflow run.
"""

from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import Architecture, DatasetParams, Execution, Machine, Recipe, Registration, Split
from mnist.core.errors import ServiceUnavailableError, printable
from mnist.evaluation import pages, results


class Params(DatasetParams, Split, Architecture, Recipe, Machine, Execution):
    """The params that determined the weights, and the name of the registered model."""

    registry: Registration


def run(
    *,
    params: Params,
    registered: Path = paths.REGISTERED,
    report: Path = paths.REPORT,
    artifacts: tuple[Path, ...] = paths.ARTIFACTS,
) -> None:
    """Write the report, complete the run, register the model, give it the alias `challenger`."""
    # An experiment in a temporary tree is one of many: it moves no alias.
    result = results.load(params.registry, challenger=Path.cwd() == paths.checkout())
    rendered = pages.render(result)
    files.write_text(report, rendered.report)
    files.write_json(registered, result.digests)
    print(f"register: {rendered.summary.headline}\n  also   {rendered.summary.details}")
    for warning in rendered.summary.warnings:
        print(f"  WARNING: {warning}")
    from mnist.tracking import client, runs

    try:
        logged = runs.ensure(client.connect(), result, rendered, artifacts=artifacts)
    except ServiceUnavailableError as error:
        print(f"  {error}; `mnist sync` logs the result later")
        return
    info, version = logged.run.info, logged.version
    print(f"  run    {printable(info.run_name)}  ({info.run_id})")
    if version is None:
        print(f"  model  not registered: below registry.min_accuracy, {params.registry.min_accuracy:.2%}")
    else:
        state = "new" if logged.is_new else "registered before"
        print(f"  model  models:/{version.name}/{version.version}, {state}")
        if logged.stays:
            print(f"  alias  {logged.stays}")
    print(f"  page   {report}: all numbers, curves, mistakes, what the network sees")
    print(f"  files  {paths.TEST_METRICS}, {paths.GALLERY.parent}/, {paths.VALIDATION_PAGE}")
    print("  next   make ui | dvc exp run -S lr=0.05 | mnist diff | dvc plots show")


if __name__ == "__main__":
    process.main(run, Params)
