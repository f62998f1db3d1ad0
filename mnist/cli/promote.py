"""Give the alias `champion` to the challenger if it is good enough, or back to the champion before.

    python -m mnist.cli.promote [--dry-run] [--only-this-result]
    python -m mnist.cli.promote --rollback [--dry-run]

It exits with 0 where `champion` is now what was asked for, and with 1 where that is refused. Each
decision, a refusal too, is one JSON object in three places: a line of `promotions.jsonl` beside
`dvc.yaml`, the tag `promotion` of the version, and an artifact of the version's run.

The alias moves last, once all three are written and the line is on the disk. So whatever stops it
on the way, there is no moved alias without its record; a record without its move is followed by
another one, as `make promote` then decides again. The lock is held from the first look to the
move: of two promotions at once in one checkout and its worktrees, the second one sees what the
first one did. The version that becomes the champion is tagged with the versions before it, the
last one first (`promoted_over`): this is the way that `--rollback` goes, step by step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from mnist.core import config, files, paths, process
from mnist.core.config import Registry
from mnist.core.errors import InputError
from mnist.evaluation import statistics
from mnist.evaluation.statistics import Predictions
from mnist.tracking import journal, promotion
from mnist.tracking.promotion import CHALLENGER, CHAMPION, Decision, Model

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from mnist.tracking.client import Store

RECORD, BEFORE = "promotion", "promoted_over"  # tags of a version
LOG = "promotions.jsonl"
PRECISION = 1e-6  # metrics are written with six decimals
MAX_RUNS = 5  # of the same weights that are looked at, where a version's own run does not serve

T = TypeVar("T")


def promote(store: "Store", registry: Registry, *, weights_sha256: str = "", dry_run: bool) -> bool:
    """Decide on the challenger, write it down, move the alias; whether it is the champion now.

    Args:
        store: where the versions are.
        registry: the name of the model, and what it takes to be promoted.
        weights_sha256: the weights that the challenger must have; any, if empty.
        dry_run: print the decision, and change nothing.

    Raises:
        InputError: there is no challenger, it has other weights, or the store or the log refuse.
    """
    name = registry.model_name
    aliases = _aliases(store, name)
    if CHALLENGER not in aliases:
        expected = "one that `dvc repro` gave the alias `challenger`"
        raise InputError(f"models:/{name}@{CHALLENGER}", found="no such version", expected=expected)
    asking = store.client.get_model_version(name, aliases[CHALLENGER])
    if weights_sha256 and asking.tags.get("weights_sha256") != weights_sha256:
        found = f"version {asking.version}, another model than {paths.WEIGHTS}"
        expected = "this result, which is not registered below registry.min_accuracy"
        raise InputError(f"models:/{name}@{CHALLENGER}", found=found, expected=expected)
    sitting = store.client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None
    challenger = _look_at(store, asking)
    champion = _look_at(store, sitting, beside=challenger) if sitting else None
    print(f"promote: models:/{name}")
    print(f"  challenger  {promotion.described(challenger)}")
    print(f"  champion    {promotion.described(champion) if champion else 'none yet'}")
    if champion and (sameness := promotion.same(challenger, champion)):
        print(f"  decision    nothing to do: {sameness}")
        return True

    limits = {"min_accuracy": registry.min_accuracy, "alpha": registry.alpha}
    decision = promotion.decide(challenger, champion, **limits)
    if decision.paired:
        print(f"  paired      {promotion.summary(decision.paired)}")
    before = [str(sitting.version), *_before(sitting)] if sitting else []
    return _carry_out(store, name, decision, before=before, dry_run=dry_run)


def roll_back(store: "Store", name: str, *, dry_run: bool) -> bool:
    """Give the alias back to the champion before, and write it down.

    Raises:
        InputError: there is none to give it back to, or the store or the log refuse.
    """
    aliases = _aliases(store, name)
    if CHAMPION not in aliases:
        expected = "a champion to roll back from: `make promote` makes one"
        raise InputError(f"models:/{name}@{CHAMPION}", found="no such version", expected=expected)
    sitting = store.client.get_model_version(name, aliases[CHAMPION])
    where = f"models:/{name}@{CHAMPION}, version {sitting.version}"
    if not _before(sitting):
        raise InputError(where, found="no champion before it", expected="one that was promoted over another")
    version, *earlier = _before(sitting)
    returning = _known(store.client.get_model_version, name, version)
    if returning is None:
        found = f"that version {version}, the champion before it, is deleted"
        raise InputError(where, found=found, expected="a version to go back to: promote another one")
    champion, candidate = _look_at(store, sitting), _look_at(store, returning)
    print(f"rollback: models:/{name}")
    print(f"  champion    {promotion.described(champion)}")
    print(f"  before it   {promotion.described(candidate)}")
    decision = Decision(
        outcome="rolled back",
        reason=f"`{CHAMPION}` goes back from version {champion.version}",
        candidate=candidate,
        incumbent=champion,
    )
    return _carry_out(store, name, decision, before=earlier, dry_run=dry_run)


def _aliases(store: "Store", name: str) -> Mapping[str, str]:
    model = _known(store.client.get_registered_model, name)
    if model is None:
        expected = "a registered model: `dvc repro` makes one, where registry.min_accuracy is reached"
        raise InputError(f"models:/{name}", found="no such model", expected=expected)
    return {alias: str(version) for alias, version in model.aliases.items()}


def _before(version: "ModelVersion") -> list[str]:
    """The champions before this one, the last one first."""
    return str(version.tags.get(BEFORE, "")).split()


def _known(question: Callable[..., T], *arguments: str) -> T | None:
    """The store's answer; None where it knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return question(*arguments)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _look_at(store: "Store", version: "ModelVersion", beside: Model | None = None) -> Model:
    """A version with the evidence of its run, or else of another run of the same weights.

    Another one serves where its own is gone (a rebuilt store has new runs), or was tested on
    other data than the model `beside` it.
    """
    own = _known(store.client.get_run, version.run_id) if version.run_id else None
    weights = version.tags.get("weights_sha256") or (own.data.tags.get("weights_sha256") if own else None)
    first = _evidence(store, version, own, weights or "")
    if not weights or (first.predictions and not _differ(beside, first)):
        return first
    for run in _runs_of(store, weights, beside):
        model = _evidence(store, version, run, weights)
        if model.predictions and not _differ(beside, model):
            return model
    return first


