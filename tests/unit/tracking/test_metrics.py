"""Metrics in a real store: the scores of a run rank its logged model."""

import pytest

from mnist.tracking import client, events, metrics
from mnist.tracking.client import Store
from mnist.tracking.events import Point
from tests.unit.tracking.conftest import EPOCH, TRAINING, WINDOW

START = events.start(TRAINING, {}, 1_700_000_000_000)


@pytest.fixture
def store(store_folder: object) -> Store:
    assert store_folder
    return client.connect()


def linked_model(store: Store, accuracy: float) -> str:
    """Return the id of a logged model that was linked twice to the scores of its run."""
    run_id = store.client.create_run(store.experiment_id).info.run_id
    metrics.log_datasets(store, run_id, START)
    scores = Point(time_ms=5, step=0, values={events.TEST_ACCURACY: accuracy})
    metrics.log_points(store, run_id, [events.point(WINDOW, 5), events.point(EPOCH, 5), scores])
    model_id = store.client.create_logged_model(store.experiment_id, "model", run_id).model_id
    for _ in range(2):
        metrics.link(store, run_id, model_id)
    assert len(store.client.get_metric_history(run_id, events.TEST_ACCURACY)) == 1
    return str(model_id)


def test_models_are_ranked_by_the_scores_of_their_runs_on_a_data_set(store: Store) -> None:
    made = {accuracy: linked_model(store, accuracy) for accuracy in (0.9, 0.97, 0.95)}
    on_test = {"dataset_name": "mnist-test", "dataset_digest": "d" * 36}
    best_first = {"field_name": f"metrics.{events.TEST_ACCURACY}", "ascending": False, **on_test}
    ranked = store.client.search_logged_models([store.experiment_id], order_by=[best_first])
    assert [model.model_id for model in ranked] == [made[0.97], made[0.95], made[0.9]]
    found = {(point.key, point.value, point.step, point.dataset_name) for point in ranked[0].metrics or ()}
    assert found == {
        ("test/accuracy", 0.97, 0, "mnist-test"),
        ("val/accuracy", 0.88, 120, "mnist-train"),
        ("val/loss", 0.4, 120, "mnist-train"),
    }


def test_a_run_without_data_sets_has_scores_nevertheless(store: Store) -> None:
    run_id = store.client.create_run(store.experiment_id).info.run_id
    metrics.log_points(store, run_id, [events.point(EPOCH, 5)])
    model_id = store.client.create_logged_model(store.experiment_id, "model", run_id).model_id
    metrics.link(store, run_id, model_id)
    assert len(store.client.get_logged_model(model_id).metrics or ()) == 2
