"""What `make ui` says and starts, by the store's URI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


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
        ("mysql://db/mlflow", 0, "ui --backend-store-uri mysql://db/mlflow --port 5000"),
        ("mssql+pyodbc://db/mlflow", 0, "ui --backend-store-uri mssql+pyodbc://db/mlflow --port 5000"),
        ("https://ada:SECRET@h/mlflow/", 0, "The runs are on the server https://h/mlflow/"),
        ("http://127.0.0.1:5000", 0, "The runs are on the server http://127.0.0.1:5000"),
        (
            "ada:SECRET@db",
            2,
            "MLFLOW_TRACKING_URI: found (not shown), expected an http(s) or a database URI",
        ),
    ],
)
def test_the_ui_opens_databases_and_names_servers(uri: str, status: int, said: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    for name, script in {"python": f'exec {sys.executable} "$@"', "mlflow": 'echo "$@"'}.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    for name in ("requirements.lock", ".venv/installed"):  # set up, and up to date
        (tmp_path / name).touch()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MAKE", "MFLAGS"))
    }
    environment = kept | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "PORT": "5000"}
    done = subprocess.run(
        ["make", "ui"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    output = (done.stdout + done.stderr).splitlines()
    assert (done.returncode, output[0]) == (status, said.format(root=tmp_path))