def _differ(beside: Model | None, model: Model) -> bool:
    return bool(beside and beside.predictions and promotion.tested_on_others(beside, model))


def _runs_of(store: "Store", weights_sha256: str, beside: Model | None) -> Iterator["Run"]:
    """Finished runs of these weights, newest first, on the test data of the model `beside`."""
    wanted = f"tags.`weights_sha256` = '{weights_sha256}' and attributes.status = 'FINISHED'"
    for key in promotion.TESTED_ON:
        if beside and (digest := beside.tags.get(key)):
            wanted += f" and tags.`{key}` = '{digest}'"
            break
    newest = ["start_time DESC"]
    yield from store.client.search_runs([store.experiment_id], wanted, order_by=newest, max_results=MAX_RUNS)


def _evidence(store: "Store", version: "ModelVersion", run: "Run | None", weights_sha256: str) -> Model:
    """What a run says of a version; it may be gone, wholly or in part."""
    model: dict[str, Any] = {"version": str(version.version), "weights_sha256": weights_sha256}
    if run is None or run.info.lifecycle_stage == "deleted":
        run_id = version.run_id or ""
        restore = f"`mlflow runs restore --run-id {run_id}` or " if run else ""
        said = f"is {'deleted' if run else 'gone'}: {restore}`make reconcile` brings it back"
        problem = f"run {run_id or '(none)'} of version {version.version} {said}"
        return Model(**model, run_id=run_id, tags=run.data.tags if run else {}, problem=problem)
    where = f"run {run.info.run_name} ({run.info.run_id}) of version {version.version}"
    model |= {"run_id": run.info.run_id, "run_name": run.info.run_name, "tags": run.data.tags}
    text = _artifact(store, run.info.run_id, paths.PREDICTIONS)
    if text is None:
        return Model(**model, problem=f"{where} has no {paths.PREDICTIONS}: `make reconcile` brings it back")
    try:
        predictions = _predictions(run, text, f"{where}, {paths.PREDICTIONS}")
    except InputError as error:
        return Model(**model, problem=f"{error}: `make reconcile` brings it back")
    return Model(**model, predictions=predictions)


