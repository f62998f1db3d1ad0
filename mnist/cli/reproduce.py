"""Prove where a model came from: make it again from what its MLflow run records, and compare.

    python -m mnist.cli.reproduce [MODEL]

MODEL is `models:/name@alias`, `models:/name/version`, a run id or the start of one, or the name of a
DVC experiment; by default the champion. It exits with 0 where what could be promised holds, and
with 1 where it does not, or where nothing could be made.

The recorded commit, patch and params are laid out in a temporary repository (see `mnist.lineage.sandbox`),
with a DVC cache and an MLflow store of its own, so that every stage computes and nobody is told.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mnist.core import config, paths, process
from mnist.core.config import Machine
from mnist.core.errors import InputError
from mnist.lineage import fingerprint, git, guarantee, sandbox
from mnist.lineage.fingerprint import Source
from mnist.lineage.guarantee import Promise, Record, Version
from mnist.lineage.result import versions as library_versions
from mnist.tracking.promotion import CHAMPION

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from mnist.tracking.client import Store

PATCH = Path("dirty.patch")
KEPT = (PATCH, paths.PARAMS, paths.LOCK, paths.WEIGHTS, paths.TRAINING_METRICS, paths.TEST_METRICS)
NUM_LISTED = 8  # experiments or runs in a message

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What was asked for: a run, and the version that led to it."""

    run: "Run"
    version: "ModelVersion | None" = None

    @property
    def name(self) -> str:
        """For people."""
        info = self.run.info
        version = f", models:/{self.version.name}/{self.version.version}" if self.version else ""
        return f"run {info.run_name} ({info.run_id}){version}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.reproduce", description="Make a model again, and compare."
    )
    known = "models:/name@alias, models:/name/version, a run id, or a DVC experiment; default: the champion"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=known)
    options = parser.parse_args(arguments)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # ours are without
    with process.reported():
        model = options.model or f"models:/{config.load(paths.PARAMS).model_name}@{CHAMPION}"
        sys.exit(not reproduce(model))


def reproduce(model: str) -> bool:
    """Make `model` again and print how it compares; whether what could be promised holds.

    Raises:
        InputError: there is no such model, its record is incomplete, or its pipeline fails.
    """
    from mnist.tracking import client

    store = client.connect()
    with sandbox.temporary("reproduce") as aside:
        kept, checkout = aside.folder / "kept", aside.checkout
        with client.answering(store.uri):
            candidate = find(store, model)
            record = _record(store, candidate, kept)
        _say(f"{model} is {candidate.name}")
        commit = lay_out(record, kept, checkout)
        promised = guarantee.promise(record.tags, {**library_versions(), "device": _device(checkout)})
        _say(f"  source    {commit}")
        _say(f"  promised  {_described(promised)}")
        _say(f"  running   `dvc repro` in {checkout}, which is removed afterwards; this is its output:")
        sandbox.run(aside, ["evaluate"])
        made = guarantee.read(checkout, **_inputs(checkout))
    rows = guarantee.compare(record, made)
    verdict = guarantee.judge(record, rows, promised)
    _say("", *guarantee.table(rows, promised), "", f"promised: {_described(promised)}", verdict.text)
    return verdict.holds


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # at once: other processes print in between


def _described(promised: Promise) -> str:
    if promised.is_bytes:
        return f"equal bytes, equal metrics ({promised.reason})"
    return f"a test accuracy within {guarantee.TOLERANCE_POINTS} point, not equal bytes ({promised.reason})"


