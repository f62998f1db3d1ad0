"""Stage `train` as several processes and on several machines, as its user sees it; docs/cluster.md.

A machine is a launcher with a checkout of its own. The tests of this file run in their order.
"""

import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from mnist.core import config
from mnist.core.errors import InputError
from mnist.training import devices, distributed, history, launch, launched, model, processor
from mnist.training.distributed import Team
from mnist.training.history import Epoch
from stages import train
from tests import checkout, teammate
from tests.checkout import Clone
from tests.conftest import SmallData

DOCS = (checkout.ROOT / "docs/cluster.md").read_text()
TRAIN = [sys.executable, "-m", "stages.train"]
OUTS = ("models/model.safetensors", "metrics/train.json", "metrics/history.csv", "metrics/steps.csv")
PATIENCE_SECONDS = 120  # of a busy machine
NETWORKS = [name for _, name in socket.if_nameindex()]


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout in which all is there that `train` reads."""
    folder = tmp_path_factory.mktemp("cluster") / "pipeline"
    made = checkout.clone(folder, small_data)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS"):
        made.environment.pop(name, None)
    set_params(made, processes=2, epochs=1)
    made.dvc("repro", "stats")
    made.commit("Two processes")
    yield made
    shutil.rmtree(folder)


def set_params(clone: Clone, **values: object) -> None:
    """Change lines of params.yaml."""
    text = clone.read("params.yaml")
    for name, value in values.items():
        text, number = re.subn(rf"^{name}: \S+", f"{name}: {value}", text, flags=re.MULTILINE)
        assert number == 1
    # Git can miss a change that keeps the size, right after a commit.
    (clone.folder / "params.yaml").write_text(text + "# changed\n")


def outs(clone: Clone) -> dict[str, bytes]:
    """The files of the stage, as they are, with whatever lies beside them."""
    return {
        path.relative_to(clone.folder).as_posix(): path.read_bytes()
        for folder in ("models", "metrics")
        for path in (clone.folder / folder).iterdir()
        if path.is_file()
    }


def start(clone: Clone) -> subprocess.Popen[str]:
    """A training that will not end by itself soon, in its second epoch."""
    set_params(clone, epochs=5000)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        TRAIN, cwd=clone.folder, env=clone.environment, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if "epoch 1/5000" in line:
            return process
    raise AssertionError(process.communicate())


def rank(number: int, launcher: int) -> psutil.Process:
    """The process of this rank."""
    for process in psutil.Process(launcher).children():
        if process.environ().get("RANK") == str(number):
            return process
    raise AssertionError(number)


def has_torch(process: psutil.Process) -> bool:
    """Whether it has begun to import it."""
    return any("libtorch" in map_.path for map_ in process.memory_maps())


def ended(process: subprocess.Popen[str]) -> str:
    """What it said to stderr."""
    return process.communicate(timeout=PATIENCE_SECONDS)[1]


def expect_nobody(clone: Clone) -> None:
    """All processes in the checkout end soon, the one that tells MLflow too."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := checkout.processes_in(clone.folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_result_is_that_of_one_process_with_one_run_and_one_voice(clone: Clone) -> None:
    set_params(clone, processes=1)
    clone.run(*TRAIN)
    alone = teammate.weights(model.load(clone.folder / OUTS[0]))
    (curve,) = history.read(clone.folder / "metrics/history.csv", Epoch)
    set_params(clone, processes=2)
    done = clone.run(*TRAIN)

    together = teammate.weights(model.load(clone.folder / OUTS[0]))
    assert float((together - alone).abs().max()) < 1e-4  # training moved them by 0.1
    (curve_together,) = history.read(clone.folder / "metrics/history.csv", Epoch)
    assert dataclasses.asdict(curve_together) == pytest.approx(dataclasses.asdict(curve), rel=1e-3)

    first, epoch = done.stdout.splitlines()  # stderr is in it
    assert re.fullmatch(r"train: simple_cnn with .* thread, 2 processes; 1,000 images .*", first)
    assert epoch.startswith("train: epoch 1/1: training loss ")
    two, one = clone.runs()
    assert [run.data.params["processes"] for run in (two, one)] == ["2", "1"]
    assert two.data.tags["device"] == f"{one.data.tags['device']}, 2 processes"