def _predictions(run: "Run", text: str, where: str) -> Predictions:
    """Those of a run, which must have the accuracy that the run tells."""
    predictions = statistics.parse(text, where)
    told = float(run.data.metrics.get("test_accuracy", predictions.accuracy))
    if abs(told - predictions.accuracy) > PRECISION:
        found = f"an accuracy of {predictions.accuracy:.6f}"
        raise InputError(where, found=found, expected=f"{told:.6f}, which the run tells")
    return predictions


def _artifact(store: "Store", run_id: str, path: Path) -> str | None:
    """A text file of a run; None where the run has no such file."""
    with _artifact_store():
        listed = store.client.list_artifacts(run_id, path.parent.as_posix())
        if path.as_posix() not in {file.path for file in listed}:
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = store.client.download_artifacts(run_id, path.as_posix(), folder)
            return Path(file).read_text(encoding="utf-8", errors="replace")


def _who() -> str:
    """The user of this process, and the name that their commits bear."""
    user = journal.user()
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return user
    author = done.stdout.strip()
    return f"{user} ({author})" if author and author != user else user


def _carry_out(
    store: "Store", name: str, decision: Decision, *, before: Sequence[str], dry_run: bool
) -> bool:
    """Write the decision down and, unless it is a refusal, give its candidate the alias; whether it has it.

    Args:
        store: where the versions are.
        name: of the registered model.
        decision: what was decided.
        before: the champions before the candidate, the last one first.
        dry_run: say it, and do nothing.
    """
    candidate, moves = decision.candidate, decision.outcome != "refused"
    if dry_run:
        print(f"  decision    would be {decision.outcome}: {decision.reason}")
        print("  --dry-run   nothing is written, no alias moves")
        return moves
    where = paths.shown(store.uri)
    record = promotion.record(decision, time=datetime.now(UTC), who=_who(), store=where, name=name)
    line, file = json.dumps(record), f"promotions/{record['time'].replace(':', '')}.json"
    places = [os.path.relpath(paths.root() / LOG), f"tag `{RECORD}` of version {candidate.version}"]
    with _appending(paths.root() / LOG) as log:  # opened first: where it cannot be, nothing happens
        if candidate.run_name:  # or else there is no run to keep it
            with _artifact_store():
                store.client.log_text(candidate.run_id, json.dumps(record, indent=2) + "\n", file)
            places.append(f"artifact {file} of its run")
        store.client.set_model_version_tag(name, candidate.version, RECORD, line)
        if moves:
            store.client.set_model_version_tag(name, candidate.version, BEFORE, " ".join(before))
        log.write(f"{line}\n".encode())
    if moves:
        store.client.set_registered_model_alias(name, CHAMPION, candidate.version)
    print(f"  decision    {decision.outcome}: {decision.reason}")
    if moves:
        print(f"  alias       `{CHAMPION}` is version {candidate.version} now")
    else:
        print(f"  alias       `{CHAMPION}` stays {_numbered(decision.incumbent)}")
    print(f"  record      {', '.join(places)}")
    return moves


def _numbered(model: Model | None) -> str:
    return f"version {model.version}" if model else "unset"


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    """Append to a file of lines; what is written is on the disk when the block ends.

    A last line that a crash left without its end gets one, so that it spoils no other.
    """
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _artifact_store() -> Iterator[None]:
    """Say in one line what stops the block; each kind of artifact store has errors of its own."""
    try:
        yield
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError("MLflow's artifacts", found=found, expected="a store that answers") from error


@contextmanager
def _store() -> Iterator["Store"]:
    """The store, locked; its refusals are one line."""
    from mnist.tracking import client

    store = client.connect()
    with client.answering(store.uri), client.lock("registry"):
        yield store


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m mnist.cli.promote", description="Move the alias `champion`, or say why not."
    )
    parser.add_argument("--rollback", action="store_true", help="give it back to the champion before")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and do nothing")
    parser.add_argument(
        "--only-this-result",
        action="store_true",
        help="fail if the challenger is another model than this checkout's",
    )
    options = parser.parse_args(arguments)
    with process.reported():
        read = config.load(paths.PARAMS)
        registry = read.registry.of(read.dataset)
        with _store() as store:
            if options.rollback:
                done = roll_back(store, registry.model_name, dry_run=options.dry_run)
            else:
                weights_sha256 = files.sha256(paths.WEIGHTS) if options.only_this_result else ""
                done = promote(store, registry, weights_sha256=weights_sha256, dry_run=options.dry_run)
        sys.exit(not done)


if __name__ == "__main__":
    main()