def find(store: "Store", model: str) -> Candidate:
    """The finished run that `model` names.

    Raises:
        InputError: there is none, or there are several; it says what there is.
    """
    if model.startswith("models:/"):
        return _of_version(store, model)
    if re.fullmatch(r"[0-9a-f]{32}", model) and (run := _known(store.client.get_run, model)):
        return Candidate(run=_finished(run))
    # A word of the tag, which may hold several names; MLflow's LIKE finds parts of words, too.
    wanted = f"tags.`dvc.experiments` LIKE '%{model}%'" if re.fullmatch(r"[^\s'\"%\\]+", model) else ""
    named = [run for run in _runs(store, wanted) if model in _names(run)] if wanted else []
    if named:
        return Candidate(run=named[0])
    begun = [run for run in _runs(store) if run.info.run_id.startswith(model)] if model else []
    if len(begun) == 1:
        return Candidate(run=begun[0])
    where = f"{model or 'MODEL'} in MLflow at {paths.shown(store.uri)}"
    if begun:
        expected = f"more of the run id: {_listed(run.info.run_id for run in begun)}"
        raise InputError(where, found=f"{len(begun)} runs whose id begins so", expected=expected)
    names = _listed(dict.fromkeys(name for run in _runs(store) for name in reversed(_names(run))))
    aliases = _listed(
        f"models:/{registered.name}@{alias}"
        for registered in store.client.search_registered_models()
        for alias in registered.aliases
    )
    known = (
        f"a model version ({aliases or 'no alias yet'}), a run id, or an experiment ({names or 'none yet'})"
    )
    raise InputError(where, found="no such experiment or finished run", expected=known)


def _of_version(store: "Store", uri: str) -> Candidate:
    """The version that `uri` names, and its run, or else another run of the same weights."""
    parsed = re.fullmatch(r"models:/([^/@'\"]+)(?:@([^/@]+)|/([0-9]+))", uri)
    if not parsed:
        raise InputError(uri, found="no alias or version", expected="models:/name@alias or models:/name/1")
    name, alias, number = parsed.groups()
    model = _known(store.client.get_registered_model, name)
    if model is None:
        known = _listed(registered.name for registered in store.client.search_registered_models())
        raise InputError(uri, found="no such model", expected=f"one of these: {known or 'there is none yet'}")
    number = model.aliases.get(alias) if alias else number
    version = _known(store.client.get_model_version, name, str(number)) if number else None
    if version is None:
        versions = store.client.search_model_versions(f"name = '{name}'")
        numbers = sorted(int(version.version) for version in versions)
        there = [*(f"@{alias}" for alias in model.aliases), *(f"/{number}" for number in numbers)]
        listed = _listed(f"models:/{name}{end}" for end in there)
        raise InputError(
            uri, found="no such version", expected=f"one of these: {listed or 'there is none yet'}"
        )
    run = _known(store.client.get_run, version.run_id) if version.run_id else None
    if run and run.info.lifecycle_stage == "active":
        return Candidate(run=_finished(run), version=version)
    weights = version.tags.get("weights_sha256", "")
    for other in _runs(store, f"tags.`weights_sha256` = '{weights}'") if weights else ():
        return Candidate(run=other, version=version)
    found = f"that run {version.run_id or '(none)'} of version {version.version} is gone"
    raise InputError(uri, found=found, expected="a run that tells its source: `mnist sync` brings it back")


def _runs(store: "Store", wanted: str = "") -> Iterator["Run"]:
    """Finished runs, the newest first."""
    query = " and ".join(filter(None, ["attributes.status = 'FINISHED'", wanted]))
    token = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id], query, order_by=["start_time DESC"], max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _finished(run: "Run") -> "Run":
    info = run.info
    if info.status != "FINISHED" or info.lifecycle_stage == "deleted":
        found = "a deleted one" if info.lifecycle_stage == "deleted" else f"one that is {info.status}"
        raise InputError(f"run {info.run_name} ({info.run_id})", found=found, expected="a finished run")
    return run


def _names(run: "Run") -> list[str]:
    return str(run.data.tags.get("dvc.experiments", "")).split()


def _listed(names: Iterable[str]) -> str:
    """The first few, for a message."""
    every = list(names)
    more = f" and {len(every) - NUM_LISTED} more" if len(every) > NUM_LISTED else ""
    return ", ".join(every[:NUM_LISTED]) + more


