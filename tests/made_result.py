"""A result made by hand, for the pages about results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist.core import files, paths
from mnist.core.config import Registration
from mnist.data import store, validation
from mnist.data.store import Description, Images
from mnist.data.validation import Duplicates, Finding, Verdict
from mnist.evaluation import figures, results, scores
from mnist.evaluation.predictions import write_log_probs, write_table
from mnist.evaluation.results import Summary
from mnist.lineage.fingerprint import Source, Training
from mnist.lineage.result import Result
from mnist.training import history
from mnist.training.history import Epoch, Window
from tests.conftest import digits

DIGITS = tuple("0123456789")
SOURCE = Source(commit="c" * 40, branch="main", patch="", experiment="", rerun="dvc repro")
PARAMS = {"seed": 0, "val_size": 200, "model": "simple_cnn", "lr": 0.01}


class Made:
    """A result whose files lie in a folder, at their paths in a checkout.

    Attributes:
        folder: that they lie in.
        labels_N: of the test images, uint8 (N,).
        log_probs_NK: what is said of them, float32 (N, K).
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "mnist",
        title: str = "MNIST",
        classes: tuple[str, ...] = DIGITS,
        num_images: int = 60,
        labels: Sequence[int] | None = None,
        predicted: Sequence[int] | None = None,
        confidence: Sequence[float] | None = None,
        num_epochs: int = 1,
        failed: bool = False,
    ) -> None:
        rng = np.random.default_rng(0)
        if labels is None:
            labels = (np.arange(num_images) % len(classes)).tolist()
        if predicted is None:  # two of three are right
            predicted = [
                label if rng.random() < 2 / 3 else (label + 1 + int(rng.integers(3))) % len(classes)
                for label in labels
            ]
        if confidence is None:
            confidence = rng.uniform(0.5, 1, len(labels)).tolist()
        self.folder = folder
        self.about = Description(name=name, title=title, classes=classes)
        self.labels_N = np.array(labels, np.uint8)
        count, rest_N = len(labels), (1 - np.array(confidence)) / (len(classes) - 1)
        probs_NK = np.repeat(rest_N[:, None], len(classes), axis=1)
        probs_NK[np.arange(count), predicted] = confidence
        self.log_probs_NK = np.log(probs_NK).astype(np.float32)
        self._write(np.array(predicted), num_epochs, failed=failed)

    def _write(
        self, predicted_N: np.ndarray[Any, np.dtype[np.int64]], num_epochs: int, *, failed: bool
    ) -> None:
        images = digits(len(self.labels_N), seed=0).images_NHW
        test = Images(images_NHW=images, labels_N=self.labels_N)
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        store.write(self.folder / paths.DATASET, train=digits(20, seed=1), test=test, description=self.about)
        write_log_probs(self.folder / paths.LOG_PROBS, self.log_probs_NK)
        result_scores = scores.score(self.log_probs_NK, self.labels_N)
        files.write_json(self.folder / paths.TEST_METRICS, result_scores.model_dump())
        write_table(
            self.folder / paths.PREDICTIONS,
            labels_N=self.labels_N,
            predicted_N=predicted_N,
            classes=self.about.classes,
        )
        events: list[Window | Epoch] = []
        for epoch in range(1, num_epochs + 1):
            step = 100 * epoch
            last = Epoch(
                epoch=epoch,
                step=step,
                train_loss=1.75 / epoch,
                train_accuracy=0.75,
                val_loss=1.4 / epoch,
                val_accuracy=0.905,
            )
            events += [
                Window(epoch=epoch, step=step - 50, num_images=500, loss=2.0 / epoch, accuracy=0.5),
                Window(epoch=epoch, step=step, num_images=500, loss=1.5 / epoch, accuracy=0.6),
                last,
            ]
        for path, kind in ((paths.STEPS, Window), (paths.HISTORY, Epoch)):
            with history.appending(self.folder / path, kind) as add:
                for event in events:
                    add(event)
        files.write_json(self.folder / paths.TRAINING_METRICS, {"num_parameters": 6422, **last.scores})
        validation.write(
            self.folder / paths.VALIDATION, verdict(success=not failed, num_test=len(self.labels_N))
        )
        maps = np.zeros((2, 5, 5), np.float32)
        figures.filters(self.folder / paths.FILTERS, maps)
        figures.feature_maps(self.folder / paths.FEATURE_MAPS, ["a", "b"], maps, {})

    def summary(self) -> Summary:
        """Return its numbers."""
        return results.load_summary(self.folder)

    def result(self, *, source: Source = SOURCE, **params: Any) -> Result:
        """The same for programs."""
        training = Training(
            fingerprint="f" * 64, dataset_sha256="d" * 64, params={**PARAMS, **params}, source=source
        )
        return Result(
            time_ms=1_700_000_000_000,
            origin=training,
            weights_sha256="a" * 64,
            evaluation_sha256="e" * 64,
            test_sha256="1" * 64,
            metrics={"accuracy": scores.read(self.folder / paths.TEST_METRICS).accuracy},
            registration=Registration(model_name="mnist-simplecnn", min_accuracy=0.5),
            challenger=True,
        )


def verdict(*, success: bool = True, text: str = "test_size", num_test: int = 300, **fields: Any) -> Verdict:
    """Make a verdict of one expectation, all of whose texts are this one."""
    finding = Finding(
        expectation=text,
        about=text,
        success=success,
        expected=text,
        observed=text,
        num_offending=0,
        offending=[],
    )
    given = {
        "success": success,
        "dataset_sha256": "0" * 64,
        "test_sha256": "1" * 64,
        "num_images": {"train": 1200, "test": num_test},
        "mean": {"train": 0.1, "test": 0.1},
        "class_counts": {"train": {}, "test": {}},
        "duplicates": Duplicates(within_train=0, within_test=0, between_splits=0),
        "expectations": [finding],
    }
    return Verdict(**{**given, **fields})
