"""The store's URI: resolved, shown without secrets, shared by worktrees; and what `make ui` starts for it."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mnist.core import paths
from mnist.tracking.database import STORE
from tests import checkout
from tests.checkout import ROOT, Repository, repository


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(
    ("uri", "status", "said"),
    [
        ("sqlite:///mlflow.db", 0, "ui --backend-store-uri sqlite:///{root}/mlflow.db --port 5000"),
        (
            "postgresql+psycopg2://ada:SECRET@db/mlflow",
            0,
            "ui --backend-store-uri postgresql+psycopg2://ada:SECRET@db/mlflow --port 5000",
        ),
        ("https://ada:SECRET@h/mlflow/", 0, "The runs are on the server https://h/mlflow/"),
        (
            "sqlite:///empty.db",
            2,
            "ERROR: MLflow at sqlite:///empty.db: found an empty file, expected {store}",
        ),
        (
            "sqlite:///locked.db",
            2,
            (
                "ERROR: MLflow at sqlite:///locked.db: found database is locked, "
                "expected no other process that writes"
            ),
        ),
    ],
)
def test_the_ui_opens_databases_and_names_servers(
    uri: str, status: int, said: str, tmp_path: Path, migrated_store: Path
) -> None:
    shutil.copyfile(migrated_store, tmp_path / "mlflow.db")
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    for name, script in {"python": f'exec {sys.executable} "$@"', "mlflow": 'echo "$@"'}.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    for name in ("empty.db", "requirements.lock", ".venv/installed"):  # set up, and up to date
        (tmp_path / name).touch()
    environment = checkout.environment(tmp_path)
    environment |= {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "PORT": "5000"}
    shutil.copyfile(migrated_store, tmp_path / "locked.db")
    with closing(sqlite3.connect(tmp_path / "locked.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = subprocess.run(
            ["make", "ui"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    output = (done.stdout + done.stderr).splitlines()
    assert done.returncode == status
    assert said.format(root=tmp_path, store=STORE) in output
    runs = [
        line for line in output if line.startswith("The runs: http://127.0.0.1:5000/#/experiments/1/runs?")
    ]
    assert len(runs) == (uri == "sqlite:///mlflow.db")  # nothing answers at the others


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:////somewhere/runs.db", "sqlite:////somewhere/runs.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("", "sqlite:///{root}/mlflow.db"),
    ],
    ids=["relative", "absolute", "server", "empty"],
)
def test_the_tracking_uri_of_the_environment_is_honoured(
    uri: str, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert paths.store_uri() == resolved.format(root=tmp_path)


@pytest.mark.parametrize("path", ["/a b/mlflow.db", "/a%20b/c?d.db"])
def test_the_uri_of_a_file_leads_back_to_it(path: str) -> None:
    uri = paths.sqlite_uri(Path(path))
    assert paths.sqlite_file(uri) == paths.sqlite_file(f"{uri}?timeout=5") == Path(path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/ada/pipeline/mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ada:SECRET@tracking.example.org/mlflow/", "https://tracking.example.org/mlflow/"),
        ("postgresql+psycopg2://ada:SECRET@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://db/mlflow?user=ada&password=SECRET", "postgresql://db/mlflow"),
        ("postgresql://ada@/mlflow?host=/run/postgresql", "postgresql:///mlflow"),
        ("postgresql://ada:12/SECRET@db/mlflow", "(not shown)"),
        ("postgresql://ada:a@SECRET@db/mlflow", "(not shown)"),
        ("postgresql://db/mlflow?password=a@SECRET", "(not shown)"),
        ("ada:SECRET@db", "(not shown)"),
    ],
)
def test_no_secret_of_a_store_is_shown(uri: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/home/ada/pipeline")
    assert paths.shown(uri) == shown


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with a commit."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return repository(tmp_path / "main", {"pipeline/file": ""}).folder


@pytest.mark.parametrize("place", ["", "pipeline"], ids=["top", "subfolder"])
def test_a_worktree_shares_the_store_of_the_main_checkout(
    place: str, main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    Repository(main).git("worktree", "add", "-q", str(tree))
    for folder in (main, tree):
        monkeypatch.setenv("DVC_ROOT", str(folder / place))
        assert paths.checkout() == folder / place
        assert paths.root() == main / place
        assert paths.store_uri() == f"sqlite:///{main / place}/mlflow.db"


@pytest.mark.parametrize("name", ["main.git", "project/.git"])
def test_a_worktree_of_a_bare_repository_has_a_store_of_its_own(
    name: str, main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, tree = tmp_path / name, tmp_path / "tree"
    Repository(main).git("clone", "-q", "--bare", str(main), str(bare))
    Repository(bare).git("worktree", "add", "-q", "-b", "side", str(tree))
    monkeypatch.setenv("DVC_ROOT", str(tree))
    assert paths.root() == tree
    assert paths.git_folders()[1] == bare


def test_a_submodule_has_a_store_of_its_own(
    main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = repository(tmp_path / "outer", {"file": ""})
    outer.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(main), "inner")
    monkeypatch.setenv("DVC_ROOT", str(outer.folder / "inner"))
    assert paths.root() == outer.folder / "inner"
    assert paths.git_folders()[1].samefile(outer.folder / ".git/modules/inner")
