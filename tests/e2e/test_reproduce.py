"""`mnist verify` and `mnist reproduce` on copies of the trained clone: what holds, and what does not."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mnist.core import files, paths
from tests.checkout import NAME, Clone, edit
from tests.e2e.conftest import Invoke

DEADLINE_SECONDS = 120


def answers(output: str) -> dict[str, str]:
    """Return the last column of the report's table by its first."""
    lines = output.partition("\nwhat ")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [re.split(r" {2,}", line) for line in lines]
    return {row[0]: row[-1] for row in rows}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def state(clone: Clone) -> dict[str, object]:
    """Return all that a run in a sandbox must leave as it is."""
    questions = (
        ["status", "--porcelain"],
        ["diff", "HEAD"],
        ["for-each-ref"],
        ["worktree", "list"],
        ["stash", "list"],
    )
    answered = {" ".join(question): clone.run("git", *question).stdout for question in questions}
    return {**answered, "runs": sorted((run.info.run_id, str(run.data.tags)) for run in clone.runs())}


def test_a_committed_result_holds_byte_for_byte(trained: Clone, temporary: Path, invoke: Invoke) -> None:
    shutil.rmtree(trained.folder / ".dvc/cache")
    (trained.folder / paths.WEIGHTS).unlink()
    before = state(trained)

    done = invoke(trained, "verify")

    assert done.exit_code == 0, done.output
    assert set(answers(done.stdout).values()) == {"equal"}
    assert {"data/mnist.safetensors", "models/model.safetensors", "metrics/test.json"} < set(
        answers(done.stdout)
    )
    assert done.stdout.splitlines()[-1].startswith("holds: ")
    assert state(trained) == before
    assert list(temporary.iterdir()) == []
    trained.dvc("checkout", "models/model.safetensors")  # the cache was filled
    assert (trained.folder / paths.WEIGHTS).is_file()


def test_other_processor_instructions_and_numbers_by_hand(
    trained: Clone, temporary: Path, invoke: Invoke
) -> None:
    """Numbers of another processor are within their tolerances; those that a person wrote are found."""
    edit(trained, "params.yaml", "epochs: 4", "epochs: 1")  # rounding grows with the number of steps
    trained.dvc("repro", "evaluate")
    committed = files.read_json(trained.folder / paths.TEST_METRICS)
    files.write_json(
        trained.folder / paths.TEST_METRICS, {**committed, "accuracy": committed["accuracy"] - 0.1}
    )
    edit(trained, "metrics/validation.json", "{", "{ ")
    # DVC believes it, and so nothing is seen without a run.
    trained.dvc("commit", "--force")
    trained.commit("Numbers by hand")

    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = invoke(trained, "verify", **other)

    assert done.exit_code == 1, done.output
    assert "  NO  " not in done.stdout
    found = answers(done.stdout)
    assert {what for what, answer in found.items() if answer.startswith("NO")} == {
        "metrics/test.json: accuracy",
        "metrics/validation.json",
    }
    assert found["data/stats.json"] == "equal"
    assert done.stdout.splitlines()[-1].startswith("does not hold: ")
    assert list(temporary.iterdir()) == []


def test_what_is_stale_or_not_committed_is_found_without_a_run(trained: Clone, invoke: Invoke) -> None:
    edit(trained, "params.yaml", "lr: 0.02", "lr: 0.05")
    done = invoke(trained, "verify")
    assert done.exit_code == 2
    assert "params.yaml" in done.stderr

    trained.commit("Another rate, and no run")
    edit(trained, "stages/download.py", '"""', 'raise SystemExit("broken")\n"""')
    trained.commit("Broken")
    done = invoke(trained, "verify")
    assert done.exit_code == 2
    assert "  NO  stage train, register: lr is 0.05, was 0.02" in done.stdout.splitlines()
    assert "`dvc repro` in a temporary checkout" in done.stderr


def test_uncommitted_edits_are_reproduced(trained: Clone, temporary: Path, invoke: Invoke) -> None:
    """A run that trained new files of code, which git does not know, on other params."""
    (trained.folder / "mnist/training/shift.bin").write_bytes(b"\x00\xff\xfe\x07")
    (trained.folder / "mnist/training/shift.py").write_text(
        "from pathlib import Path\n\nSHIFT = Path(__file__).with_suffix('.bin').read_bytes()[-1]\n"
    )
    shifted = "from mnist.training.shift import SHIFT\n\n        seed = params.seed + SHIFT\n        net = "
    edit(
        trained,
        "stages/train.py",
        "net = model.build(params, classes=classes, seed=params.seed,",
        f"{shifted}model.build(params, classes=classes, seed=seed,",
    )
    edit(trained, "params.yaml", "epochs: 4", "epochs: 2")
    assert trained.dvc("repro")[-1] == "register"
    run = trained.runs()[0]
    (trained.folder / "notes.txt").write_text("mine\n")
    edit(trained, "mnist/training/model.py", '"""', '"""Edited afterwards. ')
    before = state(trained)

    done = invoke(trained, "reproduce", run.info.run_id[:12])

    assert done.exit_code == 0, done.output
    assert run.info.run_id in done.stdout
    assert "patch       changes mnist/training/shift.py" in done.stdout
    assert "param       epochs: 4 -> 2" in done.stdout
    assert set(answers(done.stdout).values()) == {"equal"}
    assert state(trained) == before
    assert list(temporary.iterdir()) == []


