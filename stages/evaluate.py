"""Evaluate the trained weights on the test images, write them as ONNX, and draw what the network sees.

data/mnist.safetensors, metrics/validation.json, models/model.safetensors -> metrics/test.json,
metrics/predictions.csv, metrics/classes.csv, metrics/plots/, data/log_probs.safetensors, models/model.onnx
"""

from pathlib import Path

from mnist.core import files, paths, process
from mnist.core.config import Machine
from mnist.data import store as data
from mnist.data.validation import require_valid
from mnist.evaluation import scores
from mnist.evaluation.predictions import write_log_probs, write_table

NUM_IMAGES = 10  # in each gallery, and in the figure of feature maps


class Params(Machine):
    """The machine of the evaluation: the last digits of the loss depend on it."""


def run(
    *,
    params: Params,
    dataset: Path = paths.DATASET,
    validation: Path = paths.VALIDATION,
    weights: Path = paths.WEIGHTS,
    onnx: Path = paths.ONNX,
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

    from mnist.evaluation import figures, onnx_model
    from mnist.training import devices, model

    device = devices.prepare(params)
    classifier = model.load(weights, classes=classes)
    log_probs_NK = model.log_probabilities(classifier, test, device).cpu().numpy()
    predicted_N, confidence_N = log_probs_NK.argmax(1), scores.confidence(log_probs_NK)
    one_a_class = test.take(np.unique(test.labels_N, return_index=True)[1][:NUM_IMAGES])
    inputs_NHW, maps = figures.layers(classifier, one_a_class.images_NHW)
    result = scores.score(log_probs_NK, test.labels_N)
    files.write_json(test_metrics, result.model_dump())
    write_table(predictions, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
    scores.write_classes(by_class, labels_N=test.labels_N, predicted_N=predicted_N, classes=classes)
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
    figures.filters(filters, figures.first_weights(classifier))
    figures.feature_maps(feature_maps, inputs_NHW, [classes[label] for label in one_a_class.labels_N], maps)
    onnx_model.export(onnx, classifier, weights_sha256=files.sha256(weights), test=test)
    right = (
        f"accuracy {result.accuracy:.2%} on {result.num_images:,} test images ({result.num_wrong:,} wrong)"
    )
    print(f"evaluate: {right}, loss {result.loss:.4f}")


if __name__ == "__main__":
    process.main(run, Params)
