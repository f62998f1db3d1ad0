"""The command `mnist reproduce`: make a model again from what its MLflow run records, and compare."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mnist.core import config, files, paths
from mnist.core.config import Machine
from mnist.core.errors import InputError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from mnist.lineage.compare import Guarantee, Row
    from mnist.lineage.sandbox import Sandbox
    from mnist.tracking.client import Store

PATCH = Path("dirty.patch")
METRICS = (paths.TRAINING_METRICS, paths.TEST_METRICS)
KEPT = (PATCH, paths.PARAMS, paths.WEIGHTS, *METRICS)
COMMIT, TAGS = "mlflow.source.git.commit", ("weights_sha256", "fingerprint", "dataset_sha256")
NUM_LISTED = 8  # names in a message


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The run that was asked for, and the model version that led to it."""

    run: "Run"
    version: "ModelVersion | None" = None

    @property
    def uri(self) -> str:
        """The version's; empty without one."""
        return f"models:/{self.version.name}/{self.version.version}" if self.version else ""

    def __str__(self) -> str:
        info = self.run.info
        return ", ".join(filter(None, [f"run {info.run_name} ({info.run_id})", self.uri]))


@click.command()
@click.argument("model", default="")
def reproduce(model: str) -> None:
    """Reproduce a model from its MLflow run, and compare.

    MODEL is models:/name@alias, models:/name/version, a run id or its start, or the name of a DVC
    experiment (default: the champion). The recorded commit, patch and params are checked out in a
    temporary folder, the pipeline runs there, and its weights and metrics are compared with the recorded
    ones: byte for byte on the same device and versions, else within a tolerance. It runs the recorded
    code: reproduce from stores that you trust.

    \b
    mnist reproduce                              the champion
    mnist reproduce models:/mnist-simplecnn/1
    mnist reproduce runny-jibe
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # our models have none
    sys.exit(not run(model or f"models:/{config.load(paths.PARAMS).model_name}@champion"))


def run(model: str) -> bool:
    """Reproduce `model` and print how it compares; return whether what is guaranteed holds.

    Raises:
        InputError: there is no such model, its record is incomplete, or its pipeline fails.
    """
    from mnist.lineage import compare, sandbox
    from mnist.lineage.result import versions
    from mnist.tracking import client

    store = client.connect()
    with sandbox.temporary("reproduce") as aside:
        recorded = aside.folder / "recorded"
        with client.answering(store.uri):
            candidate = find(store, model)
            _download(store, candidate, recorded)
            tensors = _tensors(store, candidate, recorded)
        tags = candidate.run.data.tags
        click.echo(f"{model} is {candidate}")
        click.echo(f"  source      {check_out(aside, tags[COMMIT], recorded)}")
        guarantee = compare.guarantee(tags, {**versions(), "device": _device(aside)})
        what = "equal bytes" if guarantee.is_exact else "numbers within their tolerances"
        click.echo(f"  guaranteed  {what} ({guarantee.reason})")
        click.echo(f"  running     `dvc repro` in {aside.checkout}, which is removed afterwards:")
        sandbox.run(aside, ["evaluate"])
        rows = list(_rows(aside, candidate, recorded, tensors, guarantee))
    click.echo(f"\n{compare.table(rows, 'recorded')}\n\n{_verdict(rows)}")
    return all(row.answer != "NO" for row in rows)


def find(store: "Store", model: str) -> Candidate:
    """Return the finished run that `model` names.

    Raises:
        InputError: there is none, or there are several.
    """
    from mlflow.exceptions import MlflowException

    try:
        if parsed := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))", model):
            name, alias, number = parsed.groups()
            client = store.client
            found = (
                client.get_model_version_by_alias(name, alias)
                if alias
                else client.get_model_version(name, number)
            )
            # Another run of the same weights will do where the version's own is gone.
            weights = f"tags.`weights_sha256` = '{found.tags.get('weights_sha256', '')}'"
            runs = sorted(_finished(store, weights), key=lambda run: run.info.run_id != found.run_id)
            if not runs:
                expected = "a run that records its source: `mnist sync` restores it"
                raise InputError(model, found=f"that its run {found.run_id} is gone", expected=expected)
            return Candidate(run=runs[0], version=found)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    runs = [run for run in _finished(store) if model in _experiments(run)]
    runs = runs[:1] or [run for run in _finished(store) if model and run.info.run_id.startswith(model)]
    if len(runs) == 1:
        return Candidate(run=runs[0])
    where = f"{model or 'MODEL'} in MLflow at {paths.shown(store.uri)}"
    if runs:
        ids = _listed(run.info.run_id for run in runs)
        raise InputError(where, found=f"{len(runs)} runs whose id begins so", expected=f"more of it: {ids}")
    names = _listed(dict.fromkeys(name for run in _finished(store) for name in _experiments(run)))
    models = store.client.search_registered_models()
    aliases = _listed(f"models:/{one.name}@{alias}" for one in models for alias in one.aliases)
    expected = f"a model version ({aliases}), a run id, or an experiment ({names})"
    raise InputError(where, found="no such version, experiment or finished run", expected=expected)


def _finished(store: "Store", wanted: str = "") -> Iterator["Run"]:
    """Yield the finished runs, the newest first."""
    query = " and ".join(filter(None, ["attributes.status = 'FINISHED'", wanted]))
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id], query, order_by=["start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _experiments(run: "Run") -> list[str]:
    return str(run.data.tags.get("dvc.experiments", "")).split()


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NUM_LISTED} more" if len(every) > NUM_LISTED else ""
    return (", ".join(every[:NUM_LISTED]) or "none yet") + more


def _download(store: "Store", candidate: Candidate, folder: Path) -> None:
    """Download the files of a run that a reproduction needs.

    Raises:
        InputError: it does not record its source, data and weights, or the files cannot be read.
    """
    missing = [name for name in (*TAGS, COMMIT) if not candidate.run.data.tags.get(name)]
    if missing:
        found = f"no tag {', '.join(missing)}"
        raise InputError(
            str(candidate), found=found, expected="a run of this pipeline, made in a git checkout"
        )
    run_id = candidate.run.info.run_id
    with _readable(f"files of {candidate}"):
        for parent in {path.parent for path in KEPT}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            for file in store.client.list_artifacts(run_id, parent.as_posix()):
                if Path(file.path) in KEPT:
                    # Where in the folder it arrives is each artifact store's own choice.
                    arrived = store.client.download_artifacts(run_id, file.path, str(folder / parent))
                    Path(arrived).replace(folder / file.path)


def _tensors(store: "Store", candidate: Candidate, folder: Path) -> dict[str, bytes]:
    """Return the tensors that the stored model of a version holds, as bytes by name; none without one."""
    if not candidate.version:
        return {}
    import mlflow.pytorch

    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    with _readable(candidate.uri):
        model = mlflow.pytorch.load_model(
            candidate.uri, dst_path=str(folder)
        )  # a copy: MLflow adds a file to it
        return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Report in one line what stops the block; each kind of artifact store has errors of its own."""
    try:
        yield
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(where, found=found, expected="files that can be read") from error


