"""Versions in a real registry: one for each set of weights; what `register` did not store is not read."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlflow import artifacts, pyfunc
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from ruamel.yaml import YAML

from mnist.core import files, paths
from mnist.core.errors import InputError, ServiceUnavailableError
from mnist.data import store as data
from mnist.evaluation import predictions
from mnist.tracking import client, database, events, registry, stored
from mnist.training import onnx_model
from tests import hostile

NAME = "mnist-simplecnn"
CARD = f"---\nlibrary_name: onnx\n---\n\n# A card\n\nLoad `models:/{NAME}/VERSION`.\n"
MODEL = "models/m-*/artifacts"


@pytest.fixture
def store(store_folder: Path) -> client.Store:
    assert store_folder
    return client.connect()


def new_run(store: client.Store) -> Run:
    return store.client.create_run(store.experiment_id)


def ensure(store: client.Store, run: Run, scored: Path, card: str = CARD) -> tuple[ModelVersion, bool]:
    weights_sha256 = files.sha256(scored / paths.WEIGHTS)
    return registry.ensure(
        store, run, scored, name=NAME, weights_sha256=weights_sha256, accuracy=0.95, card=card
    )


def is_usable(store: client.Store, folder: Path) -> bool:
    return registry.find(store, folder, name=NAME, weights_sha256=files.sha256(folder / paths.WEIGHTS))[1]


Read = Callable[[client.Store, ModelVersion], object]


def without_mlflow(store: client.Store, version: ModelVersion) -> object:
    """Read a version as the champion of a local store."""
    store.client.set_registered_model_alias(version.name, "champion", version.version)
    return stored.champion(version.name)


by_both = pytest.mark.parametrize("read", [registry.load_version, without_mlflow])


def refused(read: Read, store: client.Store, version: ModelVersion) -> InputError:
    with pytest.raises(InputError) as caught:
        read(store, version)
    return caught.value


def card_beside(version: ModelVersion) -> str:
    """The file beside the stored model, as who has the version's name finds it."""
    return artifacts.load_text(f"models:/{version.name}/{version.version}/README.md")


def test_equal_weights_are_one_version_and_a_broken_attempt_leaves_no_second_model(
    store: client.Store, scored: Path
) -> None:
    run = new_run(store)
    store.client.create_logged_model(store.experiment_id, "model", run.info.run_id)  # and then it was cut off
    version, is_new = ensure(store, run, scored)
    again, is_new_again = ensure(store, run, scored)
    assert (is_new, is_new_again) == (True, False)
    assert version.version == again.version
    assert version.run_id == run.info.run_id
    assert version.tags["test_accuracy"] == "0.9500"
    assert version.tags[events.ONNX] == files.sha256(scored / paths.ONNX)
    assert version.description == f"Load `models:/{NAME}/1`.\n"
    assert card_beside(version) == CARD.replace("VERSION", "1")
    (logged,) = store.client.search_logged_models([store.experiment_id])
    assert logged.status == "READY"
    assert len(store.client.search_model_versions()) == 1


