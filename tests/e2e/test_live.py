"""A training that runs: DVC shows its numbers and curves so far."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist.core import paths
from tests import checkout
from tests.checkout import Clone

NUM_EPOCHS = 3000  # minutes
STEPS_AN_EPOCH = 63
TIMEOUT_SECONDS = 120


@contextmanager
def training(clone: Clone, *command: str) -> Iterator[Path]:
    """Run a training with DVC, and yield the tree that it runs in, after its first epoch."""
    with clone.start("dvc", "exp", "run", *command, "-S", f"epochs={NUM_EPOCHS}") as process:
        try:
            assert process.stdout
            assert any(f"epoch 1/{NUM_EPOCHS}" in line for line in process.stdout)
            (stage,) = (one for one in checkout.processes_in(clone.folder) if "stages.train" in one.cmdline())
            yield Path(stage.cwd())
            stage.terminate()
            process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
    assert process.returncode != 0


def last_step(table: Path, *, after: int) -> int:
    """Wait for a row of a later step, and return its step."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (step := steps(table)[-1]) <= after:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return step


def steps(table: Path) -> list[int]:
    """Return the steps in a table that grows, after a 0: a line is printed just before its row is there."""
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    return [0, *(int(row[1]) for row in rows)]


def shown(clone: Clone, *command: str) -> Any:
    """Return what a command of DVC shows as JSON."""
    done = subprocess.run(
        ["dvc", *command, "--json"], cwd=clone.folder, env=clone.environment, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def losses(revision: dict[str, Any]) -> set[float]:
    """Return the training losses so far that are in a row of `dvc exp show`."""
    return {
        file["data"]["train_loss"] for file in revision["metrics"].values() if "train_loss" in file["data"]
    }


def test_of_a_training_in_the_workspace(trained: Clone) -> None:
    table = str(paths.HISTORY)
    with training(trained) as tree:
        assert tree == trained.folder
        first = last_step(tree / paths.HISTORY, after=0)
        assert last_step(tree / paths.STEPS, after=first) > first
        workspace, head = shown(trained, "exp", "show")[:2]
        plots = shown(trained, "plots", "diff", "HEAD", "--targets", table)["data"][table]
    assert workspace["data"]["params"]["params.yaml"]["data"]["epochs"] == NUM_EPOCHS
    assert losses(workspace["data"]) - losses(head["data"])
    (plot,) = plots
    points = plot["content"]["data"]["values"]
    assert {point["rev"] for point in points} >= {"workspace", "HEAD"}
    assert sum(point["rev"] == "workspace" for point in points) >= 2


def test_of_a_training_in_a_temporary_tree(trained: Clone) -> None:
    signal = trained.folder / paths.SIGNAL
    with training(trained, "--temp", "-n", "aside") as tree:
        assert tree.is_relative_to(trained.folder / ".dvc/tmp/exps")
        first = last_step(tree / paths.HISTORY, after=STEPS_AN_EPOCH)
        signalled = json.loads(signal.read_text())
        (head,) = (one for one in shown(trained, "exp", "show") if one["name"] == "main")
    assert signalled["step"] >= first - STEPS_AN_EPOCH
    (aside,) = head["experiments"]
    assert (aside["name"], aside["executor"]["state"]) == ("aside", "running")
    assert losses(aside["revs"][0]["data"]) - losses(head["data"])
    assert not signal.exists()