def test_dvc_makes_the_same_bytes_again(clone: Clone) -> None:
    before = outs(clone)
    assert clone.dvc("repro", "train") == ["train"]
    assert outs(clone) == before
    assert clone.dvc("repro", "train") == []
    assert len(clone.runs()) == 2
    clone.commit("What two processes made")


def test_training_that_diverges_is_one_line(clone: Clone) -> None:
    before = outs(clone)
    set_params(clone, lr="1e9")
    done = subprocess.run(
        TRAIN, cwd=clone.folder, env=clone.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"ERROR: params\.yaml: lr: found a loss of .*\n", done.stderr)
    assert len(clone.runs("FAILED")) == 1
    assert outs(clone) == before
    clone.reset()


@pytest.mark.parametrize(("number", "status"), [(1, "FAILED"), (0, "KILLED")], ids=["other", "leader"])
def test_a_process_that_is_killed_ends_the_job(clone: Clone, number: int, status: str) -> None:
    before, runs = outs(clone), len(clone.runs(status))
    process = start(clone)
    rank(number, process.pid).kill()
    killed = time.monotonic()
    complaint = ended(process)

    assert time.monotonic() - killed < 60  # 1 to 3 s where nothing else runs
    assert process.returncode == 1
    assert complaint == (
        f"ERROR: process {number} of 2: found an end by SIGKILL: out of memory, perhaps,"
        " expected all of them to the end; all were stopped\n"
    )
    expect_nobody(clone)
    assert outs(clone) == before
    assert len(clone.runs(status)) == runs + 1
    clone.reset()


def test_a_fault_in_one_process_is_told_with_its_traceback(clone: Clone) -> None:
    before = outs(clone)
    old, new = "    classifier.to(device).train()\n", "    assert team.rank == 0, 'out of luck'\n"
    checkout.edit(clone, "mnist/training/loop.py", old, new + old)
    done = subprocess.run(
        TRAIN, cwd=clone.folder, env=clone.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1] == (
        "ERROR: process 1 of 2: found AssertionError: out of luck,"
        " expected all of them to the end; all were stopped"
    )
    assert outs(clone) == before
    assert clone.runs("RUNNING") == []
    clone.reset()


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_an_interrupt_leaves_nothing(clone: Clone, request_to_stop: signal.Signals) -> None:
    before, runs = outs(clone), len(clone.runs("KILLED"))
    process = start(clone)
    if request_to_stop == signal.SIGTERM:  # as a batch system sends it: to all of them, in any order
        rank(1, process.pid).terminate()
        time.sleep(4)
    process.send_signal(request_to_stop)

    assert ended(process) == "interrupted\n"
    assert process.returncode == 130
    expect_nobody(clone)
    assert outs(clone) == before
    assert len(clone.runs("KILLED")) == runs + 1
    clone.reset()


def test_an_interrupt_before_they_have_met_is_the_end_at_once(clone: Clone) -> None:
    before, runs = outs(clone), len(clone.client.search_runs(["1"]))
    with running(clone, *TRAIN) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # The second is on its way to meet the first.
        while len(started := psutil.Process(process.pid).children()) < 2 or not has_torch(started[1]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        asked = time.monotonic()
        for each in (*started, process):  # as a terminal does
            each.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE_SECONDS)[0]

    assert (process.returncode, output) == (130, "interrupted\n")
    assert time.monotonic() - asked < launched.GRACE_SECONDS / 2
    expect_nobody(clone)
    assert outs(clone) == before
    assert len(clone.client.search_runs(["1"])) == runs


def test_no_process_outlives_its_launcher(clone: Clone) -> None:
    before, runs = outs(clone), len(clone.runs("KILLED"))
    process = start(clone)
    process.kill()
    ended(process)

    expect_nobody(clone)
    assert outs(clone) == before
    assert len(clone.runs("KILLED")) == runs + 1
    clone.reset()


# ---- several machines