def test_mlflow_loads_it_with_the_weights_beside_it(
    store: client.Store, scored: Path, tmp_path: Path
) -> None:
    version, _ = ensure(store, new_run(store), scored)
    images_NHW = data.load(scored / paths.DATASET, "test").images_NHW
    (probs_NK,) = pyfunc.load_model(f"models:/{NAME}/1").predict(images_NHW).values()
    expected_NK = np.exp(predictions.read_log_probs(scored / paths.LOG_PROBS))
    np.testing.assert_allclose(probs_NK, expected_NK, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(registry.load_version(store, version).predict(images_NHW), probs_NK)
    (stored,) = (tmp_path / "mlartifacts").glob(MODEL)
    assert (stored / "model.safetensors").read_bytes() == (scored / paths.WEIGHTS).read_bytes()
    assert (stored / "model.onnx").read_bytes() == (scored / paths.ONNX).read_bytes()


def one_bit(stored: Path) -> None:
    content = bytearray((stored / "model.onnx").read_bytes())
    content[-300] ^= 1
    (stored / "model.onnx").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [shutil.rmtree, lambda stored: (stored / "model.onnx").unlink(), one_bit],
    ids=["all files", "the model", "one bit"],
)
def test_a_version_whose_files_are_damaged_gets_them_again_and_keeps_what_people_wrote(
    damage: Callable[[Path], None], store: client.Store, scored: Path, tmp_path: Path
) -> None:
    run = new_run(store)
    version, _ = ensure(store, run, scored)
    store.client.update_model_version(NAME, version.version, "Ours")
    (stored,) = (tmp_path / "mlartifacts").glob(MODEL)
    damage(stored)
    assert not is_usable(store, scored)
    again, is_new = ensure(store, run, scored)
    assert (again.version, is_new) == (version.version, False)
    assert is_usable(store, scored)
    assert card_beside(version) == CARD.replace("VERSION", "1")
    assert store.client.get_model_version(NAME, again.version).description == "Ours"


def test_a_version_gets_files_of_another_export_with_their_digest(
    store: client.Store, scored: Path, tmp_path: Path
) -> None:
    ensure(store, new_run(store), scored)
    other = tmp_path / "checkout"
    shutil.copytree(scored, other)
    flipped(other / "models")
    assert is_usable(store, other)
    shutil.rmtree(tmp_path / "mlartifacts")
    for _ in range(2):
        version, is_new = ensure(store, new_run(store), other)
        assert not is_new
        assert version.tags[events.ONNX] == files.sha256(other / paths.ONNX)
        assert is_usable(store, other)


def test_a_version_of_other_probabilities_is_not_taken_for_that_of_its_tags(
    store: client.Store, scored: Path, tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(scored, forged)
    model = onnx.load(forged / paths.ONNX)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, forged / paths.ONNX)
    images_NHW = data.load(forged / paths.DATASET, "test").images_NHW
    probs_NK = onnx_model.load(forged / paths.ONNX).predict(images_NHW)
    predictions.write_log_probs(forged / paths.LOG_PROBS, np.log(probs_NK))
    theirs, _ = ensure(store, new_run(store), forged)
    for is_first in (True, False):
        version, is_new = ensure(store, new_run(store), scored)
        assert is_new == is_first
        assert version.version != theirs.version


def test_a_version_that_somebody_else_made_of_equal_weights_is_left_alone(
    store: client.Store, scored: Path
) -> None:
    store.client.create_registered_model(NAME)
    tags = {"weights_sha256": files.sha256(scored / paths.WEIGHTS)}
    for more in ({}, {events.ONNX: files.sha256(scored / paths.ONNX)}):
        store.client.create_model_version(NAME, "somewhere/else", tags=tags | more, description="Theirs")
    version, is_new = ensure(store, new_run(store), scored)
    assert is_new
    assert str(version.version) == "3"


def test_a_version_that_was_cut_off_before_its_card_gets_it(store: client.Store, scored: Path) -> None:
    run = new_run(store)
    version, _ = ensure(store, run, scored, card="")
    assert not version.description
    again, is_new = ensure(store, run, scored)
    assert (again.version, is_new) == (version.version, False)
    assert again.description
    assert card_beside(again) == CARD.replace("VERSION", "1")


def other_scores(folder: Path) -> None:
    log_probs_NK = predictions.read_log_probs(folder / paths.LOG_PROBS)
    predictions.write_log_probs(folder / paths.LOG_PROBS, np.roll(log_probs_NK, 1, axis=0))


