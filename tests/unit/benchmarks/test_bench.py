"""What the bench computes, shows and cleans up; no times are judged."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks import __main__ as bench, harness
from benchmarks.harness import Checkout, Limit
from mnist.core import paths
from mnist.core.errors import InputError
from tests.checkout import clone
from tests.conftest import SmallData

ROOT = Path(__file__).parents[3]


def test_the_stages_are_the_pipelines() -> None:
    assert list(harness.STAGES) == list(yaml.safe_load((ROOT / paths.PIPELINE).read_text())["stages"])


# ---- rounds and rows


def test_the_warming_up_does_not_count() -> None:
    def measure(number: int) -> dict[str, float]:
        return {"seconds": 10.0 * number}

    assert harness.in_rounds(2, measure) == {"seconds": [10.0, 20.0]}
    assert harness.in_rounds(1, measure, warm_up=False) == {"seconds": [10.0]}


@pytest.mark.parametrize(
    ("limit", "holds"),
    [
        (Limit("at most", 2), True),
        (Limit("at most", 1.9), False),
        (Limit("at most", 10, "s"), True),
        (Limit("at most", 9.9, "s"), False),
        (Limit("at least", 2), True),
        (Limit("at least", 10.1, "s"), False),
    ],
)
def test_a_limit_is_of_the_ratio_or_of_the_median(limit: Limit, holds: bool) -> None:
    row = harness.row("one", [10.0, 9.0, 40.0], tutorial=[5.0, 1.0, 6.0], limit=limit)

    assert (row["middle"], row["min"], row["max"], row["ratio"]) == (10, 9, 40, 2)
    assert row["holds"] is holds


def test_of_accuracies_the_mean_counts() -> None:
    row = harness.row("one", [98.0, 98.0, 99.5], unit="%", limit=Limit("at least", 98.5, "%"))

    assert (row["middle"], row["holds"]) == (98.5, True)
    assert row["sd"] == pytest.approx(0.866, abs=1e-3)
    assert harness.row("one", [98.0], unit="%")["sd"] == 0


def test_the_committed_results_can_be_shown() -> None:
    results = json.loads((ROOT / bench.RESULTS).read_text())

    for name, result in results.items():
        title, _ = bench.PARTS[name]
        assert len(bench.section(title, result).splitlines()) == 6 + len(result["rows"])


def test_a_part_replaces_its_result_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    other = {"rows": ["old"]}
    (tmp_path / bench.RESULTS).write_text(json.dumps({"loop": {"rows": ["old"]}, "gpu": other}))
    place = Checkout(folder=tmp_path, environment={})
    made = harness.Bench(source=place, data=tmp_path, commit="abc")
    monkeypatch.setattr(harness, "prepared", lambda: contextlib.nullcontext(made))
    monkeypatch.setitem(bench.PARTS, "loop", ("", lambda _, num_rounds: [num_rounds]))
    monkeypatch.setitem(bench.PARTS, "gpu", ("", lambda _, __: []))  # no GPU here

    bench.measure(["loop", "gpu"], 5)

    kept = json.loads((tmp_path / bench.RESULTS).read_text())
    assert kept["gpu"] == other
    assert (kept["loop"]["rows"], kept["loop"]["commit"]) == ([5], "abc")


# ---- commands


def test_dvc_must_run_what_is_measured(tmp_path: Path) -> None:
    program = tmp_path / "dvc"
    program.write_text("#!/bin/sh\necho \"Running stage 'stats':\"\n")
    program.chmod(0o755)
    fake = Checkout(folder=tmp_path, environment={"PATH": f"{tmp_path}:{os.defpath}"})

    fake.dvc("repro", expected=["stats"])
    with pytest.raises(InputError) as caught:
        fake.dvc("repro", expected=())
    assert caught.value.where == "`dvc repro`"


# ---- the whole


@pytest.fixture
def checkout(tmp_path: Path, small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on the small data, the current folder; temporary files go beside it."""
    for variable in ("DVC_ROOT", "MNIST_MIRROR", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = clone(tmp_path / "checkout", small_data).folder
    monkeypatch.chdir(folder)
    return folder


def test_the_tutorial_runs_on_what_is_prepared(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "new").touch()

    with harness.prepared() as prepared:
        first, again = (prepared.tutorial("--seed", "1").numbers for _ in range(2))
        with prepared.checkout() as first_clone:
            (first_clone.folder / "made").touch()
        with prepared.checkout() as second_clone:
            assert not (second_clone.folder / "made").exists()

    assert list(first) == ["accuracy", "epoch_seconds", "test_seconds"]
    assert first["accuracy"] == again["accuracy"]
    assert "not measured, since not committed: 1 files" in capsys.readouterr().err
    assert not list((checkout.parent / "tmp").iterdir())


def test_an_interrupt_leaves_nothing(checkout: Path) -> None:
    slow = checkout / "benchmarks" / "tutorial.py"
    beats = checkout.parent / "beats"
    child = f"import time\nwhile True: time.sleep(0.1); print(file=open({str(beats)!r}, 'a'))"
    slow.write_text(
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)\n"
    )
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@t", "commit", "-qam", "Slow"], check=True)

    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--only", "pipeline"], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not beats.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)

    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert not list((checkout.parent / "tmp").iterdir())
    num_bytes = beats.stat().st_size
    time.sleep(1)
    assert beats.stat().st_size == num_bytes  # the child's child is gone too
