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
    if classifier.about != onnx_model.About(classes=classes, weights_sha256=files.sha256(weights)):
        expected = f"those of {dataset} and {weights}: run `dvc repro`"
        raise InputError(str(onnx), found="other classes or weights", expected=expected)
    log_probs_NK = classifier.log_probabilities(test.images_NHW)
    check_log_probs(log_probs_NK, onnx)
    predicted_N = log_probs_NK.argmax(1)
    result = scores.score(log_probs_NK, test.labels_N)
    files.write_json(test_metrics, result.model_dump())
    named = write_table(predictions, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
    counts_KK = scores.confusion(test.labels_N, predicted_N, num_classes=len(classes))
    files.write_text(by_class, scores.class_table(counts_KK, classes))
    write_log_probs(log_probs, log_probs_NK)
    first_M, mistakes_M = np.arange(len(test)), scores.confident_mistakes(log_probs_NK, test.labels_N)
    draw = functools.partial(figures.gallery, test=test, log_probs_NK=log_probs_NK, classes=classes)
    draw(gallery, "The first test images, as predicted", first_M)
    draw(errors_gallery, "The most confident mistakes", mistakes_M)
    figures.filters(filters, figures.first_weights(weights))
    one_a_class = test.take(np.unique(test.labels_N, return_index=True)[1])
    names, layers = [classes[label] for label in one_a_class.labels_N], figures.layers
    figures.feature_maps(feature_maps, names, *layers(classifier, one_a_class.images_NHW))
    right = f"accuracy {result.accuracy:.2%} on {len(test):,} test images ({len(mistakes_M):,} wrong)"
    print(f"evaluate: {right}, balanced {result.balanced_accuracy:.2%}, loss {result.loss:.4f}")
    if named.warning:
        print(f"evaluate: WARNING: {named.warning}")


if __name__ == "__main__":
    process.main(run, Params)
