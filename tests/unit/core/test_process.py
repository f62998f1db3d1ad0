"""How a process ends: what its user sees, and what the shell gets."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist.core import config, custody, paths, process
from mnist.core.errors import InputError
from tests.checkout import Repository

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is a new one with the repository's `params.yaml`."""
    shutil.copy(ROOT / paths.PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)  # a stage sets it for its process


def test_a_stage_ends_with_the_dvc_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    stage = """
import time
from mnist.core import process
with process.reported():
    print("started", flush=True)
    time.sleep(60)
"""
    dvc = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stage!r}])"
    with subprocess.Popen([sys.executable, "-c", dvc], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        start = time.monotonic()
        assert parent.stdout.read() == ""  # the stage has it, too, until it ends
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("error", [InputError("file", found="this", expected="that"), OSError("no space")])
@pytest.mark.parametrize("failure", [1, 2])
def test_an_error_is_one_line_and_the_exit_status_that_a_tool_chose(
    error: Exception, failure: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, process.reported(failure=failure):
        raise error

    assert caught.value.code == failure
    assert capsys.readouterr() == ("", f"ERROR: {error}\n")


def test_a_database_of_dvc_on_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), process.reported():
        raise sqlite3.OperationalError("database or disk is full")
    assert "disk is full" in capsys.readouterr().err


def test_a_named_pipe_in_the_place_of_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data/stats.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), process.reported():
        pytest.fail("the block ran")
    assert capsys.readouterr().err.startswith("ERROR: data/stats.json: found a named pipe")


@pytest.mark.parametrize(("variables", "is_first"), [({}, True), ({"TORCHELASTIC_RUN_ID": "1"}, False)])
def test_the_first_process_writes_the_receipt(
    variables: dict[str, str], is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = custody.receipt_of(Path(__file__).stem)
    pipeline = f"stages: {{{Path(__file__).stem}: {{cmd: a, outs: [{receipt}]}}}}"
    (tmp_path / "dvc.yaml").write_text(pipeline)
    for name, value in {"RANK": "1", **variables}.items():  # some schedulers set it for every process
        monkeypatch.setenv(name, value)
    process.perform(lambda params: "a machine", config.load(paths.PARAMS).only(config.Split))  # noqa: ARG005
    assert receipt.is_file() == is_first
    assert custody.machine(tmp_path) == ("a machine" if is_first else "")


SHALLOW = {
    "clone": {".git/shallow": ""},
    "worktree": {
        ".git": "gitdir: main.git/worktrees/a\n",
        "main.git/worktrees/a/commondir": "../..\n",
        "main.git/shallow": "",
    },
    "submodule": {".git": "gitdir: modules/a\n", "modules/a/shallow": ""},
}


@pytest.mark.parametrize(("tree", "is_refused"), [(".dvc/tmp/exps/one", True), (".", False)])
@pytest.mark.parametrize("kind", SHALLOW)
def test_an_experiment_that_dvc_would_lose_is_refused(
    kind: str, tree: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repository(tmp_path).write(SHALLOW[kind])
    (tmp_path / tree).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "one")
    settings = config.load(paths.PARAMS).only(config.Split)
    monkeypatch.chdir(tmp_path / tree)
    seen = []

    def run(*, params: config.Split) -> None:
        seen.append(params)

    if is_refused:
        with pytest.raises(InputError, match="git fetch --unshallow"):
            process.perform(run, settings)
    else:
        process.perform(run, settings)
    assert bool(seen) != is_refused


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_exit_status_130_without_a_traceback(
    capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def run(*, params: config.Split) -> None:
        del params
        signal.raise_signal(number)

    with pytest.raises(SystemExit) as caught:
        process.main(run, config.Split)

    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def run(*, params: config.Split) -> None:
        raise ValueError(params.seed)

    with pytest.raises(ValueError, match="0"):
        process.main(run, config.Split)


def test_a_title_that_stdout_cannot_encode_is_printed_with_marks() -> None:
    code = "from mnist.core import process\nwith process.reported(): print('\u304b\u306a')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"??\n", b"")


@pytest.mark.parametrize("stage", ["download", "validate", "stats", "train", "evaluate", "register"])
def test_a_python_without_our_libraries_is_named_in_one_line(stage: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['pydantic'] = None\n"
        f"runpy.run_module('stages.{stage}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"ERROR: {sys.executable}: found no module pydantic")
