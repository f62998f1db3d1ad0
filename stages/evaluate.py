"""Evaluate the trained model on the test images, and draw what the network sees.

data/mnist.safetensors, metrics/validation.json, models/model.onnx, models/model.safetensors ->
metrics/test.json, metrics/predictions.csv, metrics/classes.csv, metrics/plots/, data/log_probs.safetensors

What is scored is the file that is registered and served, with onnxruntime on the CPU.
"""

from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import Section, Threads
from mnist.core.errors import InputError
from mnist.data import store as data
from mnist.data.validation import require_valid
from mnist.evaluation import scores
from mnist.evaluation.predictions import check_log_probs, write_log_probs, write_table

NUM_IMAGES = 10  # in each gallery, and in the figure of feature maps


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
    from safetensors.numpy import load_file

    from mnist.evaluation import figures
    from mnist.training import onnx_model

    classifier = onnx_model.load(onnx, num_threads=params.num_threads)
    if classifier.about.classes != classes:
        found, expected = (", ".join(names) for names in (classifier.about.classes, classes))
        raise InputError(str(onnx), found=f"the classes {found}", expected=f"{expected}: run `dvc repro`")
    if classifier.about.weights_sha256 != files.sha256(weights):
        raise InputError(str(onnx), found="other weights", expected=f"those of {weights}: run `dvc repro`")
    log_probs_NK = classifier.log_probabilities(test.images_NHW)
    check_log_probs(log_probs_NK, onnx)
    predicted_N, confidence_N = log_probs_NK.argmax(1), scores.confidence(log_probs_NK)
    one_a_class = test.take(np.unique(test.labels_N, return_index=True)[1][:NUM_IMAGES])
    inputs_NHW, maps = figures.layers(classifier, one_a_class.images_NHW)
    result = scores.score(log_probs_NK, test.labels_N)
    files.write_json(test_metrics, result.model_dump())
    named = write_table(predictions, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
    counts_KK = scores.confusion(test.labels_N, predicted_N, num_classes=len(classes))
    files.write_text(by_class, scores.class_table(counts_KK, classes))
    write_log_probs(log_probs, log_probs_NK)
    mistakes_M = scores.confident_mistakes(log_probs_NK, test.labels_N)[:NUM_IMAGES]
    for path, title, index_M in (
        (gallery, "The first test images, as predicted", np.arange(min(NUM_IMAGES, len(test)))),
        (errors_gallery, "The most confident mistakes", mistakes_M),
    ):
        figures.gallery(
            path,
            title=title,
            images=test.take(index_M),
            predicted_N=predicted_N[index_M],
            confidence_N=confidence_N[index_M],
            index_N=index_M,
            classes=classes,
        )
    figures.filters(filters, figures.first_weights(load_file(weights)))
    figures.feature_maps(feature_maps, inputs_NHW, [classes[label] for label in one_a_class.labels_N], maps)
    right = f"accuracy {result.accuracy:.2%} on {len(test):,} test images ({result.num_wrong:,} wrong)"
    print(f"evaluate: {right}, balanced {result.balanced_accuracy:.2%}, loss {result.loss:.4f}")
    if named.warning:
        print(f"evaluate: WARNING: {named.warning}")


if __name__ == "__main__":
    process.main(run, Params)
