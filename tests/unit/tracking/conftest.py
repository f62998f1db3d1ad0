"""A training and its events, and a store for each test."""

import shutil
from pathlib import Path

import pytest

from mnist.lineage.fingerprint import Source, Training
from mnist.training.history import Epoch, Window

SOURCE = Source(commit="c" * 40, branch="main", patch="", experiment="", rerun="dvc repro")
TRAINING = Training(
    fingerprint="f" * 64, dataset_sha256="d" * 64, params={"lr": 0.01, "permute_pixels": False}, source=SOURCE
)
WINDOW = Window(epoch=1, step=100, num_images=6400, loss=0.9, accuracy=0.7)
EPOCH = Epoch(epoch=1, step=120, train_loss=0.8, train_accuracy=0.72, val_loss=0.4, val_accuracy=0.88)


@pytest.fixture
def new_store_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the default store be in a folder that is not the current one; it is not there yet."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def store_folder(new_store_folder: Path, migrated_store: Path) -> Path:
    """Let the default store be in a folder that is not the current one; it is empty."""
    shutil.copyfile(migrated_store, new_store_folder / "mlflow.db")
    return new_store_folder
