"""Stage `train` by several processes and on several machines; docs/cluster.md.

A machine is a launcher with a checkout of its own.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from mnist.training import model
from tests import checkout, servers, teammate
from tests.checkout import Clone
from tests.e2e.conftest import copy

DOCS = (checkout.ROOT / "docs/cluster.md").read_text()
TRAIN = [sys.executable, "-m", "stages.train"]
WEIGHTS = "models/model.safetensors"
OUTS = (WEIGHTS, "metrics/train.json", "metrics/history.csv", "metrics/steps.csv")
TIMEOUT_SECONDS = 120  # on a busy machine


@pytest.fixture
def clone(trained: Clone, migrated_store: Path) -> Clone:
    """A checkout with all that `train` reads, for two processes and one epoch, and an empty store."""
    set_params(trained, processes=2, epochs=1)
    (trained.folder / WEIGHTS).unlink()
    shutil.copy(migrated_store, trained.folder / trained.store)
    return trained


def set_params(clone: Clone, **values: object) -> None:
    """Change lines of params.yaml."""
    text = clone.read("params.yaml")
    for name, value in values.items():
        text, number = re.subn(rf"^{name}: \S+", f"{name}: {value}", text, flags=re.MULTILINE)
        assert number == 1
    (clone.folder / "params.yaml").write_text(text)


def outs(clone: Clone) -> dict[str, bytes]:
    """The bytes of the stage's files."""
    return {name: (clone.folder / name).read_bytes() for name in OUTS}


def statuses(clone: Clone) -> list[str]:
    """The status of each run, when the process that logs to MLflow has ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (left := checkout.processes_in(clone.folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    return [run.info.status for run in clone.client.search_runs(["1"])]


def start(clone: Clone) -> subprocess.Popen[str]:
    """Start a training that does not end by itself, and return it in its second epoch."""
    set_params(clone, epochs=5000)
    process = clone.start(*TRAIN)
    assert process.stdout
    for line in process.stdout:
        if "epoch 1/5000" in line:
            return process
    raise AssertionError(process.wait())


def rank(number: int, launcher: int) -> psutil.Process:
    """The process of this rank."""
    started = psutil.Process(launcher).children()
    (found,) = (each for each in started if each.environ().get("RANK") == str(number))
    return found


def test_two_processes_train_what_one_does_and_make_the_same_bytes_again(clone: Clone) -> None:
    set_params(clone, processes=1)
    clone.run(*TRAIN)
    single_P = teammate.weights(model.load(clone.folder / WEIGHTS))

    set_params(clone, processes=2)

    done = clone.run(*TRAIN)
    first = outs(clone)
    ran = clone.dvc("repro", "train")

    both_P = teammate.weights(model.load(clone.folder / WEIGHTS))
    assert float((both_P - single_P).abs().max()) < 1e-4  # training moved them by 0.1

    assert len(done.stdout.splitlines()) == 2  # of the start, and of the epoch: one process prints
    assert ran == ["train"]
    assert outs(clone) == first
    # The same training again is no run of its own.
    assert [run.data.params["processes"] for run in clone.runs()] == ["2", "1"]
    assert all("2 processes" in run.data.tags["device"] for run in clone.runs()[:1])


def test_training_that_diverges_is_one_line_and_one_failed_run(clone: Clone) -> None:
    set_params(clone, lr="1e9")
    done = clone.run(*TRAIN, check=False)

    assert done.returncode == 1
    start, error = done.stdout.splitlines()
    assert start.startswith("train: simple_cnn ")
    assert error.startswith("ERROR: params.yaml: lr: found a loss of ")
    assert statuses(clone) == ["FAILED"]
    assert not (clone.folder / WEIGHTS).exists()


def test_a_process_that_is_killed_ends_the_job(clone: Clone) -> None:
    process = start(clone)
    rank(1, process.pid).kill()
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 1
    assert "stages.train FAILED" in output  # torchrun's words
    assert "SIGKILL" in output
    assert statuses(clone) in (["FAILED"], ["KILLED"])  # whether the loss of the other was noticed first
    assert not (clone.folder / WEIGHTS).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_no_process_outlives_its_launcher(clone: Clone, number: signal.Signals) -> None:
    process = start(clone)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert ("interrupted" in output) is (number == signal.SIGINT)
    # Without its launcher a process ends within a second; whether the loss of the other was noticed first?
    assert statuses(clone) in (["KILLED"], ["FAILED"] if number == signal.SIGKILL else [])
    assert not (clone.folder / WEIGHTS).exists()
    # Of a start that was killed the next one removes them.
    num_left = len(list((clone.folder / ".cache").glob("torchrun*")))
    assert num_left == (1 if number == signal.SIGKILL else 0)


def test_two_machines_train_together(clone: Clone, tmp_path: Path) -> None:
    port = str(servers.free_port())
    variables = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    assert all(f"{name}=" in DOCS for name in (*variables, "PET_NODE_RANK"))
    other = copy(clone, tmp_path / "other")

    with other.start(*TRAIN, **variables, PET_NODE_RANK="1") as second:
        try:
            first = clone.start(*TRAIN, **variables, PET_NODE_RANK="0")
            output, _ = first.communicate(timeout=TIMEOUT_SECONDS)
            assert second.communicate(timeout=TIMEOUT_SECONDS)[0] == ""
        finally:
            second.terminate()

    assert "train: epoch 1/1: " in output
    assert second.returncode == 0
    assert (clone.folder / WEIGHTS).exists()
    assert not (other.folder / WEIGHTS).exists()
    assert statuses(clone) == ["FINISHED"]


def test_the_slurm_script_has_no_mistake_that_shellcheck_finds() -> None:
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", DOCS, re.DOTALL)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    subprocess.run([shellcheck, "--exclude=SC1091,SC2016", "-"], input=script, text=True, check=True)