def test_an_experiment_is_reproduced_by_name(trained: Clone, invoke: Invoke) -> None:
    trained.dvc("exp", "run", "--temp", "-S", "lr=0.015", "-n", "aside")
    (first,) = (run for run in trained.runs() if run.data.params["lr"] != "0.015")

    done = invoke(trained, "reproduce", "aside")
    assert done.exit_code == 0, done.output
    assert set(answers(done.stdout).values()) == {"equal"}

    # A record that contradicts itself is wrong, whatever the machine.
    trained.client.set_tag(first.info.run_id, "weights_sha256", "0" * 64)
    done = invoke(trained, "reproduce", first.info.run_id)
    assert done.exit_code == 1, done.output
    refused = {what for what, answer in answers(done.stdout).items() if answer == "NO"}
    assert "models/model.safetensors, tag of the run" in refused


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", f"models:/{NAME}@champion"),  # there is none yet
        ("nothing", f"models:/{NAME}@challenger"),
        (f"models:/{NAME}/9", f"models:/{NAME}@challenger"),
        ("it's%", "no such version, experiment or finished run"),
    ],
)
def test_what_is_not_there_is_an_error_that_lists_what_is(
    trained_module: Clone, invoke: Invoke, model: str, words: str
) -> None:
    done = invoke(trained_module, "reproduce", *filter(None, [model]))
    assert done.exit_code == 2
    assert words in done.stderr


def test_code_of_a_store_that_is_not_the_checkouts_own_is_not_run(
    trained: Clone, temporary: Path, invoke: Invoke
) -> None:
    (trained.folder / trained.store).rename(trained.folder / "other.db")
    done = invoke(trained, "reproduce", f"models:/{NAME}/1", MLFLOW_TRACKING_URI="sqlite:///other.db")
    assert done.exit_code == 2
    assert "--trust" in done.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("answer", [signal.SIGINT, signal.SIGTERM, b"\x04", b"n\n"], ids=str)
def test_without_a_yes_nothing_has_run_and_nothing_is_left(
    trained_module: Clone, tmp_path: Path, answer: signal.Signals | bytes
) -> None:
    """An interrupt, the end of the input and a no, at a terminal."""
    shutil.copyfile(trained_module.folder / trained_module.store, tmp_path / "other.db")
    (tmp_path / "temporary").mkdir()
    before, (terminal, stdin) = state(trained_module), pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "mnist", "reproduce", f"models:/{NAME}/1"],
        cwd=trained_module.folder,
        env={
            **trained_module.environment,
            "TMPDIR": str(tmp_path / "temporary"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db",
        },
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        output = b""
        while not output.endswith(b"[y/N]: "):
            output += (chunk := os.read(process.stdout.fileno(), 10_000))
            assert chunk, output
        if isinstance(answer, bytes):
            os.write(terminal, answer)
        else:
            process.send_signal(answer)
        rest, error = process.communicate(timeout=DEADLINE_SECONDS)
    os.close(terminal)
    os.close(stdin)
    assert process.returncode == (2 if answer == b"n\n" else 130)
    assert b"Traceback" not in error
    assert b"running" not in output + rest
    left = {path.name for path in (tmp_path / "temporary").iterdir()}
    assert left <= {".ses"}  # a note of onnxruntime, once a machine
    assert state(trained_module) == before


@pytest.mark.parametrize(
    ("tag", "value"), [("mlflow.source.git.commit", "f" * 40), ("mlflow.source.git.commit", "")]
)
def test_a_record_that_leads_nowhere_is_an_error(
    trained: Clone, invoke: Invoke, tag: str, value: str
) -> None:
    (run,) = trained.runs()
    trained.client.set_tag(run.info.run_id, tag, value)
    done = invoke(trained, "reproduce", f"models:/{NAME}/1")
    assert done.exit_code == 2
    assert (value or tag.rpartition(".")[2]) in done.stderr


def test_an_interrupt_leaves_nothing_behind(trained: Clone, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist", "verify"],
        cwd=trained.folder,
        env={**trained.environment, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert any("> python -m stages.download" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(temporary.iterdir()) == []
