"""Ensure the MLflow run of this result, and register its model where it is good enough.

all that training depends on, models/model.safetensors, metrics/, data/validation.html,
data/log_probs.safetensors -> MLflow, models/registered.json, metrics/report.html

Its out is neither in git nor in DVC's cache, so DVC can restore it from nowhere: in a new clone,
in a temporary tree, or where the result is another than the last one, the stage runs, and the
result has its run.
"""

from pathlib import Path

from mnist.core import files, paths, process, terminal
from mnist.core.config import Architecture, Execution, Machine, Recipe, Registration, Split, Subject
from mnist.core.errors import AwayError
from mnist.evaluation import results
from mnist.tracking import journal


class Params(Subject, Split, Architecture, Recipe, Machine, Execution):
    """What determined the weights, and where the model goes."""

    registry: Registration


def run(
    *,
    params: Params,
    registered: Path = paths.REGISTERED,
    report: Path = paths.REPORT,
    artifacts: tuple[Path, ...] = paths.ARTIFACTS,
) -> None:
    """Make the report, log the evaluation to the run, register the model, give it the alias `challenger`.

    It is set down in the spool first: where MLflow does not answer it waits there, and is no
    reason to fail.
    """
    # An experiment in a temporary tree is one of many: it moves no alias.
    result = results.gather(params.registry, challenger=Path.cwd() == paths.checkout())
    with journal.new_entry("result", journal.SENDER_LOCK) as entry:
        said = results.write(entry, result, artifacts=artifacts)
        files.write_text(report, results.report(entry))
        files.write_json(registered, result.identity)
        print(f"register: {terminal.bold(said.headline)}\n  also   {said.details}")
        from mnist.tracking import delivery

        try:
            delivered = delivery.deliver(entry)
        except AwayError as error:
            print(f"  {error}; the result waits in {entry.parent.name}/, `make reconcile` sends it")
            return
    info, version = delivered.run.info, delivered.version
    print(f"  run    {info.run_name}  ({info.run_id})")
    if version is None:
        print(f"  model  not registered: below registry.min_accuracy, {params.registry.min_accuracy:.2%}")
    else:
        was = "new" if delivered.is_new else "registered before"
        print(f"  model  models:/{version.name}/{version.version}, {was}")
    print(f"  page   {report}: all numbers, curves, mistakes, what the network sees")
    print(f"  files  {paths.TEST_METRICS}, {paths.GALLERY.parent}/, {paths.VALIDATION_PAGE}")
    print("  next   make ui | dvc exp run -S lr=0.05 | make diff | dvc plots show")


if __name__ == "__main__":
    process.main(run, Params)
