"""The presets over seeds, in turns with the tutorial's script, and their claims.

Each training has a process of its own. The time is that of `training.loop.fit` alone, with validation; the
test images are scored after it. The times need an idle machine; the accuracies are the same on a busy one.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from benchmarks import harness, loop
from benchmarks.harness import Bench, Checkout, log
from mnist.comparison import presets
from mnist.comparison.presets import Preset

TITLE = "Presets"
NUM_SEEDS = 5
MEASURED = ("seconds", "val_accuracy", "test_accuracy", "num_parameters")
EPOCH = "of the tutorial's epoch"


def measure(
    setup: Bench, clone: Checkout, known: Mapping[str, Preset], num_seeds: int
) -> dict[str, dict[str, list[float]]]:
    """Measure the tutorial's epoch and each preset in turns, once a seed from 0; return numbers by name."""
    measured: dict[str, dict[str, list[float]]] = {"tutorial": {"epoch_seconds": []}}
    measured |= {name: {key: [] for key in MEASURED} for name in known}
    for seed in range(num_seeds):
        epoch_seconds = setup.tutorial(seed, "--device", "cpu").numbers["epoch_seconds"]
        measured["tutorial"]["epoch_seconds"].append(epoch_seconds)
        log(f"seed {seed}: the tutorial's epoch {epoch_seconds:.1f} s")
        for name, preset in known.items():
            numbers = loop.trained(clone, seed=seed, device="cpu", **preset.params.model_dump())
            for key in MEASURED:
                measured[name][key].append(numbers[key])
            log(f"  {name}: {numbers['seconds']:.1f} s, test accuracy {numbers['test_accuracy']:.2%}")
    return measured


def summary(
    measured: Mapping[str, Mapping[str, Sequence[float]]], known: Mapping[str, Preset]
) -> dict[str, Any]:
    """Return plain numbers, by preset, for `tables`."""
    epoch_seconds = measured["tutorial"]["epoch_seconds"]
    result: dict[str, Any] = {
        "num_seeds": len(epoch_seconds),
        "tutorial_epoch": harness.spread(epoch_seconds),
    }
    result["presets"] = {
        name: _preset(known[name], values, median(epoch_seconds))
        for name, values in measured.items()
        if name != "tutorial"
    }
    return result


def _preset(preset: Preset, values: Mapping[str, Sequence[float]], epoch_seconds: float) -> dict[str, Any]:
    spread, test = harness.spread(values["seconds"]), _accuracy(values["test_accuracy"])
    seconds = spread["median"]
    ratio = seconds / epoch_seconds
    in_time = seconds <= preset.max_seconds if preset.max_seconds else ratio <= (preset.max_ratio or 0)
    return {
        "claim": preset.claim,
        "num_parameters": int(values["num_parameters"][0]),
        "epochs": preset.params.epochs,
        "num_threads": preset.params.num_threads,
        **spread,
        "ratio": ratio,
        "val_accuracy": _accuracy(values["val_accuracy"]),
        "test_accuracy": test,
        "accuracy_holds": test["mean"] >= preset.accuracy,
        "time_holds": in_time,
    }


def _accuracy(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "sd": stdev(values)}


def tables(result: Mapping[str, Any]) -> str:
    """Return the result of `measure_all` as Markdown."""
    accuracy = f"test accuracy, {result['num_seeds']} seeds"
    epoch = harness.shown(result["tutorial_epoch"])
    lines = [
        f"| preset | parameters | epochs | training | min to max | {EPOCH} | {accuracy} | claim | holds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        f"| the tutorial's script | 6,422 | 1 | {epoch} | 1.00 x | | | |",
    ]
    for name, values in result["presets"].items():
        test = values["test_accuracy"]
        faults = [claim for claim in ("accuracy", "time") if not values[f"{claim}_holds"]]
        lines.append(
            f"| `{name}` | {values['num_parameters']:,} | {values['epochs']} | {harness.shown(values)} |"
            f" {values['ratio']:.2f} x | {100 * test['mean']:.2f} ± {100 * test['sd']:.2f} % |"
            f" {values['claim']} | {'NO: ' + ' and '.join(faults) if faults else 'yes'} |"
        )
    return "\n".join(lines)


def measure_all(
    bench: Bench, *, num_rounds: int, num_seeds: int = NUM_SEEDS, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the whole result, as plain values; `only` names presets, an empty one stands for all.

    A seed is a round: there are `num_seeds` of them, whatever the number of rounds of other parts.

    Raises:
        InputError: there is no such preset.
        FailedError: a training, or the tutorial's script, failed.
    """
    del num_rounds
    with bench.checkout() as clone:
        known = presets.load(clone.folder / presets.PRESETS)
        chosen = {name: presets.named(known, name) for name in only} or known
        clone.dvc("repro", "stats", expected=("download", "validate", "stats"))
        measured = measure(bench, clone, chosen, num_seeds)
    return {"num_rounds": num_seeds, **summary(measured, chosen)}
