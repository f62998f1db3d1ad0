"""Whether outputs that were made again agree with those that were there: equal bytes, or close numbers.

Where the bytes of an output depend on the machine, nobody knows on which one it was first made:
`dvc.lock` does not tell. What was made elsewhere is held to tolerances then, and what has no
numbers in it cannot be compared. Another machine rounds otherwise from the first step on, and that
shows in all that was made from there: what shows it in one place and not in the other was edited.
Edits that keep to the tolerances everywhere cannot be told from another machine.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mnist.core import config, paths
from mnist.lineage import guarantee

Answer = Literal["equal", "close", "other bytes", "NO"]
MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far two numbers may be apart, by the larger of both bounds.

    Attributes:
        words: in the names of what it is for; empty for all other numbers with a fraction.
        absolute: bound, in the unit of the numbers.
        relative: bound, as a share of the first one.
        text: for people.
    """

    words: tuple[str, ...]
    absolute: float
    relative: float
    text: str

    def holds(self, one: float, other: float) -> bool:
        """Whether they are close."""
        bound = max(self.absolute, self.relative * abs(one))
        return abs(one - other) <= bound + 1e-9  # 0.96 - 0.95 is a little more than 0.01


# About ten times what was seen. With the default params, AVX2 and SSE4.1 against AVX-512 on one
# thread (5 seeds each) moved the test accuracy by up to 0.10 points, the recall of a digit by 0.5,
# losses by 0.6 %, the calibration error by 0.0018, and predicted 2 to 28 of 10,000 images otherwise.
TOLERANCES = (
    Tolerance(
        words=("accuracy",),
        absolute=guarantee.TOLERANCE_POINTS / 100,
        relative=0,
        text=f"{guarantee.TOLERANCE_POINTS} point",
    ),
    Tolerance(words=("recall",), absolute=0.05, relative=0, text="5 points"),  # a class has 1,000 images
    Tolerance(words=(), absolute=0.01, relative=0.05, text="5 % or 0.01"),
)
# Of images, and so of a count of them: as much as of the accuracy.
WRONG = "num_wrong"
WRONG_SHARE = guarantee.TOLERANCE_POINTS / 100
# Of rows: what changes from one wrong class to another moves no accuracy.
PREDICTED = "predicted"
PREDICTED_SHARE = 0.03

