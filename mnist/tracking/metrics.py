"""The metrics of a run: curves and scores, and the data sets and the logged model that they are about."""

import json
from collections.abc import Container, Iterable

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Run

from mnist.core import paths
from mnist.lineage import fingerprint
from mnist.tracking import client
from mnist.tracking.client import Store
from mnist.tracking.events import DATASET, Point, Start

MAX_BATCH = 1000  # metrics that MLflow takes in one request
CONTEXT = "mlflow.data.context"  # tag of a data set of a run
# Scores of the final weights, by the first part of their names, and what they are of: images of
# the training split validate.
ABOUT = {"val": "training", "test": "testing"}


def log_datasets(store: Store, run_id: str, start: Start) -> None:
    """Log the data sets of a run: the images to train on, some of which validate, and those to test on."""
    datasets = []
    for split, context in (("train", "training"), ("test", "testing")):
        # MLflow shows a digest of at most 36 characters, and one context for one name and digest.
        name, digest = f"{fingerprint.dataset_of(start.params)}-{split}", start.tags[DATASET][:36]
        source = json.dumps({"uri": str(paths.DATASET)})
        dataset = Dataset(name=name, digest=digest, source_type="local", source=source)
        datasets.append(DatasetInput(dataset, [InputTag(CONTEXT, context)]))
    store.client.log_inputs(run_id, datasets)


def log_points(
    store: Store, run_id: str, points: Iterable[Point], known: Container[tuple[str, int]] = ()
) -> None:
    """Add points to the curves of a run, but those that are known, by name and step."""
    metrics = [
        Metric(key, value, point.time_ms, point.step)
        for point in points
        for key, value in point.values.items()
        if (key, point.step) not in known
    ]
    for first in range(0, len(metrics), MAX_BATCH):
        store.client.log_batch(run_id, metrics=metrics[first : first + MAX_BATCH])


def known_points(store: Store, run: Run) -> set[tuple[str, int]]:
    """Return name and step of the points of a run, but for what the machine did."""
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    points = (point for name in names for point in store.client.get_metric_history(run.info.run_id, name))
    return {(point.key, point.step) for point in points}


def link(store: Store, run_id: str, model_id: str) -> None:
    """Link a run to its logged model, and its scores to the model and the data sets."""
    run, model = store.client.get_run(run_id), store.client.get_logged_model(model_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in {output.model_id for output in outputs}:  # a second time it fails
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = {tag.value: entry.dataset for entry in inputs for tag in entry.tags if tag.key == CONTEXT}
    linked = {(point.run_id, point.key, point.timestamp, point.step) for point in model.metrics or ()}
    missing = []
    with client.readable(f"run {run_id}"):
        points = run.data.to_proto().metrics  # with their times: an equal point counts once
    for point in points:
        context = ABOUT.get(point.key.partition("/")[0])
        if context and (run_id, point.key, point.timestamp, point.step) not in linked:
            about = datasets.get(context)
            name, digest = (about.name, about.digest) if about else (None, None)
            metric = (point.key, point.value, point.timestamp, point.step)
            missing.append(Metric(*metric, model_id=model_id, dataset_name=name, dataset_digest=digest))
    store.client.log_batch(run_id, metrics=missing)
