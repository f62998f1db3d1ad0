"""Promotion and rollback: the alias `champion` moves, and each decision is recorded.

A decision, a refusal too, is one JSON object in three places: a line of `promotions.jsonl` beside
`dvc.yaml`, the tag `promotion` of the version, and an artifact of the version's run. The alias moves
last, when all three are written and the line is on the disk. So an alias never moves without its record;
where a record exists without its move, the next `mnist promote` decides again. The lock is held from the
first look to the move, so two promotions at once in one checkout and its worktrees do not cross.

The version that becomes the champion is tagged with the champions before it, the last one first
(`promoted_over`). `mnist rollback` follows this tag, step by step.

A store that lost its champion gets it back from the records, by the digest of the weights: `restore`.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from mnist.core import files, paths
from mnist.core.config import Registry
from mnist.core.errors import InputError, printable
from mnist.evaluation.predictions import Predictions, parse_table
from mnist.lineage import git
from mnist.lineage.result import user
from mnist.tracking import client, promotion
from mnist.tracking.client import Store
from mnist.tracking.events import TEST_ACCURACY, WEIGHTS
from mnist.tracking.promotion import CHALLENGER, CHAMPION, Decision, Model

RECORD, BEFORE = "promotion", "promoted_over"  # tags of a version
LOG = "promotions.jsonl"
PRECISION = 1e-6  # metrics are written with six decimals
MAX_RUNS = 5  # of the same weights that are looked at, where a version's own run does not serve

T = TypeVar("T")


def promote(store: Store, registry: Registry, *, weights_sha256: str = "", dry_run: bool) -> bool:
    """Decide on the challenger, record the decision and move the alias.

    Args:
        store: where the versions are.
        registry: name of the model, and the limits of promotion.
        weights_sha256: the weights that the challenger must have; any, if empty.
        dry_run: print the decision, and change nothing.

    Returns:
        Whether the challenger is the champion now.

    Raises:
        InputError: there is no challenger, it has other weights, or the store or the log fails.
    """
    name = registry.model_name
    aliases = _aliases(store, name)
    if CHALLENGER not in aliases:
        expected = "one that `dvc repro` or, after a lost store, `mnist sync` gave the alias `challenger`"
        raise InputError(f"models:/{name}@{CHALLENGER}", found="no such version", expected=expected)
    candidate_version = store.client.get_model_version(name, aliases[CHALLENGER])
    if weights_sha256 and candidate_version.tags.get("weights_sha256") != weights_sha256:
        found = f"version {candidate_version.version}, another model than {paths.WEIGHTS}"
        expected = "this result, which is not registered below registry.min_accuracy"
        raise InputError(f"models:/{name}@{CHALLENGER}", found=found, expected=expected)
    champion_version = (
        store.client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None
    )
    challenger = _look_at(store, candidate_version)
    champion = _look_at(store, champion_version, beside=challenger) if champion_version else None
    print(f"promote: models:/{name}")
    print(f"  challenger  {promotion.described(challenger)}")
    if challenger.predictions and challenger.predictions.warning:
        print(f"  WARNING     {printable(challenger.predictions.warning)}")
    print(f"  champion    {promotion.described(champion) if champion else 'none yet'}")
    if champion and (sameness := promotion.same(challenger, champion)):
        print(f"  decision    nothing to do: {sameness}")
        return True

    limits = {"min_accuracy": registry.min_accuracy, "alpha": registry.alpha}
    decision = promotion.decide(challenger, champion, **limits)
    if decision.paired:
        print(f"  paired      {promotion.summary(decision.paired)}")
    before = [str(champion_version.version), *_before(champion_version)] if champion_version else []
    return _carry_out(store, name, decision, before=before, dry_run=dry_run)


def roll_back(store: Store, name: str, *, dry_run: bool) -> bool:
    """Give the alias back to the previous champion, and record that.

    Raises:
        InputError: there is no previous champion, or the store or the log fails.
    """
    aliases = _aliases(store, name)
    if CHAMPION not in aliases:
        expected = "a champion to roll back from: `mnist promote` makes one"
        raise InputError(f"models:/{name}@{CHAMPION}", found="no such version", expected=expected)
    champion_version = store.client.get_model_version(name, aliases[CHAMPION])
    where = f"models:/{name}@{CHAMPION}, version {champion_version.version}"
    if not _before(champion_version):
        raise InputError(where, found="no champion before it", expected="one that was promoted over another")
    version, *earlier = _before(champion_version)
    returning = _known(store.client.get_model_version, name, version)
    if returning is None:
        found = f"that version {version}, the champion before it, is deleted"
        raise InputError(where, found=found, expected="a version to go back to: promote another one")
    champion, candidate = _look_at(store, champion_version), _look_at(store, returning)
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


def restore(store: Store, versions: Collection[ModelVersion]) -> None:
    """Give the alias to the recorded champion of each model that has no champion, as after a lost store.

    Args:
        store: where the versions are; the decisions were recorded for it.
        versions: of the results that are here. Other versions are not trusted.

    Raises:
        InputError: the records cannot be read.
    """
    for name in sorted({version.name for version in versions}):
        with client.lock("registry"):
            is_there, shown = CHAMPION in _aliases(store, name), paths.shown(store.uri)
            records = [] if is_there else promotion.champions(paths.root() / LOG, shown, name)
            if not records:
                continue
            here = {one.tags[WEIGHTS]: one.version for one in versions if one.name == name}
            last, *earlier = [(one, here.get(one.candidate.weights_sha256)) for one in records]
            record, number = last
            decided = f"{record.who} decided at {record.time} ({LOG})"
            if number is None:
                print(f"sync: models:/{name} has no champion: no result here is the one on which {decided}")
                continue
            before = " ".join(str(version) for _, version in earlier if version)
            store.client.set_model_version_tag(name, number, BEFORE, before)
            store.client.set_registered_model_alias(name, CHAMPION, number)
            print(f"sync: models:/{name}: `{CHAMPION}` is version {number} again, as {decided}")


def _aliases(store: Store, name: str) -> Mapping[str, str]:
    model = _known(store.client.get_registered_model, name)
    if model is None:
        expected = "a model above registry.min_accuracy: `dvc repro` registers it, `mnist sync` restores it"
        raise InputError(f"models:/{name}", found="no such model", expected=expected)
    return {alias: str(version) for alias, version in model.aliases.items()}


def _before(version: ModelVersion) -> list[str]:
    """Return the champions before this version, the last one first."""
    return str(version.tags.get(BEFORE) or "").split()


def _known(question: Callable[..., T], *arguments: str) -> T | None:
    """Return the answer of the store; None if it has no such thing."""
    try:
        return question(*arguments)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _look_at(store: Store, version: ModelVersion, beside: Model | None = None) -> Model:
    """Return a version with the evidence of its run, or else of another run of the same weights.

    Another run is used where the version's own is gone (a rebuilt store has new runs), or was tested on
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


