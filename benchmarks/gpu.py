"""Training on a GPU: its speed beside the tutorial's loop, by precision.

The tutorial's script uses the GPU too. `train` has two numbers: the seconds of the whole training, with
the capture of its CUDA graph, and the speed of the epochs after the first.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from benchmarks import harness, loop
from benchmarks.harness import Bench, log
from mnist.comparison import presets

TITLE = "A GPU"
EPOCHS = 5
MIN_SPEEDUP = 50  # times the tutorial's images a second: the goal on one data-centre card
TUTORIAL = "tutorial"
# By label: params that differ from params.yaml.
TRAININGS: Mapping[str, Mapping[str, object]] = {
    "float32": {"precision": "float32"},
    "TF32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "TF32, not deterministic": {"precision": "tf32", "deterministic": False},
    "TF32, batch 512": {"precision": "tf32", "batch_size": 512, "lr": 0.08},
}


def measure_all(bench: Bench, *, num_rounds: int) -> dict[str, Any]:
    """Return the whole result, as plain values; without a GPU, `device` alone, which is None.

    Raises:
        FailedError: a measured command failed.
    """
    code = "import torch; torch.cuda.is_available() and print('gpu:', torch.cuda.get_device_name())"
    found = re.search(r"^gpu: (.+)$", bench.source.python("-c", code).output, re.MULTILINE)
    if not found:
        log("  no GPU on this machine")
        return {"device": None}

    # The goal for this preset: 99 % in under 2 s, on one data-centre card.
    accurate = presets.load(bench.source.folder / presets.PRESETS)["accurate"].params.model_dump()
    trainings = {**TRAININGS, "TF32, preset `accurate`": {"precision": "tf32", **accurate}}
    rounds: list[dict[str, dict[str, float]]] = []
    with bench.checkout() as clone:
        clone.dvc("repro", "stats", expected=("download", "validate", "stats"))
        for number in range(num_rounds + 1):
            log(f"round {number} of {num_rounds}" if number else "warming up")
            tutorial = loop.NUM_IMAGES / bench.tutorial().numbers["epoch_seconds"]
            measured = {TUTORIAL: {"images_a_second": tutorial}}
            for label, values in trainings.items():
                changed = {"device": "cuda", "epochs": EPOCHS, "seed": number, **values}
                numbers = loop.trained(clone, **changed)
                measured[label] = {
                    "seconds": numbers["seconds"],
                    "images_a_second": numbers["later_images"] / numbers["later_seconds"],
                    "val_accuracy": numbers["val_accuracy"],
                }
                log(f"  {label}: {measured[label]['images_a_second']:,.0f} images/s")
            rounds.append(measured)
    return {"device": found[1], **summary(rounds[1:])}


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return plain numbers by training."""
    base = median(each[TUTORIAL]["images_a_second"] for each in rounds)
    trainings = {}
    for label in list(rounds[0])[1:]:
        speeds = [each[label]["images_a_second"] for each in rounds]
        ratio = median(speeds) / base
        trainings[label] = {
            **harness.spread(speeds),
            "ratio": ratio,
            "holds": ratio >= MIN_SPEEDUP,
            "seconds": harness.spread([each[label]["seconds"] for each in rounds]),
            "val_accuracy": mean(each[label]["val_accuracy"] for each in rounds),
        }
    return {"tutorial_images_a_second": base, "epochs": EPOCHS, "trainings": trainings}


def tables(result: Mapping[str, Any]) -> str:
    """Return the result of `measure_all` as Markdown."""
    if result["device"] is None:
        return "There was no GPU."
    lines = [
        f"{result['device']}; the tutorial's loop on it: {result['tutorial_images_a_second']:,.0f} images/s.",
        "",
        "| `train` | images/s | min to max | x the tutorial's | holds | in all | min to max | accuracy |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for label, values in result["trainings"].items():
        lines.append(
            f"| {label} | {values['median']:,.0f} | {values['min']:,.0f} to {values['max']:,.0f}"
            f" | {values['ratio']:.1f} x | {harness.verdict(values)} | {harness.shown(values['seconds'])}"
            f" | {values['val_accuracy']:.2%} |"
        )
    return "\n".join(lines)
