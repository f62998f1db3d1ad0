"""Lines and tables of plots, in every form in which `dvc.yaml` allows them."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

STEP = "step"  # the column of a table that counts optimizer steps


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        title: of the plot, or what the line is.
        x: what the first axis counts.
        y: what the second one measures.
        points: (x, y), finite, by rising x.
    """

    title: str
    x: str
    y: str
    points: tuple[tuple[float, float], ...]


def rows(data: Any) -> list[dict[str, Any]]:
    """The rows of a table: in JSON and YAML, the first list of them that there is."""
    if isinstance(data, dict):
        return next(filter(None, map(rows, data.values())), [])
    is_table = isinstance(data, list) and all(isinstance(row, dict) for row in data)
    return data if is_table else []


def num_steps(table: Iterable[Mapping[str, Any]]) -> int | None:
    """The largest number in the column `STEP`; None where there is none."""
    counts = (str(row.get(STEP)) for row in table)
    return max((int(count) for count in counts if re.fullmatch("[0-9]{1,18}", count)), default=None)


def lines(
    source: str, properties: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], tuple[str, str], str]]:
    """The lines of a plot: file and column of x, those of y, title.

    Pictures and tables without an x have none. As DVC has it, one x of a file is for all y, several
    are for one y each.
    """
    x, ys = properties.get("x"), columns(source, properties.get("y"))
    xs = columns(source, x) if isinstance(x, dict) else [(path, x) for path, _ in ys]
    names = [name for _, name in ys]
    for number, (path, y) in enumerate(ys):
        x_path, x = xs[0] if len(xs) == 1 else xs[number] if number < len(xs) else ("", None)
        if isinstance(x, str) and isinstance(y, str):
            file = f"{path}: " if names.count(y) > 1 else ""
            title = properties.get("title") if len(ys) == 1 else None
            yield (x_path, x), (path, y), title or f"{file}{y} by {x}"


def columns(source: str, named: Any) -> list[tuple[str, Any]]:
    """File and column, of a name, a list of names or either by file."""
    by_file = named if isinstance(named, dict) else {source: named}
    return [
        (path, name)
        for path, names in by_file.items()
        for name in (names if isinstance(names, list) else [names])
    ]


def points(
    x_rows: Sequence[Mapping[str, Any]], x: str, y_rows: Sequence[Mapping[str, Any]], y: str
) -> tuple[tuple[float, float], ...]:
    """The pairs of finite numbers of two columns, by rising x."""
    found = []
    if len(x_rows) == len(y_rows):  # or else nobody knows what belongs together
        for x_row, y_row in zip(x_rows, y_rows, strict=True):
            with suppress(KeyError, TypeError, ValueError):  # a gap, or no numbers
                point = float(x_row[x]), float(y_row[y])
                if all(map(math.isfinite, point)):
                    found.append(point)
    return tuple(sorted(found))