def _runs_of(store: Store, weights_sha256: str, beside: Model | None) -> Iterator[Run]:
    """Yield finished runs of these weights, newest first, on the test data of the model `beside`."""
    wanted = f"tags.`weights_sha256` = '{weights_sha256}' and attributes.status = 'FINISHED'"
    if beside and (digest := beside.tags.get(promotion.TESTED_ON)):
        wanted += f" and tags.{promotion.TESTED_ON} = '{digest}'"
    newest = ["start_time DESC"]
    yield from store.client.search_runs([store.experiment_id], wanted, order_by=newest, max_results=MAX_RUNS)


def _evidence(store: Store, version: ModelVersion, run: Run | None, weights_sha256: str) -> Model:
    """Return what a run shows of a version; the run or its files may be gone."""
    model: dict[str, Any] = {"version": str(version.version), "weights_sha256": weights_sha256}
    if run is None or run.info.lifecycle_stage == "deleted":
        run_id = printable(version.run_id or "")
        restore = f"`mlflow runs restore --run-id {run_id}` or " if run else ""
        state = f"is {'deleted' if run else 'gone'}: {restore}`mnist sync` restores it"
        problem = f"run {run_id or '(none)'} of version {version.version} {state}"
        return Model(**model, run_id=run_id, tags=_tags(run) if run else {}, problem=problem)
    run_name = printable(run.info.run_name)
    where = f"run {run_name} ({run.info.run_id}) of version {version.version}"
    model |= {"run_id": run.info.run_id, "run_name": run_name, "tags": _tags(run)}
    text = _artifact(store, run.info.run_id, paths.PREDICTIONS)
    if text is None:
        return Model(**model, problem=f"{where} has no {paths.PREDICTIONS}: `mnist sync` restores it")
    try:
        predictions = _predictions(run, text, f"{where}, {paths.PREDICTIONS}")
    except InputError as error:
        return Model(**model, problem=f"{error}: `mnist sync` restores it")
    return Model(**model, predictions=predictions)


def _tags(run: Run) -> dict[str, str]:
    return {key: printable(value or "") for key, value in run.data.tags.items()}


def _predictions(run: Run, text: str, where: str) -> Predictions:
    """Parse the predictions of a run, which must have the accuracy that the run logged."""
    predictions = parse_table(text, where)
    logged = float(run.data.metrics.get(TEST_ACCURACY, predictions.accuracy))
    if abs(logged - predictions.accuracy) > PRECISION:
        found = f"an accuracy of {predictions.accuracy:.6f}"
        raise InputError(where, found=found, expected=f"{logged:.6f}, which the run logged")
    return predictions


def _artifact(store: Store, run_id: str, path: Path) -> str | None:
    """Return a text file of a run, or None where the run has no such file."""
    with client.readable("MLflow's artifacts"):
        listed = store.client.list_artifacts(run_id, path.parent.as_posix())
        if path.as_posix() not in {file.path for file in listed}:
            return None
        with files.temporary("run") as folder:
            file = store.client.download_artifacts(run_id, path.as_posix(), str(folder))
            return Path(file).read_text(encoding="utf-8", errors="replace")


def _who() -> str:
    """Return the user of this process, with the author name of their commits."""
    name, author = user(), git.text_or_empty("config", "user.name", folder=Path())
    return f"{name} ({author})" if author and author != name else name


def _carry_out(store: Store, name: str, decision: Decision, *, before: Sequence[str], dry_run: bool) -> bool:
    """Record the decision and, unless it is a refusal, give its candidate the alias.

    Args:
        store: where the versions are.
        name: of the registered model.
        decision: what was decided.
        before: the champions before the candidate, the last one first.
        dry_run: print it, and change nothing.

    Returns:
        Whether the candidate has the alias, or would have it.
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
    with files.appending(paths.root() / LOG) as log:  # opened first: where it cannot be, nothing happens
        if candidate.run_name:  # or else there is no run to keep it
            with client.readable("MLflow's artifacts"):
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
        stays = f"version {decision.incumbent.version}" if decision.incumbent else "unset"
        print(f"  alias       `{CHAMPION}` stays {stays}")
    print(f"  record      {', '.join(places)}")
    return moves