@pytest.fixture(scope="module")
def other_folder(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's checkout of the same commit, with what `train` reads."""
    folder = tmp_path_factory.mktemp("other") / "pipeline"
    subprocess.run(["git", "clone", "-q", clone.folder, folder], check=True)
    assert "`dvc repro stats`" in DOCS
    dataclasses.replace(clone, folder=folder).dvc("repro", "stats")
    return folder


@pytest.fixture
def machines(clone: Clone, other_folder: Path) -> list[Clone]:
    """Two: each with a checkout, and what torchrun is to know, as docs/cluster.md says."""
    exports = "export PET_NNODES=2 PET_MASTER_ADDR=machine-0.example.org PET_MASTER_PORT=29500"
    assert exports in DOCS
    for number, command in enumerate(("dvc repro", "python -m stages.train")):
        assert f"PET_NODE_RANK={number} {command}\n" in DOCS
    common = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    common |= {"PET_RDZV_CONF": f"timeout={PATIENCE_SECONDS}"}
    return [
        dataclasses.replace(
            clone, folder=folder, environment={**clone.environment, **common, "PET_NODE_RANK": str(number)}
        )
        for number, folder in enumerate((clone.folder, other_folder))
    ]


@contextlib.contextmanager
def running(clone: Clone, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on meanwhile; its output is one stream."""
    process = clone.start(*command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)


def test_two_machines_train_together(machines: list[Clone]) -> None:
    before, runs = outs(machines[0]), len(machines[0].runs())
    (machines[0].folder / OUTS[0]).unlink()
    with running(machines[1], *TRAIN) as other:
        said = machines[0].run("dvc", "repro", "--single-item", "--force", "train").stdout
        assert other.communicate(timeout=PATIENCE_SECONDS)[0] == ""
        assert other.returncode == 0
    assert said.count("train: epoch 1/1") == 1
    assert outs(machines[0]) == before  # two processes, on whatever machines
    assert not (machines[1].folder / OUTS[0]).exists()
    assert len(machines[0].runs()) == runs  # the same training again
    assert not (machines[1].folder / "mlflow.db").exists()


def test_a_machine_with_other_params_ends_the_job(machines: list[Clone]) -> None:
    set_params(machines[1], seed=4)
    with running(machines[1], *TRAIN) as other:
        said = machines[0].run(*TRAIN, check=False)
        complaint, _ = other.communicate(timeout=PATIENCE_SECONDS)
    assert (said.returncode, other.returncode) == (1, 1)
    assert re.fullmatch(
        r"ERROR: the checkout of process 1: found training \w{12}, expected \w{12}, as process 0: .*\n",
        complaint,
    )
    last = said.stdout.splitlines()[-1]
    assert last.startswith("ERROR: process 0 of 2: found another one gone or silent (")
    assert "Traceback" not in said.stdout
    set_params(machines[1], seed=3)


def test_a_machine_that_waits_can_be_interrupted(machines: list[Clone]) -> None:
    with running(machines[1], *TRAIN) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # It imports torch, and then knocks at machine 0, which is not there.
        while not has_torch(psutil.Process(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(5)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert process.communicate(timeout=PATIENCE_SECONDS)[0] == "interrupted\n"
    assert process.returncode == 130
    assert time.monotonic() - asked < 30


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        (
            {"PET_NNODES": "3"},
            "params.yaml: processes: found 2, expected a multiple of the 3 machines (PET_NNODES)",
        ),
        ({"PET_NNODES": "1:4"}, "PET_NNODES: found 1:4, expected the number of machines: it must not change"),
        (
            {"PET_NNODES": "2", "PET_RDZV_BACKEND": "c10d"},
            (
                "PET_RDZV_BACKEND: found c10d, expected static:"
                " machine 0 (PET_NODE_RANK) must be the one whose files are written"
            ),
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
            (
                "params.yaml: processes: found 2, with 4 started (WORLD_SIZE),"
                " expected 4, as many as are started on all machines together"
            ),
        ),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "RANK: found 2 of 2 (WORLD_SIZE), expected less than 2",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            (
                "RANK, WORLD_SIZE, LOCAL_RANK: found Error initializing torch.distributed using env://"
                " rendezvous: environment variable MASTER_ADDR expected, but not set,"
                " expected those that torchrun sets, or none"
            ),
        ),
        (
            {"PET_NPROC_PER_NODE": "many"},
            "PET_...: found Unsupported nproc_per_node value: many, expected what torchrun takes",
        ),
        (
            {"PET_MASTER_PORT": "abc"},
            (
                "PET_...: found argument --master-port/--master_port: invalid int value: 'abc',"
                " expected what torchrun takes"
            ),
        ),
        (
            {"GLOO_SOCKET_IFNAME": "nonsense"},
            f"GLOO_SOCKET_IFNAME: found nonsense, expected one of {', '.join(NETWORKS)}",
        ),
        (
            {"PET_NPROC_PER_NODE": "3"},
            (
                "params.yaml: processes: found 2, with 3 started (WORLD_SIZE),"
                " expected 3, as many as are started on all machines together"
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_numbers_that_do_not_fit_are_told(clone: Clone, variables: dict[str, str], complaint: str) -> None:
    asked = dataclasses.replace(clone, environment={**clone.environment, **variables})
    done = asked.run(*TRAIN, check=False)
    assert done.returncode == 1
    assert done.stdout == f"ERROR: {complaint}\n"


def test_more_processes_than_a_machine_can_hold_are_refused(clone: Clone) -> None:
    most = launch.MOST_A_CORE * processor.num_cores()
    set_params(clone, processes=most + 1)
    done = clone.run(*TRAIN, check=False)
    assert done.returncode == 1
    assert done.stdout == (
        f"ERROR: params.yaml: processes: found {most + 1} on this machine,"
        f" expected at most {most}, 4 for each of its cores\n"
    )
    clone.reset()


def test_each_process_takes_the_gpu_of_its_place(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is, the stage says which one it is; there may be no GPU here."""
    asked: list[int] = []

    def prepare(*_: object, local_rank: int, **__: object) -> None:
        asked.append(local_rank)
        raise InputError("the device", found="enough", expected="this")

    monkeypatch.chdir(clone.folder)
    monkeypatch.setattr(
        distributed, "joined", lambda _: contextlib.nullcontext(Team(rank=0, size=1, local_rank=3))
    )
    monkeypatch.setattr(devices, "prepare", prepare)
    with pytest.raises(InputError, match="the device"):
        train.run(params=config.load(Path("params.yaml")).only(train.Params))
    assert asked == [3]


# ---- Slurm


FAKE_SRUN = """#!/bin/sh
# Run a command on two machines, as srun does with --ntasks-per-node=1, but that both are this one.
test "$1" = --kill-on-bad-exit=1 || exit 2
shift
SLURM_NODEID=1 SLURM_PROCID=1 "$@" &
SLURM_NODEID=0 SLURM_PROCID=0 "$@" || exit
wait $!
"""
FAKE_SCONTROL = """#!/bin/sh
test "$*" = "show hostnames here-[0-1]" && printf '127.0.0.1\\n127.0.0.2\\n'
"""


def test_the_slurm_script_trains_on_two_machines_that_share_a_folder(clone: Clone, tmp_path: Path) -> None:
    """What it submits is run by bash, with the variables that Slurm sets."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", DOCS, re.DOTALL)
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (clone.folder / ".venv/bin").mkdir(parents=True)
    (clone.folder / ".venv/bin/activate").touch()
    slurm = {
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "here-[0-1]",
        "WORLD_SIZE": "2",
    }
    port = next(port for port in iter(free_port, None) if 20_000 <= port < 40_000)  # as the script makes them
    slurm |= {"SLURM_JOB_ID": str(port - 20_000), "PATH": f"{tmp_path}:{clone.environment['PATH']}"}
    job = dataclasses.replace(clone, environment={**clone.environment, **slurm})

    done = job.run("bash", "-c", script)

    assert "Traceback" not in done.stdout
    assert done.stdout.count("train: epoch 1/1") == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("> ")] == [
        "> python -m stages.train",
        "> python -m stages.evaluate",
        "> python -m stages.register",
    ]
    assert clone.dvc("repro") == []
    assert (
        yaml.safe_load(clone.read("dvc.lock"))["stages"]["train"]["params"]["params.yaml"]["processes"] == 2
    )
