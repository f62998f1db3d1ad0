"""Paths of the pipeline's files, relative to the folder of `dvc.yaml`, and the URI of MLflow's store."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

PARAMS = Path("params.yaml")
DATASETS = Path("datasets")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")

DOWNLOADS = Path(".cache/mnist")  # under `root()`: outside the outs, which DVC deletes before a run
CHECKPOINTS = Path(".cache/checkpoints")  # so do these
MIRROR_VARIABLE = "MNIST_MIRROR"  # of the environment: a folder or URL to download from first

DATASET = Path("data/mnist.safetensors")
STATS = Path("data/stats.json")
VALIDATION_PAGE = Path("data/validation.html")
LOG_PROBS = Path("data/log_probs.safetensors")

WEIGHTS = Path("models/model.safetensors")
ONNX = Path("models/model.onnx")
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
SIGNAL = Path(".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED")  # under `checkout()`: read by DVC's extension
REPORT = Path("metrics/report.html")  # git-ignored, and no out of DVC: it has commit and time

# The files of an MLflow run, beside its model.
ARTIFACTS = (
    PARAMS,
    PIPELINE,
    LOCK,
    WEIGHTS,
    ONNX,
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
    """Return the user's checkout: DVC's `DVC_ROOT`, else the current folder.

    In `dvc exp run --temp` and `--queue` the stages run in a temporary tree, which is deleted afterwards.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def root() -> Path:
    """Return the main checkout, which all git worktrees share; a worktree of a bare repository stands alone.

    The download cache and the MLflow store are there: they outlive a stage, and exist once.
    """
    here, top = checkout(), _top()
    own, shared = git_folders()
    if own != shared and shared.name == ".git" and not _is_bare(shared):
        return shared.parent / here.relative_to(top)
    return here


def git_folders() -> tuple[Path, Path]:
    """Return git's folder of this checkout, and the one that its worktrees share; they may not exist."""
    own = _top() / ".git"
    if own.is_file():  # in a worktree "gitdir: <main checkout>/.git/worktrees/<name>"; or of a submodule
        own = own.parent / own.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    common = own / "commondir"  # a worktree has one
    return own, (own / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else own


def _top() -> Path:
    """Return the top folder of the repository, which is the checkout or above it."""
    here = checkout()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def _is_bare(repository: Path) -> bool:
    """Return whether a repository has no checkout of its own, only worktrees."""
    configs = [repository / name for name in ("config", "config.worktree")]
    texts = [path.read_text(encoding="utf-8") for path in configs if path.is_file()]
    return any(re.search(r"(?mi)^\s*bare\s*=\s*true\b", text) for text in texts)


def store_uri() -> str:
    """Return MLflow's tracking URI; a relative SQLite path is relative to `root()`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or not file or file.startswith("/") else f"{sqlite_uri(root())}/{file}"


def sqlite_uri(path: Path) -> str:
    """Return a path as the URI of an SQLite database; SQLAlchemy reads `%2F` in a URI as a slash."""
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path:
    """Return the path in the URI of an SQLite database."""
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def shown(uri: str) -> str:
    """Return a store's URI for logs: without user, password and query; SQLite's relative to `root()`.

    Any other text is left out as a whole, since a password with an odd character could be in any part.
    """
    if uri.startswith("sqlite:///"):
        return uri.partition("?")[0].replace(f"{sqlite_uri(root())}/", "sqlite:///")
    parts = re.fullmatch(
        r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^@/?#]*@)?"
        r"(?P<place>(?:[\w.-]*|\[[0-9a-f:.]+\])(?::[0-9]+)?(?:/[\w./%-]*)?)(?:[?#][^@]*)?",
        uri,
        re.IGNORECASE,
    )
    return f"{parts['scheme']}{parts['place']}" if parts else "(not shown)"
