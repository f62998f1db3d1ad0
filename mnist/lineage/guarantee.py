"""Whether a result that was made again is the one that its MLflow run records.

Equal bytes prove it by themselves, whatever machine they come from. Where the machine or a version
is another one they cannot be promised; then the same inputs must give a test accuracy that is close.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from mnist.core import files, paths
from mnist.core.config import flat, read_keys
from mnist.core.errors import InputError

# Tags of a run that say on what it was made: with all of them equal, equal inputs make equal bytes.
MACHINE = ("device", "python", "torch", "numpy")
MAKERS = ("train", "evaluate")  # the stages that make a result
ACCURACY = f"{paths.TEST_METRICS}: accuracy"
# Percentage points of test accuracy. Another instruction set, thread count or version rounds otherwise
# from the first step on: with the default params, AVX2, SSE4.1 and 2 threads against AVX-512 on 1 thread
# moved it by 0.01 to 0.10 (3 seeds each). The seed moves it by 0.5 (standard deviation).
TOLERANCE_POINTS = 1
DIGEST_SHOWN = 12  # hex digits

Kind = Literal["data", "fingerprint", "input", "weights", "metric"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out of a pipeline, and what went in.

    Attributes:
        dataset_sha256: of the data set.
        fingerprint: of the training.
        weights_sha256: of the weights file; empty where it was not kept.
        tensors_sha256: of what is in it, see `tensors_sha256`.
        metrics: by file and key.
        inputs: digests of code, and commands and params, by stage and name; empty where
            `dvc.lock` was not kept.
    """

    dataset_sha256: str
    fingerprint: str
    weights_sha256: str
    tensors_sha256: str
    metrics: Mapping[str, float | None]
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        uri: `models:/name/version`.
        weights_sha256: its tag.
        tensors_sha256: of what the stored model holds.
    """

    uri: str
    weights_sha256: str
    tensors_sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What MLflow says of a result.

    Attributes:
        tags: of the run.
        kept: the run's files, and its tags for data and fingerprint.
        version: of the registered model, where one was asked for.
    """

    tags: Mapping[str, str]
    kept: Result
    version: Version | None = None

    @property
    def weights(self) -> dict[str, str]:
        """The digest of the weights file, by each place that states it."""
        stated = {
            "tag of the run": self.tags.get("weights_sha256", ""),
            "file of the run": self.kept.weights_sha256,
        }
        if self.version:
            stated[f"tag of {self.version.uri}"] = self.version.weights_sha256
        return {place: digest for place, digest in stated.items() if digest}

    @property
    def contradicts_itself(self) -> bool:
        """Whether two of its places state different weights."""
        tensors = {self.version.tensors_sha256 if self.version else "", self.kept.tensors_sha256} - {""}
        return len(set(self.weights.values())) > 1 or len(tensors) > 1


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What may be expected on this machine: equal bytes, or a close accuracy; and why."""

    is_bytes: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was compared; None is a value that is not there."""

    kind: Kind
    what: str
    recorded: Any
    here: Any

    @property
    def is_equal(self) -> bool:
        """Whether both are the same."""
        return bool(self.recorded == self.here)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether what was promised holds, in a sentence."""

    holds: bool
    text: str


def promise(recorded: Mapping[str, str], here: Mapping[str, str]) -> Promise:
    """What may be expected here of a result with the tags `recorded`."""
    unknown = [name for name in MACHINE if not recorded.get(name)]
    reasons = [
        f"{name} {recorded[name]} there, {here[name]} here"
        for name in MACHINE
        if name not in unknown and recorded[name] != here[name]
    ]
    if unknown:
        reasons.append(f"the run does not tell its {', '.join(unknown)}")
    if reasons:
        return Promise(is_bytes=False, reason="; ".join(reasons))
    return Promise(
        is_bytes=True, reason=f"{', '.join(f'{name} {here[name]}' for name in MACHINE)} both times"
    )


def read(folder: Path, *, dataset_sha256: str, fingerprint: str) -> Result:
    """The result whose files lie in `folder`, at their paths in a checkout, as far as they are there.

    Raises:
        InputError: a file is not what it must be.
    """
    weights = folder / paths.WEIGHTS
    metrics: dict[str, float | None] = {}
    for name in (paths.TEST_METRICS, paths.TRAINING_METRICS):
        if (folder / name).is_file():
            values = files.read_json(folder / name)
            if not isinstance(values, dict):
                raise InputError(str(name), found=type(values).__name__, expected="metrics by name")
            metrics |= {f"{name}: {key}": value for key, value in flat(values).items()}
    return Result(
        dataset_sha256=dataset_sha256,
        fingerprint=fingerprint,
        weights_sha256=files.sha256(weights) if weights.is_file() else "",
        tensors_sha256=tensors_sha256(dict(_tensors(weights))) if weights.is_file() else "",
        metrics=metrics,
        inputs=_inputs(folder / paths.LOCK),
    )


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """A digest of arrays by name, whatever kind of file they came in."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118 -- no dict
                yield name, stored.get_tensor(name)
    except SafetensorError as error:
        raise InputError(str(path), found=f"{error}", expected="weights that `train` wrote") from None


