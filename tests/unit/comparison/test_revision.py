"""Results of revisions, in a small repository of git and DVC that is made once and copied by each test."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mnist.comparison import revision
from mnist.comparison.revision import WORKSPACE, Snapshot
from mnist.core.errors import InputError
from tests import checkout
from tests.faults.mutations import BOMB

# pygtrie 2.5, a dependency of DVC, warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")

VALIDATION = Path(__file__).parents[3] / "metrics/validation.json"
PIPELINE = """\
stages:
  prepare: {cmd: cp code/sub/a.py data.txt, deps: [code], outs: [data.txt]}
  train:
    cmd: cp train.py m.json && cp table.csv steps.csv && cp labels.csv predictions.csv
    deps: [data.txt, train.py]
    params: [lr, section, {own.yaml: [p]}]
    metrics: [m.json: {cache: false}]
    plots:
      - steps.csv: {cache: false, x: step, y: loss}
      - predictions.csv: {cache: false, template: confusion, x: label, y: predicted}
  page: {cmd: cp page.py page.html, deps: [page.py], outs: [page.html]}
metrics: [extra.yaml]
"""
FILES = {
    "dvc.yaml": PIPELINE,
    ".dvcignore": "__pycache__\n",
    ".gitignore": "__pycache__\n",
    "code/sub/a.py": "a",
    "code/b.py": "b",
    "train.py": json.dumps({"accuracy": 0.5, "deep": {"f1": 0.25, "of": 3}}),
    "table.csv": "step,loss\n1,0.5\n2,0.25\n",
    "labels.csv": "index,label,predicted\n0,7,7\n1,2,3\n",
    "page.py": "page",
    "params.yaml": "lr: 1e-5\nsection:\n  deep: 2\nunused: 3\n",
    "own.yaml": "p: 1\nq: 2\n",
    "extra.yaml": "gpu:\n  p99: 12.5\nworst: .nan\n",
    "metrics/validation.json": VALIDATION.read_text(encoding="utf-8"),
    "metrics/steps.csv": "step,loss\n1,0.5\n2,0.25\n",
    "metrics/history.csv": "epoch,val_loss\n1,nan\n2,0.75\n",
}


@dataclass(frozen=True)
class Repository(checkout.Repository):
    """A repository whose files and pipeline are changed."""

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        self.write({name: text.replace(old, new)})

    def read(self, name: str) -> Snapshot:
        """Read a revision; the workspace is compared with itself."""
        return revision.read(name, WORKSPACE, self.folder)[0]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "repository"
    checkout.initialise(folder)
    made = Repository(folder)
    made.write(FILES)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, check=True)
    made.commit()
    # As in a fresh clone, the outputs in DVC's cache are not there.
    for name in ("data.txt", "page.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / ".dvc/cache")
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    folder = tmp_path / "repository"
    shutil.copytree(template, folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    monkeypatch.chdir(folder)
    return Repository(folder)


@pytest.mark.parametrize("name", [WORKSPACE, "HEAD"])
def test_results_are_read(made: Repository, name: str) -> None:
    found = made.read(name)
    assert found.metrics == {
        "m.json": {"accuracy": 0.5, "deep.f1": 0.25, "deep.of": 3},
        "extra.yaml": {"gpu.p99": 12.5, "worst": "nan"},
    }
    assert found.params == {"lr": 1e-5, "section.deep": 2, "unused": 3, "own.yaml:p": 1}
    assert found.predictions
    assert found.predictions.predicted_N.tolist() == ["7", "3"]
    assert found.validation
    assert found.validation.num_images == {"train": 60000, "test": 10000}
    assert found.curves == {
        "Training loss by step": ((1.0, 0.5), (2.0, 0.25)),
        "Validation loss by epoch": ((2.0, 0.75),),
    }
    assert set(found.code) == {"code", "train.py", "command of prepare", "command of train"}
    assert (found.stale, found.problems) == ((), {})


def test_a_damaged_object_of_git_is_named(made: Repository) -> None:  # DVC would wait for it
    made.write({"m.json": '{"accuracy": 0.75}'})
    made.commit()
    digest = made.git("rev-parse", "HEAD:m.json")
    file = made.folder / ".git/objects" / digest[:2] / digest[2:]
    file.chmod(0o600)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=digest[:7]):
        made.read("HEAD")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("m.json", None, "no such file"),
        ("m.json", '{"accuracy": 0.', "corrupted"),
        ("m.json", "[1, 2]", "no metric"),
        ("own.yaml", "p: [", "own.yaml"),
        ("predictions.csv", None, "no such file"),
        ("predictions.csv", "index,label,predicted\n0,7\n", "line 2"),
        ("metrics/validation.json", "{}", "success"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(
    made: Repository, file: str, text: str | None, reason: str
) -> None:
    if text is None:
        (made.folder / file).unlink()
    else:
        made.write({file: text})
    for name in (WORKSPACE, made.commit()):
        found = made.read(name)
        assert set(found.problems) - {"dvc.lock"} == {file}
        assert reason in found.problems[file]
        assert "\n" not in found.problems[file]
        assert found.metrics["extra.yaml"]["gpu.p99"] == 12.5
        assert (found.predictions is None) == (file == "predictions.csv")
        assert (found.validation is None) == file.endswith("validation.json")


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("train.py", "0.25", "0.75", "train.py"),
        ("code/sub/a.py", "a", "b", "code"),
        ("params.yaml", "1e-5", "1e-4", "lr"),
        ("own.yaml", "p: 1", "p: 2", "own.yaml:p"),
        ("dvc.yaml", "cmd: cp train.py", "cmd: cp  train.py", "command of train"),
        ("m.json", "3", "2", "m.json"),
        ("predictions.csv", "3", "2", "predictions.csv"),
        ("params.yaml", "unused: 3", "unused: 4", None),
        ("page.py", "page", "other", None),  # nothing depends on that stage
        ("code/b.py", "b", "b", None),
    ],
)
def test_stale_and_edited_results(made: Repository, file: str, old: str, new: str, stale: str | None) -> None:
    made.edit(file, old, new)
    made.write({"code/__pycache__/b.pyc": "bytecode"})
    for name in [WORKSPACE, *([made.commit()] if old != new else [])]:
        assert made.read(name).stale == ((stale,) if stale else ())
    assert made.read("HEAD~1" if old != new else "HEAD").stale == ()


def test_without_a_lock_all_is_stale(made: Repository) -> None:
    (made.folder / "dvc.lock").unlink()
    found = made.read(WORKSPACE)
    assert found.stale == ("stage prepare", "stage train")
    assert found.metrics["m.json"]["accuracy"] == 0.5


def test_names_and_commits(made: Repository) -> None:
    first = made.git("rev-parse", "HEAD")
    made.write({"extra.yaml": "gpu: 1\n"})
    second = made.commit()
    made.git("update-ref", f"refs/exps/{first[:2]}/{first[2:]}/gusty-newt", second)
    base, head = revision.read(first, "gusty-newt", made.folder)
    assert (base.name, base.commit, base.metrics["extra.yaml"]["gpu.p99"]) == (first[:7], first, 12.5)
    assert (head.name, head.commit, head.metrics["extra.yaml"]) == ("gusty-newt", second, {"gpu": 1})
    assert head.num_missing == 0
    base, head = revision.read("main", "HEAD~1", made.folder)
    assert (base.name, head.name, head.num_missing) == ("main", "HEAD~1", 1)
    assert revision.read("HEAD", WORKSPACE, made.folder)[1].commit == ""
    with pytest.raises(InputError, match="revision nowhere"):
        made.read("nowhere")


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_a_small_file_that_holds_too_much_is_an_error(made: Repository, file: str) -> None:
    """DVC would read it for hours."""
    made.write({file: f"a: {BOMB}\n"})
    for name in (WORKSPACE, made.commit()):
        with pytest.raises(InputError, match=f"^{file} at {name}: .*more than 100,000 values"):
            made.read(name)


def test_a_subfolder_of_a_repository_has_its_own_files(made: Repository) -> None:
    (made.folder / "sub").mkdir()
    for name in (*FILES, ".dvc"):
        if (made.folder / name).exists():
            made.git("mv", name.partition("/")[0], "sub/")
    made.write({"params.yaml": f"a: {BOMB}\n"})  # of another project
    made.commit()
    base, _ = revision.read("HEAD", WORKSPACE, made.folder / "sub")
    assert base.params["lr"] == 1e-5


@pytest.mark.parametrize("pipeline", ["stages: [", "stages:\n  a: {deps: [x]}\n"])
def test_a_pipeline_that_is_none_is_an_error(made: Repository, pipeline: str) -> None:
    made.write({"dvc.yaml": pipeline})
    for name in (WORKSPACE, made.commit()):
        with pytest.raises(InputError, match=f"^dvc.yaml at {name}: ") as caught:
            made.read(name)
        assert "\n" not in str(caught.value)
