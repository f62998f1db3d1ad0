"""`mnist predict` with a model file: the table, the files that are left out, and what is imported."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mnist.cli
from mnist.core import paths
from mnist.training import onnx_model
from tests.checkout import ROOT
from tests.conftest import SmallData


def predict(scored: Path, *arguments: Path | str) -> Result:
    """Run the command in this process."""
    options = ["--model", str(scored / paths.ONNX)]
    return CliRunner().invoke(mnist.cli.main, ["predict", *options, *map(str, arguments)])


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def images(small_data: SmallData, tmp_path: Path) -> Path:
    file = tmp_path / "images.npy"
    np.save(file, small_data.test.images_NHW)
    return file


def test_the_table_has_the_class_and_the_probability_of_each_image(
    scored: Path, small_data: SmallData, images: Path
) -> None:
    done = predict(scored, images, small_data.mirror / "t10k-images-idx3-ubyte.gz")
    assert done.exit_code == 0
    rows = list(csv.DictReader(done.stdout.splitlines()))
    probabilities_NK = onnx_model.load(scored / paths.ONNX).predict(small_data.test.images_NHW)
    assert {row["file"] for row in rows[:300]} == {str(images)}
    assert [int(row["index"]) for row in rows] == [*range(300), *range(300)]
    assert [int(row["predicted"]) for row in rows[:300]] == probabilities_NK.argmax(1).tolist()
    found = np.array([float(row["probability"]) for row in rows])
    np.testing.assert_allclose(found, np.tile(probabilities_NK.max(1), 2), rtol=0, atol=1e-5)


def test_bad_files_are_named_and_the_others_scored(scored: Path, images: Path, tmp_path: Path) -> None:
    bad, odd, table = tmp_path / "bad.png", tmp_path / "a\n\x1b[31m.png", tmp_path / "table.csv"
    bad.write_bytes(b"bad")
    done = predict(scored, bad, images, odd, "--output", table)
    assert done.exit_code == 1
    first, second = done.stderr.splitlines()
    assert str(bad) in first
    assert second.isprintable()
    assert len(table.read_text().splitlines()) == 301


def test_a_table_is_written_whole_or_not_at_all(
    scored: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("of before")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(onnx_model.OnnxModel, "predict", interrupted)
        assert predict(scored, images, "--output", table).exit_code == 130
    assert table.read_text() == "of before"
    assert sorted(tmp_path.iterdir()) == [images, table]


def test_a_device_is_not_replaced_by_the_table(scored: Path, images: Path, tmp_path: Path) -> None:
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    assert predict(scored, images, "--output", device).exit_code == 2
    assert device.is_symlink()


def test_it_needs_no_torch(scored: Path, images: Path) -> None:
    code = f"""
import sys
import mnist.cli, mnist.tracking.record, mnist.tracking.registry
try:
    mnist.cli.main(["predict", {str(images)!r}, "--model", {str(scored / paths.ONNX)!r}])
finally:
    print({{"torch", "torchvision"}} & sys.modules.keys(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set()"
