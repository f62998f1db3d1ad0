"""A section of datasets.yaml for archives of one's own, and the whole pipeline on three classes."""

import csv
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import pyfunc
from ruamel.yaml import YAML

from mnist.cli import measure
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.data import catalog, store
from tests import checkout
from tests.checkout import STAGES, Clone
from tests.conftest import SmallData, digits, idx

CLASSES = ("fish, fresh", "bird", "ox/cow")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calculator digits in three classes: 0 to 3, 4 to 6, 7 to 9."""
    folder = tmp_path_factory.mktemp("three")
    for prefix, num_images, seed in (("train", 700, 5), ("t10k", 150, 6)):
        images = digits(num_images, seed=seed)
        labels_N = np.searchsorted([4, 7], images.labels_N, side="right").astype(np.uint8)
        for name, array in (("images-idx3", images.images_NHW), ("labels-idx1", labels_N)):
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    return folder


def test_the_section_is_one_that_the_archives_keep(archives: Path, tmp_path: Path) -> None:
    text = measure.section("three", archives, title="Three kinds", classes=CLASSES)
    path = tmp_path / "datasets.yaml"
    path.write_text(text)

    read = catalog.load(path, "three")

    assert (read.title, tuple(read.classes), read.mirrors) == ("Three kinds", CLASSES, [])
    assert (read.validation.num_train, read.validation.num_test) == (700, 150)
    # 280 of 700 are in the first class, 210 in the others, and a tenth of it is for room.
    assert read.validation.class_share.model_dump() == {"min": 0.27, "max": 0.44}
    assert (read.validation.max_duplicates, read.validation.max_in_both) == (0, 0)
    assert "# of each class in its split; measured 0.3 to 0.4\n" in text


def test_a_bound_has_three_digits_and_leaves_room() -> None:
    for value in (0.000123456, 0.1, 0.5, 1 / 3):
        low, high = measure._down(value), measure._up(value)
        assert 0.89 * value < low <= 0.9 * value + 1e-12
        assert 1.1 * value - 1e-12 <= high < 1.11 * value
        assert float(f"{low:.3g}") == low
    assert (measure._down(0.0), measure._up(0.0), measure._up(1.0)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "classes", "said"),
    [
        ("a.b", CLASSES, "the name: dataset: found 'a.b'"),
        (
            "three",
            ("fish", "bird"),
            "--classes: found 2 names, and a label 2, expected 3: labels count from 0",
        ),
        ("three", ("a", "a", "b"), "expected other names than a twice in classes"),
    ],
)
def test_what_can_be_in_no_section_is_one_line(
    archives: Path, name: str, classes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        measure.section(name, archives, title="", classes=classes)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_archives_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        measure.section("three", tmp_path, title="", classes=())

    assert str(caught.value) == (
        f"{tmp_path}/train-images-idx3-ubyte.gz: found no such file, expected an archive"
    )


# ---- the whole pipeline, on one clone, in this order


@pytest.fixture(scope="module")
def clone(small_data: SmallData, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout whose datasets.yaml was given a section by the tool, as docs/own-data.md says."""
    folder = tmp_path_factory.mktemp("clone") / "three"
    made = checkout.clone(folder, small_data)
    made.environment["MNIST_MIRROR"] = str(archives)
    names = ",".join(name for name in CLASSES if "," not in name)
    asked = ("python", "-m", "mnist.cli.measure", "three", str(archives))
    section = made.run(*asked, "--title", "Three kinds", "--classes", f"fish,{names}").stdout
    with (folder / "datasets.yaml").open("a") as stream:
        # A comma in a name, which the command line has no way to say.
        stream.write(section.replace('"fish"', '"fish, fresh"'))
    made.commit("Data of our own")
    again = made.run(*asked, check=False)
    assert again.returncode == 1
    assert again.stdout == "ERROR: datasets.yaml: found a section three already, expected a new name\n"
    yield made
    shutil.rmtree(folder)


