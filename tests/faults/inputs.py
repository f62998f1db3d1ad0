"""Files that are wrong: the commands that read them must not take them for what they are not.

A command survives if it does what it did before, byte for byte, or does it rightly again, or refuses with one
line that names the file.
"""

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from random import Random

import numpy as np

from mnist.core import files, paths
from mnist.data import store as data
from tests import checkout
from tests.faults import mutations, warm
from tests.faults.case import Case, clone_at
from tests.faults.mutations import Mutate
from tests.faults.warm import Done

NUMBER = 320  # of cases
REPRO, REPORT, PROMOTE = "dvc repro", "mnist report", "mnist promote"
PREDICT = "mnist predict images.npy"
OTHERS = {
    "repro": REPRO,
    "predict": PREDICT,
    "dry-run": "mnist promote --dry-run",
    "only": "mnist promote --dry-run --only-this-result",
    "quick": "mnist preset quick -S lr=no",
    "diff-other": "mnist diff other",
    "best-other": "mnist best --rev other",
    "reproduce": "mnist reproduce models:/mnist-simplecnn/1",
}
# The commands that read a file, those that write last: a stage, one of the above, or a command of `mnist`.
READERS = {
    "params.yaml": "report diff doctor best preset dry-run stats train repro",
    "dvc.yaml": "report diff doctor best sync stats repro",
    "dvc.lock": "report diff doctor best sync repro",
    "datasets/mnist.yaml": "report validate download repro",
    "presets.yaml": "preset quick",
    ".dvc/config": "report diff doctor best sync register",
    ".cache/mnist/*/train-images-idx3-ubyte.gz": "download",
    ".cache/mnist/*/t10k-labels-idx1-ubyte.gz": "download",
    ".cache/onnx/*.onnx": "train",
    ".cache/trainings/*.json": "report register",
    "data/mnist.safetensors": "report sync validate stats train evaluate register repro",
    "data/stats.json": "report train register repro",
    "data/validation.html": "report sync register",
    "data/log_probs.safetensors": "report sync register repro",
    "metrics/validation.json": "report diff sync stats train evaluate register",
    "metrics/train.json": "report diff best sync register repro",
    "metrics/test.json": "report diff sync register repro",
    "metrics/history.csv": "report diff sync register",
    "metrics/steps.csv": "report diff sync register",
    "metrics/predictions.csv": "report diff sync register repro",
    "metrics/classes.csv": "report sync register",
    "metrics/plots/errors.png": "report sync register repro",
    "metrics/receipts/download.json": "report validate stats register",
    "metrics/receipts/train.json": "report sync evaluate repro",
    "metrics/receipts/evaluate.json": "report sync register",
    "models/model.safetensors": "report only sync evaluate register repro",
    "models/model.onnx": "report sync evaluate register repro",
    "models/registered.json": "sync repro",
    "mlflow.db": "doctor dry-run predict sync register",
    "mlartifacts/models/*/artifacts/MLmodel": "predict sync predict",
    "mlartifacts/models/*/artifacts/model.onnx": "predict register predict",
    "mlartifacts/models/*/artifacts/requirements.txt": "predict register",
    "mlartifacts/models/*/artifacts/README.md": "predict register",
    "mlartifacts/*/artifacts/metrics/predictions.csv": "promote sync",
    "mlartifacts/*/artifacts/dvc.lock": "sync",
}
# What people write: what a valid change of it leads to is right as well.
# What people write: what a valid change of it leads to is right as well.
OWN = ("params.yaml", "dvc.yaml", "datasets/mnist.yaml", "presets.yaml", ".dvc/config")
# A message may name what holds the file, or what disagrees with it.
NAMES = {
    "params.yaml": ["dvc.lock", "stale", "What changed", "as it is now", "Could not find"],
    "dvc.yaml": ["dvc.lock", "stale", "the pipeline", "What changed"],
    "dvc.lock": ["stale"],
    "datasets/mnist.yaml": ["dvc.lock", "stale", "datasets/", "validation.html"],
    "metrics/plots/errors.png": ["metrics/plots"],
    "mlflow.db": ["MLflow", "models:/", "run "],
    "mlartifacts": ["is logged"],  # again, which the command after that shows
}
ON_BRANCH = {
    "dvc.lock": "diff-other best-other sync",
    "dvc.yaml": "diff-other sync",
    "params.yaml": "diff-other sync",
    "metrics/train.json": "diff-other best-other sync",
    "metrics/test.json": "diff-other sync",
    "metrics/predictions.csv": "diff-other sync",
    "metrics/receipts/train.json": "sync",
}
COLUMNS = (
    *(f"runs.{name}" for name in ("status", "lifecycle_stage", "artifact_uri", "start_time")),
    *(f"model_versions.{name}" for name in ("source", "status", "run_id", "storage_location")),
    *("tags.value", "params.value", "metrics.value", "latest_metrics.value", "model_version_tags.value"),
    *("registered_model_tags.value", "registered_model_aliases.version", "experiments.artifact_location"),
)
PATCH = '--- a/stages/stats.py\n+++ b/stages/stats.py\n@@ -1 +1 @@\n-"""Compute no\n+"""Compute\n'
SWAPPED = [
    name
    for name in READERS
    if name.startswith(("data/l", "models/m", "metrics/", "mlartifacts/"))
    and not name.endswith(("MLmodel", "requirements.txt", "README.md"))  # only the store has them
]
Harm = Callable[[Path, Random], str]  # does harm to a clone, and returns the file


