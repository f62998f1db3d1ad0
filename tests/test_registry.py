"""Versions in a real registry: one for each set of weights, however often it is asked for."""

from pathlib import Path

import pytest

from mnist import model, params, registry, tracking
from mnist.model import Classifier
from tests.test_tracking import ensure

ROOT = Path(__file__).parents[1]
NAME = "mnist-simplecnn"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tracking.Store:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return tracking.connect()


@pytest.fixture
def classifier() -> Classifier:
    settings = params.load(ROOT / "params.yaml")
    return model.build(settings, seed=0, mean=0.13, std=0.31).eval()


def test_equal_weights_are_one_version_and_a_broken_attempt_leaves_no_second_model(
    store: tracking.Store, classifier: Classifier
) -> None:
    run = ensure(store)
    store.client.create_logged_model(store.experiment_id, "model", run.info.run_id)  # and then it was cut off
    asked = {"name": NAME, "weights_sha256": "w" * 64, "accuracy": 0.95}
    version, is_new = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    again, is_new_again = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    assert (is_new, is_new_again) == (True, False)
    assert version.version == again.version
    assert version.run_id == run.info.run_id
    assert version.tags["test_accuracy"] == "0.9500"
    (logged,) = store.client.search_logged_models([store.experiment_id])
    assert logged.status == "READY"
    assert len(store.client.search_model_versions()) == 1
