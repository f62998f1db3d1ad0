"""Measure what MLflow costs: `train` with it and without it, and `register` in a store of many runs.

Each training and each registration is the first of its store.
"""

import re
import runpy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.harness import STAGES, Bench, Checkout, tell
from mnist.core import paths, process
from mnist.tracking import journal


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Two measurements, and how many times the second the first may take."""

    label: str
    key: str
    base: str
    max_ratio: float


TITLE = "What MLflow costs"
FIGURES = (
    Figure(
        label="`train`, 1 epoch, beside the same without MLflow", key="told_1", base="untold_1", max_ratio=1.3
    ),
    Figure(label="`train`, 20 epochs, beside it", key="told_20", base="untold_20", max_ratio=1.02),
    Figure(
        label="`register` among 1,000 runs, beside 10", key="register_1000", base="register_10", max_ratio=1.2
    ),
)
NUM_EPOCHS = (1, 20)
NUM_RUNS = (10, 1000)


def measure(bench: Bench, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of whole processes, one a round, by name.

    Raises:
        FailedError: something that was to be measured failed.
    """
    with bench.checkout() as clone:
        clone.dvc("repro", expected=STAGES)
        for num_runs in NUM_RUNS:
            tell(f"filling a store with {num_runs} runs")
            _python(clone, f"fill({num_runs})", store=f"store-{num_runs}.db")
        _python(clone, "fill(0)", store="store-0.db")
        rounds = []
        for number in range(num_rounds + 1):
            tell(f"round {number} of {num_rounds}" if number else "warming up")
            # Twenty epochs warm nothing that one does not.
            epochs = NUM_EPOCHS if number else NUM_EPOCHS[:1]
            rounds.append(_trainings(clone, epochs) | _registrations(clone))
        return {key: [values[key] for values in rounds[1:]] for key in rounds[-1]}


def _trainings(clone: Checkout, epochs: Sequence[int]) -> dict[str, float]:
    measured = {}
    for num_epochs in epochs:
        text = (clone.folder / paths.PARAMS).read_text(encoding="utf-8")
        text = re.sub(r"^epochs: \d+", f"epochs: {num_epochs}", text, flags=re.MULTILINE)
        (clone.folder / paths.PARAMS).write_text(text, encoding="utf-8")
        for name, code in (("told", "train()"), ("untold", "train_untold()")):
            with _copy(clone, "store-0.db") as store:
                seconds = _python(clone, code, store=store)
            measured[f"{name}_{num_epochs}"] = seconds
            tell(f"  train, {num_epochs} epochs, {name}: {seconds:.2f} s")
    return measured


def _registrations(clone: Checkout) -> dict[str, float]:
    measured = {}
    clone.run("git", "checkout", "-q", "--", str(paths.PARAMS))
    for num_runs in NUM_RUNS:
        with _copy(clone, f"store-{num_runs}.db") as store:
            environment = {**clone.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
            told = Checkout(folder=clone.folder, environment=environment)
            seconds = told.python("-m", "stages.register").seconds
        measured[f"register_{num_runs}"] = seconds
        tell(f"  register among {num_runs} runs: {seconds:.2f} s")
    return measured


@contextmanager
def _copy(clone: Checkout, store: str) -> Iterator[str]:
    """A copy of a store, so that what is measured is always the first of its kind in it."""
    shutil.copyfile(clone.folder / store, clone.folder / "copy.db")
    yield "copy.db"
    (clone.folder / "copy.db").unlink()


def _python(clone: Checkout, code: str, *, store: str) -> float:
    """Call a function of this module in a process of its own, with that store."""
    environment = {**clone.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    other = Checkout(folder=clone.folder, environment=environment)
    return other.python("-c", f"from benchmarks import tracking; tracking.{code}").seconds


def train() -> None:
    """Train as the pipeline does."""
    runpy.run_module("stages.train", run_name="__main__")


def train_untold() -> None:
    """Train as the pipeline does, with nobody told."""

    class Silence:
        def log(self, *_: object) -> None:
            """Say nothing."""

        def finish(self, *_: object) -> None:
            """Say nothing."""

    @contextmanager
    def unrecorded(*_: object, **__: object) -> Iterator[Silence]:
        yield Silence()

    journal.recorded = unrecorded  # type: ignore[assignment]
    train()


def fill(num_runs: int) -> None:
    """Put runs like ours, each with a version, into the store."""
    with process.heavy_imports():
        from mlflow.entities import Metric, Param, RunTag

        from mnist.core import config
        from mnist.tracking import client

    store = client.connect()
    name = config.load(paths.PARAMS).model_name
    if num_runs:
        store.client.create_registered_model(name)
    for number in range(num_runs):
        digest = f"{number:064x}"
        tags = {client.FINGERPRINT: digest, client.WEIGHTS: digest}
        run_id = store.client.create_run(store.experiment_id, number, tags).info.run_id
        store.client.log_batch(
            run_id,
            metrics=[Metric(f"metric{key}", 1.0, number, step) for key in range(10) for step in range(10)],
            params=[Param(f"param{key}", str(number)) for key in range(16)],
            tags=[RunTag(f"tag{key}", str(number)) for key in range(16)],
        )
        store.client.set_terminated(run_id, "FINISHED")
        store.client.create_model_version(name, f"runs:/{run_id}/model", run_id, tags=tags)


def measure_all(bench: Bench, *, num_rounds: int) -> dict[str, Any]:
    """The whole result, as plain values.

    Raises:
        FailedError: something that was to be measured failed.
    """
    measured = measure(bench, num_rounds)
    figures = {}
    for figure in FIGURES:
        ratio = median(measured[figure.key]) / median(measured[figure.base])
        figures[figure.key] = {
            **harness.spread(measured[figure.key]),
            "beside": harness.spread(measured[figure.base]),
            "ratio": ratio,
            "holds": ratio <= figure.max_ratio,
        }
    return {"figures": figures}


def tables(result: Mapping[str, Any]) -> str:
    """The Markdown of what `measure_all` gives."""
    lines = [
        "| measured | median | min to max | beside | median | min to max | ratio | at most | holds |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for figure in FIGURES:
        values = result["figures"][figure.key]
        what, _, beside = figure.label.partition(", beside ")
        lines.append(
            f"| {what} | {harness.shown(values)} | {beside} | {harness.shown(values['beside'])}"
            f" | {values['ratio']:.3f} | {figure.max_ratio:g} | {harness.verdict(values)} |"
        )
    return "\n".join(lines)
