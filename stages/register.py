"""Ensure the MLflow run of this result, and register its model where it is good enough.

all that training depends on, models/model.safetensors, metrics/, data/validation.html -> MLflow

It has no outs, so DVC never restores it from the run cache: whenever the result is another than
the last one, it runs, and the result has its run.
"""

from pathlib import Path

from mnist import files, history, identity, paths, scoring, stage
from mnist.params import Architecture, Machine, Recipe, Registration, Split


class Params(Split, Architecture, Recipe, Machine):
    """What determined the weights, and where the model goes."""

    registry: Registration


def run(
    *,
    params: Params,
    weights: Path = paths.WEIGHTS,
    epochs_table: Path = paths.HISTORY,
    steps_table: Path = paths.STEPS,
    test_metrics: Path = paths.TEST_METRICS,
    artifacts: tuple[Path, ...] = paths.ARTIFACTS,
) -> None:
    """Log the evaluation to the run, register the model, give it the alias `challenger`."""
    scores = scoring.read(test_metrics)
    digest = files.sha256(weights)
    events = history.read(steps_table, history.Window) + history.read(epochs_table, history.Epoch)
    origin = identity.of_training(params.model_dump(exclude={"registry"}))
    with stage.heavy_imports():
        from mnist import model, registry, tracking

    classifier = model.load(weights)
    store = tracking.connect()
    mlflow_run = tracking.ensure(store, origin, events=events, weights_sha256=digest)
    metrics = {f"test_{name}": value for name, value in scores if isinstance(value, int | float)}
    tracking.log_evaluation(store, mlflow_run, origin, metrics=metrics, artifacts=artifacts)

    print(f"register: accuracy {scores.accuracy:.2%} on {scores.num_images:,} test images")
    print(f"  run    {mlflow_run.info.run_name}  ({mlflow_run.info.run_id})")
    floor, name = params.registry.min_accuracy, params.registry.model_name
    if scores.accuracy < floor:
        print(f"  model  not registered: the accuracy is below registry.min_accuracy, {floor:.2%}")
    else:
        version, new = registry.ensure(
            store,
            mlflow_run,
            classifier,
            name=name,
            weights_sha256=digest,
            accuracy=scores.accuracy,
        )
        # An experiment in a temporary tree is one of many: it moves no alias.
        if Path.cwd() == paths.checkout():
            registry.set_challenger(store, version)
        print(f"  model  models:/{name}/{version.version}, {'new' if new else 'registered before'}")
    print(f"  files  {paths.TEST_METRICS}, {paths.GALLERY.parent}/, {paths.VALIDATION_PAGE}")
    print("  next   make ui | dvc exp run -S lr=0.05 | dvc metrics diff | dvc plots show")


if __name__ == "__main__":
    stage.main(run, Params)
