"""Train every preset over seeds, in turns with the tutorial's script, and hold each against its claim.

    python -m tools.bench_presets [--seeds 5] [--only NAME] [--output FILE]

As `tools.bench` does, it measures what is committed, in a clone. Each training has a process of its
own. It is timed as `training.fit` alone, validation included; the test images are scored after. Time
in seconds says something on an idle machine only, the accuracies are the same on a busy one.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from mnist import files, params, paths, presets, stage
from mnist.presets import Preset
from tools import bench
from tools.bench import Bench, Checkout, FailedError, tell

MEASURED = ("train_seconds", "val_accuracy", "test_accuracy", "num_parameters")
EPOCH = "of the tutorial's epoch"
TRAIN = "from tools import bench_presets; bench_presets.train_one()"


def train_one() -> None:
    """Train the preset `argv[1]` by the seed `argv[2]` and print numbers; runs in a process of its own."""
    with stage.heavy_imports():
        from mnist import dataset, devices, model, normalization, scoring, training
        from mnist.history import Epoch

    name, seed = sys.argv[1], int(sys.argv[2])
    preset = presets.named(presets.load(presets.PRESETS), name)
    settings = params.load(paths.PARAMS).model_copy(update=preset.params.model_dump())
    measured = normalization.read(paths.STATS)
    train, val = dataset.cut(dataset.load(paths.DATASET, "train"), val_size=settings.val_size, seed=seed)
    device = devices.prepare(settings, precision=settings.precision, deterministic=settings.deterministic)
    classifier = model.build(settings, seed=seed, mean=measured.mean, std=measured.std)
    start = time.perf_counter()
    *_, last = training.fit(
        classifier,
        train=train,
        val=val,
        recipe=settings,
        seed=seed,
        device=device,
        precision=settings.precision,
    )
    seconds = time.perf_counter() - start
    assert isinstance(last, Epoch)
    test = dataset.load(paths.DATASET, "test")
    log_probs_NK = model.log_probabilities(classifier, test, device).cpu().numpy()
    print(f"train_seconds {seconds:.3f}")
    print(f"val_accuracy {last.val_accuracy:.6f}")
    print(f"test_accuracy {scoring.score(log_probs_NK, test.labels_N).accuracy:.6f}")
    print(f"num_parameters {model.num_parameters(classifier)}")


def measure(
    setup: Bench, clone: Checkout, names: Sequence[str], num_seeds: int
) -> dict[str, dict[str, list[float]]]:
    """The tutorial's epoch and each preset once a seed, from 0, in turns: lists of numbers, by name."""
    measured: dict[str, dict[str, list[float]]] = {"tutorial": {"epoch_seconds": []}}
    measured |= {name: {key: [] for key in MEASURED} for name in names}
    for seed in range(num_seeds):
        epoch_seconds = setup.tutorial(seed).numbers["epoch_seconds"]
        measured["tutorial"]["epoch_seconds"].append(epoch_seconds)
        tell(f"seed {seed}: the tutorial's epoch {epoch_seconds:.1f} s")
        for name in names:
            numbers = clone.python("-c", TRAIN, name, str(seed)).numbers
            for key in MEASURED:
                measured[name][key].append(numbers[key])
            tell(f"  {name}: {numbers['train_seconds']:.1f} s, test accuracy {numbers['test_accuracy']:.2%}")
    return measured


def summary(
    measured: Mapping[str, Mapping[str, Sequence[float]]], known: Mapping[str, Preset]
) -> dict[str, Any]:
    """Plain numbers, by preset: what `--output` writes and the table shows."""
    epoch_seconds = measured["tutorial"]["epoch_seconds"]
    result: dict[str, Any] = {"tutorial_epoch": _spread(epoch_seconds)}
    result["presets"] = {
        name: _preset(known[name], values, median(epoch_seconds))
        for name, values in measured.items()
        if name != "tutorial"
    }
    return result


def _preset(preset: Preset, values: Mapping[str, Sequence[float]], epoch_seconds: float) -> dict[str, Any]:
    spread, test = _spread(values["train_seconds"]), _accuracy(values["test_accuracy"])
    seconds = spread["median_seconds"]
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


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median_seconds": median(values), "min_seconds": min(values), "max_seconds": max(values)}


def _accuracy(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "sd": stdev(values)}


def table(result: Mapping[str, Any]) -> str:
    """The Markdown of what `measure_all` returns."""
    epoch = result["tutorial_epoch"]
    lines = [
        f"{_hardware(result['machine'])}; {result['num_seeds']} seeds",
        "",
        f"| preset | parameters | epochs | training | min to max | {EPOCH} | test accuracy | claim | holds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        f"| the tutorial's script | 6,422 | 1 | {_seconds(epoch)} | 1.00 x | | | |",
    ]
    for name, values in result["presets"].items():
        test = values["test_accuracy"]
        faults = [what for what in ("accuracy", "time") if not values[f"{what}_holds"]]
        lines.append(
            f"| `{name}` | {values['num_parameters']:,} | {values['epochs']} | {_seconds(values)} |"
            f" {values['ratio']:.2f} x | {100 * test['mean']:.2f} ± {100 * test['sd']:.2f} % |"
            f" {values['claim']} | {'NO: ' + ' and '.join(faults) if faults else 'yes'} |"
        )
    return "\n".join(lines)


def _hardware(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch"))
    return f"{facts['cpu']}, {facts['num_cores']} cores, {facts['memory_gib']:g} GiB; {versions}"


def _seconds(values: Mapping[str, float]) -> str:
    spread = f"{values['min_seconds']:.2f} to {values['max_seconds']:.2f} s"
    return f"{values['median_seconds']:.2f} s | {spread}"


def measure_all(*, num_seeds: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """The whole result, as plain values; `only` names presets, none is all of them.

    Raises:
        InputError: there is no data set to be had, or no such preset.
        FailedError: a training, or the tutorial's script, failed.
    """
    with bench.prepared() as setup, setup.checkout() as clone:
        known = presets.load(clone.folder / presets.PRESETS)
        chosen = {name: presets.named(known, name) for name in only} or known
        clone.dvc("repro", "stats", expected=("download", "validate", "stats"))
        measured = measure(setup, clone, list(chosen), num_seeds)
    return {"machine": bench.machine(), "num_seeds": num_seeds, **summary(measured, chosen)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write.

    Exits with 1 and a message where something that was to be measured fails. A claim that does not
    hold is told in the table and is no error: it may be the machine that was busy.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bench_presets", description="Measure the presets.")
    parser.add_argument("--seeds", type=int, default=5, help="from 0 on, at least 2 (default: 5)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="presets (default: all)")
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args(arguments)
    if options.seeds < 2:  # noqa: PLR2004 -- as the message says
        parser.error("--seeds: at least 2, for a standard deviation")

    with stage.reported():
        try:
            result = measure_all(num_seeds=options.seeds, only=options.only)
        except FailedError as error:
            sys.exit(f"ERROR: {error}")
        print(table(result))
        if options.output:
            files.write_json(options.output, result)


if __name__ == "__main__":
    main()
