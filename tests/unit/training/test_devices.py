"""Choosing a device, and making it repeatable."""

import os
from pathlib import Path

import pytest
import torch

from mnist.core.config import Machine, Precision
from mnist.core.errors import InputError
from mnist.training import ONE_INSTRUCTION_SET, devices

GPU = torch.cuda.is_available()
CPU = Machine(device="cpu", num_threads=1)


pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(autouse=True)
def _no_setting_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(InputError, match="device: found cuda, where torch sees no GPU"):
        devices.prepare(Machine(device="cuda", num_threads=1))


@pytest.mark.skipif(not GPU, reason="there is no GPU")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_is_taken(device: str) -> None:
    taken = devices.prepare(Machine.model_validate({"device": device, "num_threads": 1}))

    assert taken.type == "cuda"
    assert devices.describe(taken) == torch.cuda.get_device_name()


def test_threads_are_as_many_as_asked_for() -> None:
    device = devices.prepare(Machine(device="cpu", num_threads=2))

    assert torch.get_num_threads() == 2
    capability = torch.backends.cpu.get_cpu_capability()
    name = "x86-64" if ONE_INSTRUCTION_SET else devices.processor_name()
    assert devices.describe(device) == f"CPU ({name}, {capability}), 2 threads"


def test_the_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU 9000\nmodel name\t: other\n")
    assert devices.processor_name(tmp_path / "cpuinfo") == "Some CPU 9000"
    assert devices.processor_name(tmp_path / "nothing") != ""


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_repeatable_kernels_are_allowed_if_asked_for(deterministic: bool) -> None:
    devices.prepare(CPU, devices.EXACT.model_copy(update={"deterministic": deterministic}))

    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.benchmark is not deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    # It would take 7 % of an epoch.
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_a_users_own_cublas_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    devices.prepare(CPU)

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_tf32_is_a_gpus() -> None:
    with pytest.raises(InputError, match="precision: found tf32 on a CPU"):
        devices.prepare(CPU, devices.EXACT.model_copy(update={"precision": "tf32"}))


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    with pytest.raises(InputError, match="process 3 on a machine with 2 GPUs"):
        devices.prepare(Machine(device="auto", num_threads=1), local_rank=2)


@pytest.mark.parametrize(("precision", "short"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_a_gpu_rounds_to_tf32_where_it_is_asked_to(precision: Precision, short: bool) -> None:
    devices.set_precision(precision)

    assert torch.backends.cudnn.allow_tf32 is short
    assert torch.backends.cuda.matmul.allow_tf32 is short
    with torch.backends.cudnn.flags():  # it raises where torch's old and new settings contradict
        pass


def test_a_card_that_no_driver_can_use_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old: NVML counts the card, the runtime cannot start."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert devices.prepare(Machine(device="auto", num_threads=1)) == torch.device("cpu")