@dataclass(frozen=True)
class Mutated:
    """A check: it does harm to a clone, and looks what the readers of the file make of that."""

    harm: Harm
    seed: str
    commands: tuple[str, ...]

    def __call__(self, folder: Path) -> str | None:
        """Return None where all commands survive."""
        np.save(folder / "images.npy", data.load(folder / paths.DATASET, "test").images_NHW[:5])
        if has_champion := PREDICT in self.commands:
            warm.run(folder, PROMOTE)
        clone_at(folder).run("git", "branch", "other")
        expected = {
            command: _reference(folder, command, has_champion=has_champion) for command in self.commands
        }
        before = _outs(folder)
        file = self.harm(folder, Random(self.seed))  # noqa: S311
        names = [file, Path(file).name, *NAMES.get(file, NAMES.get(Path(file).parts[0], []))]
        for command in self.commands:
            done = warm.run(folder, command)
            problem = _problem(done, names, expected[command], folder)
            is_kept = command.startswith("mnist") or "receipts" in file  # of which no digest is looked at
            changed = _changed(before, _outs(folder), file if is_kept else "")
            if not problem and done.status == 0 and changed:
                problem = _redone(folder, changed, is_own=file in OWN)
            if problem:
                return f"{command}: {problem}"
        return None


_references: dict[tuple[str, bool], str] = {}


def _reference(folder: Path, command: str, *, has_champion: bool) -> str:
    """Return what a command prints before any harm was done."""
    key = command, has_champion
    if (
        command.startswith("mnist")
        and "repro" not in command
        and command != PROMOTE
        and key not in _references
    ):
        _references[key] = _normal(warm.run(folder, command), folder)
    return _references.get(key, "")


def _normal(done: Done, folder: Path) -> str:
    """Return an output without the folder, commits, and the size of a page that names its machine or not."""
    text = re.sub(r"\d+ kB|\([0-9a-f]{7}\)", "", done.output.replace(str(folder), "."))
    return re.sub(r"(?m)^> . 1 commit of other .*\n\n", "", text)


def _problem(done: Done, names: list[str], expected: str, folder: Path) -> str | None:
    """Return what is wrong with how a command took a wrong file."""
    lines = done.output.splitlines()
    if "Traceback" in done.output:
        return f"a traceback: {lines[-1]}"
    if done.status is None:
        return f"it never ended: {done.output[-200:]}"
    named = [line for line in lines if any(name in line for name in names)]
    if done.status == 0:
        is_same = not done.command.startswith("mnist") or _normal(done, folder) == expected
        return None if named or is_same else f"accepted: {done.output[-300:]}"
    begins = ("ERROR", "WRONG", "sync: ", "gate: ", "  decision ")
    errors = [line for line in lines if line.startswith(begins) or done.command.startswith("dvc")]
    if not set(errors) & set(named):
        return f"status {done.status}, and no error names the file: {done.output[-300:]}"
    if not done.command.startswith("dvc") and sum(line.startswith("ERROR") for line in lines) > 1:
        return f"several errors: {done.output[-300:]}"
    return None


def _outs(folder: Path) -> Mapping[str, str]:
    """Return the digests of what the stages wrote."""
    found = [path for name in ("data", "models", "metrics") for path in (folder / name).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in found
        if path.is_file() and path.name not in (paths.REPORT.name, ".gitignore")
    }


def _changed(before: Mapping[str, str], now: Mapping[str, str], file: str) -> list[str]:
    return [name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and name != file]


def _redone(folder: Path, changed: list[str], *, is_own: bool) -> str | None:
    """Return what is wrong with outs that a command changed.

    Nothing is, if they are of what a user wrote, and the pipeline makes a result of that or refuses it.
    """
    repro = warm.run(folder, REPRO) if is_own else None
    if repro and repro.status == 0 and warm.run(folder, REPORT).status == 0:
        return None
    if repro and repro.status and "\nERROR: " in repro.output and "Traceback" not in repro.output:
        return None
    return f"accepted: other {', '.join(sorted(changed))}"


