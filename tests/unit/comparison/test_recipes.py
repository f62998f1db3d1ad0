"""What recipes reach over seeds; on results made by hand."""

from typing import Any

import pytest

from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe
from mnist.comparison.results import Result
from mnist.core.config import Split
from mnist.lineage.experiments import Revision


def result(name: str, seed: int, accuracy: float, dataset_md5: str = "d", **params: Any) -> Result:
    return Result(
        revision=Revision(kind="experiment", name=name),
        numbers={"accuracy": accuracy},
        params={"seed": seed, **params},
        dataset_md5=dataset_md5,
        split=Split(seed=seed, val_size=1000),
    )


def recipe(*accuracies: float, **params: Any) -> Recipe:
    return Recipe(params=params, dataset_md5="d", by_seed=dict(enumerate(accuracies)))


def test_mean_deviation_and_interval_are_those_of_the_book() -> None:
    """t(4, 0.975) = 2.776, as tables of Student's distribution have it."""
    made = recipe(0.94, 0.95, 0.95, 0.95, 0.96)

    assert made.mean == pytest.approx(0.95)
    assert made.sd == pytest.approx(0.0070711, rel=1e-4)
    assert made.interval == pytest.approx((0.95 - 2.7764 * 0.0031623, 0.95 + 2.7764 * 0.0031623), rel=1e-4)


def test_one_seed_has_no_spread() -> None:
    made = recipe(0.95)

    assert (made.mean, made.sd, made.interval) == (0.95, None, None)
    assert recipes.figures(made) == ["1", "95.00%", "-", "-", "95.00 to 95.00"]


def test_a_recipe_is_all_params_but_the_seed_on_one_data_set() -> None:
    found, notes = recipes.grouped(
        [
            result("a", 1, 0.9, lr=0.01),
            result("b", 0, 0.8, lr=0.01),
            result("c", 0, 0.99, lr=0.1),
            result("d", 0, 0.7, "other", lr=0.01),
        ]
    )

    assert [(one.params, one.dataset_md5, one.accuracies) for one in found] == [
        ({"lr": 0.1}, "d", [0.99]),
        ({"lr": 0.01}, "d", [0.8, 0.9]),
        ({"lr": 0.01}, "other", [0.7]),
    ]
    assert notes == []


def test_of_one_seed_the_first_result_counts_and_another_accuracy_is_noted() -> None:
    (found,), notes = recipes.grouped(
        [result("HEAD", 0, 0.9), result("again", 0, 0.9), result("elsewhere", 0, 0.91), result("b", 1, 0.8)]
    )

    assert found.accuracies == [0.9, 0.8]
    (note,) = notes
    assert "elsewhere" in note


def test_the_table_has_the_params_that_differ() -> None:
    table = recipes.table([recipe(0.96, 0.98, lr=0.1, epochs=1), recipe(0.9, lr=0.01, epochs=1)])

    assert [line.split() for line in table.splitlines()] == [
        ["seeds", "test", "accuracy", "sd", "95", "%", "interval", "least", "to", "most", "lr"],
        ["2", "97.00%", "1.41", "84.29", "to", "100.00", "96.00", "to", "98.00", "0.1"],
        ["1", "90.00%", "-", "-", "90.00", "to", "90.00", "0.01"],
    ]
