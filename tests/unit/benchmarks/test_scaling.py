"""The bench of processes and threads: who is measured, how, and what its table says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, scaling
from benchmarks.scaling import Size, Team

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("num_cores", "num_gpus", "expected"),
    [
        (1, 0, [(1, 1)]),
        (2, 0, [(1, 1), (1, 2), (2, 1)]),
        (6, 0, [(1, 1), (1, 6), (2, 1), (4, 1), (6, 1)]),
        (16, 1, [(1, 1)]),
        (16, 4, [(1, 1), (2, 1), (4, 1)]),
    ],
)
def test_teams_are_up_to_all_cores_or_gpus(
    num_cores: int, num_gpus: int, expected: list[tuple[int, int]]
) -> None:
    found = scaling.teams(num_cores, num_gpus)
    assert [(team.processes, team.num_threads) for team in found] == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_is_timed(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    here = harness.Checkout(folder=ROOT, environment={**os.environ, "OMP_NUM_THREADS": "1"})

    rate = scaling.measure(
        here, Size(n_features=1, batch_size=1000), Team(processes=processes, num_threads=1)
    )

    assert 100 < rate < 10_000_000


def test_the_table_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: iter([100.0, 300.0] * 99), 2: iter([150.0, 450.0] * 99)}

    def measure(here: harness.Checkout, size: Size, team: Team) -> float:
        del here, size
        return next(rates[team.processes])

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "count_gpus", lambda _: 2)

    place = harness.Checkout(folder=ROOT, environment={})
    bench = harness.Bench(source=place, data=ROOT, commit="")

    result = scaling.measure_all(bench, num_rounds=2)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    last: dict[str, Any] = result["trainings"][-1]
    assert (last["n_features"], last["batch_size"], last["processes"]) == (32, 512, 2)
    assert last["speedup"] == pytest.approx(1.5)
    assert scaling.tables(result).splitlines()[-1].endswith("to 450 | 1.50 x |")
