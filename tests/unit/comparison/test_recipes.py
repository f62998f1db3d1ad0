"""What recipes come to over seeds; on made revisions."""

import hashlib
import io
import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from mnist.cli import seeds
from mnist.comparison import recipes
from mnist.comparison.recipes import Recipe, Result
from mnist.core import paths
from mnist.core.errors import InputError
from mnist.lineage.experiments import Revision

WORKSPACE = Revision(kind="workspace", name="workspace")


def scored(accuracy: object) -> bytes:
    return json.dumps({"accuracy": accuracy}).encode()


def locked(metrics: bytes, **params: Any) -> bytes:
    """A `dvc.lock` that knows these metrics."""
    md5 = hashlib.md5(metrics, usedforsecurity=False).hexdigest()
    train = {
        "deps": [{"path": "data/mnist.safetensors", "md5": "d"}],
        "params": {"params.yaml": params},
        "outs": [],
    }
    evaluate = {"deps": [], "outs": [{"path": "metrics/test.json", "md5": md5}]}
    stream = io.StringIO()
    YAML().dump({"schema": "2.0", "stages": {"train": train, "evaluate": evaluate}}, stream)
    return stream.getvalue().encode()


def result(name: str, seed: int, accuracy: float, dataset_md5: str = "d", **params: Any) -> Result:
    return Result(
        revision=Revision(kind="experiment", name=name),
        seed=seed,
        accuracy=accuracy,
        params=params,
        dataset_md5=dataset_md5,
    )


def recipe(*accuracies: float, **params: Any) -> Recipe:
    (made,), _ = recipes.grouped([result("a", seed, one, **params) for seed, one in enumerate(accuracies)])
    return made


def test_mean_deviation_and_interval_are_those_of_the_book() -> None:
    """t(4, 0.975) = 2.776, as tables of Student's distribution have it."""
    made = recipe(0.94, 0.95, 0.95, 0.95, 0.96)

    assert made.mean == pytest.approx(0.95)
    assert made.sd == pytest.approx(0.0070711, rel=1e-4)
    assert made.interval == pytest.approx((0.95 - 2.7764 * 0.0031623, 0.95 + 2.7764 * 0.0031623), rel=1e-4)


def test_one_seed_has_no_spread() -> None:
    made = recipe(0.95)

    assert (made.mean, made.sd, made.interval) == (0.95, None, None)
    assert seeds.table([made])[1].split() == ["1", "95.00%", "-", "-", "95.00", "to", "95.00"]


def test_a_recipe_is_all_params_but_the_seed_on_one_data_set() -> None:
    found, twice = recipes.grouped(
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
    assert twice == []


def test_a_result_counts_once_and_two_of_one_seed_are_told() -> None:
    (found,), twice = recipes.grouped(
        [result("HEAD", 0, 0.9), result("again", 0, 0.9), result("elsewhere", 0, 0.91), result("b", 1, 0.8)]
    )

    assert found.accuracies == [0.9, 0.8]
    assert twice == ["left out: elsewhere: 91.00% by seed 0, and 90.00% in HEAD"]


def test_the_table_has_what_differs() -> None:
    table = seeds.table([recipe(0.96, 0.98, lr=0.1, epochs=1), recipe(0.9, lr=0.01, epochs=1)])

    assert [line.split() for line in table] == [
        ["seeds", "test", "accuracy", "sd", "95", "%", "interval", "least", "to", "most", "lr"],
        ["2", "97.00%", "1.41", "84.29", "to", "100.00", "96.00", "to", "98.00", "0.1"],
        ["1", "90.00%", "-", "-", "90.00", "to", "90.00", "0.01"],
    ]


def test_a_result_is_read_from_its_files() -> None:
    metrics = scored(0.945)

    found = recipes.read(WORKSPACE, (metrics, locked(metrics, seed=3, lr=1e-05)))

    assert (found.seed, found.accuracy, found.params, found.dataset_md5) == (3, 0.945, {"lr": 1e-05}, "d")


GOOD = scored(0.9)


@pytest.mark.parametrize(
    ("metrics", "lock", "complaint"),
    [
        (None, locked(GOOD, seed=0), f"{paths.TEST_METRICS}: found no such file"),
        (GOOD, None, "dvc.lock: found no such file"),
        (b"{", locked(GOOD, seed=0), "metrics/test.json: found no JSON"),
        (scored(94.7), locked(GOOD, seed=0), "accuracy: found 94.7, expected 0 to 1"),
        (GOOD, locked(scored(0.8), seed=0), "metrics/test.json: found not the file that dvc.lock knows"),
        (GOOD, locked(GOOD), "dvc.lock: seed: found None"),
    ],
    ids=lambda value: value.split(": found")[0] if isinstance(value, str) else "",
)
def test_what_is_no_result_is_one_line(metrics: bytes | None, lock: bytes | None, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        recipes.read(WORKSPACE, (metrics, lock))

    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