CURVES = tuple(map(str, (paths.HISTORY, paths.STEPS)))
GALLERIES = tuple(map(str, (paths.GALLERY, paths.ERRORS_GALLERY)))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was compared.

    Attributes:
        what: file, and what in it.
        committed: as it is shown.
        made: the same of what was made again.
        answer: how they compare.
        tolerance: within which they are close, or are not.
        reason: why it does not pass, though by itself it could.
    """

    what: str
    committed: str
    made: str
    answer: Answer
    tolerance: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """The answer, for people."""
        if self.reason:
            return f"{self.answer}, {self.reason}"
        if not self.tolerance:
            return "other bytes, not comparable" if self.answer == "other bytes" else self.answer
        return (
            f"within {self.tolerance}"
            if self.answer == "close"
            else f"{self.answer}, beyond {self.tolerance}"
        )


@dataclass(frozen=True, kw_only=True)
class Side:
    """An output as it was committed, or as it was made again.

    Attributes:
        digest: of its bytes; None where there is none.
        file: it; what only DVC's cache has may not be there.
    """

    digest: str | None
    file: Path


def compare(name: str, committed: Side, made: Side, *, exact: bool) -> list[Row]:
    """Compare an output: one row, or one for each number that differs.

    Args:
        name: of the output, as its user knows it.
        committed: the one.
        made: the other one.
        exact: whether its bytes are the same on every machine, or on this one.
    """
    digests = guarantee.shown(committed.digest), guarantee.shown(made.digest)

    def whole(answer: Answer) -> list[Row]:
        return [Row(what=name, committed=digests[0], made=digests[1], answer=answer)]

    if committed.digest == made.digest:
        return whole("equal")
    reader = {".json": _json, ".csv": _csv}.get(made.file.suffix)
    if committed.digest is None or made.digest is None:
        return whole("NO")
    if reader is None or not committed.file.is_file():
        return whole("NO" if exact else "other bytes")
    try:
        one, other = (reader(side.file.read_text(encoding="utf-8")) for side in (committed, made))
    except (ValueError, csv.Error) as error:
        found = f"no {made.file.suffix[1:].upper()} ({' '.join(str(error).split())})"
        return [Row(what=name, committed=found, made=digests[1], answer="NO")]
    compared = _columns if made.file.suffix == ".csv" else _values
    # Equal numbers in other bytes: a person wrote them.
    return list(compared(name, one, other, exact=exact)) or whole("NO")


def settle(rows: Sequence[Row]) -> list[Row]:
    """Take what differs for the work of another machine only where all differs that would there.

    Other bytes, as of weights, are refused where no number of the same stage differs, or where a
    training curve does not: a training of a few steps, which shows nothing, has to be made here.
    Other predictions are refused where no gallery differs: those tell how sure each one is.

    Args:
        rows: of one stage.
    """
    equal = [row.what for row in rows if row.answer == "equal"]
    is_close = any(row.answer == "close" for row in rows)
    curves = [what for what in equal if what in CURVES]
    galleries = [row.what for row in rows if row.what in GALLERIES]
    settled = []
    for row in rows:
        if row.answer == "other bytes" and (curves or not is_close):
            reason = f"though {' and '.join(curves)} did not change" if curves else ""
            settled.append(replace(row, answer="NO", reason=reason))
        elif row.answer == "close" and _is_of_predictions(row) and galleries and set(galleries) <= set(equal):
            settled.append(replace(row, answer="NO", reason="though no gallery changed"))
        else:
            settled.append(row)
    return settled


def _is_of_predictions(row: Row) -> bool:
    return row.what.endswith(f": {PREDICTED}")


def _json(text: str) -> dict[str, Any]:
    values = json.loads(text)
    return config.flat(values) if isinstance(values, dict) else {"": values}


def _csv(text: str) -> dict[str, list[str]]:
    """Columns by name."""
    lines = list(csv.reader(io.StringIO(text), strict=True))
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise ValueError("rows of different lengths")
    if len(set(lines[0])) < len(lines[0]):
        raise ValueError("several columns of one name")
    return {name: [line[column] for line in lines[1:]] for column, name in enumerate(lines[0])}


def _values(
    name: str, committed: Mapping[str, Any], made: Mapping[str, Any], *, exact: bool
) -> Iterator[Row]:
    for key in dict.fromkeys([*committed, *made]):
        one, other = committed.get(key, MISSING), made.get(key, MISSING)
        if one == other and type(one) is type(other):
            continue
        tolerance = None if exact else _tolerance(key, one, other, committed)
        yield _row(f"{name}: {key}", one, other, tolerance)


def _tolerance(key: str, one: Any, other: Any, beside: Mapping[str, Any]) -> Tolerance | None:
    """For two values; None where they must be equal: text, and counts."""
    if not _is_number(one) or not _is_number(other):
        return None
    if isinstance(one, int) and isinstance(other, int):
        num_images = beside.get("num_images")
        if key.rpartition(".")[2] != WRONG or not isinstance(num_images, int):
            return None
        text = f"{100 * WRONG_SHARE:g} % of the images"
        return Tolerance(words=(WRONG,), absolute=WRONG_SHARE * num_images, relative=0, text=text)
    return next(tolerance for tolerance in TOLERANCES if _is_for(tolerance, key))


def _is_for(tolerance: Tolerance, key: str) -> bool:
    return not tolerance.words or any(word in key for word in tolerance.words)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _row(what: str, one: Any, other: Any, tolerance: Tolerance | None) -> Row:
    text, is_close = "", False
    if tolerance:
        text, is_close = tolerance.text, tolerance.holds(float(one), float(other))
    shown = guarantee.shown(one), guarantee.shown(other)
    return Row(
        what=what, committed=shown[0], made=shown[1], answer="close" if is_close else "NO", tolerance=text
    )


def _columns(
    name: str, committed: Mapping[str, list[str]], made: Mapping[str, list[str]], *, exact: bool
) -> Iterator[Row]:
    """A row a column: of the cells that differ, those that are farthest apart."""
    sides = committed, made
    lengths = [len(next(iter(side.values()), [])) for side in sides]
    if list(sides[0]) != list(sides[1]) or lengths[0] != lengths[1]:
        shown = [f"{length:,} rows of {', '.join(side)}" for length, side in zip(lengths, sides, strict=True)]
        yield Row(what=name, committed=shown[0], made=shown[1], answer="NO")
        return
    for column in sides[0]:
        cells = zip(sides[0][column], sides[1][column], strict=True)
        different = [(line, one, other) for line, (one, other) in enumerate(cells, 1) if one != other]
        if not different:
            continue
        if column == PREDICTED and not exact:
            share = len(different) / lengths[0]
            answer: Answer = "close" if share <= PREDICTED_SHARE else "NO"
            yield Row(
                what=f"{name}: {column}",
                committed=f"{lengths[0]:,} rows",
                made=f"{len(different):,} of them differ",
                answer=answer,
                tolerance=f"{100 * PREDICTED_SHARE:g} % of the rows",
            )
            continue
        rows = []
        for line, one, other in different:
            values = _number(one), _number(other)
            tolerance = None if exact else _tolerance(column, *values, {})
            rows.append((_distance(*values), _row(f"{name}: {column}, row {line}", *values, tolerance)))
        # What is beyond its tolerance first, and then what is farthest apart.
        yield max(rows, key=lambda row: (row[1].answer == "NO", row[0]))[1]


def _number(cell: str) -> Any:
    """A cell as the number that it shows; any other text as it is."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _distance(one: Any, other: Any) -> float:
    return abs(float(one) - float(other)) if _is_number(one) and _is_number(other) else math.inf
