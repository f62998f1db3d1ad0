"""What is read of a revision: every form that `dvc.yaml` allows, in repositories made by hand."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist.comparison import revision
from mnist.comparison.revision import WORKSPACE, Snapshot, Stage
from mnist.core.errors import InputError
from tests import checkout

# pygtrie 2.5, of DVC, says so of itself; DVC then has no plots.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

PREDICTIONS = "index,label,predicted\n0,7,7\n1,2,3\n"
OTHER_PREDICTIONS = "index,label,predicted\n0,7,1\n1,2,2\n2,5,5\n"
LOSSES = "epoch,step,loss,accuracy\n1,10,0.5,0.7\n2,20,0.25,0.8\n"
BY_EPOCH = ((1.0, 0.5), (2.0, 0.25))
ACCURACY_BY_EPOCH = ((1.0, 0.7), (2.0, 0.8))


@dataclass(frozen=True)
class Made:
    """A repository of git and DVC, which is the current folder."""

    folder: Path

    def write(self, pipeline: Any = None, **files: str) -> None:
        """Write `dvc.yaml` and files; `__` in a name is a slash, the last `_` the dot."""
        if pipeline is not None:
            self.put("dvc.yaml", pipeline if isinstance(pipeline, str) else yaml.safe_dump(pipeline))
        for name, text in files.items():
            stem, _, extension = name.replace("__", "/").rpartition("_")
            self.put(f"{stem}.{extension}", text)

    def put(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--force", ".")
        self.git("commit", "-qm", "x")
        return self.git("rev-parse", "HEAD")

    def dvc(self, *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.folder, check=True, capture_output=True
        )

    def read(self, name: str = WORKSPACE) -> Snapshot:
        (snapshot,) = revision.read([name], self.folder)
        return snapshot


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "repository"
    checkout.initialise(folder)
    return folder


@pytest.fixture
def made(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    folder = tmp_path / "repository"
    shutil.copytree(empty, folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    monkeypatch.chdir(folder)
    return Made(folder)


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


# Plots: what `dvc.yaml` says, and the lines that come of it, as title, x, y and points.

Line = tuple[str, str, str, tuple[tuple[float, float], ...]]
LINES: dict[str, tuple[Any, list[Line]]] = {
    "a file and its columns": (
        {"a.csv": {"x": "epoch", "y": "loss"}},
        [("loss by epoch", "epoch", "loss", BY_EPOCH)],
    ),
    "with a title": (
        {"a.csv": {"x": "epoch", "y": "loss", "title": "How it went"}},
        [("How it went", "epoch", "loss", BY_EPOCH)],
    ),
    "a list of columns, whose title is of all": (
        {"a.csv": {"x": "epoch", "y": ["loss", "accuracy"], "title": "Both"}},
        [
            ("loss by epoch", "epoch", "loss", BY_EPOCH),
            ("accuracy by epoch", "epoch", "accuracy", ACCURACY_BY_EPOCH),
        ],
    ),
    "named, by file": (
        {"How it went": {"x": "epoch", "y": {"a.csv": "loss"}}},
        [("loss by epoch", "epoch", "loss", BY_EPOCH)],
    ),
    "named, lists by file": (
        {"All": {"x": "epoch", "y": {"a.csv": ["accuracy", "loss"], "b.csv": "val_loss"}}},
        [
            ("accuracy by epoch", "epoch", "accuracy", ACCURACY_BY_EPOCH),
            ("loss by epoch", "epoch", "loss", BY_EPOCH),
            ("val_loss by epoch", "epoch", "val_loss", ((1.0, 0.9), (2.0, 0.8))),
        ],
    ),
    "one column of two files": (
        {"Both": {"x": "epoch", "y": {"a.csv": "loss", "c.csv": "loss"}}},
        [
            ("a.csv: loss by epoch", "epoch", "loss", BY_EPOCH),
            ("c.csv: loss by epoch", "epoch", "loss", ((1.0, 7.0), (2.0, 6.0))),
        ],
    ),
    "an x for each file": (
        {"Both": {"x": {"a.csv": "step", "b.csv": "epoch"}, "y": {"a.csv": "loss", "b.csv": "val_loss"}}},
        [
            ("loss by step", "step", "loss", ((10.0, 0.5), (20.0, 0.25))),
            ("val_loss by epoch", "epoch", "val_loss", ((1.0, 0.9), (2.0, 0.8))),
        ],
    ),
    "an x out of another file": (
        {"Joined": {"x": {"a.csv": "step"}, "y": {"b.csv": "val_loss"}}},
        [("val_loss by step", "step", "val_loss", ((10.0, 0.9), (20.0, 0.8)))],
    ),
    "an x out of another file that has more rows": (
        {"Joined": {"x": {"a.csv": "step"}, "y": {"long.csv": "y"}}},
        [],
    ),
    "no x": ({"a.csv": {"y": "loss"}}, []),
    "no properties": ({"a.csv": None}, []),
    "no y": ({"a.csv": {"x": "epoch"}}, []),
    "a column that is not there": ({"a.csv": {"x": "epoch", "y": "recall"}}, []),
    "a picture": ({"a.png": None}, []),
    "a table with tabs": (
        {"a.tsv": {"x": "epoch", "y": "loss"}},
        [("loss by epoch", "epoch", "loss", BY_EPOCH)],
    ),
    "a JSON file": (
        {"a.json": {"x": "step", "y": "loss"}},
        [("loss by step", "step", "loss", ((1.0, 0.5), (2.0, 0.25)))],
    ),
    "a JSON file with the table inside": (
        {"nested.json": {"x": "fpr", "y": "tpr"}},
        [("tpr by fpr", "fpr", "tpr", ((0.0, 0.1), (1.0, 0.9)))],
    ),
    "gaps, text, infinity and another order": (
        {"gaps.csv": {"x": "x", "y": "y"}},
        [("y by x", "x", "y", ((1.0, 10.0), (2.0, 20.0), (3.0, 30.0)))],
    ),
    "a folder of tables": (
        {"tables": {"x": "epoch", "y": "loss"}},
        [("loss by epoch", "epoch", "loss", BY_EPOCH), ("loss by epoch", "epoch", "loss", BY_EPOCH)],
    ),
}
TABLES = {
    "a.csv": LOSSES,
    "b.csv": "epoch,val_loss\n1,0.9\n2,0.8\n",
    "c.csv": "epoch,loss\n1,7\n2,6\n",
    "long.csv": "y\n1\n2\n3\n",
    "gaps.csv": "x,y\n3,30\n,5\n2,20\n4,\n5,much\n6,inf\nnan,1\n1,10\n8\n",
    "a.tsv": LOSSES.replace(",", "\t"),
    "a.json": json.dumps([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]),
    "nested.json": json.dumps(
        {"kind": "roc", "curve": {"roc": [{"fpr": 0, "tpr": 0.1}, {"fpr": 1, "tpr": 0.9}]}}
    ),
    "tables/one.csv": LOSSES,
    "tables/two.csv": LOSSES,
    "a.png": "no picture, but nobody looks",
}


# Of a stage, a plot is a file and one of its columns.
OF_STAGES = [
    name
    for name, (plots, _) in LINES.items()
    if all(isinstance((properties or {}).get("y", ""), str) for properties in plots.values())
]


@pytest.mark.parametrize(
    ("where", "name"), [*(("top level", name) for name in LINES), *(("stage", name) for name in OF_STAGES)]
)
def test_lines_of_plots(made: Made, where: str, name: str) -> None:
    plots, lines = LINES[name]
    for file, text in TABLES.items():
        made.put(file, text)
    if where == "top level":
        made.write({"plots": [{key: of} if of else key for key, of in plots.items()]})
    else:
        listed = [{key: {**(of or {}), "cache": False}} for key, of in plots.items()]
        made.write({"stages": {"draw": {"cmd": "true", "plots": listed}}})

    found = made.read()

    assert [(curve.title, curve.x, curve.y, curve.points) for curve in found.curves] == lines


def test_plots_of_both_kinds_and_of_a_commit(made: Made) -> None:
    made.write(
        {
            "stages": {
                "draw": {"cmd": "true", "plots": [{"a.csv": {"cache": False, "x": "step", "y": "loss"}}]}
            },
            "plots": [{"Accuracy": {"x": "epoch", "y": {"a.csv": "accuracy"}}}],
        },
        a_csv=LOSSES,
    )
    commit = made.commit()
    made.write(a_csv="")

    assert sorted(curve.y for curve in made.read(commit).curves) == ["accuracy", "loss"]
    assert made.read(commit).num_steps == 20
    assert made.read().problems["a.csv"] == "no table"


@pytest.mark.parametrize(
    ("name", "text", "num_steps"),
    [
        ("a.csv", LOSSES, 20),
        ("a.csv", "epoch,loss\n1,2\n", None),
        ("a.csv", "epoch,step,loss\n1,,2\n2,ten,3\n3,9.5,4\n4,²,4\n5,7,4\n6,-3,1\n", 7),
        ("a.csv", f"epoch,step,loss\n1,{'9' * 5000},2\n", None),
        ("a.json", json.dumps([{"epoch": 1, "step": 5, "loss": 1}, {"epoch": 2, "loss": 1}]), 5),
        ("a.json", json.dumps([{"epoch": 1, "step": True, "loss": 1}]), None),
    ],
    ids=["a table", "no such column", "odd cells", "too many digits", "numbers of JSON", "no number"],
)
def test_the_steps_are_counted(made: Made, name: str, text: str, num_steps: int | None) -> None:
    made.write({"plots": [{name: {"x": "epoch", "y": "loss"}}]})
    made.put(name, text)
    assert made.read().num_steps == num_steps


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ("", "no table"),
        ("epoch,loss\n", "no table"),
    ],
    ids=["missing", "empty", "only a head"],
)
def test_a_table_that_is_none_is_named(made: Made, text: str | None, reason: str) -> None:
    made.write(
        {"plots": [{"a.csv": {"x": "epoch", "y": "loss"}}, {"b.csv": {"x": "epoch", "y": "val_loss"}}]}
    )
    made.put("b.csv", TABLES["b.csv"])
    if text is not None:
        made.put("a.csv", text)
    found = made.read()
    assert found.problems["a.csv"] == reason
    assert [curve.y for curve in found.curves] == ["val_loss"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'[{"epoch": 1,'),
        ("a.json", b"[1, 2]"),
        ("a.json", b"3"),
        ("a.csv", b"\xff\xfe\x00epoch"),
        ("a.txt", b"x"),
    ],
    ids=["half a file", "a list of numbers", "a number", "another encoding", "an unknown ending"],
)
def test_a_table_that_does_not_read_as_one_is_named(made: Made, name: str, content: bytes) -> None:
    made.write({"plots": [{name: {"x": "epoch", "y": "loss"}}]})
    (made.folder / name).write_bytes(content)
    found = made.read()
    assert found.problems[name]
    assert found.curves == []


# Predictions

CONFUSION = {"template": "confusion", "x": "label", "y": "predicted"}


def of_a_stage(path: str) -> dict[str, Any]:
    return {"stages": {"evaluate": {"cmd": "true", "plots": [{path: {"cache": False, **CONFUSION}}]}}}


@pytest.mark.parametrize(
    ("path", "pipeline"),
    [
        ("metrics/predictions.csv", of_a_stage("metrics/predictions.csv")),
        ("elsewhere/said.csv", of_a_stage("elsewhere/said.csv")),
        ("said.csv", {"plots": [{"said.csv": CONFUSION}]}),
        ("said.csv", {"plots": [{"Confusion": {**CONFUSION, "y": {"said.csv": "predicted"}}}]}),
        (
            "said.csv",
            {"plots": [{"C": {**CONFUSION, "x": {"said.csv": "label"}, "y": {"said.csv": ["predicted"]}}}]},
        ),
    ],
    ids=["of a stage", "renamed", "top level", "named", "named, by file"],
)
def test_predictions_are_what_the_confusion_matrix_is_of(made: Made, path: str, pipeline: Any) -> None:
    made.write(pipeline)
    made.put(path, PREDICTIONS)
    commit = made.commit()
    for name in (WORKSPACE, commit):
        found = made.read(name)
        assert found.predictions
        assert found.predictions.labels_N.tolist() == ["7", "2"]
        assert found.predictions.predicted_N.tolist() == ["7", "3"]
        assert path not in found.problems
        assert found.curves == []


def test_of_two_confusion_matrices_the_one_of_the_test_images_counts(made: Made) -> None:
    plots = [
        {path: {"cache": False, **CONFUSION}}
        for path in ("a-validation.csv", "metrics/predictions.csv", "z-validation.csv")
    ]
    made.write({"stages": {"evaluate": {"cmd": "true", "plots": plots}}})
    for name in ("a-validation.csv", "z-validation.csv"):
        made.put(name, OTHER_PREDICTIONS)
    made.put("metrics/predictions.csv", PREDICTIONS)
    predictions = made.read().predictions
    assert predictions
    assert predictions.num_images == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ("", "metrics/predictions.csv, line 1: found '', expected index,label,predicted"),
        (PREDICTIONS.replace("1,2,3", "1,2"), "line 3: found '1,2', expected 1,class,class"),
        (PREDICTIONS.replace("1,2,3", "2,2,3"), "line 3: found '2,2,3', expected 1,class,class"),
        (PREDICTIONS.replace("predicted", "probability"), "line 1: found 'index,label,probability'"),
    ],
    ids=["missing", "empty", "no class", "a line left out", "other columns"],
)
def test_predictions_that_cannot_be_read_are_named(made: Made, text: str | None, reason: str) -> None:
    made.write(of_a_stage("metrics/predictions.csv"))
    if text is not None:
        made.put("metrics/predictions.csv", text)
    found = made.read()
    assert found.predictions is None
    assert found.evaluation is None
    assert reason in found.problems["metrics/predictions.csv"]


def test_an_evaluation_is_scores_and_predictions(made: Made) -> None:
    made.write(of_a_stage("metrics/predictions.csv"), metrics__predictions_csv=PREDICTIONS)
    assert made.read().evaluation is None
    made.write(metrics__test_json='{"accuracy": 0.5}')
    assert made.read().evaluation == (b'{"accuracy": 0.5}', PREDICTIONS.encode())


def test_outputs_in_dvc_s_cache_are_read(made: Made) -> None:
    pipeline = of_a_stage("said.csv")
    pipeline["stages"]["evaluate"] = {
        "cmd": "cp given.csv said.csv",
        "deps": ["given.csv"],
        "plots": [{"said.csv": CONFUSION}],
    }
    made.write(pipeline, given_csv=PREDICTIONS)
    made.dvc("repro", "-q")
    commit = made.commit()
    made.git("rm", "-q", "--cached", "said.csv")
    made.git("commit", "-qm", "not in git")
    (made.folder / "said.csv").unlink()

    for name in (commit, "HEAD"):
        predictions = made.read(name).predictions
        assert predictions
        assert predictions.num_images == 2


# Metrics and params


@pytest.mark.parametrize(
    ("name", "text", "metrics"),
    [
        ("m.json", '{"a": 1, "b": {"c": 0.5, "d": {"e": "x"}}}', {"a": 1, "b.c": 0.5, "b.d.e": "x"}),
        ("m.yaml", "a: 1\nb:\n  c: 1e-05\n", {"a": 1, "b.c": 1e-05}),
        ("m.toml", "a = 1\n[b]\nc = true\n", {"a": 1, "b.c": True}),
        ("m.json", "0.25", {"": 0.25}),
        ("m.json", '{"a": 1, "list": [1, 2], "none": null}', {"a": 1}),
    ],
    ids=["nested", "YAML", "TOML", "a number alone", "with what is no metric"],
)
def test_metrics_are_by_file_and_dotted_key(made: Made, name: str, text: str, metrics: Any) -> None:
    made.write({"metrics": [name]})
    made.put(name, text)
    commit = made.commit()
    assert made.read().metrics == {name: metrics}
    assert made.read(commit).metrics == {name: metrics}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ('{"a": ', "line 1"),
        ("", "line 1"),
        ("[1, 2]", "it holds no metric"),
        ("{}", "it holds no metric"),
        ('{"a": [1]}', "it holds no metric"),
    ],
    ids=["missing", "half a file", "empty", "a list", "nothing in it", "only a list in it"],
)
def test_metrics_that_cannot_be_read_are_named_and_the_rest_is_read(
    made: Made, text: str | None, reason: str
) -> None:
    made.write({"metrics": ["m.json", "other.json"]}, other_json='{"b": 2}')
    if text is not None:
        made.write(m_json=text)
    commit = made.commit()
    for name in (WORKSPACE, commit):
        found = made.read(name)
        assert found.metrics == {"other.json": {"b": 2}}
        assert reason in found.problems["m.json"]
        assert "\n" not in found.problems["m.json"]


def test_params_of_other_files_begin_with_the_name(made: Made) -> None:
    made.write(
        {
            "params": ["more.yaml", "sub/deep.json"],
            "stages": {
                "train": {
                    "cmd": "true",
                    "params": ["lr", "data", {"own.toml": ["model.depth"]}, {"whole.yaml": None}],
                }
            },
        },
        params_yaml="lr: 0.1\ndata:\n  mirrors: [a, b]\n  n: 1\nunused: true\n",
        more_yaml="x: 1\n",
        sub__deep_json='{"y": {"z": 2}}',
        own_toml="[model]\ndepth = 3\nwidth = 4\n",
        whole_yaml="p: 1\nq:\n  r: 2\n",
    )
    found = made.read()
    assert found.params == {
        "lr": 0.1,
        "data.mirrors": ["a", "b"],
        "data.n": 1,
        "unused": True,
        "more.yaml:x": 1,
        "sub/deep.json:y.z": 2,
        "own.toml:model.depth": 3,
        "whole.yaml:p": 1,
        "whole.yaml:q.r": 2,
    }
    assert found.stages["train"].params == {
        "lr",
        "data",
        "own.toml:model.depth",
        "whole.yaml:p",
        "whole.yaml:q",
    }


@pytest.mark.parametrize("text", ["p: [", "- 1\n- 2\n", "text\n"], ids=["no YAML", "a list", "text"])
def test_params_that_cannot_be_read_are_named(made: Made, text: str) -> None:
    made.write({"metrics": ["m.json"], "params": ["p.yaml"]}, m_json='{"a": 1}', p_yaml=text)
    found = made.read()
    assert found.problems["p.yaml"]
    assert found.params == {}
    assert found.metrics
    # Without these DVC cannot fill in the templates of `dvc.yaml`.
    made.write(params_yaml=text)
    with pytest.raises(InputError, match=r"^dvc.yaml at workspace: found .*'params\.yaml'"):
        made.read()


# Stages


def test_a_stage_is_its_command_params_code_and_data(made: Made) -> None:
    made.write(
        {
            "stages": {
                "prepare": {"cmd": "cp code.py data.txt", "deps": ["code.py"], "outs": ["data.txt"]},
                "train": {
                    "cmd": ["true", "cp data.txt model.txt"],
                    "deps": ["code.py", "data.txt"],
                    "params": ["lr"],
                    "outs": ["model.txt"],
                    "metrics": [],
                },
            }
        },
        params_yaml="lr: 1\n",
        code_py="print()\n",
    )
    digest = md5("print()\n")
    empty = Stage(cmd="", params=frozenset(), code={}, data={})

    before = made.read().stages
    made.dvc("repro", "-q")
    commit = made.commit()

    assert before["prepare"].code == {"code.py": ""}
    for name in (WORKSPACE, commit):
        assert made.read(name).stages == {
            "prepare": Stage(
                cmd="cp code.py data.txt", params=frozenset(), code={"code.py": digest}, data={}
            ),
            "train": Stage(
                cmd="true\ncp data.txt model.txt",
                params=frozenset({"lr"}),
                code={"code.py": digest},
                data={"data.txt": digest},
            ),
        }
    assert made.read().stages.get("evaluate", empty) == empty


def test_stages_of_templates_are_named_as_dvc_names_them(made: Made) -> None:
    made.write(
        {
            "vars": [{"who": "me"}],
            "stages": {
                "each": {
                    "foreach": ["a", "b"],
                    "do": {"cmd": "echo ${item} ${who}", "deps": ["${item}.txt"]},
                },
                "grid": {"matrix": {"x": [1, 2], "y": ["u"]}, "cmd": "echo ${item.x}${item.y}"},
            },
        },
        a_txt="a",
        b_txt="b",
    )
    stages = made.read().stages
    assert {name: stage.cmd for name, stage in stages.items()} == {
        "each@a": "echo a me",
        "each@b": "echo b me",
        "grid@1-u": "echo 1u",
        "grid@2-u": "echo 2u",
    }
    assert list(stages["each@a"].code) == ["a.txt"]


def test_what_lies_in_a_subfolder_is_found_and_named_from_the_top(made: Made) -> None:
    stage = {
        "cmd": "true",
        "deps": ["code.py"],
        "params": ["lr"],
        "metrics": [{"m.json": {"cache": False}}],
        "plots": [
            {"a.csv": {"cache": False, "x": "epoch", "y": "loss"}},
            {"said.csv": {"cache": False, **CONFUSION}},
        ],
    }
    made.put(
        "sub/dvc.yaml",
        yaml.safe_dump(
            {"stages": {"train": stage}, "plots": [{"B": {"x": "epoch", "y": {"b.csv": "val_loss"}}}]}
        ),
    )
    made.write(
        {"stages": {"train": {"cmd": "true", "wdir": "sub", "deps": ["code.py"]}}},
        sub__code_py="x",
        sub__params_yaml="lr: 1\n",
        sub__m_json='{"a": 1}',
        sub__a_csv=LOSSES,
        sub__b_csv=TABLES["b.csv"],
        sub__said_csv=PREDICTIONS,
    )
    commit = made.commit()
    for name in (WORKSPACE, commit):
        found = made.read(name)
        assert found.metrics == {"sub/m.json": {"a": 1}}
        assert found.params == {"sub/params.yaml:lr": 1}
        assert set(found.stages) == {"train", "sub:train"}
        assert found.stages["train"].code.keys() == found.stages["sub:train"].code.keys() == {"sub/code.py"}
        assert found.stages["sub:train"].params == {"sub/params.yaml:lr"}
        assert sorted(curve.y for curve in found.curves) == ["loss", "val_loss"]
        assert found.predictions
        assert set(found.problems) == {"metrics/validation.json"}


def test_what_dvc_tracks_by_itself_is_data(made: Made) -> None:
    made.write(
        {
            "stages": {
                "one": {"cmd": "true", "deps": ["raw", "single.txt", "code.py"]},
                "two": {"cmd": "true", "deps": ["raw/a.txt", "library"]},
            }
        },
        raw__a_txt="a",
        single_txt="s",
        code_py="c",
        library__x_py="x",
    )
    made.dvc("add", "-q", "raw", "single.txt")
    found = made.read().stages
    assert set(found) == {"one", "two", "raw.dvc", "single.txt.dvc"}
    assert (set(found["one"].code), set(found["one"].data)) == ({"code.py"}, {"raw", "single.txt"})
    assert (set(found["two"].code), set(found["two"].data)) == ({"library"}, {"raw/a.txt"})


@pytest.fixture
def trained(made: Made) -> Made:
    """Three stages that ran; nothing reads what the last one makes."""
    made.write(
        {
            "stages": {
                "prepare": {
                    "cmd": "cp code.py data.txt",
                    "deps": ["code.py"],
                    "outs": [{"data.txt": {"cache": False}}],
                },
                "train": {
                    "cmd": "cp data.txt m.json",
                    "deps": ["data.txt", "code.py"],
                    "params": ["lr", "section", {"own.yaml": None}],
                    "metrics": [{"m.json": {"cache": False}}],
                },
                "report": {
                    "cmd": "cp code.py page.txt",
                    "deps": ["code.py"],
                    "params": ["lr"],
                    "outs": ["page.txt"],
                },
            }
        },
        code_py='{"a": 1}',
        params_yaml="lr: 1\nsection:\n  deep: 2\nunused: 3\n",
        own_yaml="p: 1\n",
    )
    made.dvc("repro", "-q")
    made.commit()
    return made


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("code.py", "1", "2", {"prepare": ("code.py",), "train": ("code.py",)}),
        ("params.yaml", "lr: 1", "lr: 2", {"train": ("lr",)}),
        ("params.yaml", "deep: 2", "deep: 3", {"train": ("section",)}),
        ("params.yaml", "lr: 1", "rate: 1", {"train": ("lr",)}),
        ("params.yaml", "unused: 3", "unused: 4", {}),
        ("own.yaml", "p: 1", "p: 2", {"train": ("own.yaml:p",)}),
        ("dvc.yaml", "cmd: cp data.txt m.json", "cmd: cp  data.txt m.json", {"train": ("its command",)}),
        ("dvc.yaml", "cmd: cp code.py page.txt", "cmd: cp  code.py page.txt", {}),
        ("data.txt", "1", "2", {}),
    ],
    ids=["code", "param", "section", "param gone", "unused", "own file", "command", "of a report", "data"],
)
def test_what_changed_since_the_results_were_made(
    trained: Made, file: str, old: str, new: str, changed: dict[str, tuple[str, ...]]
) -> None:
    def stale(name: str) -> dict[str, tuple[str, ...]]:
        return {stage: of.changed for stage, of in trained.read(name).stages.items() if of.changed}

    assert stale(WORKSPACE) == stale("HEAD") == {}
    text = (trained.folder / file).read_text()
    assert old in text
    trained.put(file, text.replace(old, new))
    assert stale(WORKSPACE) == changed
    assert stale("HEAD") == {}
    commit = trained.commit()
    assert stale(commit) == changed
    assert stale("HEAD~1") == {}


def test_without_a_lock_nothing_is_vouched_for(trained: Made) -> None:
    (trained.folder / "dvc.lock").unlink()
    found = trained.read()
    assert found.metrics == {"m.json": {"a": 1}}
    assert found.stages["train"].code == {"code.py": ""}
    assert found.stages["train"].changed == ("not in dvc.lock",)


# Pipelines and repositories that are none


@pytest.mark.parametrize(
    "pipeline",
    [
        "stages: [",
        "stages:\n  train:\n    deps: [a]\n",
        "<<<<<<< HEAD\n",
        "stages:\n  a: {cmd: x}\n  a: {cmd: y}\n",
    ],
    ids=["no YAML", "a stage without a command", "conflict", "a stage twice"],
)
def test_a_pipeline_that_is_none_is_one_line(made: Made, pipeline: str) -> None:
    made.write(pipeline)
    made.commit()
    for name in (WORKSPACE, "HEAD"):
        with pytest.raises(InputError, match=f"^dvc.yaml at {name}: found .*, expected a pipeline") as caught:
            made.read(name)
        assert "\n" not in str(caught.value)


def test_a_lock_that_is_none_is_one_line(trained: Made) -> None:
    trained.put("dvc.lock", "<<<<<<< HEAD\n")
    with pytest.raises(InputError, match=r"dvc\.lock") as caught:
        trained.read()
    assert "\n" not in str(caught.value)


def test_without_a_pipeline_there_is_nothing(made: Made) -> None:
    for snapshot in (made.read(), made.read(made.commit())):
        assert snapshot.metrics == snapshot.params == snapshot.stages == {}
        assert snapshot.curves == []
        assert snapshot.problems == {"metrics/validation.json": "no such file"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "no such file"), ("{", "line 1"), ("{}", "success: found nothing"), ("[]", "found list")],
    ids=["missing", "half a file", "nothing in it", "a list"],
)
def test_a_verdict_on_the_data_that_cannot_be_read_is_named(
    made: Made, text: str | None, reason: str
) -> None:
    if text is not None:
        made.write(metrics__validation_json=text)
    found = made.read()
    assert found.validation is None
    assert reason in found.problems["metrics/validation.json"]
    assert len(found.problems["metrics/validation.json"]) < 250


def test_a_verdict_on_the_data_is_read(made: Made) -> None:
    ours = Path(__file__).parents[3] / "metrics/validation.json"
    made.write(metrics__validation_json=ours.read_text())
    validation = made.read().validation
    assert validation
    assert validation.success
    assert validation.num_images == {"train": 60000, "test": 10000}


# Names of revisions


def test_revisions_are_found_by_all_their_names(made: Made) -> None:
    made.write({"metrics": ["m.json"]}, m_json='{"a": 1}')
    first = made.commit()
    made.git("tag", "-am", "annotated", "v1")
    made.write(m_json='{"a": 2}')
    second = made.commit()
    made.git("branch", "feature/x")
    made.git("update-ref", f"refs/exps/{first[:2]}/{first[2:]}/gusty-newt", second)
    made.write(m_json='{"a": 3}')

    def value(name: str) -> Any:
        found = made.read(name)
        assert found.name == (name[:7] if found.commit.startswith(name) else name)
        return found.commit, found.metrics["m.json"]["a"]

    for name in ("v1", first, first[:7], "HEAD~1", "main~1", "HEAD^", "@{0}~1", "refs/tags/v1"):
        assert value(name) == (first, 1)
    for name in ("HEAD", "main", "feature/x", "gusty-newt", "refs/heads/main"):
        assert value(name) == (second, 2)
    assert value(WORKSPACE) == ("", 3)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nowhere",
        "0" * 40,
        "HEAD~7",
        "HEAD:m.json",
        "HEAD^{tree}",
        "main..main",
        "^main",
        "a b",
        "a\nb",
        "-",
        "--upload-pack=touch owned",
        "main:refs/heads/owned",
        "+main:refs/heads/owned",
        "refs/heads/*:refs/heads/owned/*",
        "a" * 5000,
        os.fsdecode(b"\xff"),
    ],
    ids=ascii,
)
def test_a_name_of_nothing_is_one_line_and_writes_nothing(made: Made, tmp_path: Path, name: str) -> None:
    made.write({"metrics": ["m.json"]}, m_json='{"a": 1}')
    made.commit()
    # An origin that has `main`, so that a refspec would find something.
    made.git("clone", "-q", "--bare", str(made.folder), str(tmp_path / "origin"))
    made.git("remote", "add", "origin", (tmp_path / "origin").as_uri())
    refs = made.git("for-each-ref")
    with pytest.raises(InputError, match=r"^revision") as caught:
        made.read(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 15_000
    assert made.git("for-each-ref") == refs
    assert not (made.folder / "owned").exists()


def test_what_another_pushed_is_fetched_into_no_ref(made: Made, tmp_path: Path) -> None:
    made.write({"metrics": ["m.json"]}, m_json='{"a": 1}')
    made.commit()
    made.git("clone", "-q", "--bare", str(made.folder), str(tmp_path / "origin"))
    made.git("remote", "add", "origin", (tmp_path / "origin").as_uri())
    made.git("fetch", "-q", "origin")
    made.git("config", "remote.origin.tagOpt", "--tags")
    other = Made(tmp_path / "other")
    made.git("clone", "-q", (tmp_path / "origin").as_uri(), str(other.folder))
    other.git("checkout", "-qb", "new")
    other.write(m_json='{"a": 2}')
    commit = other.commit()
    other.git("tag", "v9")
    other.git("tag", "a-file", "HEAD:m.json")
    other.git("push", "-q", "origin", "new", "v9", "a-file")
    refs = made.git("for-each-ref")

    for name in ("origin/new", "new", commit):
        found = made.read(name)
        assert (found.commit, found.metrics) == (commit, {"m.json": {"a": 2}})
    with pytest.raises(InputError, match=": it is no commit"):
        made.read("a-file")
    assert made.git("for-each-ref") == refs
    assert made.git("rev-parse", "--is-shallow-repository") == "false"


@pytest.mark.parametrize("kind", ["folder", "git alone", "DVC alone", "no commit", "inside"])
def test_what_is_no_checkout_is_one_line(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    other = Made(folder)
    if kind == "git alone":
        other.git("init", "-q")
    if kind == "DVC alone":
        other.dvc("init", "-q", "--no-scm")
    if kind == "no commit":
        other = made
    if kind == "inside":
        other = Made(made.folder / "metrics")
        other.folder.mkdir()
        made.commit()
    monkeypatch.chdir(other.folder)
    with pytest.raises(InputError) as caught:
        other.read("main")
    assert "\n" not in str(caught.value)
    if kind == "no commit":
        assert other.read().metrics == {}
