"""Versions in a real registry: one for each set of weights, however often it is asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import artifacts, pyfunc
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from mnist.core import config
from mnist.tracking import client, registry
from mnist.training import model
from mnist.training.model import Classifier
from tests.conftest import DIGITS

ROOT = Path(__file__).parents[3]
NAME = "mnist-simplecnn"
CARD = f"---\nlibrary_name: pytorch\n---\n\n# A card\n\nLoad `models:/{NAME}/VERSION`.\n"


@pytest.fixture
def store(store_folder: Path) -> client.Store:
    assert store_folder
    return client.connect()


def new_run(store: client.Store) -> Run:
    return store.client.create_run(store.experiment_id)


@pytest.fixture
def classifier() -> Classifier:
    settings = config.load(ROOT / "params.yaml")
    return model.build(settings, classes=DIGITS.classes, seed=0, mean=0.13, std=0.31).eval()


def card_beside(version: ModelVersion) -> str:
    """The file beside the stored model, as who has the version's name finds it."""
    return artifacts.load_text(f"models:/{version.name}/{version.version}/README.md")


def test_equal_weights_are_one_version_and_a_broken_attempt_leaves_no_second_model(
    store: client.Store, classifier: Classifier
) -> None:
    run = new_run(store)
    store.client.create_logged_model(store.experiment_id, "model", run.info.run_id)  # and then it was cut off
    asked = {"name": NAME, "weights_sha256": "w" * 64, "accuracy": 0.95, "card": CARD}
    version, is_new = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    again, is_new_again = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    assert (is_new, is_new_again) == (True, False)
    assert version.version == again.version
    assert version.run_id == run.info.run_id
    assert version.tags["test_accuracy"] == "0.9500"
    assert version.description == f"Load `models:/{NAME}/1`.\n"
    assert card_beside(version) == CARD.replace("VERSION", "1")
    (logged,) = store.client.search_logged_models([store.experiment_id])
    assert logged.status == "READY"
    assert len(store.client.search_model_versions()) == 1


def test_a_version_that_lost_its_files_gets_them_back(
    store: client.Store, classifier: Classifier, tmp_path: Path
) -> None:
    run = new_run(store)
    asked = {"name": NAME, "weights_sha256": "w" * 64, "accuracy": 0.95, "card": CARD}
    version, _ = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    assert registry.has_files(store, version)
    shutil.rmtree(tmp_path / "mlartifacts")
    assert not registry.has_files(store, version)
    again, is_new = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    assert (again.version, is_new) == (version.version, False)
    assert registry.has_files(store, version)
    assert card_beside(version) == CARD.replace("VERSION", "1")
    loaded = pyfunc.load_model(f"models:/{NAME}/1")
    images_NHW = np.zeros((3, 28, 28), np.uint8)
    with torch.inference_mode():
        np.testing.assert_allclose(
            loaded.predict(images_NHW), classifier(torch.from_numpy(images_NHW)), atol=1e-6
        )


def test_a_version_that_was_cut_off_before_its_card_gets_it(
    store: client.Store, classifier: Classifier
) -> None:
    run = new_run(store)
    asked = {"name": NAME, "weights_sha256": "w" * 64, "accuracy": 0.95}
    version, _ = registry.ensure(store, run, classifier, **asked, card="")  # type: ignore[arg-type]
    assert not registry.is_whole(store, version)
    again, is_new = registry.ensure(store, run, classifier, **asked, card=CARD)  # type: ignore[arg-type]
    assert (again.version, is_new) == (version.version, False)
    assert registry.is_whole(store, again)
    assert card_beside(again) == CARD.replace("VERSION", "1")


def test_what_people_wrote_of_a_version_stays(
    store: client.Store, classifier: Classifier, tmp_path: Path
) -> None:
    run = new_run(store)
    asked = {"name": NAME, "weights_sha256": "w" * 64, "accuracy": 0.95, "card": CARD}
    version, _ = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    store.client.update_model_version(NAME, version.version, "Ours")
    shutil.rmtree(tmp_path / "mlartifacts")
    again, _ = registry.ensure(store, run, classifier, **asked)  # type: ignore[arg-type]
    assert store.client.get_model_version(NAME, again.version).description == "Ours"
    assert card_beside(again) == CARD.replace("VERSION", "1")


def test_an_older_result_does_not_take_the_challengers_place(
    store: client.Store, classifier: Classifier
) -> None:
    run = new_run(store)
    old, _ = registry.ensure(
        store, run, classifier, name=NAME, weights_sha256="a" * 64, accuracy=0.9, card=CARD
    )
    new, _ = registry.ensure(
        store, run, classifier, name=NAME, weights_sha256="b" * 64, accuracy=0.9, card=CARD
    )
    for version, time_ms, challenger in ((new, 2000, new), (old, 1000, new), (old, 3000, old)):
        registry.set_challenger(store, version, time_ms=time_ms)
        assert store.client.get_model_version_by_alias(NAME, "challenger").version == challenger.version
