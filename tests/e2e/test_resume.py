"""A training that is killed, and started again, makes the bytes of one that is not: by real processes."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mnist.core import paths
from tests.checkout import Clone

TRAIN = [sys.executable, "-m", "stages.train"]
OUTS = (paths.WEIGHTS, paths.TRAINING_METRICS, paths.HISTORY, paths.STEPS)
NUM_EPOCHS = 12
NUM_KILLS = int(os.environ.get("NUM_KILLS", "3"))  # 20 of them take a minute


def train(clone: Clone) -> dict[str, bytes]:
    """Train to the end, and return the files that were made."""
    clone.run(*TRAIN)
    return {str(path): (clone.folder / path).read_bytes() for path in OUTS}


def kill(process: subprocess.Popen[str], seconds: float) -> str:
    """Kill a training some time after its first epoch, and return what it printed."""
    assert process.stdout
    printed = []
    for line in process.stdout:
        printed.append(line)
        if re.search(f"epoch [0-9]+/{NUM_EPOCHS}: ", line):
            break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "".join(printed)


@pytest.mark.parametrize("processes", [1, 3])
def test_killed_at_random_moments(trained: Clone, processes: int) -> None:
    values = {"epochs: 4": f"epochs: {NUM_EPOCHS}", "processes: 1": f"processes: {processes}"}
    text = trained.read("params.yaml")
    for old, new in values.items():
        assert f"\n{old}" in text
        text = text.replace(f"\n{old}", f"\n{new}")
    (trained.folder / "params.yaml").write_text(text)
    expected = train(trained)
    for run in trained.runs():
        trained.client.delete_run(run.info.run_id)
    moments, resumed = np.random.default_rng(0), 0
    for _ in range(NUM_KILLS if processes == 1 else 1):
        process = subprocess.Popen(
            TRAIN,
            cwd=trained.folder,
            env={**trained.environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            resumed += "resumed after epoch" in kill(process, moments.uniform(0, 0.15))
    assert train(trained) == expected
    assert not list((trained.folder / paths.CHECKPOINTS).iterdir())
    (run,) = trained.client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    points = trained.client.get_metric_history(run.info.run_id, "val/loss")
    assert [point.step for point in points] == [63 * epoch for epoch in range(1, NUM_EPOCHS + 1)]
    assert processes > 1 or resumed
