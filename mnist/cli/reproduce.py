"""The command `mnist reproduce`: a model reproduced from the records of its MLflow run, and compared."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mnist.core import config, files, paths
from mnist.core.config import Machine

if TYPE_CHECKING:
    from mnist.lineage.compare import Guarantee, Row
    from mnist.lineage.sandbox import Sandbox
    from mnist.tracking.record import Candidate


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
    Example:
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
    from mnist.tracking import client, record

    store = client.connect()
    with sandbox.temporary("reproduce") as aside:
        recorded = aside.folder / "recorded"
        with client.answering(store.uri):
            candidate = record.find(store, model)
            record.download(store, candidate, recorded)
            tensors = record.tensors(store, candidate, recorded)
        tags = candidate.run.data.tags
        click.echo(f"{model} is {candidate}")
        click.echo(f"  source      {check_out(aside, tags[record.COMMIT], recorded)}")
        guarantee = compare.guarantee(tags, {**versions(), "device": _device(aside)})
        what = "equal bytes" if guarantee.is_exact else "numbers within their tolerances"
        click.echo(f"  guaranteed  {what} ({guarantee.reason})")
        click.echo(f"  running     `dvc repro` in {aside.checkout}, which is removed afterwards:")
        sandbox.run(aside, ["evaluate"])
        rows = list(_rows(aside, candidate, recorded, tensors, guarantee))
    click.echo(f"\n{compare.table(rows, 'recorded')}\n\n{_verdict(rows)}")
    return all(row.answer != "NO" for row in rows)


def check_out(aside: "Sandbox", commit: str, recorded: Path) -> str:
    """Check out the recorded source, and return a line that describes it.

    Raises:
        InputError: the commit is not here, or the patch does not fit it.
    """
    from mnist.lineage import git, sandbox
    from mnist.tracking import record

    sandbox.check_out(aside, commit)
    parts = [f"commit {commit[:12]}"]
    if (recorded / record.PATCH).is_file():
        git.text("apply", "--whitespace=nowarn", str(recorded / record.PATCH), folder=aside.checkout)
        parts.append(f"its {record.PATCH}")
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
    """Return the description of the device that the stages use on this machine."""
    from mnist.training import devices

    values = config.read_keys(aside.checkout, paths.PARAMS)
    known = {key: values[key] for key in Machine.model_fields if key in values}
    device = devices.prepare(config.check(Machine, known, str(paths.PARAMS)))
    return devices.describe(device, values.get("processes", 1))


def _rows(
    aside: "Sandbox",
    candidate: "Candidate",
    recorded: Path,
    tensors: dict[str, bytes],
    guarantee: "Guarantee",
) -> Iterator["Row"]:
    """Compare the data, the weights by each place that records them, and the metrics."""
    from mnist.lineage import compare, fingerprint
    from mnist.tracking import record

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

        known = recorded / paths.WEIGHTS if (recorded / paths.WEIGHTS).is_file() else weights
        same = tensors == {name: array.tobytes() for name, array in load_file(known).items()}
        answer: compare.Answer = "equal" if same else "NO" if known != weights else unequal
        yield compare.Row(what=f"tensors inside {candidate.uri}", before="", after="", answer=answer)
    if not is_equal:
        source = fingerprint.Source(commit="", branch="", patch="", experiment="", rerun="")
        training = fingerprint.of_training(aside.checkout, where=source)
        yield compare.digest_row(
            "fingerprint of the training", tags["fingerprint"], training.fingerprint, "NO"
        )
    tolerances = compare.EQUAL_WEIGHTS if is_equal else compare.OTHER_WEIGHTS
    for name in record.METRICS:
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
