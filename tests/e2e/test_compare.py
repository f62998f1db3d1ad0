"""`mnist compare` on the trained clone: recipes of commits and of the workspace, trained over seeds."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist.core import config, files, paths
from tests import checkout
from tests.checkout import Clone, edit
from tests.e2e.conftest import Invoke

DEADLINE_SECONDS = 120


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def state(clone: Clone) -> list[object]:
    questions = (["status", "--porcelain"], ["diff", "HEAD"], ["for-each-ref"], ["worktree", "list"])
    return [*(clone.run("git", *question).stdout for question in questions), len(clone.runs())]


def test_a_worse_recipe_in_the_workspace(trained: Clone, temporary: Path, invoke: Invoke) -> None:
    """Its data come from nowhere but the mirror, and its results are kept."""
    shutil.rmtree(trained.folder / ".dvc/cache")
    shutil.rmtree(trained.folder / "data")
    edit(trained, "params.yaml", "lr: 0.02", "lr: 0.0001")
    (trained.folder / "mnist/training/unused.py").write_text('"""A new file, which git does not know."""\n')
    before = state(trained)

    seed = str(config.load(trained.folder / paths.PARAMS).seed)
    done = invoke(trained, "compare", "main", "--seeds", "3", "--first-seed", seed, "--json")

    assert done.exit_code == 1, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["difference"]["outcome"] == "worse"
    base, head = report["sides"]
    assert [base["name"], head["name"], head["commit"]] == ["main", "workspace", ""]
    # One process trains all seeds, and each reaches what `dvc repro` reaches with it.
    assert base["accuracies"][0] == files.read_json(trained.folder / paths.TEST_METRICS)["accuracy"]
    assert len(set(base["accuracies"])) > 1
    assert state(trained) == before
    assert list(temporary.iterdir()) == []
    kept = sorted((trained.folder / ".cache/trials").glob("*/*"))
    assert len(kept) == 6

    for path in kept:
        files.write_json(path, {"accuracy": 0.5})
    again = invoke(trained, "compare", "main", "--seeds", "3", "--first-seed", seed)
    assert again.exit_code == 0, again.output
    assert "**No evidence** after 3 seeds" in again.stdout
    assert again.stdout.count("50.00%") >= 6  # nothing was trained
    kept[0].write_text("damaged")
    third = invoke(trained, "compare", "main", "--seeds", "3", "--first-seed", seed)
    assert f"a kept result is ignored: {kept[0]}" in third.stderr
    assert files.read_json(kept[0])["accuracy"] != 0.5


def test_one_recipe_is_said_at_once(trained_module: Clone, invoke: Invoke) -> None:
    done = invoke(trained_module, "compare", "main")

    assert done.exit_code == 0, done.output
    assert "**One recipe**" in done.stdout
    assert "seed 0" not in done.stderr


def test_a_recipe_that_diverges(trained: Clone, temporary: Path, invoke: Invoke) -> None:
    edit(trained, "params.yaml", "lr: 0.02", "lr: 1e9")

    done = invoke(trained, "compare", "--seeds", "2")

    assert (done.exit_code, done.stdout) == (2, "")
    *_, error = done.stderr.splitlines()
    assert error.startswith("ERROR: seed 0 of workspace: found `params.yaml: lr: found a loss of ")
    assert list(temporary.iterdir()) == []


def test_what_is_no_revision_with_the_pipeline(trained: Clone, temporary: Path, invoke: Invoke) -> None:
    trained.run("git", "checkout", "-q", "--orphan", "empty")
    trained.run("git", "rm", "-rfq", "--cached", ".")
    trained.run("git", "commit", "-q", "--allow-empty", "-m", "Nothing")
    trained.run("git", "checkout", "-qf", "main")
    edit(trained, "dvc.yaml", "cmd: python -m stages.train", "cmd: python train.py")

    for base, where in (
        ("", "revision: found nothing"),  # of a variable that is not set
        ("empty", "dvc.yaml at empty"),
        ("nowhere", "revision nowhere"),
        ("main", "dvc.yaml at"),
    ):
        done = invoke(trained, "compare", base)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        *_, error = done.stderr.splitlines()
        assert error.startswith(f"ERROR: {where}")
    assert list(temporary.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(trained: Clone, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist", "compare"],
        cwd=trained.folder,
        env={**trained.environment, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert any(line.startswith("seed 0: ") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(folder.iterdir()) == []
    assert checkout.processes_in(folder) == []
