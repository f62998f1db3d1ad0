"""Evaluate the trained model on the test images, and draw what the network sees.

data/mnist.safetensors, metrics/validation.json, models/model.onnx, models/model.safetensors ->
metrics/test.json, metrics/predictions.csv, metrics/classes.csv, metrics/plots/, data/log_probs.safetensors

What is scored is the file that is registered and served, with onnxruntime on the CPU.
"""

import functools
from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import Section, Threads
from mnist.core.errors import InputError
from mnist.data import store as data
from mnist.data.validation import require_valid
from mnist.evaluation import scores
from mnist.evaluation.predictions import check_log_probs, write_log_probs, write_table


class Params(Section):
    """The threads of onnxruntime."""

    num_threads: Threads


def run(
    *,
    params: Params,
    dataset: Path = paths.DATASET,
    validation: Path = paths.VALIDATION,
    onnx: Path = paths.ONNX,
    weights: Path = paths.WEIGHTS,
    test_metrics: Path = paths.TEST_METRICS,
    predictions: Path = paths.PREDICTIONS,
    by_class: Path = paths.CLASSES,
    log_probs: Path = paths.LOG_PROBS,
    gallery: Path = paths.GALLERY,
    errors_gallery: Path = paths.ERRORS_GALLERY,
    filters: Path = paths.FILTERS,
    feature_maps: Path = paths.FEATURE_MAPS,
) -> None:
    """Score all test images; draw the first ten, the ten most confident mistakes, filters, feature maps."""
    require_valid(validation, dataset)
    classes, test = data.describe(dataset).classes, data.load(dataset, "test")
    import numpy as np

    from mnist.evaluation import figures
    from mnist.training import onnx_model

    classifier = onnx_model.load(onnx, num_threads=params.num_threads)
    for name, wanted in (("classes", classes), ("weights_sha256", files.sha256(weights))):
        if (found := getattr(classifier.about, name)) != wanted:
            raise InputError(str(onnx), found=f"the {name} {found}", expected=f"{wanted}: run `dvc repro`")
    log_probs_NK = classifier.log_probabilities(test.images_NHW)
    check_log_probs(log_probs_NK, onnx)
    predicted_N = log_probs_NK.argmax(1)
    result = scores.score(log_probs_NK, test.labels_N)
    files.write_json(test_metrics, result.model_dump())
    named = write_table(predictions, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
    counts_KK = scores.confusion(test.labels_N, predicted_N, num_classes=len(classes))
    files.write_text(by_class, scores.class_table(counts_KK, classes))
    write_log_probs(log_probs, log_probs_NK)
    mistakes_M = scores.confident_mistakes(log_probs_NK, test.labels_N)
    draw = functools.partial(figures.gallery, test=test, log_probs_NK=log_probs_NK, classes=classes)
    draw(gallery, "The first test images, as predicted", np.arange(len(test)))
    draw(errors_gallery, "The most confident mistakes", mistakes_M)
    figures.filters(filters, figures.first_weights(weights))
    figures.feature_maps(feature_maps, *figures.layers(classifier, test, classes))
    right = f"accuracy {result.accuracy:.2%} on {len(test):,} test images ({len(mistakes_M):,} wrong)"
    print(f"evaluate: {right}, balanced {result.balanced_accuracy:.2%}, loss {result.loss:.4f}")
    if named.warning:
        print(f"evaluate: WARNING: {named.warning}")


if __name__ == "__main__":
    process.main(run, Params)
