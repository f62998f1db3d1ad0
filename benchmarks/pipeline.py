"""The pipeline beside the tutorial's script, in turns, and its limits.

A round measures everything once, in fresh clones. The first round warms up (compiled bytecode, the
system's file cache) and does not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.harness import STAGES, Bench, Measurements, log

TITLE = "The pipeline beside the tutorial's script, whole processes"
LR_STAGES = ("train", "evaluate", "register")  # the stages that a new learning rate runs again
MAX_STAGE_GIB = 1.5


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of the table.

    Attributes:
        key: of its measurements, in seconds.
        label: for people.
        max_ratio: limit of its median, as a multiple of that of the tutorial's script.
        max_seconds: limit of its median.
    """

    key: str
    label: str
    max_ratio: float | None = None
    max_seconds: float | None = None


# The limits are the project's requirements, for the tutorial's script on the same machine.
FIGURES = (
    Figure(key="tutorial", label="the tutorial's script"),
    Figure(key="repro", label="`dvc repro`, nothing cached", max_ratio=1.7),
    Figure(key="idle", label="`dvc repro`, nothing to do", max_seconds=1.2),
    Figure(key="experiment", label="`dvc exp run -S lr=0.05`", max_ratio=1.0),
)


def measure(bench: Bench, num_rounds: int) -> Measurements:
    """Measure everything once a round, after a round that does not count."""
    rounds = []
    for number in range(num_rounds + 1):
        log(f"round {number} of {num_rounds}" if number else "warming up")
        rounds.append(_tutorial(bench) | _pipeline(bench) | _stages(bench))
    return {key: [values[key] for values in rounds[1:]] for key in rounds[0]}


def _tutorial(bench: Bench) -> dict[str, float]:
    outcome = bench.tutorial()
    log(f"  tutorial {outcome.seconds:.1f} s")
    return {"tutorial": outcome.seconds}


def _pipeline(bench: Bench) -> dict[str, float]:
    with bench.checkout() as clone:
        repro = clone.dvc("repro", expected=STAGES).seconds
        log(f"  dvc repro {repro:.1f} s")
        idle = clone.dvc("repro", expected=()).seconds
        log(f"  dvc repro with nothing to do {idle:.1f} s")
        experiment = clone.dvc("exp", "run", "-S", "lr=0.05", expected=LR_STAGES).seconds
        log(f"  dvc exp run {experiment:.1f} s")
    return {"repro": repro, "idle": idle, "experiment": experiment}


def _stages(bench: Bench) -> dict[str, float]:
    """Measure each stage without DVC, in order, in one fresh clone."""
    measured = {}
    with bench.checkout() as clone:
        clone.run("git", "checkout", "--quiet", "--", "dvc.lock")  # `register` logs it with the run
        for name in STAGES:
            outcome = clone.python("-m", f"stages.{name}")
            measured[f"{name}_seconds"] = outcome.seconds
            measured[f"{name}_gib"] = outcome.peak_bytes / 2**30
            log(f"  {name} {outcome.seconds:.1f} s, {outcome.peak_bytes / 2**30:.2f} GiB")
    return measured


def summary(measured: Measurements) -> dict[str, Any]:
    """Return plain numbers, by figure and by stage."""
    figures = {}
    for figure in FIGURES:
        seconds = harness.spread(measured[figure.key])
        ratio = seconds["median"] / median(measured["tutorial"])
        figures[figure.key] = {**seconds, "ratio": ratio, **_holds(figure, seconds["median"], ratio)}
    stages = {
        name: {
            **harness.spread(measured[f"{name}_seconds"]),
            "peak_gib": max(measured[f"{name}_gib"]),
            "holds": max(measured[f"{name}_gib"]) <= MAX_STAGE_GIB,
        }
        for name in STAGES
    }
    return {"figures": figures, "stages": stages}


def _holds(figure: Figure, seconds: float, ratio: float) -> dict[str, bool]:
    """Return whether a figure is within its limit; an empty dict without a limit."""
    if figure.max_ratio is not None:
        return {"holds": ratio <= figure.max_ratio}
    if figure.max_seconds is not None:
        return {"holds": seconds <= figure.max_seconds}
    return {}


def measure_all(bench: Bench, *, num_rounds: int) -> dict[str, Any]:
    """Return the whole result, as plain values.

    Raises:
        FailedError: a measured command failed.
    """
    return summary(measure(bench, num_rounds))


def tables(result: Mapping[str, Any]) -> str:
    """Return the result of `measure_all` as Markdown."""
    stages_seconds = sum(values["median"] for values in result["stages"].values())
    rest_seconds = result["figures"]["repro"]["median"] - stages_seconds
    lines = [
        "| measured | median | min to max | of the tutorial's | limit | holds |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(_figure_line(figure, result["figures"][figure.key]) for figure in FIGURES),
        "",
        "| stage on its own | median | min to max | peak memory | limit | holds |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *(_stage_line(name, values) for name, values in result["stages"].items()),
        "",
        f"The stages take {stages_seconds:.2f} s; DVC takes the rest of `dvc repro`, {rest_seconds:.2f} s.",
    ]
    return "\n".join(lines)


def _figure_line(figure: Figure, values: Mapping[str, Any]) -> str:
    limit = ""
    if figure.max_ratio is not None:
        limit = f"at most {figure.max_ratio:g} x"
    elif figure.max_seconds is not None:
        limit = f"at most {figure.max_seconds:g} s"
    ratio = "" if figure.key == "tutorial" else f"{values['ratio']:.2f} x"
    return f"| {figure.label} | {harness.shown(values)} | {ratio} | {limit} | {harness.verdict(values)} |"


def _stage_line(name: str, values: Mapping[str, Any]) -> str:
    limit, peak = f"at most {MAX_STAGE_GIB:g} GiB", f"{values['peak_gib']:.2f} GiB"
    return f"| `{name}` | {harness.shown(values)} | {peak} | {limit} | {harness.verdict(values)} |"
