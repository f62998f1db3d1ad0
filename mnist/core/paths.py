"""Paths of the pipeline's files, relative to the folder of `dvc.yaml`, and the URI of MLflow's store."""

import os
import re
from pathlib import Path

PARAMS = Path("params.yaml")
DATASETS = Path("datasets")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")

DOWNLOADS = Path(".cache/mnist")  # under `root()`: outside the outs, which DVC deletes before a run
MIRROR_VARIABLE = "MNIST_MIRROR"  # of the environment: a folder or URL to download from first

DATASET = Path("data/mnist.safetensors")
STATS = Path("data/stats.json")
VALIDATION_PAGE = Path("data/validation.html")
LOG_PROBS = Path("data/log_probs.safetensors")

WEIGHTS = Path("models/model.safetensors")
REGISTERED = Path("models/registered.json")

VALIDATION = Path("metrics/validation.json")
HISTORY = Path("metrics/history.csv")
STEPS = Path("metrics/steps.csv")
TRAINING_METRICS = Path("metrics/train.json")
TEST_METRICS = Path("metrics/test.json")
PREDICTIONS = Path("metrics/predictions.csv")
CLASSES = Path("metrics/classes.csv")
PLOTS = Path("metrics/plots")
GALLERY = PLOTS / "predictions.png"
ERRORS_GALLERY = PLOTS / "errors.png"
FILTERS = PLOTS / "filters.png"
FEATURE_MAPS = PLOTS / "feature_maps.png"
REPORT = Path("metrics/report.html")  # git-ignored, and no out of DVC: it tells commit and time

# What an MLflow run keeps, beside its model: where a result came from, and how good it is.
ARTIFACTS = (
    PARAMS,
    PIPELINE,
    LOCK,
    WEIGHTS,
    VALIDATION,
    VALIDATION_PAGE,
    STATS,
    TRAINING_METRICS,
    HISTORY,
    STEPS,
    TEST_METRICS,
    PREDICTIONS,
    CLASSES,
    LOG_PROBS,
    GALLERY,
    ERRORS_GALLERY,
    FILTERS,
    FEATURE_MAPS,
)


def checkout() -> Path:
    """The checkout that the user works in: DVC names it, outside DVC it is the current folder.

    In `dvc exp run --temp` and `--queue` the stages work in a temporary tree that is deleted
    afterwards, and this is another folder.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def root() -> Path:
    """The main checkout, which `checkout` and all its git worktrees share.

    What must outlive a stage, and be there once (download cache, MLflow store), belongs under it.
    """
    link = checkout() / ".git"  # in a worktree a file: "gitdir: <main checkout>/.git/worktrees/<name>"
    if link.is_file():
        folder = Path(link.read_text(encoding="utf-8").removeprefix("gitdir:").strip())
        if folder.parent.name == "worktrees":
            return folder.parents[2].resolve()
    return checkout()


def store_uri() -> str:
    """MLflow's tracking URI; a relative SQLite path is one under `root()`, whatever the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or not file else f"sqlite:///{root() / file}"


def shown(uri: str) -> str:
    """A store's URI as it may be published: no user, no password, no query; SQLite's relative to `root()`.

    What does not read as a URI for sure is left out, since a password with an odd character in it
    could be in any part.
    """
    if uri.startswith("sqlite:///"):
        return uri.partition("?")[0].replace(f"sqlite:///{root()}/", "sqlite:///")
    parts = re.fullmatch(
        r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^@/?#]*@)?"
        r"(?P<place>(?:[\w.-]*|\[[0-9a-f:.]+\])(?::[0-9]+)?(?:/[\w./-]*)?)(?:[?#][^@]*)?",
        uri,
        re.IGNORECASE,
    )
    return f"{parts['scheme']}{parts['place']}" if parts else "(not shown)"
