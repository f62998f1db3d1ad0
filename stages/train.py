"""Train the network.

data/mnist.safetensors, data/stats.json, metrics/validation.json ->
models/model.safetensors, models/model.onnx, metrics/train.json, metrics/history.csv, metrics/steps.csv

Another process logs to MLflow meanwhile (`mnist.tracking.events`). With `processes` above 1, torchrun starts
this module in that many processes, of which the first one writes (`mnist.training.distributed`).
"""

import functools
from pathlib import Path

from mnist.core import files, paths
from mnist.core.config import Architecture, DatasetParams, Execution, Machine, Recipe, Split
from mnist.data import statistics, store as data
from mnist.data.validation import require_valid
from mnist.lineage import fingerprint, result
from mnist.tracking import events
from mnist.training import distributed, history


class Params(DatasetParams, Split, Architecture, Recipe, Machine, Execution):
    """The params that determine the weights, together with the data and the code; and one that does not."""

    checkpoint_epochs: int


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
    """Train, write weights and curves; return the machine that the bytes of the weights depend on."""
    with distributed.init(params.processes) as ctx:
        require_valid(validation, dataset)
        measured = statistics.read(stats)
        classes = data.describe(dataset).classes
        train, val = data.cut(data.load(dataset, "train"), val_size=params.val_size, seed=params.seed)
        source = fingerprint.of_training()
        ctx.check_same_fingerprint(source.fingerprint)
        from mnist.training import checkpoint, devices, loop, model, onnx_export

        device = devices.prepare(params, params, local_rank=ctx.local_rank)
        net = model.build(params, classes=classes, seed=params.seed, mean=measured.mean, std=measured.std)
        where, num_parameters = devices.describe(device, ctx.size), model.num_parameters(net)
        origin, every = (source.fingerprint, where, result.versions()), params.checkpoint_epochs
        kept = checkpoint.Checkpoint(origin, num_epochs=params.epochs, every=every, ctx=ctx)
        fit = functools.partial(loop.fit, net, device=device, precision=params.precision, ctx=ctx)
        rest = fit(train=train, val=val, recipe=params, seed=params.seed, progress=kept.progress)
        if ctx.rank > 0:  # rank 0 alone prints and writes
            list(rest)  # to its end
            return where
        print(f"train: {params.model} with {num_parameters:,} parameters, on {where}; ", end="")
        print(f"{len(train):,} images to train on, {len(val):,} to validate")
        shown = history.shown(rest, kept.progress.events, num_images=len(train), num_epochs=params.epochs)
        tables = history.written(steps_table, epochs_table, training_metrics, num_parameters=num_parameters)
        with tables as write, events.recorded(source, device=where, time_ms=kept.progress.time_ms) as record:
            for event in shown:
                write(event)
                record.log(event)
                kept.save()
            model.save(weights, net, params)
            digest = files.sha256(weights)
            onnx_export.export(onnx, net.cpu().eval(), weights_sha256=digest, images=val)
            record.finish(digest, kept.progress.seconds)
        kept.remove()
    return where


if __name__ == "__main__":
    distributed.main(run, Params, module="stages.train")
