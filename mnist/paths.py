"""Where the pipeline's files are, relative to the folder that holds `dvc.yaml`."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")

DATASET = Path("data/mnist.safetensors")
STATS = Path("data/stats.json")
VALIDATION_PAGE = Path("data/validation.html")

WEIGHTS = Path("models/model.safetensors")

VALIDATION = Path("metrics/validation.json")
HISTORY = Path("metrics/history.csv")
STEPS = Path("metrics/steps.csv")
TRAINING_METRICS = Path("metrics/train.json")
TEST_METRICS = Path("metrics/test.json")
PREDICTIONS = Path("metrics/predictions.csv")
GALLERY = Path("metrics/plots/predictions.png")
ERRORS_GALLERY = Path("metrics/plots/errors.png")

# What an MLflow run keeps, beside its model: where a result came from, and how good it is.
ARTIFACTS = (
    PARAMS,
    PIPELINE,
    WEIGHTS,
    VALIDATION,
    VALIDATION_PAGE,
    STATS,
    TRAINING_METRICS,
    HISTORY,
    STEPS,
    TEST_METRICS,
    PREDICTIONS,
    GALLERY,
    ERRORS_GALLERY,
)


def root() -> Path:
    """The main checkout: DVC names it in `DVC_ROOT`, outside DVC it is the current folder.

    In `dvc exp run --temp` and `--queue` the stages work in a temporary tree that is deleted
    afterwards; what must outlive the stage (download cache, MLflow store) belongs under `root`.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()
