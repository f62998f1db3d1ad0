"""The comparison of two sets of outputs, byte for byte or within tolerances, for `verify` and `reproduce`.

The bytes of weights, and of all that is computed from them, depend on the kind of processor (x86-64 with
AVX2 is one), the number of threads and the versions of the libraries. If these differ, numbers must be
within a tolerance, and files without numbers (weights, pictures, pages) may have different bytes.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tabulate import tabulate

from mnist.core import config, custody, files

Answer = Literal["equal", "close", "other bytes", "NO"]
MISSING = "-"
DIGEST_SHOWN = 12  # hex digits
DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?|[0-9a-f]{64}")
MACHINE = ("device", "python", "torch", "numpy")  # where all are equal, equal inputs give equal bytes
PREDICTED = "predicted"  # a column: its cells are compared by how many differ


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted difference of two numbers: the larger of both bounds.

    Attributes:
        text: for people.
        absolute: bound; of predictions, as a share of all.
        relative: bound, as a share of the first number.
    """

    text: str
    absolute: float
    relative: float = 0.0

    def holds(self, one: float, other: float) -> bool:
        """Return whether two numbers are close."""
        bound = max(self.absolute, self.relative * abs(one))
        return abs(one - other) <= bound + 1e-9  # 0.96 - 0.95 is a little more than 0.01


Tolerances = Mapping[str, Tolerance]  # by a word in a number's name, the first that is in it; "": any

