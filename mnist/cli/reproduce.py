"""The commands that run the pipeline again: `mnist verify` on HEAD, `mnist reproduce` on a recorded run."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mnist.core import config, custody, files, paths
from mnist.core.config import Machine
from mnist.core.errors import InputError, printable

if TYPE_CHECKING:
    from mnist.lineage.compare import Answer, Row
    from mnist.lineage.lock import Stage
    from mnist.lineage.sandbox import Sandbox
    from mnist.tracking.record import Candidate
    from mnist.training.onnx_model import OnnxModel

REMEDY = "run `dvc repro --force`, and commit dvc.lock and metrics"


@click.command()
def verify() -> None:
    """Check that the committed code makes the committed results.

    dvc.lock is compared with the code, params and outputs in git. Then the pipeline runs from start to
    end in a temporary checkout of HEAD, whatever DVC's caches hold, and its outputs are compared with
    the committed ones: those of stages that compute on a device within a tolerance, all others byte
    for byte. The last line begins with "holds: " where every byte is equal, with "holds within the
    tolerances: " where numbers differ as they do between processors, with "does not hold: " otherwise.
    DVC's cache then holds the outputs, so that `dvc repro` need not compute them.

    \b
    Example:
      mnist verify > report.txt     the output of the stages goes to stderr
    """
    from mnist.lineage import compare, experiments, git, lock, sandbox

    home = paths.checkout()
    if changed := git.text("status", "--porcelain", "--untracked-files=no", "--", ".", folder=home):
        found = f"changes that are not committed: {' '.join(changed.split())}"
        raise InputError("the checkout", found=found, expected="none: commit them, or `git stash`")
    commit = git.text("rev-parse", "HEAD", folder=home)
    with sandbox.temporary(commit, "verify") as aside:
        committed, stages = lock.read(aside.checkout), lock.pipeline(aside.checkout)
        reasons = lock.stale_reasons(stages, committed)
        click.echo("\n".join([f"commit {commit[:12]}", *(f"  NO  {reason}" for reason in reasons)]))
        # `register` is left out: no result depends on what it writes.
        kept = [one for one in stages if any(out.kept_in for out in one.outs.values())]
        if not kept:
            found = "no stage whose outs are in git or DVC's cache"
            raise InputError(str(paths.PIPELINE), found=found, expected="one")
        names = [one.name for one in kept]
        click.echo(f"  running {', '.join(names)} in {aside.checkout}")
        before = shutil.copytree(
            aside.checkout, aside.folder / "committed", ignore=shutil.ignore_patterns(".git", ".dvc")
        )
        sandbox.run(aside, names, cache=experiments.cache(home), output=sys.__stderr__)
        wrote, writes = lock.written(committed), lock.written(lock.read(aside.checkout))
        rows = list(outs_compared(kept, wrote, writes, before, aside.checkout))
    click.echo(f"\n{compare.table(rows, 'committed')}\n\n{verdict(reasons, rows)}")
    sys.exit(bool(reasons) or any(row.answer == "NO" for row in rows))


def outs_compared(
    stages: Sequence["Stage"], wrote: Mapping[str, str], writes: Mapping[str, str], before: Path, after: Path
) -> Iterator["Row"]:
    """Compare the outs of stages, in the order of `dvc.yaml`.

    Args:
        stages: as they were before they ran again.
        wrote: DVC's digests by path, as committed.
        writes: those of the reproduced outs.
        before: the folder with the outs that are in git.
        after: the folder with the reproduced outs.
    """
    from mnist.lineage import compare

    weights = paths.WEIGHTS.as_posix()
    tolerances = compare.tolerances(is_equal=wrote.get(weights) == writes.get(weights))
    machines = [custody.machine(folder) for folder in (before, after)]
    # A GPU's libraries may choose other kernels on the next machine of its name.
    is_exact = machines[0] == machines[1] and machines[0].startswith("CPU")
    differing = set() if is_exact else by_machine(stages)
    for one in stages:
        for path, out in one.outs.items():
            digest = out.digest if out.kept_in == "git" else wrote.get(path)
            sides = (
                compare.Output(digest=digest, file=before / path),
                compare.Output(digest=writes.get(path), file=after / path),
            )
            yield from compare.compare(path, *sides, tolerances if one.name in differing else None)


def by_machine(stages: Sequence["Stage"]) -> set[str]:
    """Return the stages whose bytes depend on the machine: those on a device, and all after them."""
    names: set[str] = set()
    for stage in [*stages] * len(stages):  # in any order
        keys = {key for params in stage.params.values() for key in params}
        made = {path for other in stages if other.name in names for path in other.outs}
        if keys & set(Machine.model_fields) or made & set(stage.deps):
            names.add(stage.name)
    return names


def verdict(reasons: Sequence[str], rows: Sequence["Row"]) -> str:
    """Return the last line of the report of `verify`."""
    different = dict.fromkeys(row.what.partition(": ")[0] for row in rows if row.answer == "NO")
    if different:
        return f"does not hold: the committed code makes other {', '.join(different)}; {REMEDY}"
    if reasons:
        return f"does not hold: the outputs are the same, but see the lines with NO above; {REMEDY}"
    others = sum(row.answer != "equal" for row in rows)
    if others:
        return f"holds within the tolerances: {others} numbers or files differ, as on another kind of machine"
    return "holds: the committed code makes every committed output, byte for byte"


@click.command()
@click.argument("model", required=False)
@click.option(
    "--trust", is_flag=True, help="Run code of a store that others may write to, without a question."
)
def reproduce(model: str | None, *, trust: bool) -> None:
    """Reproduce a model from its MLflow run, and compare.

    MODEL is models:/name@alias, models:/name/version, a run id or its start, or the name of a DVC
    experiment (default: the champion). The recorded commit, patch and params are checked out in a
    temporary folder, the pipeline runs there, and its weights and metrics are compared with the recorded
    ones: byte for byte on the same device and versions, else within a tolerance.

    It prints what it is about to run, and asks, unless the store is mlflow.db of this checkout.

    \b
    Example:
      mnist reproduce                              the champion
      mnist reproduce models:/mnist-simplecnn/1
      mnist reproduce runny-jibe
    """
    if model is None:
        model = f"models:/{config.load(paths.PARAMS).model_name}@champion"
    elif not model.strip():
        raise InputError("MODEL", found="nothing", expected="a version, an experiment or a run id")
    from mnist.lineage import compare, sandbox
    from mnist.lineage.result import versions
    from mnist.tracking import client, events, record, registry

    store = client.connect()
    with client.answering(store.uri):
        candidate = record.find(store, model)
    tags = candidate.run.data.tags
    with sandbox.temporary(tags[events.COMMIT], "reproduce") as aside:
        recorded = aside.folder / "recorded"
        with client.answering(store.uri):
            record.download(store, candidate, recorded)
        click.echo("\n".join(map(printable, [f"{model} is {candidate}", *restore(aside, recorded)])))
        confirm(store.uri, trust=trust)
        with client.answering(store.uri):
            stored = registry.load_version(store, candidate.version) if candidate.version else None
        differences = compare.machine_differences(tags, {**versions(), "device": _device(aside)})
        if differences:
            click.echo(f"  guaranteed  numbers within their tolerances ({'; '.join(differences)})")
        else:
            click.echo("  guaranteed  equal bytes (the same device and versions)")
        click.echo(f"  running     `dvc repro` in {aside.checkout}, which is removed afterwards:")
        sandbox.run(aside, ["evaluate"])
        rows = list(result_compared(aside.checkout, candidate, recorded, stored, is_exact=not differences))
    wrong = [row.what for row in rows if row.answer == "NO"]
    outcome = "reproduced: byte for byte the same weights, and the same metrics"
    if wrong:
        outcome = f"not reproduced: {', '.join(wrong)}"
    elif any(row.answer != "equal" for row in rows):
        outcome = "reproduced within the tolerances: other bytes, as on another machine"
    click.echo(f"\n{compare.table(rows, 'recorded')}\n\n{outcome}")
    sys.exit(bool(wrong))


def restore(aside: "Sandbox", recorded: Path) -> list[str]:
    """Apply the patch and the params of a run to the checkout of its commit; return lines on what will run.

    Nothing of it runs here, and nothing outside the sandbox is written.

    Raises:
        InputError: the patch does not fit the commit or makes a link, or DVC cannot read the pipeline.
    """
    from mnist.lineage import git, lock
    from mnist.tracking import record

    checkout, patch = aside.checkout, recorded / record.PATCH
    was = config.flat(config.read_keys(checkout, paths.PARAMS))
    commands = {stage.name: stage.cmd for stage in lock.pipeline(checkout)}
    lines = [f"commit      {git.text('show', '-s', '--format=%h %an: %s', folder=checkout)}"]
    if patch.is_file():
        git.text("apply", "--whitespace=nowarn", str(patch), folder=aside.repository)
        listed = git.output("apply", "--numstat", "-z", str(patch), folder=aside.repository)
        for name in (os.fsdecode(line.split(b"\t", 2)[2]) for line in listed.split(b"\0") if line):
            if (aside.repository / name).is_symlink():  # what is written next could go to where it leads
                raise InputError(f"{record.PATCH}: {name!r}", found="a link", expected="files alone")
            lines.append(f"patch       changes {name}")
    if (recorded / paths.PARAMS).is_file():
        shutil.copyfile(recorded / paths.PARAMS, checkout / paths.PARAMS)
    now = config.flat(config.read_keys(checkout, paths.PARAMS))
    keys = [key for key in was | now if was.get(key) != now.get(key)]
    lines += [f"param       {key}: {was.get(key)} -> {now.get(key)}" for key in keys]
    for stage in lock.pipeline(checkout):
        if stage.cmd != commands.get(stage.name):
            lines.append(f"command     of {stage.name}: {json.dumps(stage.cmd)}")
    return [f"  {line}" for line in lines]


def confirm(uri: str, *, trust: bool) -> None:
    """Ask whether the recorded code may run, unless the store is the file of this checkout.

    Raises:
        InputError: it may not, or there is no terminal to ask on.
    """
    if trust or uri == paths.sqlite_uri(paths.root() / "mlflow.db"):
        return
    try:
        is_allowed = sys.stdin.isatty() and click.confirm(
            f"Run this code, which {paths.shown(uri)} recorded?"
        )
    except click.Abort:
        raise KeyboardInterrupt from None
    if not is_allowed:
        expected = "a yes, or `--trust`: it is code that others may have written"
        raise InputError(f"MLflow at {paths.shown(uri)}", found="no permission to run it", expected=expected)


def _device(aside: "Sandbox") -> str:
    """Return the description of the device that the stages use on this machine."""
    from mnist.training import devices

    values = config.read_keys(aside.checkout, paths.PARAMS)
    known = {key: values[key] for key in Machine.model_fields if key in values}
    device = devices.prepare(config.check(Machine, known, str(paths.PARAMS)))
    processes = values.get("processes", 1)
    return devices.describe(device, processes if isinstance(processes, int) else 1)


def result_compared(
    checkout: Path, candidate: "Candidate", recorded: Path, stored: "OnnxModel | None", *, is_exact: bool
) -> Iterator["Row"]:
    """Compare the data, the weights by each place that records them, and the metrics.

    Args:
        checkout: with the reproduced result.
        candidate: that it is compared with.
        recorded: the folder with the files of its run.
        stored: its registered model.
        is_exact: whether equal bytes are guaranteed.
    """
    from mnist.data import store as data
    from mnist.evaluation import predictions
    from mnist.lineage import compare, fingerprint
    from mnist.tracking import events, record

    tags, weights = candidate.run.data.tags, checkout / paths.WEIGHTS
    origin = fingerprint.of_training(checkout, where=fingerprint.Source())
    yield compare.digest_row(str(paths.DATASET), tags["dataset_sha256"], origin.dataset_sha256, "NO")
    places = {"tag of the run": tags["weights_sha256"]}
    if (recorded / paths.WEIGHTS).is_file():
        places["file of the run"] = files.sha256(recorded / paths.WEIGHTS)
    if candidate.version:
        places[f"tag of {candidate.uri}"] = candidate.version.tags.get("weights_sha256", "")
    # Places that record different weights are wrong on any machine.
    unequal: Answer = "NO" if is_exact or len(set(places.values())) > 1 else "other bytes"
    of_weights = files.sha256(weights)
    for place, digest in places.items():
        yield compare.digest_row(f"{paths.WEIGHTS}, {place}", digest, of_weights, unequal)
    is_equal = set(places.values()) == {of_weights}
    if candidate.version and stored:
        if is_equal:  # other versions of torch and onnx export it in other bytes
            images_NHW = data.load(checkout / paths.DATASET, "test").images_NHW
            agrees = stored.agrees(images_NHW, predictions.read_log_probs(checkout / paths.LOG_PROBS))
            unequal = "other bytes" if agrees else "NO"
        digests = candidate.version.tags[events.ONNX], files.sha256(checkout / paths.ONNX)
        yield compare.digest_row(f"{paths.ONNX}, file of {candidate.uri}", *digests, unequal)
    if not is_equal:  # numbers of other code may be within a tolerance, too
        yield compare.digest_row("code, params and data", tags["fingerprint"], origin.fingerprint, "NO")
    tolerances = compare.tolerances(is_equal=is_equal)
    for name in record.METRICS:
        before, after = (compare.Output.of(folder / name) for folder in (recorded, checkout))
        yield from compare.compare(str(name), before, after, None if is_exact else tolerances)
