"""A result: its origin, the digests of its files, and the name of its registered model."""

import getpass
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mnist.core import config, files, paths
from mnist.core.config import Registration, Section
from mnist.core.errors import InputError
from mnist.lineage.fingerprint import Training

LIBRARIES = ("torch", "numpy", "mlflow", "dvc")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result of the pipeline. Its identity: the data, the params of the training, and the weights.

    Attributes:
        time_ms: of the result, since 1970.
        origin: the training.
        weights_sha256: of the weights file.
        evaluation_sha256: of the scores and the predictions.
        test_sha256: of the test images and their labels.
        metrics: scores on the test images, by name.
        registration: where the model goes, and how good it must be.
        challenger: whether it is to be the candidate for promotion.
    """

    time_ms: int
    origin: Training
    weights_sha256: str
    evaluation_sha256: str
    test_sha256: str
    metrics: Mapping[str, float]
    registration: Registration
    challenger: bool

    @property
    def digests(self) -> dict[str, str]:
        """Return the digests of the data, the weights and the evaluation."""
        return {
            "dataset_sha256": self.origin.dataset_sha256,
            "weights_sha256": self.weights_sha256,
            "evaluation_sha256": self.evaluation_sha256,
        }

    @property
    def accuracy(self) -> float:
        """Return the accuracy on the test images, a fraction."""
        return self.metrics["accuracy"]

    @property
    def is_good(self) -> bool:
        """Return whether it is good enough for its model to be registered."""
        return self.accuracy >= self.registration.min_accuracy


class TrainingInfo(Section):
    """Facts about a training that differ from run to run, so that no output holds them."""

    time_ms: int  # of its start, since 1970
    seconds: float
    facts: dict[str, str]  # `device`, and versions by name

    def write(self, weights_sha256: str) -> None:
        """Write the facts to a file, for the report and the MLflow run of these weights."""
        files.write_json(_info_file(weights_sha256), self.model_dump())


def training_info(weights_sha256: str) -> TrainingInfo | None:
    """Return how these weights were trained; None where that was on another machine."""
    file = _info_file(weights_sha256)
    try:
        return config.check(TrainingInfo, files.read_json(file), str(file))
    except (OSError, InputError):
        return None


def _info_file(weights_sha256: str) -> Path:
    return paths.root() / ".cache" / "trainings" / f"{weights_sha256}.json"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def user() -> str:
    """Return the name of this process's user; in a container it may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def now_ms() -> int:
    """Return the milliseconds since 1970."""
    return time.time_ns() // 1_000_000