def check_out(aside: "Sandbox", commit: str, recorded: Path) -> str:
    """Check out the recorded source, and return a line that describes it.

    Raises:
        InputError: the commit is not here, or the patch does not fit it.
    """
    from mnist.lineage import git, sandbox

    sandbox.check_out(aside, commit)
    parts = [f"commit {commit[:12]}"]
    if (recorded / PATCH).is_file():
        git.text("apply", "--whitespace=nowarn", str(recorded / PATCH), folder=aside.checkout)
        parts.append(f"its {PATCH}")
    if (recorded / paths.PARAMS).is_file():
        was, now = (
            config.flat(config.read_keys(folder, paths.PARAMS)) for folder in (aside.checkout, recorded)
        )
        changes = [
            f"{key} {was.get(key)} -> {now.get(key)}" for key in was | now if was.get(key) != now.get(key)
        ]
        parts += [f"the run's {paths.PARAMS}: {', '.join(changes)}"] if changes else []
        shutil.copyfile(recorded / paths.PARAMS, aside.checkout / paths.PARAMS)
    return ", ".join(parts)


def _device(aside: "Sandbox") -> str:
    """Return what the stages run on here."""
    from mnist.training import devices

    values = config.read_keys(aside.checkout, paths.PARAMS)
    known = {key: values[key] for key in Machine.model_fields if key in values}
    device = devices.prepare(config.check(Machine, known, str(paths.PARAMS)))
    return devices.describe(device, values.get("processes", 1))


def _rows(
    aside: "Sandbox", candidate: Candidate, recorded: Path, tensors: dict[str, bytes], guarantee: "Guarantee"
) -> Iterator["Row"]:
    """Compare the data, the weights by each place that records them, and the metrics."""
    from mnist.lineage import compare, fingerprint

    tags, weights = candidate.run.data.tags, aside.checkout / paths.WEIGHTS
    of_data = files.sha256(aside.checkout / paths.DATASET)
    yield compare.digest_row(str(paths.DATASET), tags["dataset_sha256"], of_data, "NO")
    places = {"tag of the run": tags["weights_sha256"]}
    if (recorded / paths.WEIGHTS).is_file():
        places["file of the run"] = files.sha256(recorded / paths.WEIGHTS)
    if candidate.version:
        places[f"tag of {candidate.uri}"] = candidate.version.tags.get("weights_sha256", "")
    # Places that record different weights are wrong on any machine.
    unequal: compare.Answer = "NO" if guarantee.is_exact or len(set(places.values())) > 1 else "other bytes"
    of_weights = files.sha256(weights)
    for place, digest in places.items():
        yield compare.digest_row(f"{paths.WEIGHTS}, {place}", digest, of_weights, unequal)
    is_equal = set(places.values()) == {of_weights}
    if candidate.version:
        from safetensors.numpy import load_file

        inside = {name: array.tobytes() for name, array in load_file(weights).items()}
        answer: compare.Answer = "equal" if inside == tensors else unequal if not is_equal else "NO"
        yield compare.Row(what=f"tensors inside {candidate.uri}", before="", after="", answer=answer)
    if not is_equal:
        source = fingerprint.Source(commit="", branch="", patch="", experiment="", rerun="")
        training = fingerprint.of_training(aside.checkout, where=source)
        yield compare.digest_row(
            "fingerprint of the training", tags["fingerprint"], training.fingerprint, "NO"
        )
    tolerances = compare.EQUAL_WEIGHTS if is_equal else compare.OTHER_WEIGHTS
    for name in METRICS:
        before, after = (
            compare.Output(
                digest=files.sha256(folder / name) if (folder / name).is_file() else None, file=folder / name
            )
            for folder in (recorded, aside.checkout)
        )
        yield from compare.compare(str(name), before, after, None if guarantee.is_exact else tolerances)


def _verdict(rows: list["Row"]) -> str:
    wrong = [row.what for row in rows if row.answer == "NO"]
    if wrong:
        return f"not reproduced: {', '.join(wrong)}"
    if any(row.answer != "equal" for row in rows):
        return "reproduced within the tolerances: other bytes, as on another machine"
    return "reproduced: byte for byte the same weights, and the same metrics"
