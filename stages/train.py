"""Train the network.

data/mnist.safetensors, data/stats.json, metrics/validation.json ->
models/model.safetensors, models/model.onnx, metrics/train.json, metrics/history.csv, metrics/steps.csv

Another process logs to MLflow meanwhile (`mnist.tracking.events`). With `processes` above 1, torchrun starts
this module in that many processes, of which the first one writes (`mnist.training.distributed`).
"""

import time
from collections import deque
from pathlib import Path

from mnist.core import files, paths
from mnist.core.config import Architecture, DatasetParams, Execution, Machine, Recipe, Split
from mnist.data import statistics, store as data
from mnist.data.validation import require_valid
from mnist.lineage import fingerprint
from mnist.tracking import events
from mnist.training import distributed, history


class Params(DatasetParams, Split, Architecture, Recipe, Machine, Execution):
    """The params that determine the weights, together with the data and the code."""


def run(
    *,
    params: Params,
    dataset: Path = paths.DATASET,
    validation: Path = paths.VALIDATION,
    stats: Path = paths.STATS,
    weights: Path = paths.WEIGHTS,
    onnx: Path = paths.ONNX,
    training_metrics: Path = paths.TRAINING_METRICS,
    epochs_table: Path = paths.HISTORY,
    steps_table: Path = paths.STEPS,
) -> str:
    """Train on the training images, watch the validation images, write weights and curves.

    Returns:
        The machine, as far as the bytes of the weights depend on it.
    """
    with distributed.init(params.processes) as ctx:
        seed, precision = params.seed, params.precision
        require_valid(validation, dataset)
        measured = statistics.read(stats)
        classes = data.expect(dataset, params.dataset).classes
        train, val = data.cut(data.load(dataset, "train"), val_size=params.val_size, seed=seed)
        source = fingerprint.of_training()
        ctx.check_same_fingerprint(source.fingerprint)
        from mnist.training import devices, loop, model, onnx_export

        device = devices.prepare(
            params, precision=precision, deterministic=params.deterministic, local_rank=ctx.local_rank
        )
        net = model.build(params, classes=classes, seed=seed, mean=measured.mean, std=measured.std)
        fitting = loop.fit(
            net, train=train, val=val, recipe=params, seed=seed, device=device, precision=precision, ctx=ctx
        )
        where, num_parameters = devices.describe(device, ctx.size), model.num_parameters(net)
        if ctx.rank > 0:  # rank 0 alone prints and writes
            deque(fitting, maxlen=0)  # to its end
            return where
        print(f"train: {params.model} with {num_parameters:,} parameters, on {where}; ", end="")
        print(f"{len(train):,} images to train on, {len(val):,} to validate")
        tables = history.written(steps_table, epochs_table, training_metrics, num_parameters=num_parameters)
        with tables as write, events.recorded(source, device=where) as record:
            start = time.perf_counter()
            for event in history.shown(fitting, num_images=len(train), num_epochs=params.epochs):
                write(event)
                record.log(event)
            seconds = time.perf_counter() - start
            model.save(weights, net, params)
            digest = files.sha256(weights)
            onnx_export.export(onnx, net.cpu().eval(), weights_sha256=digest, images=val)
            record.finish(digest, seconds)
    return where


if __name__ == "__main__":
    distributed.main(run, Params, module="stages.train")