def other_weights(folder: Path) -> None:
    with (folder / paths.WEIGHTS).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (other_scores, str(paths.ONNX)),
        (other_weights, "models:/m-"),
        (lambda folder: (folder / paths.ONNX).unlink(), str(paths.ONNX)),
    ],
    ids=["scores", "weights", "no ONNX"],
)
def test_what_is_not_of_one_evaluation_is_not_registered(
    change: Callable[[Path], None], where: str, store: client.Store, scored: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkout"
    shutil.copytree(scored, folder)
    change(folder)
    with pytest.raises(InputError) as caught:
        ensure(store, new_run(store), folder)
    assert where in caught.value.where
    assert store.client.search_model_versions() == []


def test_an_older_result_does_not_take_the_challengers_place(store: client.Store) -> None:
    store.client.create_registered_model(NAME)
    old, new = (store.client.create_model_version(NAME, "file:///none") for _ in range(2))
    for version, time_ms, challenger in ((new, 2000, new), (old, 1000, new), (old, 3000, old)):
        stays = registry.set_challenger(store, version, time_ms=time_ms)
        assert store.client.get_model_version_by_alias(NAME, "challenger").version == challenger.version
        assert bool(stays) == (version.version != challenger.version)
    stays = registry.set_challenger(store, new, time_ms=1)
    assert "stays version 1: its result is of 1970-01-01 00:00:03+00:00" in stays


@pytest.mark.parametrize("tag", ["abc", "-1", "99999999999999999"])
def test_a_time_of_the_challenger_that_is_none_counts_as_absent(tag: str, store: client.Store) -> None:
    store.client.create_registered_model(NAME, {registry.CHALLENGER_TIME: tag})
    version = store.client.create_model_version(NAME, "file:///none")
    assert registry.set_challenger(store, version, time_ms=1) == ""
    assert store.client.get_registered_model(NAME).tags[registry.CHALLENGER_TIME] == "1"


@by_both
@pytest.mark.parametrize("save", [hostile.pickled, hostile.with_code])
def test_a_model_that_brings_code_is_not_read(
    save: Callable[[Path, Path], None], read: Read, store: client.Store, scored: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    save(tmp_path / "model", trace)
    trace.unlink(missing_ok=True)
    store.client.create_registered_model(NAME)
    tags = {
        "weights_sha256": files.sha256(scored / paths.WEIGHTS),
        "onnx_sha256": files.sha256(scored / paths.ONNX),
    }
    version = store.client.create_model_version(NAME, (tmp_path / "model").as_uri(), tags=tags)
    assert refused(read, store, version).where == f"models:/{NAME}/1/MLmodel"
    assert not trace.exists()
    with contextlib.suppress(Exception):
        pyfunc.load_model((tmp_path / "model").as_uri())
    assert trace.exists()  # so the model is as bad as it should be


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        yaml = YAML()
        description = yaml.load(folder / "MLmodel")
        change(description["flavors"])
        yaml.dump(description, folder / "MLmodel")

    return edit


def beside(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder.parent / "model.onnx")
    edited(lambda flavors: flavors["onnx"].update(data="../model.onnx"))(folder)


def half(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text[: len(text) // 2] + "\n  - [")


def long(folder: Path) -> None:
    with (folder / "MLmodel").open("a") as stream:
        stream.write("#" * stored.MAX_MLMODEL_BYTES)


def folder_instead(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "other")
    (folder / "model.onnx").mkdir()
    (folder / "other").rename(folder / "model.onnx/model.onnx")


def flipped(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.producer_name = "other"
    onnx.save(model, folder / "model.onnx")


@by_both
@pytest.mark.parametrize(
    ("change", "file"),
    [
        (edited(lambda flavors: flavors["python_function"].update(code="code")), "MLmodel"),
        (edited(lambda flavors: flavors["onnx"].update(code="code")), "MLmodel"),
        (edited(lambda flavors: flavors["python_function"].update(loader_module="evil")), "MLmodel"),
        (edited(lambda flavors: flavors.update(sklearn={})), "MLmodel"),
        (edited(lambda flavors: flavors.pop("onnx")), "MLmodel"),
        (edited(lambda flavors: flavors["onnx"].update(data=["model.onnx"])), "MLmodel"),
        (beside, "MLmodel"),
        (half, "MLmodel"),
        (long, "MLmodel"),
        (lambda folder: (folder / "MLmodel").unlink(), "MLmodel"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx"),
        (folder_instead, "model.onnx"),
        (flipped, "model.onnx"),
    ],
)
def test_a_stored_model_of_another_form_is_not_read(
    *,
    change: Callable[[Path], None],
    file: str,
    read: Read,
    store: client.Store,
    scored: Path,
    tmp_path: Path,
) -> None:
    version, _ = ensure(store, new_run(store), scored)
    (folder,) = (tmp_path / "mlartifacts").glob(MODEL)
    change(folder)
    error = refused(read, store, version)
    assert error.where == f"models:/{NAME}/1/{file}"
    assert "\n" not in str(error)


@by_both
@pytest.mark.parametrize("tag", ["weights_sha256", "onnx_sha256"])
def test_a_version_of_other_digests_is_not_read(
    tag: str, read: Read, store: client.Store, scored: Path
) -> None:
    ensure(store, new_run(store), scored)
    changes: tuple[Callable[[], object], ...] = (
        lambda: store.client.set_model_version_tag(NAME, "1", tag, "d" * 64),
        lambda: store.client.delete_model_version_tag(NAME, "1", tag),
    )
    for change in changes:
        change()
        assert refused(read, store, store.client.get_model_version(NAME, "1")).expected.endswith(
            f"the tag {tag}"
        )


def test_the_champion_of_a_local_store_is_read_without_mlflow(store: client.Store, scored: Path) -> None:
    version, _ = ensure(store, new_run(store), scored)
    store.client.set_registered_model_alias(NAME, "champion", version.version)
    code = f"""
import sys
from mnist.tracking import stored
name, model = stored.champion({NAME!r}, num_threads=2)
print(name, model.about.weights_sha256, "mlflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"models:/{NAME}/1", files.sha256(scored / paths.WEIGHTS), "False"]


def no_champion(store: client.Store) -> None:
    store.client.delete_registered_model_alias(NAME, "champion")


def deleted_version(store: client.Store) -> None:
    """Delete the version, and put back the alias, which MLflow deletes, too."""
    store.client.delete_model_version(NAME, "1")
    connection = sqlite3.connect(paths.sqlite_file(store.uri))
    with contextlib.closing(connection), connection:
        command = "INSERT INTO registered_model_aliases (alias, version, name) VALUES ('champion', 1, ?)"
        connection.execute(command, [NAME])


def files_elsewhere(_store: client.Store) -> None:
    (paths.root() / "mlartifacts").rename(paths.root() / "elsewhere")


def of_the_original(store: client.Store) -> None:
    """Let the store be the copy of another one, whose files are still there."""
    folder = paths.root().with_name("original")
    shutil.copytree(paths.root(), folder)
    client.move(paths.sqlite_file(store.uri), old=paths.root(), new=folder)


@pytest.mark.parametrize("change", [no_champion, deleted_version, files_elsewhere, of_the_original])
def test_mlflow_is_asked_for_a_champion_that_is_not_here(
    change: Callable[[client.Store], None], store: client.Store, scored: Path
) -> None:
    version, _ = ensure(store, new_run(store), scored)
    assert without_mlflow(store, version)
    change(store)
    assert stored.champion(NAME) is None


def test_a_store_that_is_read_alone_need_not_be_writable(store: client.Store, scored: Path) -> None:
    version, _ = ensure(store, new_run(store), scored)
    assert without_mlflow(store, version)
    paths.sqlite_file(store.uri).chmod(0o444)
    assert stored.champion(NAME)


def test_mlflow_is_asked_for_the_champion_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert stored.champion(NAME) is None


@pytest.mark.usefixtures("store")
def test_a_locked_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")  # after a wait of 5 s

    monkeypatch.setattr(database, "query", locked)
    with pytest.raises(
        ServiceUnavailableError, match=r"^MLflow at sqlite:///mlflow\.db does not answer \(database is locked"
    ):
        stored.champion(NAME)
