"""What recipes reach over seeds, and what shuffling the pixels costs; on results made by hand."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import mnist.cli
from mnist.comparison import recipes, trials
from mnist.comparison.recipes import CASES
from mnist.core import paths
from tests.checkout import ROOT


def test_mean_deviation_and_interval_are_those_of_the_book() -> None:
    """t(4, 0.975) = 2.7764, as tables of Student's distribution have it: 95 ± 2.7764 * 0.31623."""
    found = recipes.figures([0.94, 0.95, 0.95, 0.95, 0.96])

    assert found == ["5", "95.00%", "0.71", "94.12 to 95.88", "94.00 to 96.00"]


def test_one_seed_has_no_spread_and_no_interval_leaves_0_to_100() -> None:
    assert recipes.figures([0.95]) == ["1", "95.00%", "-", "-", "95.00 to 95.00"]
    assert recipes.figures([0.0, 1.0])[3] == "0.00 to 100.00"


# Shuffled pixels


def test_costs_are_paired_by_seed() -> None:
    in_place, shuffled, mlp = (0.95, 0.94, 0.96), (0.86, 0.84, 0.85), (0.86, 0.84, 0.85)
    cases = dict(zip(CASES, (in_place, shuffled, mlp, mlp), strict=True))

    cost = recipes.costs(cases, 3)["networks"]["simple_cnn"]["cost"]

    assert cost["mean"] == pytest.approx(0.1)
    half = 4.3027 * 0.01 / 3**0.5  # t(2, 0.975) of a table; the costs are 9, 10 and 11 points
    assert cost["interval"] == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)


def test_mnist_experiments_trains_all_cases_and_writes_the_costs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in (paths.PIPELINE, paths.PARAMS):
        shutil.copy(ROOT / path, tmp_path)
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def of_revision(name: str, settings: Mapping[str, Any]) -> Iterator[Any]:
        assert name == trials.WORKSPACE
        cost = 0.1 * (settings == {"model": "simple_cnn", "permute_pixels": True})
        yield SimpleNamespace(accuracy=lambda seed: 0.9 + 0.01 * seed - cost)

    monkeypatch.setattr(trials, "of_revision", of_revision)

    done = CliRunner().invoke(mnist.cli.main, ["experiments", "--seeds", "2"])

    assert done.exit_code == 0, done.output
    assert len(done.stderr.splitlines()) == 8
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert sorted((row[-2], row[-1], row[1]) for row in rows) == [
        ("mlp", "false", "90.50%"),
        ("mlp", "true", "90.50%"),
        ("simple_cnn", "false", "90.50%"),
        ("simple_cnn", "true", "80.50%"),
    ]
    written = json.loads(recipes.SHUFFLED_PIXELS.read_text())
    assert lines[-1] == recipes.sentence(written)
    assert written["networks"]["simple_cnn"]["cost"]["mean"] == pytest.approx(0.1)
    assert written["networks"]["mlp"] == {
        "in_place": [0.9, 0.91],
        "shuffled": [0.9, 0.91],
        "cost": {"mean": 0, "interval": [0, 0]},
    }
    with Image.open(recipes.SHUFFLED_PIXELS_PLOT) as picture:
        assert picture.size == (760, 420)


def test_the_committed_numbers_are_those_of_the_readme() -> None:
    found = json.loads((ROOT / recipes.SHUFFLED_PIXELS).read_text())

    assert recipes.sentence(found) in " ".join((ROOT / "README.md").read_text().split())
    cnn, mlp = (found["networks"][name]["cost"] for name in ("simple_cnn", "mlp"))
    assert cnn["interval"][0] > 0.01
    assert mlp["interval"][0] < 0 < mlp["interval"][1]
