"""The stage `download`."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from mnist.core import paths, process
from mnist.data import store
from stages import download
from tests.conftest import SmallData

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path, small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params and two data sets of the made data; it is the current one."""
    for variable in ("DVC_ROOT", "MNIST_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    set_params(mirrors=[str(small_data.mirror)])
    three = small_data.section(title="Three", classes=["a", "b", "c"], mirrors=["own"])
    paths.DATASETS.mkdir()
    YAML(typ="safe").dump(small_data.section(), paths.DATASETS / "mnist.yaml")
    YAML(typ="safe").dump(three, paths.DATASETS / "three.yaml")
    return tmp_path


def set_params(*, mirrors: list[str], **values: Any) -> None:
    yaml = YAML(typ="safe")
    everything = yaml.load((ROOT / paths.PARAMS).read_text())
    yaml.dump(everything | {"data": {"mirrors": mirrors}} | values, paths.PARAMS)


def run() -> None:
    process.main(download.run, download.Params)


def test_the_file_holds_the_images(
    checkout: Path, small_data: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    run()

    tensors = load_file(checkout / paths.DATASET)
    assert sorted(tensors) == ["test_images", "test_labels", "train_images", "train_labels"]
    assert (tensors["train_images"] == small_data.train.images_NHW).all()
    assert (tensors["train_labels"] == small_data.train.labels_N).all()
    assert (tensors["test_images"] == small_data.test.images_NHW).all()
    assert (tensors["test_labels"] == small_data.test.labels_N).all()
    assert f"4 files from {small_data.mirror}: 1,200 training and 300 test images" in capsys.readouterr().out


def test_a_temporary_tree_uses_the_main_checkouts_cache_and_makes_the_same_bytes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    first = hashlib.sha256(paths.DATASET.read_bytes()).digest()
    set_params(mirrors=["no/such/folder"])
    (checkout / "temporary").mkdir()
    for name in (paths.PARAMS, paths.DATASETS):
        (checkout / name).rename(checkout / "temporary" / name)
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.chdir(checkout / "temporary")
    capsys.readouterr()

    run()

    assert "4 files from the cache" in capsys.readouterr().out
    assert hashlib.sha256(paths.DATASET.read_bytes()).digest() == first
    assert not (checkout / "temporary" / ".cache").exists()


def test_another_data_set_comes_from_its_own_mirrors(
    checkout: Path, small_data: SmallData, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "three").symlink_to(small_data.mirror)
    set_params(mirrors=["gone", "{dataset}"], dataset="three")

    run()

    skipped, fetched = capsys.readouterr().out.splitlines()
    assert "gone: " in skipped
    assert "Three, 4 files from three: " in fetched
    description = store.describe(paths.DATASET)
    assert description == store.Description(name="three", title="Three", classes=("a", "b", "c"))


def test_when_all_mirrors_fail_each_has_a_line_and_the_old_file_stays(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(mirrors=["there/{dataset}"], dataset="three")
    paths.DATASET.parent.mkdir()
    paths.DATASET.write_text("the old file")

    with pytest.raises(SystemExit):
        run()

    first, *mirrors = capsys.readouterr().err.splitlines()
    assert first.startswith("ERROR: Three: found no mirror that has t10k-images-idx3-ubyte.gz, ")
    assert [line.split()[0] for line in mirrors] == ["there/three", "own"]
    assert f"{checkout}/own/" in mirrors[1]
    assert paths.DATASET.read_text() == "the old file"
