"""Whether a preset holds its claim, on measurements made by hand."""

import json

import pytest

from benchmarks import presets as bench
from mnist.comparison import presets
from tests.checkout import ROOT


@pytest.mark.parametrize(
    ("accuracy", "seconds", "limit", "holds"),
    [
        (0.9801, 2.0, {"max_ratio": 0.5}, (True, True)),
        (0.9799, 2.1, {"max_ratio": 0.5}, (False, False)),
        (0.9801, 3.1, {"max_seconds": 3}, (True, False)),
    ],
)
def test_a_claim_holds_or_not(
    accuracy: float, seconds: float, limit: dict[str, float], holds: tuple[bool, bool]
) -> None:
    quick = presets.load(ROOT / presets.PRESETS)["quick"]
    claimed = quick.model_copy(update={"accuracy": 0.98, "max_ratio": None, "max_seconds": None, **limit})
    one = {
        "seconds": [seconds, 2 * seconds, seconds],
        "val_accuracy": [0.97, 0.98, 0.99],
        "test_accuracy": [accuracy - 0.001, accuracy, accuracy + 0.001],
        "num_parameters": [1000.0] * 3,
    }

    result = bench.summary({"tutorial": {"epoch_seconds": [3.0, 4.0, 9.0]}, "one": one}, {"one": claimed})

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    found = result["presets"]["one"]
    assert (found["accuracy_holds"], found["time_holds"]) == holds
    assert found["ratio"] == pytest.approx(seconds / 4)
    assert "NO" in bench.tables(result) or all(holds)