def _inputs(lock: Path) -> dict[str, Any]:
    """What `MAKERS` read according to `dvc.lock`, what the pipeline itself makes aside."""
    stages = read_keys(lock.parent, paths.LOCK).get("stages", {})
    made = {out["path"] for stage in stages.values() for out in stage.get("outs", [])}
    inputs: dict[str, Any] = {}
    for name in MAKERS:
        stage = stages.get(name, {})
        inputs |= {f"{name}: {key}": stage[key] for key in ("cmd",) if key in stage}
        deps = {dep["path"]: dep.get("md5") for dep in stage.get("deps", []) if dep["path"] not in made}
        inputs |= {f"{name}: {path}": digest for path, digest in deps.items()}
        for values in stage.get("params", {}).values():
            inputs |= {f"{name}: {key}": value for key, value in values.items()}
    return inputs


def compare(record: Record, made: Result) -> list[Row]:
    """Everything that can be compared, one by one; of the inputs, those that differ.

    Where the data differ, only that: nothing else would mean anything.
    """
    kept = record.kept
    data = Row(kind="data", what=str(paths.DATASET), recorded=kept.dataset_sha256, here=made.dataset_sha256)
    if not data.is_equal:
        return [data]
    rows = [data]
    rows.append(
        Row(
            kind="fingerprint",
            what="fingerprint of the training",
            recorded=kept.fingerprint,
            here=made.fingerprint,
        )
    )
    if kept.inputs:
        inputs = _rows("input", kept.inputs, made.inputs)
        rows += [row for row in inputs if not row.is_equal]
    for place, digest in record.weights.items():
        rows.append(
            Row(
                kind="weights",
                what=f"{paths.WEIGHTS}, {place}",
                recorded=digest,
                here=made.weights_sha256,
            )
        )
    if record.version:
        what = f"tensors inside {record.version.uri}"
        tensors = record.version.tensors_sha256
        rows.append(Row(kind="weights", what=what, recorded=tensors, here=made.tensors_sha256))
    return rows + (_rows("metric", kept.metrics, made.metrics) if kept.metrics else [])


def _rows(kind: Kind, recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Row]:
    names = dict.fromkeys([*recorded, *here])
    return [Row(kind=kind, what=name, recorded=recorded.get(name), here=here.get(name)) for name in names]


def judge(record: Record, rows: Sequence[Row], promised: Promise) -> Verdict:
    """Say whether what was promised holds, and if not, what differs."""
    differing = {row.what: row for row in rows if not row.is_equal}
    if any(row.kind == "data" for row in differing.values()):
        return Verdict(holds=False, text=f"not reproduced: {paths.DATASET} differs, so nothing else compares")
    outcome = [row.what for row in differing.values() if row.kind in ("weights", "metric")]
    inputs = [row.what for row in differing.values() if row.kind == "input"]
    if not outcome:
        what = "byte for byte the same weights"
        what += ", and the same metrics" if record.kept.metrics else "; the run has no metrics to compare"
        more = "" if promised.is_bytes else ", which is more than was promised"
        return Verdict(holds=True, text=f"reproduced: {what}{more}")
    why = f"; what went in differs: {', '.join(inputs)}" if inputs else ""
    if record.contradicts_itself:
        return Verdict(
            holds=False, text=f"not reproduced: the record contradicts itself, {', '.join(outcome)}{why}"
        )
    if promised.is_bytes:
        return Verdict(
            holds=False, text=f"not reproduced: {', '.join(outcome)}, though equal bytes are promised{why}"
        )
    if not inputs and not record.kept.inputs and "fingerprint of the training" in differing:
        why = "; what went in differs, and the run keeps no dvc.lock that tells where"
    if why:
        return Verdict(holds=False, text=f"not reproduced: {', '.join(outcome)}{why}")
    return _close(rows)


def _close(rows: Sequence[Row]) -> Verdict:
    points = next((_points(row) for row in rows if row.what == ACCURACY), None)
    if points is None:
        text = "not reproduced: the weights differ, and there is no test accuracy to compare"
        return Verdict(holds=False, text=text)
    off = f"the test accuracy is {points:.2f} points off"
    if points > TOLERANCE_POINTS:
        return Verdict(holds=False, text=f"not reproduced: {off}, more than {TOLERANCE_POINTS}")
    return Verdict(holds=True, text=f"reproduced as far as promised: {off}, of at most {TOLERANCE_POINTS}")


def _points(row: Row) -> float | None:
    """How far two accuracies are apart, in percentage points."""
    if row.recorded is None or row.here is None:
        return None
    return round(100 * abs(float(row.recorded) - float(row.here)), 4)  # they have six decimals, as fractions


def table(rows: Sequence[Row], promised: Promise) -> list[str]:
    """The rows as aligned lines, with a head."""
    lines = [(row.what, shown(row.recorded), shown(row.here), _answer(row, promised)) for row in rows]
    return aligned([("what", "recorded", "here", "equal?"), *lines])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, as many in each line; the last one is as wide as it happens to be."""
    *columns, _ = zip(*lines, strict=True)
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    ]


def shown(value: Any) -> str:
    """A value in a table: of a digest its start, `-` for none."""
    if value is None or value == "":
        return "-"
    is_digest = isinstance(value, str) and len(value) in (32, 64) and set(value) <= set("0123456789abcdef")
    return str(value)[:DIGEST_SHOWN] if is_digest else str(value)


def _answer(row: Row, promised: Promise) -> str:
    if row.is_equal:
        return "yes"
    if promised.is_bytes or row.kind in ("data", "input"):
        return "NO"
    if row.what == ACCURACY and (points := _points(row)) is not None:
        return f"within {TOLERANCE_POINTS} point" if points <= TOLERANCE_POINTS else "NO"
    return "no, not promised"
