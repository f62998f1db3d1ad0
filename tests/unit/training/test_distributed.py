"""Several processes that train one network: the result is that of a single one.

Shape suffixes: B images of a batch, P parameters.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist.core import config, paths, process
from mnist.core.errors import InputError
from mnist.training import distributed
from mnist.training.distributed import SINGLE
from tests import teammate
from tests.conftest import MadeOnce
from tests.teammate import CASES, ROOT

SIZE = 3  # processes: most batches do not divide by it


@pytest.fixture(scope="session")
def results(made_once: MadeOnce) -> Path:
    """The folder with what each process ended with, for all cases by one start of torchrun."""

    def make(folder: Path) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}"]
        torchrun.append(f"--log-dir={folder / 'logs'}")  # by default one that stays
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*torchrun, "-m", "tests.teammate", folder], cwd=ROOT, env=environment, check=True)

    return made_once("distributed", make)


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_one_process(results: Path, name: str) -> None:
    case, classifier = CASES[name], CASES[name].build()
    events = case.train(classifier, SINGLE)
    single_P, untrained_P = teammate.weights(classifier), teammate.weights(case.build())
    main, *others = (json.loads((results / f"{name} {rank}.json").read_text()) for rank in range(SIZE))

    assert others == [main] * (SIZE - 1)  # the same network and the same numbers, to the last bit
    largest = float((single_P - untrained_P).abs().max())
    assert largest > 0.002
    torch.testing.assert_close(torch.tensor(main["weights"]), single_P, rtol=0, atol=case.tolerance * largest)
    assert len(main["events"]) == len(events)
    for found, expected in zip(main["events"], events, strict=True):
        assert found == pytest.approx(expected, rel=case.tolerance)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A function that sets torchrun's variables."""

    def start(rank: int, size: int) -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": 0}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")

    return start


def test_variables_of_a_batch_system_alone_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")

    with distributed.init(1) as ctx:
        assert ctx == SINGLE


def test_another_number_of_processes_is_refused(torchrun: Callable[[int, int], None]) -> None:
    torchrun(5, 8)

    with pytest.raises(InputError, match="processes: found 4, with 8 started"), distributed.init(4):
        pass


@pytest.mark.parametrize("nodes", ["2", "1:2", "0"])
def test_machines_that_do_not_divide_the_processes_are_refused(
    nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NNODES", nodes)
    settings = config.load(ROOT / paths.PARAMS).model_copy(update={"processes": 3})

    with pytest.raises(InputError) as caught:
        distributed._start_torchrun("stages.train", settings)
    assert caught.value.where == "PET_NNODES"


@pytest.mark.parametrize(("rank", "delay"), [(0, []), (1, [distributed.GRACE_SECONDS])])
def test_an_error_of_all_is_first_that_of_rank_0(
    rank: int,
    delay: list[int],
    torchrun: Callable[[int, int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When another process ends first, torchrun ends rank 0, whose run would be KILLED, not FAILED."""
    torchrun(rank, 2)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    slept: list[int] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(distributed, "_end_with", lambda _: None)
    monkeypatch.setattr(process, "leave", slept.append)

    def run(*, params: Any) -> None:
        raise InputError("lr", found=str(params), expected="less")

    distributed._run_worker(run, "much")  # type: ignore[arg-type]

    assert slept == [*delay, 1]
    recorded = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert recorded == "InputError: lr: found much, expected less"


def test_alone_nothing_of_torch_is_imported() -> None:
    code = (
        "import sys; from mnist.training import distributed\n"
        "with distributed.init(1) as ctx: ctx.check_same_fingerprint('f' * 64)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
