"""`dvc.yaml`: what its stages read, write and depend on, with params in the place of templates."""

from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.core.pipeline import Pipeline
from tests.checkout import Repository

STAGE = """
stages:
  make:
    cmd: make ${set} ${ flag } ${more}
    deps: ["sets/${set}.yaml"]
    params: [section, empty, {other.yaml: [size, deep.x], whole.json: }]
    outs: ["${set}/weights", scores: {cache: false}]
    metrics:
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "dvc.yaml": STAGE,
        "params.yaml": "set: digits\nflag: true\nsection: {lr: 1e-1}\nsectional: 1\nempty: {}\n",
        "other.yaml": "size: 3\ndeep: {x: 1, y: 2}\n",
        "whole.json": '{"depth": 2}',
    }
    Repository(tmp_path).write(files)
    return tmp_path


def test_templates_sections_and_other_files_are_read_as_dvc_reads_them(folder: Path) -> None:
    pipeline = Pipeline(folder)
    assert pipeline.stages["make"].cmd == "make digits true ${more}"
    assert pipeline.deps("make") == ["sets/digits.yaml"]
    assert pipeline.makers == {"digits/weights": "make", "scores": "make"}
    assert pipeline.params("make") == {
        "section.lr": 0.1,
        "empty": {},
        "other.yaml:size": 3,
        "other.yaml:deep.x": 1,
        "whole.json:depth": 2,
    }


@pytest.mark.parametrize(("file", "key"), [("params.yaml", "section"), ("other.yaml", "size")])
def test_a_param_that_a_file_lacks_is_named(folder: Path, file: str, key: str) -> None:
    (folder / file).write_text("set: digits\ndeep: {x: 1}\n")
    with pytest.raises(InputError) as caught:
        Pipeline(folder).params("make")
    assert (caught.value.where, caught.value.found) == (file, f"no {key}")


def test_a_file_of_params_that_is_missing_is_named(folder: Path) -> None:
    (folder / "whole.json").unlink()
    with pytest.raises(InputError) as caught:
        Pipeline(folder).params("make")
    assert (caught.value.where, caught.value.found) == ("whole.json", "no such file")
