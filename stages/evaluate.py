"""Evaluate the trained weights on the test images.

data/mnist.safetensors, metrics/validation.json, models/model.safetensors ->
metrics/test.json, metrics/predictions.csv, metrics/plots/predictions.png, metrics/plots/errors.png
"""

from pathlib import Path

import numpy as np

from mnist import dataset as data
from mnist import files, gate, paths, scoring, stage
from mnist.params import Machine

NUM_PICTURES = 10  # in each gallery


class Params(Machine):
    """What it is evaluated on: the last digits of the loss depend on it."""


def run(
    *,
    params: Params,
    dataset: Path = paths.DATASET,
    validation: Path = paths.VALIDATION,
    weights: Path = paths.WEIGHTS,
    test_metrics: Path = paths.TEST_METRICS,
    predictions: Path = paths.PREDICTIONS,
    gallery: Path = paths.GALLERY,
    errors_gallery: Path = paths.ERRORS_GALLERY,
) -> None:
    """Score all test images, and draw the first ten and the ten most confident mistakes."""
    gate.check(validation, dataset)
    classes = data.describe(dataset).classes
    test = data.load(dataset, "test")
    with stage.heavy_imports():
        from mnist import devices, model

    device = devices.prepare(params)
    with stage.importing("mnist.pictures"):  # matplotlib: 0.1 s less in all
        log_probs_NK = (
            model.log_probabilities(model.load(weights, classes=classes), test, device).cpu().numpy()
        )
    from mnist import pictures

    scores = scoring.score(log_probs_NK, test.labels_N, classes=classes)
    predicted_N = log_probs_NK.argmax(1)
    confidence_N = np.exp(log_probs_NK.max(1).astype(np.float64))

    def draw(path: Path, title: str, index_M: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        shown = test.take(index_M)
        pictures.gallery(
            path,
            title=title,
            images_NHW=shown.images_NHW,
            labels_N=shown.labels_N,
            predicted_N=predicted_N[index_M],
            confidence_N=confidence_N[index_M],
            index_N=index_M,
            classes=classes,
        )

    wrong_M = np.flatnonzero(predicted_N != test.labels_N)
    surest_M = wrong_M[np.argsort(-confidence_N[wrong_M], kind="stable")]
    files.write_json(test_metrics, scores.model_dump())
    scoring.write_predictions(predictions, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
    draw(gallery, "The first test images, as predicted", np.arange(min(NUM_PICTURES, len(test))))
    draw(errors_gallery, "The most confident mistakes", surest_M[:NUM_PICTURES])
    print(
        f"evaluate: accuracy {scores.accuracy:.2%} on {scores.num_images:,} test images"
        f" ({scores.num_wrong:,} wrong), loss {scores.loss:.4f}"
    )


if __name__ == "__main__":
    stage.main(run, Params)
