"""Tests of what the bench computes, shows and cleans up; no times are judged."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as everything, gpu, harness, loop, pipeline, tutorial
from mnist.core import paths
from mnist.training import model
from tests.conftest import SmallData

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path: Path) -> harness.Checkout:
    """An empty folder to run commands in."""
    return harness.Checkout(folder=tmp_path, environment={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def measured() -> dict[str, list[float]]:
    """Three rounds of made numbers, in which every figure just holds."""
    values = {"tutorial": [9.0, 11.0, 10.0], "repro": [17.0, 15.0, 40.0], "idle": [1.2, 1.0, 9.0]}
    values |= {"experiment": [10.0, 9.0, 17.0]}
    for stage in harness.STAGES:
        values |= {f"{stage}_seconds": [1.0, 2.0, 3.0], f"{stage}_gib": [0.5, 1.5, 0.25]}
    return values


def test_the_stages_are_the_pipelines() -> None:
    assert list(harness.STAGES) == list(yaml.safe_load((ROOT / paths.PIPELINE).read_text())["stages"])


def test_the_rows_are_median_spread_ratio_and_limit(measured: dict[str, list[float]]) -> None:
    table = pipeline.tables(pipeline.summary(measured)).splitlines()

    assert table[2:6] == [
        "| the tutorial's script | 10.00 s | 9.00 to 11.00 s |  |  |  |",
        "| `dvc repro`, nothing cached | 17.00 s | 15.00 to 40.00 s | 1.70 x | at most 1.7 x | yes |",
        "| `dvc repro`, nothing to do | 1.20 s | 1.00 to 9.00 s | 0.12 x | at most 1.2 s | yes |",
        "| `dvc exp run -S lr=0.05` | 10.00 s | 9.00 to 17.00 s | 1.00 x | at most 1 x | yes |",
    ]
    assert table[9] == "| `download` | 2.00 s | 1.00 to 3.00 s | 1.50 GiB | at most 1.5 GiB | yes |"
    assert table[-1] == "The stages take 12.00 s; DVC takes the rest of `dvc repro`, 5.00 s."


@pytest.mark.parametrize(
    ("key", "value"), [("repro", 17.1), ("idle", 1.3), ("experiment", 10.1), ("evaluate_gib", 1.6)]
)
def test_a_broken_limit_is_marked(measured: dict[str, list[float]], key: str, value: float) -> None:
    measured[key] = [value] * 3

    assert pipeline.tables(pipeline.summary(measured)).count("| NO |") == 1


def test_the_warming_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 1.0, 2.0])
    monkeypatch.setattr(pipeline, "_tutorial", lambda _: {"tutorial": next(seconds)})
    monkeypatch.setattr(pipeline, "_pipeline", lambda _: {})
    monkeypatch.setattr(pipeline, "_stages", lambda _: {})
    place = harness.Checkout(folder=Path(), environment={})

    assert pipeline.measure(harness.Bench(source=place, data=Path(), commit=""), 2) == {
        "tutorial": [1.0, 2.0]
    }


def speeds(**values: float) -> dict[str, list[float]]:
    """Return two rounds, of 10,000 images a second by default; the peak in GFLOP/s."""
    keys = [contestant.key for contestant in loop.CONTESTANTS]
    return {key: [values.get(key, 1e4)] * 2 for key in [*keys, "peak"]}


@pytest.mark.parametrize(("speed", "verdict"), [(35_000, "yes"), (34_999, "NO")])
def test_the_limit_is_a_multiple_of_the_tutorials_speed(speed: float, verdict: str) -> None:
    table = loop.tables(loop.summary(speeds(threads_1=speed, peak=100.0), n_features=6)).splitlines()

    (row,) = [line for line in table if "(default)" in line]
    assert row.endswith(f"| at least 3.5 x | {verdict} |")
    assert "| 3.50 x |" in row
    assert f"with 1 thread reaches {speed * 723_496 / 1e11:.0%} of that" in table[-1]


def test_arithmetic_is_what_torch_counts() -> None:
    network = model.SimpleCNN(28 * 28, 6, 10)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 28, 28)).sum().backward()

    assert loop.arithmetic(6) == counter.get_total_flops()


# ---- a GPU


def test_the_limit_of_a_gpu_is_fifty_times_the_tutorial() -> None:
    rounds = [
        {gpu.TUTORIAL: {"images_a_second": 1e4}}
        | {label: {"images_a_second": speed, "seconds": 1.0, "val_accuracy": 0.99} for label in gpu.TRAININGS}
        for speed in (4e5, 5e5, 6e5)
    ]

    table = gpu.tables({"device": "Some GPU", **gpu.summary(rounds)})

    assert table.startswith("Some GPU; the tutorial's loop on it: 10,000 images/s.")
    assert table.count("| 500,000 | 400,000 to 600,000 | 50.0 x | yes | 1.00 s |") == len(gpu.TRAININGS)
    assert gpu.tables({"device": None}) == "There was no GPU."


# ---- all parts


def test_a_part_replaces_its_result_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "bench.json"
    other = {"old": 2, "machine": {}}
    results.write_text(json.dumps({"loop": {"old": 1, "machine": {}}, "gpu": other}))
    place = harness.Checkout(folder=tmp_path, environment={})
    bench = harness.Bench(source=place, data=tmp_path, commit="abc")
    monkeypatch.setattr(harness, "prepared", lambda: contextlib.nullcontext(bench))
    monkeypatch.setattr(loop, "measure_all", lambda _, *, num_rounds: {"new": num_rounds})

    everything.measure(["loop"], 5, results)

    kept = json.loads(results.read_text())
    assert kept["gpu"] == other
    assert (kept["loop"]["new"], kept["loop"]["num_rounds"], kept["loop"]["commit"]) == (5, 5, "abc")
    assert "old" not in kept["loop"]


@pytest.mark.parametrize(
    ("content", "found"),
    [("{", "found no JSON"), ("[]", "found list,"), ('{"a": 1}', "found 'a',")],
)
def test_a_file_of_something_else_is_an_error_before_any_measurement(
    checkout: Path, content: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = checkout / "other.json"
    results.write_text(content)

    for options in ([], ["--show"]):
        with pytest.raises(SystemExit):
            everything.main(["--output", str(results), *options])

        assert capsys.readouterr().err.startswith(f"ERROR: {results}: {found}")
    assert results.read_text() == content


def test_a_command_is_measured(here: harness.Checkout) -> None:
    code = (
        "import sys; block = b'x' * 300 * 2**20; print('epoch_seconds 1.5', file=sys.stderr); print('a b 1')"
    )

    outcome = here.python("-c", code)

    assert outcome.numbers == {"epoch_seconds": 1.5}
    assert outcome.peak_bytes > 300 * 2**20
    assert outcome.seconds > 0


def test_a_failure_ends_with_the_last_lines(here: harness.Checkout) -> None:
    code = "import sys; [print('line', n) for n in range(99)]; sys.exit('out of luck')"

    with pytest.raises(harness.FailedError, match="ended with status 1") as caught:
        here.python("-c", code)

    assert "line 98" in caught.value.last_lines
    assert "out of luck" in caught.value.last_lines
    assert "line 80" not in str(caught.value)


def test_dvc_must_run_what_is_measured(here: harness.Checkout) -> None:
    program = here.folder / "dvc"
    program.write_text("#!/bin/sh\necho \"Running stage 'stats':\"\n")
    program.chmod(0o755)
    fake = harness.Checkout(folder=here.folder, environment={"PATH": f"{here.folder}:{os.defpath}"})

    assert fake.dvc("repro", expected=["stats"]).stages == ("stats",)
    with pytest.raises(harness.FailedError, match="`dvc repro` ran stats, not none"):
        fake.dvc("repro", expected=())


def test_no_heavy_library_swells_the_parent() -> None:
    code = "import sys, benchmarks.__main__; print(*{name.split('.')[0] for name in sys.modules})"

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    heavy = {"torch", "torchvision", "mlflow", "great_expectations", "matplotlib", "pandas", "numpy", "dvc"}
    assert not heavy & set(loaded.stdout.split())


def commit_checkout(folder: Path, mirrors: list[str], small_data: SmallData) -> None:
    """A git checkout that is just enough to prepare a bench of it."""
    settings = YAML(typ="safe").load((ROOT / paths.PARAMS).read_text())
    settings["data"] = {"mirrors": mirrors}
    YAML(typ="safe").dump(settings, folder / paths.PARAMS)
    (folder / paths.DATASETS).mkdir()
    YAML(typ="safe").dump(small_data.section(), folder / paths.DATASETS / "mnist.yaml")
    for package in ("mnist", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "All"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


@pytest.fixture
def checkout(tmp_path: Path, small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the made data, which is the current folder; temporary files go beside it."""
    for variable in ("DVC_ROOT", "MNIST_MIRROR", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "checkout"
    (folder / "metrics").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(folder)
    (tmp_path / "mirror").symlink_to(small_data.mirror)
    commit_checkout(folder, ["../mirror"], small_data)
    return folder


def test_the_tutorial_runs_on_what_is_prepared(
    checkout: Path, capsys: pytest.CaptureFixture[str], small_data: SmallData
) -> None:
    (checkout / "new").touch()

    with harness.prepared() as prepared:
        first, again = prepared.tutorial(seed=1).numbers, prepared.tutorial(seed=1).numbers
        with prepared.checkout() as clone:
            (clone.folder / "made").touch()
        with prepared.checkout() as clone:
            files = sorted(path.name for path in clone.folder.iterdir())

    assert files == [".git", "benchmarks", "datasets", "mnist", "params.yaml"]
    assert list(first) == ["accuracy", "epoch_seconds", "test_seconds"]
    assert first["accuracy"] == again["accuracy"]
    assert 0 <= first["accuracy"] * len(small_data.test.labels_N) <= len(small_data.test.labels_N)
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


def test_the_tutorials_network_is_ours() -> None:
    theirs, ours = tutorial.SimpleCNN(), model.SimpleCNN(28 * 28, 6, 10)
    ours.load_state_dict(theirs.state_dict())
    x_BCHW = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    assert torch.equal(ours(x_BCHW), theirs(x_BCHW))
