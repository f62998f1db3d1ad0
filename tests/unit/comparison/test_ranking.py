"""How results are ranked, and what is advised; on results made by hand."""

import math
from typing import Any, Literal

import pytest

from mnist.comparison import ranking
from mnist.comparison.results import Result
from mnist.core.config import Split
from mnist.lineage.experiments import Revision

HEAD, ELSEWHERE = "a" * 40, "b" * 40


def result(
    name: str,
    accuracy: float,
    loss: float = 0.5,
    *,
    kind: Literal["experiment", "commit", "workspace"] = "experiment",
    baseline: str = HEAD,
    dataset_md5: str = "d",
    **params: Any,
) -> Result:
    """Return one with these params, beside those of the split."""
    split = {key: params.get(key, value) for key, value in {"seed": 0, "val_size": 1000}.items()}
    return Result(
        revision=Revision(
            kind=kind,
            name=name,
            commit=HEAD if kind == "commit" else "",
            baseline=baseline if kind == "experiment" else "",
        ),
        numbers={"val_accuracy": accuracy, "val_loss": loss},
        params={**split, **params},
        dataset_md5=dataset_md5,
        split=Split(**split),
    )


def names(results: tuple[Result, ...]) -> list[str]:
    return [one.revision.name for one in results]


def test_accuracy_then_loss_then_what_is_there_then_the_name_decide() -> None:
    found = ranking.rank(
        [
            result("d", 0.96),
            result("a", 0.96),
            result("workspace", 0.96, kind="workspace"),
            result("z", 0.97, 0.9),
            result("c", 0.96, 0.4),
        ]
    )

    assert names(found.ranked) == ["z", "c", "workspace", "a", "d"]
    assert found.others == ()


@pytest.mark.parametrize(
    ("accuracy", "val_size", "error"),
    [(0.9, 1000, math.sqrt(0.9 * 0.1 / 1000)), (0.5, 400, 0.025), (1.0, 200, 0.005), (0.0, 1, 1.0)],
)
def test_the_standard_error_is_binomial_and_at_least_one_image(
    accuracy: float, val_size: int, error: float
) -> None:
    assert ranking.standard_error(result("a", accuracy, val_size=val_size)) == pytest.approx(error)


def test_what_is_within_one_standard_error_is_close() -> None:
    scores = {"best": 0.9, "equal": 0.9, "at": 0.88, "below": 0.879}  # sqrt(0.9 * 0.1 / 225) = 0.02

    found = ranking.rank([result(name, score, val_size=225) for name, score in scores.items()])

    assert names(found.close) == ["equal", "at"]


def test_one_image_of_many_is_close_in_spite_of_rounding() -> None:
    scores = {"a": 59999, "b": 59998}

    found = ranking.rank([result(name, round(n / 59999, 6), val_size=59999) for name, n in scores.items()])

    assert names(found.close) == ["b"]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"val_size": 100}, {"dataset_md5": "e"}], ids=["seed", "val_size", "data"]
)
def test_other_validation_images_get_a_mark_and_no_rank(other: dict[str, Any]) -> None:
    found = ranking.rank([result("lucky", 1.0, **other), result("a", 0.9), result("b", 0.8)])

    assert (names(found.ranked), names(found.others)) == (["a", "b"], ["lucky"])
    rows = [line.split()[:2] for line in ranking.table(found).splitlines()]
    assert rows[1:] == [["1", "a"], ["2", "b"], ["*", "lucky"]]
    assert found.best
    assert found.best.revision.name == "a"


def test_a_sweep_over_seeds_has_no_best() -> None:
    found = ranking.rank([result(f"s{seed}", 0.9 + seed / 100, seed=seed) for seed in range(3)])

    assert found.best is None
    assert ranking.advice(found, HEAD)[-1].startswith("best: none")


def test_the_table_shows_the_params_that_differ() -> None:
    found = ranking.rank(
        [
            result("HEAD", 0.95, kind="commit", lr=0.01, model="mlp", epochs=1, shift=True),
            result("long-name", 0.96, 12.25, lr=1e-05, model="simple_cnn", epochs=1),
        ]
    )

    assert [line.split() for line in ranking.table(found).splitlines()] == [
        ["experiment", "val_accuracy", "val_loss", "lr", "model", "shift"],
        ["1", "long-name", "0.9600", "±", "0.0062", "12.2500", "1e-05", "simple_cnn", "-"],
        ["2", "HEAD", "0.9500", "±", "0.0069", "0.5000", "0.01", "mlp", "true"],
    ]
    assert ranking.table(found, top=1).splitlines()[2:] == ["... and 1 more"]


def test_the_best_is_applied_by_name_from_its_own_commit() -> None:
    here, there = (ranking.rank([result("a", 0.9, baseline=start)]) for start in (HEAD, ELSEWHERE))

    assert ranking.advice(here, HEAD) == [
        "best: a",
        "  apply   dvc exp apply a",
        "  branch  dvc exp branch a a-branch",
        "  MLflow  make ui, then the run a",
    ]
    assert ranking.advice(there, HEAD)[1] == "  apply   git checkout bbbbbbbbbbbb && dvc exp apply a"


def test_what_is_there_already_needs_no_command() -> None:
    found = ranking.rank([result("HEAD", 0.9, kind="commit"), result("a", 0.899)])

    assert len(ranking.advice(found, HEAD)) == 1
    assert ranking.advice(found, ELSEWHERE)[1:] == ["  apply   git checkout aaaaaaaaaaaa && dvc checkout"]
