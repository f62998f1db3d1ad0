"""Several processes that train one network: the result is that of a single one.

Shape suffixes: B images of a batch, P parameters.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist.core import config, paths
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


def test_variables_of_a_batch_system_alone_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")

    with distributed.init(1) as ctx:
        assert ctx == SINGLE


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)

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


def test_alone_nothing_of_torch_is_imported() -> None:
    code = (
        "import sys; from mnist.training import distributed\n"
        "with distributed.init(1) as ctx: ctx.check_same_fingerprint('f' * 64)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
