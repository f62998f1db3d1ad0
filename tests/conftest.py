"""Small data in MNIST's own format that a network learns in seconds, and fixtures that every test may use."""

import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from mnist.data import store
from mnist.data.store import Bytes, Description, Images

# In the background (`make test &`, `nohup`) a process starts with these signals ignored, and its children
# inherit that; tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples each time, however busy the machine is.
settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

BOUNDS = {
    "num_train": 1200,
    "num_test": 300,
    "class_share": {"min": 0.05, "max": 0.15},
    "mean": {"min": 0.0, "max": 1.0},
    "image_mean": {"min": 0.0, "max": 1.0},
    "darkest": {"min": 0.0, "max": 0.0},
    "brightest": {"min": 0.1, "max": 1.0},
    "ink": {"min": 0.0, "max": 1.0},
    "max_duplicates": 1200,
    "max_in_both": 0,
}
DIGITS = Description(name="mnist", title="MNIST", classes=tuple("0123456789"))

# The seven segments of a pocket calculator's digits, as (rows, columns) of a 20x12 glyph.
SEGMENTS = {
    "top": (slice(0, 3), slice(0, 12)),
    "middle": (slice(9, 12), slice(0, 12)),
    "bottom": (slice(17, 20), slice(0, 12)),
    "upper left": (slice(0, 11), slice(0, 3)),
    "upper right": (slice(0, 11), slice(9, 12)),
    "lower left": (slice(10, 20), slice(0, 3)),
    "lower right": (slice(10, 20), slice(9, 12)),
}
MISSING = {
    0: {"middle"},
    1: {"top", "middle", "bottom", "upper left", "lower left"},
    2: {"upper left", "lower right"},
    3: {"upper left", "lower left"},
    4: {"top", "bottom", "lower left"},
    5: {"upper right", "lower left"},
    6: {"upper right"},
    7: {"middle", "bottom", "upper left", "lower left"},
    8: set(),
    9: {"lower left"},
}


def digits(num_images: int, *, seed: int) -> Images:
    """Draw calculator digits at random places, in random brightness, with the classes in balance."""
    rng = np.random.default_rng(seed)
    labels_N = rng.permutation(np.arange(num_images) % 10).astype(np.uint8)
    images_NHW = np.zeros((num_images, 28, 28), np.uint8)
    for image_HW, label in zip(images_NHW, labels_N, strict=True):
        glyph = np.zeros((20, 12), np.uint8)
        for name, place in SEGMENTS.items():
            if name not in MISSING[int(label)]:
                glyph[place] = rng.integers(128, 256)
        row, column = rng.integers(2, 7), rng.integers(5, 12)
        image_HW[row : row + 20, column : column + 12] = np.where(
            glyph, np.clip(glyph + rng.integers(-40, 40, glyph.shape), 1, 255), 0
        )
    return Images(images_NHW=images_NHW, labels_N=labels_N)


def three_classes(num_images: int, *, seed: int) -> Images:
    """Draw calculator digits in three classes: 0 to 3, 4 to 6, 7 to 9."""
    images = digits(num_images, seed=seed)
    labels_N = np.searchsorted([4, 7], images.labels_N, side="right").astype(np.uint8)
    return Images(images_NHW=images.images_NHW, labels_N=labels_N)


def write_archives(folder: Path, train: Images, test: Images) -> None:
    """Write the four archives; equal images make equal bytes, without a time stamp."""
    folder.mkdir(exist_ok=True)
    for prefix, images in (("train", train), ("t10k", test)):
        for name, array in (("images-idx3", images.images_NHW), ("labels-idx1", images.labels_N)):
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array), mtime=0))


def idx(array: Bytes) -> bytes:
    """Return `array` in the IDX format: two zero bytes, 8 for uint8, the rank, the sizes, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@dataclass(frozen=True, kw_only=True)
class SmallData:
    """A generated data set, and the folder with its four archives that serves as a mirror."""

    train: Images
    test: Images
    mirror: Path

    def section(self, **others: Any) -> dict[str, Any]:
        """Return its `datasets/mnist.yaml`, with bounds that these images satisfy."""
        return {
            "title": DIGITS.title,
            "classes": list(DIGITS.classes),
            "mirrors": [],
            "checksums": self.checksums,
            "validation": BOUNDS,
            **others,
        }

    @property
    def checksums(self) -> dict[str, dict[str, str]]:
        """Its checksums as in `datasets/mnist.yaml`."""
        return {
            path.name: {
                "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.mirror.iterdir())
        }


def small_images() -> tuple[Images, Images]:
    """Draw the training and the test images of the small data."""
    return digits(1200, seed=0), digits(300, seed=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that take longest, whose set-up the other processes may wait for."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(autouse=True)
def _no_store_left() -> Iterator[None]:
    """Let MLflow forget the store that a command in this process has set.

    It also keeps artifact folders by the id of their run; two copies of a clone have runs of one id.
    """
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        os.environ.pop("MLFLOW_REGISTRY_URI", None)  # it has set that, too
        mlflow.tracking._tracking_service.utils._artifact_repos_cache.clear()


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder with a name once for all processes of this session, and return its path."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def small_data(made_once: MadeOnce) -> SmallData:
    """1,200 training and 300 test images of ten classes."""
    train, test = small_images()
    mirror = made_once("mirror", lambda folder: write_archives(folder, train, test))
    return SmallData(train=train, test=test, mirror=mirror)


@pytest.fixture(scope="session")
def migrated_store(made_once: MadeOnce) -> Path:
    """An empty SQLite store of MLflow for tests to copy, since its migrations take 2 s."""

    def make(folder: Path) -> None:
        uri = f"sqlite:///{folder}/mlflow.db"
        code = f"from mlflow.tracking import MlflowClient; MlflowClient({uri!r}).search_experiments()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    return made_once("store", make) / "mlflow.db"


@pytest.fixture(scope="session")
def scored(made_once: MadeOnce, small_data: SmallData) -> Path:
    """A folder with weights, their ONNX file, and their scores of the small test images. Do not change it."""

    def make(folder: Path) -> None:
        import torch

        from mnist.core import config, files, paths
        from mnist.evaluation import predictions
        from mnist.training import model, onnx_export

        store.write(folder / paths.DATASET, train=small_data.train, test=small_data.test, description=DIGITS)
        settings = config.load(Path(__file__).parents[1] / paths.PARAMS)
        classifier = model.build(settings, classes=DIGITS.classes, seed=0, mean=0.13, std=0.31).eval()
        model.save(folder / paths.WEIGHTS, classifier, settings)
        log_probs = model.log_probabilities(classifier, small_data.test, torch.device("cpu"))
        predictions.write_log_probs(folder / paths.LOG_PROBS, log_probs.numpy())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DVC_ROOT", str(folder))
            weights_sha256 = files.sha256(folder / paths.WEIGHTS)
            onnx_export.export(
                folder / paths.ONNX, classifier, weights_sha256=weights_sha256, images=small_data.test
            )

    return made_once("scored", make)


@pytest.fixture
def dataset_path(small_data: SmallData, tmp_path: Path) -> Path:
    """The file that `download` makes of the small data."""
    path = tmp_path / "mnist.safetensors"
    store.write(path, train=small_data.train, test=small_data.test, description=DIGITS)
    return path


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """Restore the settings of the process that `devices.prepare` changes."""
    import torch

    fills = torch.utils.deterministic
    threads, filled = torch.get_num_threads(), fills.fill_uninitialized_memory  # type: ignore[attr-defined]
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    products = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.set_num_threads(threads)
    fills.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = flags
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.set_deterministic_debug_mode("default")