# About ten times what was seen. With the default params, AVX2 and SSE4.1 against AVX-512 on one
# thread (5 seeds each) moved the test accuracy by up to 0.10 points, the recall of a digit by 0.5,
# losses by 0.6 %, the calibration error by 0.0018, and changed 2 to 28 of 10,000 predictions.
OTHER_WEIGHTS: Tolerances = {
    "accuracy": Tolerance("1 point", 0.01),
    "recall": Tolerance("5 points", 0.05),  # a class has 1,000 images
    PREDICTED: Tolerance("3 % of the rows", 0.03),  # from one wrong class to another moves no accuracy
    "": Tolerance("5 % or 0.01", 0.01, relative=0.05),
}
# Probabilities of equal weights differ by some 1e-6 between processors.
EQUAL_WEIGHTS: Tolerances = {
    PREDICTED: Tolerance("0.1 % of the rows", 0.001),
    "": Tolerance("0.001", 0.001),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output as it was before, or as it was reproduced.

    Attributes:
        digest: of its bytes; None where there is none.
        file: of it; what only DVC's cache holds may not be there.
    """

    digest: str | None
    file: Path

    @classmethod
    def of(cls, file: Path) -> Self:
        """Return a file as an output."""
        return cls(digest=files.sha256(file) if file.is_file() else None, file=file)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was compared.

    Attributes:
        what: file, and what in it.
        before: as shown to people.
        after: the same, reproduced.
        answer: how they compare.
        tolerance: the text of the tolerance that was applied to a number.
    """

    what: str
    before: str
    after: str
    answer: Answer
    tolerance: str = ""

    @property
    def text(self) -> str:
        """Return the answer as people read it."""
        if self.answer == "close":
            return f"within {self.tolerance}"
        return f"{self.answer}, beyond {self.tolerance}" if self.tolerance else self.answer


def machine_differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return the reasons why bytes may differ from those of the machine `recorded`; none: they are equal."""
    return [
        f"{name} {recorded.get(name) or 'unknown'} there, {here[name]} here"
        for name in MACHINE
        if recorded.get(name) != here[name]
    ]


def tolerances(*, is_equal: bool) -> Tolerances:
    """Return the tolerances of numbers from equal weights, or from other ones."""
    return EQUAL_WEIGHTS if is_equal else OTHER_WEIGHTS


def compare(name: str, before: Output, after: Output, tolerances: Tolerances | None) -> list[Row]:
    """Compare an output: one row, or one for each number that differs.

    Args:
        name: of the output.
        before: the output to compare with.
        after: the reproduced output.
        tolerances: of its numbers; None where its bytes must be equal.
    """
    shown = _shown(before.digest), _shown(after.digest)

    def whole(answer: Answer) -> list[Row]:
        return [Row(what=name, before=shown[0], after=shown[1], answer=answer)]

    if before.digest == after.digest:
        return whole("equal")
    if before.digest is None or after.digest is None:
        return whole("NO")
    is_receipt = Path(name).parent == custody.RECEIPTS  # digests, which say no more than the files do
    reader = None if is_receipt else READERS.get(after.file.suffix)
    if reader is None or not before.file.is_file():
        return whole("other bytes" if tolerances else "NO")
    try:
        one, other = (reader(side.file.read_text(encoding="utf-8")) for side in (before, after))
    except (ValueError, RecursionError, csv.Error) as error:
        found = f"no {after.file.suffix[1:].upper()} ({' '.join(str(error).split())})"
        return [Row(what=name, before=found, after=shown[1], answer="NO")]
    # Equal numbers in other bytes: a person wrote them.
    return _differences(name, one, other, tolerances) or whole("NO")


def table(rows: Iterable[Row], before: str) -> str:
    """Return the rows as an aligned table; `before` is the head of that column."""
    cells = [(row.what, row.before, row.after, row.text) for row in rows]
    return tabulate(cells, ("what", before, "reproduced", "equal?"), tablefmt="plain", disable_numparse=True)


def digest_row(what: str, before: str, after: str, unequal: Answer) -> Row:
    """Return a row for two digests; `unequal` is the answer where they differ."""
    answer: Answer = "equal" if before == after else unequal
    return Row(what=what, before=_shown(before), after=_shown(after), answer=answer)


def _read_json(text: str) -> list[dict[str, Any]]:
    values = json.loads(text)
    return [config.flat(values) if isinstance(values, dict) else {"": values}]


def _read_csv(text: str) -> list[dict[str, Any]]:
    """Return the rows of a table: numbers by column, and any other text as it is."""
    lines = list(csv.reader(io.StringIO(text), strict=True))
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise ValueError("rows of different lengths")
    if len(set(lines[0])) < len(lines[0]):
        raise ValueError("several columns of one name")
    return [dict(zip(lines[0], map(_number, line), strict=True)) for line in lines[1:]]


READERS: Mapping[str, Callable[[str], list[dict[str, Any]]]] = {".json": _read_json, ".csv": _read_csv}


def _number(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _differences(
    name: str,
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    tolerances: Tolerances | None,
) -> list[Row]:
    """Return a row for each key that differs: of several rows of a table, the ones farthest apart."""
    if len(before) != len(after):
        shown = [f"{len(rows):,} rows" for rows in (before, after)]
        return [Row(what=name, before=shown[0], after=shown[1], answer="NO")]
    found: dict[str, list[tuple[float, Row]]] = {}
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        for key in dict.fromkeys([*one, *other]):
            values = one.get(key, MISSING), other.get(key, MISSING)
            if values[0] != values[1] or type(values[0]) is not type(values[1]):
                place = f", row {number}" if len(before) > 1 else ""
                row = _row(f"{name}: {key}{place}", key, values, tolerances)
                found.setdefault(key, []).append((_distance(*values), row))
    # Of each key what is beyond its tolerance first, and then what is farthest apart.
    rows = {
        key: max(differing, key=lambda one: (one[1].answer == "NO", one[0]))[1]
        for key, differing in found.items()
    }
    if PREDICTED in rows and tolerances:
        tolerance, num_rows, num_different = tolerances[PREDICTED], len(before), len(found[PREDICTED])
        rows[PREDICTED] = Row(
            what=f"{name}: {PREDICTED}",
            before=f"{num_rows:,} rows",
            after=f"{num_different:,} of them differ",
            answer="close" if tolerance.holds(0, num_different / num_rows) else "NO",
            tolerance=tolerance.text,
        )
    return list(rows.values())


def _row(what: str, key: str, values: tuple[Any, Any], tolerances: Tolerances | None) -> Row:
    (one, other), tolerance = values, None
    is_count = isinstance(one, int) and isinstance(other, int)
    if tolerances and _is_number(one) and _is_number(other) and not is_count:
        tolerance = next(bound for word, bound in tolerances.items() if word in key)
    is_close = tolerance is not None and tolerance.holds(one, other)
    return Row(
        what=what,
        before=_shown(one),
        after=_shown(other),
        answer="close" if is_close else "NO",
        tolerance=tolerance.text if tolerance else "",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _distance(one: Any, other: Any) -> float:
    return abs(float(one) - float(other)) if _is_number(one) and _is_number(other) else math.inf


def _shown(value: Any) -> str:
    """Return a value for a table: of a digest its start, `-` for none."""
    if value is None or value == "":
        return MISSING
    text = str(value)
    return text[:DIGEST_SHOWN] if DIGEST.fullmatch(text) else text
