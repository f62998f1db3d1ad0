"""The recipe that trials are kept by."""

from dataclasses import replace
from typing import Any

import pytest

from mnist.comparison import trials
from mnist.lineage.lock import Out, Stage

TRAIN = Stage(
    name="train",
    cmd="python -m stages.train",
    deps={"data/x": None, "mnist/training": "1"},
    params={"params.yaml": {"lr": 0.1, "seed": 0, "processes": 1}},
    outs={"models/w": Out(kept_in="cache", digest="of seed 0")},
)
EVALUATE = replace(TRAIN, name="evaluate", deps={"data/x": None, "models/w": "of seed 0"}, params={}, outs={})
WROTE = {"data/x": "2"}


def with_params(**changed: Any) -> Stage:
    return replace(TRAIN, params={"params.yaml": {**TRAIN.params["params.yaml"], **changed}})


@pytest.mark.parametrize(
    ("train", "evaluate", "wrote"),
    [
        (with_params(seed=7, processes=2), EVALUATE, WROTE),
        (
            TRAIN,
            replace(EVALUATE, deps={"data/x": None, "models/w": "of seed 7"}),
            {**WROTE, "models/w": "7"},
        ),
    ],
    ids=["the seed", "what it makes"],
)
def test_a_recipe_does_not_depend_on(train: Stage, evaluate: Stage, wrote: dict[str, str]) -> None:
    assert trials.digest([train, evaluate], wrote) == trials.digest([TRAIN, EVALUATE], WROTE)


@pytest.mark.parametrize(
    ("train", "evaluate", "wrote"),
    [
        (with_params(lr=0.2), EVALUATE, WROTE),
        (replace(TRAIN, deps={**TRAIN.deps, "mnist/training": "3"}), EVALUATE, WROTE),
        (TRAIN, replace(EVALUATE, deps={**EVALUATE.deps, "mnist/evaluation": "1"}), WROTE),
        (TRAIN, EVALUATE, {"data/x": "3"}),
    ],
    ids=["params", "code", "code of the evaluation", "data"],
)
def test_a_recipe_depends_on(train: Stage, evaluate: Stage, wrote: dict[str, str]) -> None:
    assert trials.digest([train, evaluate], wrote) != trials.digest([TRAIN, EVALUATE], WROTE)
