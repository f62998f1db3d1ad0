"""Stages that run again, learn too little, diverge or are interrupted."""

import re
import signal
import time

import pytest

from tests import checkout
from tests.checkout import STAGES, Clone

TIMEOUT_SECONDS = 120  # until a training that was started has logged something

# Each takes 0.3 s or more to import. What a stage does not use itself comes with what it uses.
BIG = {
    *("dvc", "great_expectations", "matplotlib", "mlflow", "pandas", "scipy"),
    *("onnx", "onnxruntime", "sympy", "torch", "torch._dynamo", "torchvision"),
}
USED = {
    "download": {"sympy", "torch", "torch._dynamo", "torchvision"},  # torchvision imports the others
    "validate": {"great_expectations", "pandas", "scipy"},
    "stats": set(),
    "train": {"onnx", "onnxruntime", "torch"},
    "evaluate": {"matplotlib", "onnx", "onnxruntime"},
    "register": {"matplotlib", "mlflow", "onnx", "onnxruntime", "pandas", "scipy"},
}


def test_a_forced_repro_gives_the_same_bytes_run_and_version(trained: Clone) -> None:
    before = trained.read("dvc.lock")
    trained.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    output = trained.run("dvc", "repro", "--force").stdout
    assert trained.read("dvc.lock") == before
    assert trained.run("git", "status", "--porcelain").stdout == ""
    assert len(trained.runs()) == 1
    assert len(trained.client.search_model_versions()) == 1
    # Stages import nothing big that they do not use.
    logs = re.split(r"> python -m stages\.(\w+)\n", output)[1:]
    assert logs[::2] == STAGES
    for stage, log in zip(logs[::2], logs[1::2], strict=True):
        imported = set(re.findall(r"^import time: .*\| +([\w.]+)$", log, re.MULTILINE))
        assert "pydantic" in imported
        assert imported & BIG <= USED[stage], stage


def test_a_result_below_the_minimum_has_a_run_and_no_version(trained: Clone) -> None:
    assert trained.dvc("exp", "run", "-S", "lr=1e-5", "-S", "epochs=1") == ["train", "evaluate", "register"]
    newest = trained.runs()[0]
    assert newest.data.params["lr"] == "1e-05"  # DVC's spelling
    assert newest.data.metrics["test/accuracy"] < 0.5
    assert len(trained.client.search_model_versions()) == 1


def test_training_that_diverges_leaves_a_failed_run(trained: Clone) -> None:
    weights = (trained.folder / "models/model.safetensors").read_bytes()
    checkout.edit(trained, "params.yaml", "lr: 0.02", "lr: 1e9")
    done = trained.run("python", "-m", "stages.train", check=False)
    assert done.returncode == 1
    assert "params.yaml: lr: found a loss of " in done.stdout
    assert "Traceback" not in done.stdout
    assert [run.data.params["lr"] for run in trained.runs("FAILED")] == ["1000000000.0"]
    assert len(trained.runs()) == 1
    assert (trained.folder / "models/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_training_that_is_interrupted_leaves_a_killed_run(
    trained: Clone, request_to_stop: signal.Signals
) -> None:
    weights = (trained.folder / "models/model.safetensors").read_bytes()
    checkout.edit(trained, "params.yaml", "epochs: 4", "epochs: 1000")
    with trained.start("python", "-m", "stages.train") as training:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any(run.data.metrics for run in trained.runs("RUNNING")):
            assert time.monotonic() < deadline
            assert training.poll() is None
            time.sleep(0.2)
        training.send_signal(request_to_stop)
        output, _ = training.communicate(timeout=TIMEOUT_SECONDS)
    assert training.returncode == 130
    assert output.strip().endswith("interrupted")
    assert len(trained.runs("KILLED")) == 1
    assert trained.runs("RUNNING") == []
    assert (trained.folder / "models/model.safetensors").read_bytes() == weights
