"""Several processes that train one network: the result is that of a single one.

Shape suffixes: B images of a batch, P parameters.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from mnist.core.errors import InputError
from mnist.training import distributed, launched
from mnist.training.distributed import ALONE, Team
from tests import teammate
from tests.teammate import CASES, ROOT

SIZES = [2, 3]
Results = dict[int, list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """By the number of processes: for each of them, what it ended with, by case."""
    found: Results = {}
    for size in SIZES:
        folder = tmp_path_factory.mktemp(f"team-of-{size}")
        torchrun = [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={size}",
            "-m",
            "tests.teammate",
        ]
        done = subprocess.run(
            [sys.executable, "-m", *torchrun, folder],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[size] = [
            {name: json.loads((folder / f"{name} {rank}.json").read_text()) for name in CASES}
            for rank in range(size)
        ]
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_the_result_is_that_of_one_process(results: Results, size: int, name: str) -> None:
    torch.set_num_threads(1)
    case, classifier = CASES[name], CASES[name].build()
    events = case.train(classifier, ALONE)
    alone_P, untrained_P = teammate.weights(classifier), teammate.weights(case.build())
    leader, *others = (result[name] for result in results[size])

    for other in others:  # the same network and the same numbers, to the last bit
        assert other == leader
    largest = float((alone_P - untrained_P).abs().max())
    assert largest > 0.002
    torch.testing.assert_close(
        torch.tensor(leader["weights"]), alone_P, rtol=0, atol=case.tolerance * largest
    )
    assert len(leader["events"]) == len(events)
    for theirs, ours in zip(leader["events"], events, strict=True):
        assert theirs == pytest.approx(ours, rel=case.tolerance)


@pytest.mark.parametrize("num_images", [0, 1, 2, 3, 64])
def test_the_shares_are_the_batch_in_its_order(num_images: int) -> None:
    index_B = torch.arange(num_images) + 7

    shares = [Team(rank=rank, size=3).share(index_B) for rank in range(3)]

    assert torch.equal(torch.cat(shares), index_B)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "4"},
        {"WORLD_SIZE": "4", "RANK": "0"},  # of the machine, in some batch systems
        {"WORLD_SIZE": "4", "LOCAL_RANK": "0", "RANK": ""},
    ],
    ids=lambda variables: " ".join(variables) or "none",
)
def test_variables_of_a_batch_system_make_no_team(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert launched.place() is None
    with distributed.joined(1) as us:
        assert us == ALONE


def test_a_team_of_one_closes_properly_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun --nproc-per-node 1`: a request to stop is no end without a word."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        with distributed.joined(1) as us:
            assert us == ALONE
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)

    assert launched.place() == launched.Place(rank=5, size=8, local_rank=1)
    with pytest.raises(InputError) as caught, distributed.joined(4):
        pass

    assert str(caught.value) == (
        "params.yaml: processes: found 4, with 8 started (WORLD_SIZE),"
        " expected 8, as many as are started on all machines together"
    )


def test_alone_nothing_of_torch_is_imported() -> None:
    code = (
        "import sys; from mnist.training import distributed, launch\n"
        "with distributed.joined(1) as us: us.expect_alike('f' * 64); print(us.leads, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