def _known(question: Callable[..., T], *arguments: str) -> T | None:
    """The store's answer; None where it knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return question(*arguments)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _record(store: "Store", candidate: Candidate, kept: Path) -> Record:
    """What MLflow says of a result; the files of its run are laid down in `kept`.

    Raises:
        InputError: it does not say which source, data and weights.
    """
    tags, run_id = candidate.run.data.tags, candidate.run.info.run_id
    missing = [name for name in ("weights_sha256", "fingerprint", "dataset_sha256") if not tags.get(name)]
    if missing:
        found = f"no tag {', '.join(missing)}"
        raise InputError(candidate.name, found=found, expected="a run of this pipeline's stage train")
    if not tags.get("mlflow.source.git.commit"):
        found = "no commit: it was made outside git"
        raise InputError(candidate.name, found=found, expected="a run that was made in a git checkout")
    with _artifact_store(f"files of {candidate.name}"):
        for folder in {path.parent for path in KEPT}:
            (kept / folder).mkdir(parents=True, exist_ok=True)
            for file in store.client.list_artifacts(run_id, folder.as_posix()):
                if (path := Path(file.path)) in KEPT:
                    # Where in the folder it arrives is each artifact store's own choice.
                    arrived = store.client.download_artifacts(run_id, file.path, str(kept / folder))
                    Path(arrived).replace(kept / path)
    result = guarantee.read(kept, dataset_sha256=tags["dataset_sha256"], fingerprint=tags["fingerprint"])
    version = _version(store, candidate.version, kept) if candidate.version else None
    return Record(tags=tags, kept=result, version=version)


def _version(store: "Store", version: "ModelVersion", kept: Path) -> Version:
    """A version with what its stored model holds, of which a copy is made: MLflow adds a file to it."""
    import mlflow  # not frozen: triton, which comes with it, would report all of it as leaked
    import mlflow.pytorch

    uri = f"models:/{version.name}/{version.version}"
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    with _artifact_store(uri):
        tensors = mlflow.pytorch.load_model(uri, dst_path=str(kept)).state_dict()
    return Version(
        uri=uri,
        weights_sha256=version.tags.get("weights_sha256", ""),
        tensors_sha256=guarantee.tensors_sha256({name: tensor.numpy() for name, tensor in tensors.items()}),
    )


@contextlib.contextmanager
def _artifact_store(where: str) -> Iterator[None]:
    """Say in one line what stops the block; each kind of artifact store has errors of its own."""
    try:
        yield
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(where, found=found, expected="files that can be read") from error


def lay_out(record: Record, kept: Path, checkout: Path) -> str:
    """Make a checkout of the recorded source, and say in a line what it is.

    Raises:
        InputError: the commit is not here, or the patch does not fit it.
    """
    commit = record.tags["mlflow.source.git.commit"]
    sandbox.lay_out(commit, checkout)
    said = [f"commit {commit[:12]}"]
    if (kept / PATCH).is_file():
        git.text("apply", "--whitespace=nowarn", str(kept / PATCH), folder=checkout)
        said.append(f"its {PATCH}")
    if (kept / paths.PARAMS).is_file():
        was, now = sandbox.params(checkout), sandbox.params(kept)
        changes = [
            f"{key} {was.get(key)} -> {now.get(key)}" for key in was | now if was.get(key) != now.get(key)
        ]
        if changes:
            said.append(f"the run's {paths.PARAMS}, which is another one: {', '.join(changes)}")
        shutil.copyfile(kept / paths.PARAMS, checkout / paths.PARAMS)
    return ", ".join(said)


def _device(checkout: Path) -> str:
    """What the stages will run on here; empty where the params of that time do not tell."""
    from mnist.training import devices

    values = sandbox.params(checkout)
    known = {key: values[key] for key in Machine.model_fields if key in values}
    if len(known) < len(Machine.model_fields):
        return ""
    device = devices.prepare(config.check(Machine, known, str(paths.PARAMS)))
    return devices.describe(device, values.get("processes", 1))


def _inputs(checkout: Path) -> dict[str, str]:
    """Digests of what went into the training."""
    nowhere = Source(commit="", branch="", patch="", experiment="", rerun="")
    training = fingerprint.of_training(checkout, where=nowhere)
    return {"dataset_sha256": training.dataset_sha256, "fingerprint": training.fingerprint}


if __name__ == "__main__":
    main()
