"""One of several processes that train together; tests/unit/training/test_distributed.py starts it.

    torchrun --nproc-per-node 3 -m tests.teammate FOLDER

Each process writes the weights and the events that it ended with, for each case.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist.core import config, paths
from mnist.core.config import Architecture, Precision, Recipe
from mnist.data.store import cut
from mnist.training import distributed, loop, model
from mnist.training.distributed import Context
from mnist.training.model import Classifier
from tests.conftest import DIGITS, digits

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training to compare.

    Attributes:
        recipe: what differs from `params.yaml`; and `architecture` as well.
        tolerance: of a weight, as a share of the largest change that training made to one. Measured
            over 2 and 3 processes: at most 2e-6, in bfloat16 0.016.
    """

    recipe: Mapping[str, Any]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    num_images: int = 1000
    tolerance: float = 1e-4

    def build(self) -> Classifier:
        """Return the classifier that training begins with."""
        defaults = config.load(ROOT / paths.PARAMS).only(Architecture).model_dump()
        return model.build(
            Architecture(**{**defaults, **self.architecture}),
            classes=DIGITS.classes,
            seed=0,
            mean=0.13,
            std=0.31,
        )

    def train(self, classifier: Classifier, ctx: Context) -> list[dict[str, Any]]:
        """Train it in place, and return the events."""
        defaults = config.load(ROOT / paths.PARAMS).only(Recipe).model_dump()
        train, val = cut(digits(self.num_images + 200, seed=0), val_size=200, seed=0)
        events = loop.fit(
            classifier,
            train=train,
            val=val,
            recipe=Recipe(**{**defaults, **self.recipe}),
            seed=0,
            device=torch.device("cpu"),
            precision=self.precision,
            ctx=ctx,
        )
        return [asdict(event) for event in events]


CASES = {
    # 20 steps of 50 images, which 3 do not divide, and one of a single image: two shares are empty.
    "a last batch smaller than the processes": Case(
        recipe={"batch_size": 50, "momentum": 0.9}, num_images=1001
    ),
    "adam, two epochs, smoothed and shifted": Case(
        recipe={"optimizer": "adam", "epochs": 2, "lr": 0.001, "label_smoothing": 0.1, "shift": 2}
    ),
    "bfloat16": Case(
        architecture={"n_features": 20}, recipe={}, precision="bfloat16", num_images=300, tolerance=0.05
    ),
}


def weights(classifier: Classifier) -> Tensor:
    """Return all weights, float32 (P,)."""
    return torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])


def main() -> None:
    """Train every case."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    with distributed.init(int(os.environ["WORLD_SIZE"])) as ctx:
        for name, case in CASES.items():
            classifier = case.build()
            for parameter in classifier.parameters():
                parameter.data += rank  # rank 0's weights must replace these
            events = case.train(classifier, ctx)
            written = json.dumps({"weights": weights(classifier).tolist(), "events": events})
            (folder / f"{name} {rank}.json").write_text(written)


if __name__ == "__main__":
    main()