def test_three_classes_run_through_the_whole_pipeline(clone: Clone) -> None:
    assert clone.dvc("exp", "run", "-S", "dataset=three", "-n", "three") == STAGES

    assert store.describe(clone.folder / paths.DATASET).classes == CLASSES
    scores = json.loads(clone.read("metrics/test.json"))
    assert list(scores["recall"]) == list(CLASSES)
    assert scores["accuracy"] > 0.6  # chance is 0.4
    rows = list(csv.DictReader(clone.read("metrics/predictions.csv").splitlines()))
    assert {row["label"] for row in rows} == set(CLASSES)
    page = clone.read("data/validation.html")
    assert "Three kinds, 700 training and 150 test images" in page
    assert "fish, fresh</th>" in page
    assert "MNIST" not in page


def test_its_run_and_its_model_are_its_own(clone: Clone) -> None:
    (run,) = clone.runs()
    assert run.data.params["dataset"] == "three"
    assert run.inputs
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"three-train", "three-test"}
    (model,) = clone.client.search_registered_models()
    assert model.name == "three-simplecnn"
    assert "fish, fresh, bird, ox/cow: float32 (N, 3)" in model.description
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{clone.folder}/mlflow.db")
        registered = pyfunc.load_model("models:/three-simplecnn@challenger")
    assert registered.predict(np.zeros((2, 28, 28), np.uint8)).shape == (2, 3)
    promoted = clone.run("python", "-m", "mnist.cli.promote").stdout
    assert "promote: models:/three-simplecnn" in promoted
    assert "`champion` is version 1 now" in promoted


def test_it_is_not_held_against_another_data_set(clone: Clone) -> None:
    clone.commit("Three kinds")
    clone.environment.pop("MNIST_MIRROR")
    assert clone.dvc("exp", "run", "-S", "dataset=mnist", "-n", "digits") == STAGES

    found = json.loads(clone.run("python", "-m", "mnist", "diff", "main", "--json").stdout)
    assert found["outcome"] == "not comparable"
    assert "three" in found["reason"]
    assert {"name": "dataset", "base": "three", "head": "mnist"} in found["params"]
    best = clone.run("python", "-m", "mnist", "best").stdout
    assert "scored on other validation images" in best
    assert {model.name for model in clone.client.search_registered_models()} == {
        "three-simplecnn",
        "mnist-simplecnn",
    }
    clone.reset()


def test_bounds_of_another_data_set_change_nothing(clone: Clone) -> None:
    yaml = YAML()
    known = yaml.load(clone.folder / "datasets.yaml")
    known["mnist"]["validation"]["num_test"] = 9
    known["kmnist"]["title"] = "Something else"
    yaml.dump(known, clone.folder / "datasets.yaml")

    assert clone.dvc("repro", "evaluate") == []
    known["three"]["validation"]["num_test"] = 9
    yaml.dump(known, clone.folder / "datasets.yaml")
    done = clone.run("dvc", "repro", "evaluate", check=False)
    assert done.returncode != 0
    assert "test_size: expected 9 images, observed 150 images" in done.stdout
    clone.reset()


def test_a_stage_by_hand_refuses_the_data_of_another_name(clone: Clone) -> None:
    checkout.edit(clone, "params.yaml", "dataset: three", "dataset: mnist")

    for stage in ("validate", "train"):
        done = clone.run("python", "-m", f"stages.{stage}", check=False)
        assert done.returncode == 1
        assert done.stdout == (
            "ERROR: data/mnist.safetensors: found the data set three,"
            " expected mnist, as params.yaml has it: run `dvc repro`\n"
        )
    clone.reset()


def test_a_name_that_is_in_no_section_is_told_by_dvc_before_anything_runs(clone: Clone) -> None:
    done = clone.run("dvc", "exp", "run", "-S", "dataset=thre", check=False)

    assert done.returncode != 0
    assert "thre.title" in done.stdout
    assert "are missing from 'datasets.yaml'" in done.stdout
    assert "> python" not in done.stdout
    assert "Traceback" not in done.stdout