def _file(pattern: str, mutate: Mutate) -> Harm:
    def harm(folder: Path, rng: Random) -> str:
        path = min(folder.glob(pattern))
        mutate(path, rng)
        return path.relative_to(folder).as_posix()

    return harm


def _of_another_result(pattern: str) -> Harm:
    def harm(folder: Path, rng: Random) -> str:
        other = folder.parent / "other"
        shutil.copytree(folder, other, symlinks=True)
        checkout.edit(clone_at(other), "params.yaml", "lr: 0.02", "lr: 0.002")
        assert all(warm.run(other, command).status == 0 for command in _commands("train evaluate"))
        inside = re.sub("mlartifacts/.*artifacts/", "", pattern)
        own = other / inside if (other / inside).is_file() else other / "models" / inside
        return _file(pattern, mutations.replaced(lambda path: shutil.copyfile(own, path)))(folder, rng)

    return harm


def _on_branch(name: str, mutate: Mutate) -> Harm:
    def harm(folder: Path, rng: Random) -> str:
        clone = clone_at(folder)
        clone.run("git", "switch", "-q", "other")
        mutate(folder / name, rng)
        clone.commit("Another")
        clone.run("git", "switch", "-q", "main")
        return name

    return harm


def _object(name: str, mutate: Mutate) -> Harm:
    """Return harm to git's object of a file on the branch `other`."""

    def harm(folder: Path, rng: Random) -> str:
        _on_branch(name, lambda path, _: path.write_text(path.read_text() + " "))(folder, rng)
        digest = clone_at(folder).run("git", "rev-parse", f"other:{name}").stdout.strip()
        mutate(folder / ".git/objects" / digest[:2] / digest[2:], rng)
        return "git"

    return harm


def _patch(mutate: Mutate) -> Harm:
    """Return harm to the patch that the run of the result is given."""

    def harm(folder: Path, rng: Random) -> str:
        patch = min(folder.glob("mlartifacts/*/artifacts/metrics")).parent / "dirty.patch"
        patch.write_text(PATCH)
        mutate(patch, rng)
        return patch.name

    return harm


def _row(column: str, value: object) -> Harm:
    def harm(folder: Path, rng: Random) -> str:
        table, name = column.split(".")
        with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            rows = [row for (row,) in store.execute(f"SELECT rowid FROM {table}")]  # noqa: S608
            change = f"UPDATE OR IGNORE {table} SET {name} = ? WHERE rowid = ?"  # noqa: S608
            store.execute(change, [value, rng.choice(rows)])
        return "mlflow.db"

    return harm


def _commands(words: str) -> tuple[str, ...]:
    stages = {stage: f"python -m stages.{stage}" for stage in checkout.STAGES}
    return tuple({**stages, **OTHERS}.get(word, f"mnist {word}") for word in words.split())


def _groups() -> Iterator[dict[str, tuple[Harm, str]]]:
    """Yield what can be done to each file, by name, and the commands that read it."""
    for file, commands in READERS.items():
        found = {
            f"{file}:{how}": (_file(file, mutate), commands) for how, mutate in mutations.of(file).items()
        }
        if file in SWAPPED:
            found[f"{file}:of-another-result"] = _of_another_result(file), commands
        yield found
    for file, commands in ON_BRANCH.items():
        ways = mutations.contents(file).items()
        yield {f"branch:{file}:{how}": (_on_branch(file, mutate), commands) for how, mutate in ways}
    for file in ("metrics/test.json", "dvc.yaml", "dvc.lock"):
        ways = mutations.contents("object.gz").items()
        yield {f"git:{file}:{how}": (_object(file, mutate), "diff-other sync") for how, mutate in ways}
    ways = mutations.contents("dirty.patch").items()
    yield {f"patch:{how}": (_patch(mutate), "reproduce") for how, mutate in ways}
    values = {"text": "text", "negative": -1, "null": None, "huge": "9" * 400}.items()
    for column in COLUMNS:
        commands = READERS["mlflow.db"]
        yield {f"mlflow.db:{column}:{how}": (_row(column, value), commands) for how, value in values}


def cases(seed: int) -> Iterator[Case]:
    """Yield the cases of this seed: a file after the other, and each in another way than before."""
    rng, groups = Random(seed), list(_groups())  # noqa: S311
    orders = [rng.sample(sorted(group.items()), len(group)) for group in rng.sample(groups, len(groups))]
    for nth in zip_longest(*orders):
        for name, (harm, readers) in filter(None, nth):
            is_too_much = name.endswith(("FIFO", "a-bomb"))  # for DVC, which would wait, or read for hours
            words = readers.replace("repro", "") if is_too_much else readers
            yield Case("inputs", name, Mutated(harm, f"{seed} {name}", _commands(words)))
